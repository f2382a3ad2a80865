"""Sources: which files of a folder are data and of which split, and how each becomes documents."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

from pico.base.errors import PicoError
from pico.data.bins import index_of, open_bin, pair_up, split_bin
from pico.data.chat import read_chat
from pico.data.documents import Documents, collect, open_file
from pico.data.formats import BOM, COMPRESSED, DATA, TABLES, foreign, is_plain, open_content, read_head, suffix
from pico.data.storage import stamp, unchanged
from pico.data.tables import read_table

PIECE = 1 << 20  # bytes of a file held at once
RULES = 2  # by which files are read: to be raised whenever the same files give other documents
SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev", "test": "test|testing|eval|evaluation"}
WORDS = "|".join(SPLITS.values())
WORD = re.compile(rf"(?<![^-_. ])({WORDS})(?=[-_. 0-9]|$)")
BEHIND = r"[-_. ]*(part|shard|chunk|split|set|data|of|[0-9]+|[0-9a-f]{8,})"  # what stands behind the split's word
ALONE = re.compile(rf"({WORDS})({BEHIND})*")  # train, test-0, valid_set, train-00000-of-00002-4ac9b1f03d2e
METADATA = {"readme", "license", "licence", "copying", "dataset_info", "dataset_infos"}  # whole stems: about the data
CLUTTER = {"__pycache__", "node_modules"}


@dataclass
class Found:
    """The files of a folder by split ('train', 'validation', 'test'), whether all are read as they are, and what is
    left out: how many files of each kind."""

    splits: dict[str, list[Path]]
    raw: bool
    left_out: Counter = field(default_factory=Counter)


def read_files(
    files: list[Path],
    column: str | None = None,
    raw: bool = False,
    separator: str | None = None,
    log: Callable[[str], None] = lambda text: None,
    chats: Counter | None = None,
) -> Documents:
    """Documents of these files: the rows of a table, else one a file. `raw` takes any file's bytes as they are.

    separator: of the cells of a .csv file. log: is told what was found out about the tables. chats: where the rows are
    conversations, counts those that are none by what is wrong. Raises PicoError if a file cannot be read, changes
    meanwhile, is no text, or has no such column.
    """
    said: dict[str, None] = {}

    def parts(file: Path) -> Iterable:
        if raw:
            return [file]
        if index_of(file):
            return split_bin(file)
        if chats is not None:
            return read_chat(file, column, separator, said.setdefault, chats)
        if suffix(file) in TABLES:
            return read_table(file, column, separator, said.setdefault)
        return [_pieces(file)]

    try:
        indexes = [] if raw else [index for file in files if (index := index_of(file))]
        if len(files) == 1 and indexes:
            return open_bin(files[0])
        if len(files) == 1 and (raw or (suffix(files[0]) not in TABLES and is_plain(files[0]))):
            return _whole(files[0], raw)
        stamps = [stamp(file.stat()) for file in files]
        stats = [(str(file.resolve()), *was) for file, was in zip(files, stamps, strict=True)]
        stats += [(str(file.resolve()), *stamp(file.stat())) for file in indexes]
        kind = "" if chats is None else " chat"
        checked = map(unchanged, files, stamps, map(parts, files))
        documents = collect(chain.from_iterable(checked), f"{RULES} {stats} {column} {raw} {separator}{kind}")
        tables = [file for file in files if suffix(file) in TABLES and not raw]
        if tables and not said:  # the documents were collected some time before
            next(iter(parts(tables[0])), None)
    except OSError as error:
        raise PicoError(f"cannot read {error.filename or files[0]}: {error.strerror or error}") from None
    for text in said:
        log(text)
    return documents


def _pieces(file: Path) -> Iterator[bytes]:
    with open_content(file) as content:
        yield from iter(partial(content.read, PIECE), b"")


def _whole(file: Path, raw: bool) -> Documents:
    documents = open_file(file)
    if not raw and read_head(file, len(BOM)) == BOM:
        documents.starts += len(BOM)
        documents.lengths -= len(BOM)
    return documents


# --- folders ---------------------------------------------------------------------------------------------------------


def find_files(root: Path, raw: bool = False, bins: bool = False) -> Found:
    """The files of a folder.

    A folder is read as data when at least half its files are text or tables (DATA), compressed or not, or some are
    .bin files with an index beside them, and then others are left out; else (source code, say) every text file is one
    document. `raw` takes every file, `bins` no others than .bin. Splits are told by `find_splits`, all else is for
    training.
    """
    left_out: Counter[str] = Counter()
    names = []
    for path in sorted(_below(root)):
        name = path.relative_to(root)
        if path.is_symlink() and path.is_dir():
            left_out["links to folders"] += 1
        elif any(part.startswith(".") for part in name.parts):
            left_out["hidden files"] += not path.is_dir()
        elif CLUTTER & set(name.parts):
            left_out[next(iter(CLUTTER & set(name.parts)))] += not path.is_dir()
        elif path.is_file():
            names.append(name)
        elif not path.is_dir():
            left_out["broken links" if path.is_symlink() else "pipes, sockets or devices"] += 1
    saved = {"dataset_info.json", "dataset_dict.json"} & set(map(str, names))
    if not raw and saved and any(name.suffix == ".arrow" for name in names):
        raise PicoError(
            f"{root} was written by save_to_disk, as .arrow files, which are not read: write it as .parquet, with "
            f"datasets.load_from_disk({str(root)!r}) and the to_parquet of each split"
        )
    cut = set()
    if not raw:
        paired, indexes = pair_up((root / name for name in names), bins)
        cut, names = {file.relative_to(root) for file in paired}, [n for n in names if root / n not in indexes]
    metadata = {name for name in names if name.name.lower().partition(".")[0] in METADATA}
    data = [name for name in names if name in cut or (suffix(name) in DATA and name not in metadata and not bins)]
    is_data = bool(cut) or (not raw and bool(data) and 2 * len(data) >= len(names) - len(metadata))
    kept = []
    for name in names:
        if is_data and name not in data:
            left_out[name.name if name in metadata else _ending(name)] += 1
        elif not is_data and not raw and (kind := _no_code(root / name)):
            left_out[f"{_ending(name)} ({kind})"] += 1
        else:
            kept.append(name)
    told = find_splits(kept)
    if not is_data and len(told) < len(kept):  # code called test_something.py is no test split
        told = {}
    splits: dict[str, list[Path]] = {}
    for name in kept:
        splits.setdefault(told.get(name, "train"), []).append(root / name)
    return Found(splits, not is_data, +left_out)


def _below(root: Path) -> Iterator[Path]:
    """All that lies in a folder. Links to folders are not followed, they may lead in circles.

    Raises OSError for a folder that cannot be read, unless it is hidden.
    """

    def fail(error: OSError):
        if not any(part.startswith(".") for part in Path(error.filename).relative_to(root).parts):
            raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        yield from (Path(folder, name) for name in folders + files)


def find_splits(names: Iterable[Path]) -> dict[Path, str]:
    """The split of each file (its path in the dataset's folder) whose name or folder tells one.

    A word such as `valid` tells a split where it stands alone or before numbers (valid.jsonl, data/test-0.parquet,
    dev/a.txt), or where the same name with `train` is there too (wiki.test.txt, wiki.train.txt). test-drive.txt
    beside moby.txt is a book.
    """
    names = list(names)
    bare = {name: _bare(name) for name in names}
    templates = {place for path in bare.values() for place, split in _words(path) if split == "train"}
    has_train = any(split == "train" for path in bare.values() for split in [_alone(path)])
    told = {}
    for name, path in bare.items():
        split = _alone(path)
        if split is None:
            split = next((s for place, s in _words(path) if place in templates or has_train), None)
        if split is None and (end := re.search(r"[-_. ](valid|validation)$", path.name)):
            split = split_name(end[1])
        if split:
            told[name] = split
    return told


def split_name(name: str) -> str:
    """'train', 'validation' or 'test' if a word of a split's name says so (valid, test_en), else ''.

    >>> split_name("validation_matched")
    'validation'
    """
    found = WORD.search(name.lower())
    return next((split for split, words in SPLITS.items() if found and found[1] in words.split("|")), "")


def _bare(name: Path) -> PurePosixPath:
    """In lower case, without the endings of a format and a compression."""
    path = PurePosixPath(name.as_posix().lower())
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    if ALONE.fullmatch(path.suffix[1:]) or not re.fullmatch(r"\.[a-z]\w{0,8}", path.suffix):  # europarl.dev
        return path
    return path.with_suffix("")


def _alone(path: PurePosixPath) -> str | None:
    """The split if the file's own name says nothing else, or the name of a folder that it is in."""
    for part in reversed(path.parts):
        if ALONE.fullmatch(part):
            return split_name(part)
    return None


def _words(path: PurePosixPath) -> Iterable[tuple[str, str]]:
    """Each word of the path that may tell a split: the name around it, numbers left out, and the split."""
    for part in reversed(path.parts):
        for found in WORD.finditer(part):
            around = f"{part[: found.start()]}*{part[found.end() :]}"
            yield re.sub("[0-9]+", "", around), split_name(found[1])


def _no_code(path: Path) -> str | None:
    return foreign(read_head(path, 8192))


def _ending(name: Path) -> str:
    return "".join(name.suffixes[-2:] if name.suffix.lower() in COMPRESSED else name.suffixes[-1:]) or "without ending"
