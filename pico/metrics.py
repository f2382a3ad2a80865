"""metrics.jsonl, a line a logged step: read, and cut back where a run is resumed."""

import json
from pathlib import Path


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a metrics.jsonl; a line cut short by a crash is passed over."""
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def truncate_metrics(folder: Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to a step: what came after it will be trained, and logged, again."""
    file, beside = folder / "metrics.jsonl", folder / ".metrics.tmp"
    if file.exists():
        lines = [line for line in read_metrics(file) if line["step"] <= step]
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        beside.replace(file)
