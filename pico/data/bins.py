"""Documents of any bytes: X.bin holds them end to end, and X.json beside it says where each one ends.

    {"what": "28 x 28 gray", "documents": [[784, "seven"], [784, "two"]]}

Of each document X.json has its length in bytes and a label, which is not read.
"""

import re
from collections.abc import Iterable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from pico.base.errors import PicoError
from pico.base.files import LIMIT, read_json
from pico.data.documents import Documents, open_file
from pico.data.formats import BOM, read_head

KEY = re.compile(rb'\s*\{.*"documents"\s*:', re.DOTALL)  # of an index, whatever is wrong with it
INDEX = re.compile(rb'"documents"\s*:\s*\[\s*\[\s*\d')  # of one that is right
INDEX_HEAD = 1 << 16  # bytes of a .json file in which such a one shows itself
EXPECTED = 'expected {"documents": [[length, label], ...]}'


def is_index(file: Path) -> bool:
    """Of a .json file without a .bin file beside it the rows tell, of others the key alone."""
    if file.suffix != ".json" or not file.is_file():
        return False
    if file.with_suffix(".bin").is_file():
        return bool(KEY.match(read_head(file, LIMIT).removeprefix(BOM)))
    return bool(INDEX.search(read_head(file, INDEX_HEAD)))


def index_of(file: Path) -> Path | None:
    """The X.json of an X.bin, where it is one that says where documents end."""
    index = file.with_suffix(".json")
    return index if file.suffix == ".bin" and is_index(index) else None


def pair_up(files: Iterable[Path], required: bool = False) -> tuple[set[Path], set[Path]]:
    """(the .bin files with an index beside them, those indexes). Raises PicoError for one without the other.

    required: every .bin file must have one; else this holds where any has.
    """
    files = list(files)
    indexes = {file for file in files if is_index(file)}
    bins = {file for file in files if file.suffix == ".bin"}
    if required and not bins:
        raise PicoError("--dataset-format bin: there is no .bin file; leave it out, and files are read by their names")
    for index in sorted(indexes):
        if not index.with_suffix(".bin").is_file():
            raise PicoError(f"{index} says where documents end in {index.stem}.bin, which is not beside it")
    for file in sorted(bins if required or indexes else ()):
        if not index_of(file):
            raise PicoError(f"{file} has no {file.stem}.json beside it that says where documents end: {EXPECTED}")
    return (bins if indexes else set()), indexes


def open_bin(file: Path) -> Documents:
    """The documents of an X.bin, read where they lie. Raises PicoError where X.json does not fit it."""
    whole, lengths = open_file(file), bin_lengths(file)
    return Documents(whole.buffer, np.cumsum(lengths) - lengths, np.array(lengths))


def split_bin(file: Path) -> Iterable[bytes]:
    """The same documents, one by one."""
    documents = open_bin(file)
    return (documents.buffer[start:end] for start, end in pairwise(accumulate(bin_lengths(file), initial=0)))


def bin_lengths(file: Path) -> list[int]:
    index, size = file.with_suffix(".json"), file.stat().st_size
    rows, lengths = read_json(index).get("documents"), []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        if not (isinstance(row, list) and row and type(row[0]) is int and row[0] >= 0):
            raise PicoError(f"{index}: document {number} is {row!r:.40}: {EXPECTED}")
        lengths.append(row[0])
    if sum(lengths) != size:
        raise PicoError(f"{index}: {len(lengths):,} lengths add up to {sum(lengths):,} bytes, {file.name} has {size:,}")
    return lengths
