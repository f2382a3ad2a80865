"""Files: which of a folder are data and of which split, and how each becomes documents."""

import re
from itertools import chain
from pathlib import Path

from pico.config import PicoError
from pico.documents import Documents, collect, open_file
from pico.storage import stamp, unchanged
from pico.tables import TABLES, read_table

CLUTTER = {"__pycache__", "node_modules"}
SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}


def read_files(files: list[Path], column: str | None = None, raw: bool = False) -> Documents:
    """Documents of these files: the rows of a table, else one a file. `raw` takes tables as plain bytes, too.

    Raises PicoError if a file cannot be read, changes meanwhile, or has no such column.
    """
    try:
        if len(files) == 1 and (raw or files[0].suffix.lower() not in TABLES):
            return open_file(files[0])
        stamps = [stamp(file.stat()) for file in files]
        stats = [(str(file.resolve()), *was) for file, was in zip(files, stamps, strict=True)]
        parts = ([file] if raw or file.suffix.lower() not in TABLES else read_table(file, column) for file in files)
        return collect(chain.from_iterable(map(unchanged, files, stamps, parts)), key=f"{stats} {column} {raw}")
    except OSError as error:
        raise PicoError(f"cannot read {error.filename or files[0]}: {error.strerror or error}") from None


def find_files(root: Path, raw: bool = False) -> tuple[dict[str, list[Path]], bool]:
    """The files of a folder by split ('train', 'validation', 'test'), and whether all are to be read as raw text.

    A folder is read as data when at least half its files are .txt .jsonl .json .csv .parquet, and then others are
    ignored; else (source code, say) every text file is one document. Names like valid.jsonl or data/test-0.parquet
    tell the split of a data file, all else is for training.
    """
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    names = [n for n in names if not any(part.startswith(".") or part in CLUTTER for part in n.parts)]
    data = [name for name in names if name.suffix.lower() in TABLES | {".txt"}]
    talk = [name for name in names if re.match("readme|licen[cs]e|copying", name.name.lower())]
    if not raw and data and 2 * len(data) >= len(set(names) - set(talk)):
        names = [name for name in data if name not in talk]
    else:
        names = names if raw else [name for name in names if b"\0" not in _head(root / name)]
        raw = True
    splits: dict[str, list[Path]] = {}
    for name in names:
        splits.setdefault(split_name(name.as_posix()), []).append(root / name)
    if raw and "" in splits:  # code called test_something.py is no test split
        splits = {"train": [root / name for name in names]}
    elif "" in splits:
        splits["train"] = sorted(splits.get("train", []) + splits.pop(""))
    return splits, raw


def split_name(path: str) -> str:
    """'train', 'validation' or 'test' if a word of the path says so, else ''.

    >>> split_name("data/valid-00000-of-00001.parquet")
    'validation'
    """
    for split, words in SPLIT_WORDS.items():
        if re.search(rf"(^|[-_./])({words})([-_./0-9]|$)", path.lower()):
            return split
    return ""


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8192)
