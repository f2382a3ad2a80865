"""Rows of .jsonl, .json, .csv and .parquet files, and the choice of the column that holds the text."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from pico.config import PicoError

TABLES = {".jsonl", ".json", ".csv", ".parquet"}
HEAD = 100  # rows looked at to learn the columns of a file that does not declare them


def read_table(file: Path, wanted: str | None) -> Iterator[bytes]:
    """The documents of a file, one a row (b'' where a row has none).

    Raises PicoError if the file is broken, or has no such column, or the column holds anything but text or bytes.
    """
    if file.suffix.lower() == ".parquet":
        yield from _read_parquet(file, wanted)
        return
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file)
    head = list(islice(rows, HEAD))
    if head:
        kinds = row_kinds(row for _, row in head)
        column = choose_column(_csv_kinds(kinds, head) if file.suffix.lower() == ".csv" else kinds, wanted, file)
        for place, row in chain(head, rows):
            yield as_bytes(row.get(column), column, f"{file}, {place}")


def choose_column(kinds: dict[str, str], wanted: str | None, source) -> str:
    """The column to read: the wanted one, else `text`, else the only one that holds text or bytes.

    kinds: column -> 'text', 'bytes' or the name of another type. Raises PicoError when none can be chosen.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no columns at all"
    usable = [name for name, kind in kinds.items() if kind in ("text", "bytes")]
    if wanted is not None and wanted not in kinds:
        raise PicoError(f"no column '{wanted}' in {source}, it has {listed}: choose one with --dataset-column-name")
    name = wanted or ("text" if "text" in kinds else None)
    if name is None and len(usable) == 1:
        name = usable[0]
    if name is None:
        which = "several columns" if usable else "no column"
        raise PicoError(f"{which} of {source} could be the text, it has {listed}: choose with --dataset-column-name")
    if name not in usable:
        raise PicoError(f"column '{name}' of {source} holds {kinds[name]}, expected text or bytes: it has {listed}")
    return name


def row_kinds(rows: Iterable[dict]) -> dict[str, str]:
    """Column -> kind, from a few rows."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if kinds.setdefault(name, "nothing") == "nothing" and value is not None:
                kinds[name] = {str: "text", bytes: "bytes"}.get(type(value), type(value).__name__)
    return kinds


def as_bytes(value, column: str, place) -> bytes:
    """A cell as bytes, None as b''. Raises PicoError if it is neither text nor bytes."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if value is None or isinstance(value, bytes):
        return value or b""
    raise PicoError(f"{place}: column '{column}' holds {type(value).__name__}, expected text or bytes")


def _read_parquet(file: Path, wanted: str | None) -> Iterator[bytes]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            column = choose_column({f.name: arrow_kind(f.type) for f in table.schema_arrow}, wanted, file)
            for batch in table.iter_batches(1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield as_bytes(value, column, file)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise PicoError(f"cannot read {file}: {str(error).splitlines()[0]}") from None


def arrow_kind(arrow_type) -> str:
    """'text', 'bytes' or the type's own name."""
    name = str(arrow_type)
    if name.removeprefix("large_").removesuffix("_view") == "string":
        return "text"
    return "bytes" if "binary" in name and "<" not in name else name


def _json_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """('line 3', row). A .json file may be a list of rows, {"data": rows}, {column: values}, one row, or lines."""
    if file.suffix.lower() == ".jsonl" or _looks_like_lines(file):
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number}", _row(_parse(line, f"{file}, line {number}"))
        return
    content = _parse(file.read_bytes(), str(file)) if file.stat().st_size else []
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
            content = lists[0]
        elif lists and len(lists) == len(content):
            content = [dict(zip(content, row, strict=False)) for row in zip(*lists, strict=False)]
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        yield f"row {number}", _row(row)


def _row(value) -> dict:
    return value if isinstance(value, dict) else {"text": value}


def _looks_like_lines(file: Path) -> bool:
    """Whether a .json file is really JSON lines: its first line is a whole object, and not the last one."""
    with open(file, "rb") as lines:
        try:
            return isinstance(json.loads(lines.readline(1 << 24)), dict) and lines.readline(1 << 24).strip() != b""
        except ValueError:
            return False


def _parse(text: bytes, place: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PicoError(f"cannot read {place}: not valid JSON ({getattr(error, 'msg', error)})") from None


def _csv_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """('line 3', {column: bytes}). Read as Latin-1, where a character is a byte, so that any bytes survive."""
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="latin-1", newline="") as lines:
        reader = csv.reader(lines)
        try:
            header = [name.encode("latin-1").decode("utf-8-sig", "replace") for name in next(reader, [])]
            for row in reader:
                yield f"line {reader.line_num}", dict(zip(header, (v.encode("latin-1") for v in row), strict=False))
        except csv.Error as error:
            raise PicoError(f"cannot read {file}, line {reader.line_num}: {error}") from None


def _csv_kinds(kinds: dict[str, str], head: list[tuple[str, dict]]) -> dict[str, str]:
    """A column of nothing but numbers is no text, though a .csv file cannot say so."""

    def number(value) -> bool:
        try:
            return not value or float(value) is not None
        except ValueError:
            return False

    return {name: "numbers" if all(number(row.get(name)) for _, row in head) else "text" for name in kinds}
