"""Reduce uv.lock to names and versions, so that no download address enters the repository.

Refresh the lock: `uv lock --upgrade && python scripts/reduce_lock.py`. uv resolves addresses and hashes from the
user's own index on the first `uv sync` and completes the file locally; that completed file is never committed.
"""

import tomllib
from pathlib import Path

LOCK = Path(__file__).parent.parent / "uv.lock"


def reduce(text: str) -> str:
    """The lock file's text with only what pins the versions. Raises KeyError if it is no uv lock file."""
    lock = tomllib.loads(text)
    lines = [f"{key} = {lock[key]!r}".replace("'", '"') for key in ("version", "revision", "requires-python")]
    others = [package for package in lock["package"] if "virtual" not in package["source"]]  # not the project itself
    for package in sorted(others, key=lambda p: (p["name"], p["version"])):
        lines += ["", "[[package]]", f'name = "{package["name"]}"', f'version = "{package["version"]}"']
        lines += ['source = { registry = "." }']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    LOCK.write_text(reduce(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
