"""Rows of .csv and .tsv files. Whatever the csv module cannot read for certain is refused with its file and line.

Read as Latin-1, where a character is a byte, so that any bytes survive.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pico.base.errors import PicoError
from pico.data.formats import open_content, suffix

SEPARATORS = ",;\t|"
SAMPLE = 1 << 16  # bytes looked at where the header allows several separators


class Delimited:
    """A .csv or .tsv file: the names of its columns, what stands between its cells, and its rows.

    separator: None finds it. Raises PicoError if there is no header, or the separator is not clear.
    """

    def __init__(self, file: Path, wanted: str | None = None, separator: str | None = None):
        csv.field_size_limit(2**31 - 1)
        self.file = file
        with self._open() as lines:
            sample = lines.read(SAMPLE)
        self.separator = self._separator(sample, separator)
        self.header = [_decoded(cell) for cell in next((row for _, row in self._records()), [])]
        repeated = sorted({name for name in self.header if self.header.count(name) > 1 and name in (wanted, "text")})
        if repeated:
            raise PicoError(f"{file} has several columns named '{repeated[0]}': rename all but one")
        if self.header and not ({wanted, "text"} & set(self.header)) and not _are_names(self.header):
            first = self.separator.join(self.header)
            raise PicoError(
                f"{file}, line 1: no names of columns ('{first[:40]}'): add a first line such as text, name a column "
                "of it with --dataset-column-name, or read the file as plain text with --dataset-format bytes"
            )

    def rows(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """('line 3', {column: bytes}) of each row that is not an empty line.

        Raises PicoError, with file and line, if a row has not as many cells as the header, or is quoted wrongly.
        """
        records = self._records()
        next(records, None)
        width = len(self.header)
        for line, row in records:
            if len(row) < width or any(row[width:]):
                raise PicoError(
                    f"{self.file}, line {line}: {len(row)} cells, the header has {width}: quote cells that hold "
                    f'{self.separator!r} ("..."), or give another separator with --dataset-csv-separator'
                )
            yield f"line {line}", {name: cell.encode("latin-1") for name, cell in zip(self.header, row, strict=False)}

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        with self._open() as lines:
            reader, line = csv.reader(lines, delimiter=self.separator, strict=True), 1
            try:
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
            except csv.Error as error:
                raise PicoError(
                    f"cannot read {self.file}, line {line}: {error}; quotes in a quoted cell are written twice"
                ) from None

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_content(self.file), "latin-1", newline="")

    def _separator(self, sample: str, given: str | None) -> str:
        if re.match(r"sep=.\s", sample):
            raise PicoError(f"{self.file}, line 1: '{sample[:5]}' is a mark for Excel: remove that line")
        if given:
            others = [mark for mark in SEPARATORS if mark != given and len(next(_records(sample, mark), [])) > 1]
            if others and len(next(_records(sample, given), [])) < 2:
                raise PicoError(
                    f"{self.file}, line 1: no {given!r} in it, which --dataset-csv-separator says, but {others[0]!r}"
                )
            return given
        if suffix(self.file) == ".tsv":
            return "\t"
        possible = [mark for mark in SEPARATORS if len(next(_records(sample, mark), [])) > 1]
        if len(possible) > 1:
            whole = sample[: sample.rfind("\n") + 1]
            fitting = [mark for mark in possible if len({len(row) for row in _records(whole, mark)}) == 1]
            if len(fitting) != 1:
                raise PicoError(
                    f"{self.file}: its cells may be separated by {' or '.join(map(repr, possible))}: "
                    "choose with --dataset-csv-separator"
                )
            possible = fitting
        return possible[0] if possible else ","


def is_number(cell: bytes) -> bool:
    try:
        return float(cell) is not None
    except ValueError:
        return False


def _decoded(cell: str) -> str:
    return cell.encode("latin-1").decode(errors="replace")


def _records(sample: str, separator: str) -> Iterator[list[str]]:
    """The rows of the start of a file, cut so; the last may be half."""
    with suppress(csv.Error):
        yield from filter(None, csv.reader(io.StringIO(sample, newline=""), delimiter=separator))


def _are_names(cells: list[str]) -> bool:
    """Whether a row could be names of columns: short, without marks of a sentence, no numbers."""
    return any(cells) and not any(
        len(cell) > 40 or len(cell.split()) > 4 or re.search(r"[.!?,;](\s|$)", cell) or is_number(cell.encode())
        for cell in cells
    )
