"""Rows of .jsonl, .ndjson, .json, .csv, .tsv and .parquet files, and the choice of the column that holds the text."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from pico.base.errors import PicoError
from pico.data.delimited import Delimited, is_number
from pico.data.formats import compression, open_content, read_head, suffix

HEAD = 100  # rows looked at to learn the columns of a file that does not declare them
LISTED = 12  # columns named in an error
PATIENCE = 10_000  # rows in which a column must turn up that was asked for by name
LINE = 1 << 24  # bytes of a .json file's first line looked at to see whether it is JSON lines


def read_table(
    file: Path, wanted: str | None = None, separator: str | None = None, log: Callable = lambda text: None
) -> Iterator[bytes]:
    """The documents of a file, one a row (b'' where a row has none).

    wanted: the column; a dotted path (meta.text) leads into a struct. separator: of the cells of a .csv file, None
    finds it. log: is told which column was chosen. Raises PicoError if the file is broken, or has no such column, or
    the column holds anything but text or bytes, or has another name from some row on.
    """
    if suffix(file) == ".parquet":
        yield from _read_parquet(file, wanted, log)
        return
    if suffix(file) in (".csv", ".tsv"):
        table = Delimited(file, wanted, separator)
        rows, kinds = table.rows, dict.fromkeys(table.header, "nothing")
        if table.separator not in ",\t":
            log(f"cells separated by {table.separator!r}")
        if wanted is not None and kinds:
            choose_column(kinds, wanted, file)
        kinds = infer_columns(({k: _typed(v) for k, v in row.items()} for _, row in rows()), wanted, kinds)
    else:
        rows = _json_rows(file)
        kinds = infer_columns((row for _, row in rows()), wanted)
    if not kinds:
        return
    column = choose_column(kinds, wanted, file)
    log(column_note(column, kinds, wanted))
    beside: set[str] = set()  # columns of the rows that have the column
    instead: dict[str, str] = {}  # text column of a row that does not have it -> the first such row
    for place, row in rows():
        if column in row or "." in column:
            beside.update(row)
        else:
            instead = {name: place for name, value in row.items() if isinstance(value, str)} | instead
        yield as_bytes(cell(row, column), column, f"{file}, {place}")
    if renamed := next((name for name in instead if name not in beside), None):
        raise PicoError(
            f"{file}, {instead[renamed]}: column '{renamed}' instead of '{column}': give the text one name in all rows"
        )


def read_rows(file: Path, separator: str | None = None) -> tuple[list[str], Callable[[list[str]], Iterator[dict]]]:
    """(the columns of a file, a function that reads some of them of every row; a row may not have them all)."""
    if suffix(file) == ".parquet":
        with _opened_parquet(file) as table:
            return table.schema_arrow.names, partial(_parquet_rows, file)
    if suffix(file) in (".csv", ".tsv"):
        table = Delimited(file, None, separator)
        return table.header, lambda _: (row for _, row in table.rows())
    rows = _json_rows(file)
    names = dict.fromkeys(name for _, row in islice(rows(), HEAD) for name in row)
    return list(names), lambda _: (row for _, row in rows())


def infer_columns(rows: Iterable[dict], wanted: str | None, known: dict[str, str] | None = None) -> dict[str, str]:
    """Column -> 'text', 'bytes', 'nothing' or another type, from the first rows.

    They are at least HEAD, and as many as it takes to see a value in the column that is to be read.
    """
    kinds, rows = dict(known or {}), iter(rows)
    for number, row in enumerate(rows, 1):
        for name, kind in _kinds(row):
            if kind in ("text", "bytes") or kinds.get(name, "nothing") == "nothing":
                kinds[name] = kind
        if number >= HEAD and _decided(kinds, wanted, number):
            break
    return kinds


def _decided(kinds: dict[str, str], wanted: str | None, number: int) -> bool:
    name = wanted or ("text" if "text" in kinds else None)
    if name in kinds:
        return kinds[name] != "nothing"
    return number >= PATIENCE if wanted else bool({"text", "bytes"} & set(kinds.values()))


def choose_column(kinds: dict[str, str], wanted: str | None, source) -> str:
    """The column to read: the wanted one, else `text`, else the only one that holds text or bytes.

    kinds: column -> 'text', 'bytes', 'nothing' or the name of another type. Raises PicoError when none can be chosen.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:LISTED]) or "no columns at all"
    if len(kinds) > LISTED:
        listed += f" and {len(kinds) - LISTED} more"
    usable = [name for name, kind in kinds.items() if kind in ("text", "bytes")]
    if wanted is not None and wanted not in kinds:
        raise PicoError(f"no column '{wanted}' in {source}, it has {listed}: choose one with --dataset-column-name")
    name = wanted or ("text" if "text" in kinds else None)
    if name is None and len(usable) == 1:
        name = usable[0]
    if name is None and usable:
        raise PicoError(
            f"several columns of {source} could be the text, it has {listed}: choose with --dataset-column-name"
        )
    if name is None:
        raise PicoError(f"no column of {source} holds text, it has {listed}: write the text into a column named text")
    if name not in usable and kinds[name] != "nothing":
        raise PicoError(f"column '{name}' of {source} holds {kinds[name]}, expected text or bytes: it has {listed}")
    return name


def column_note(column: str, kinds: dict[str, str], wanted: str | None) -> str:
    """ "column 'body'", and beside which nested ones it was taken for being the only one with text."""
    nested = [name for name, kind in kinds.items() if kind.lower().startswith("list") and wanted is None]
    beside = f", the only one with text; not read: {', '.join(nested)}" if nested and column != "text" else ""
    return f"column '{column}'{beside}"


def cell(row: dict, column: str):
    """The value of a column, None where there is none; a.b means b in a, unless a column is called so."""
    if column in row:
        return row[column]
    value = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def as_bytes(value, column: str, place) -> bytes:
    """A cell as bytes, None as b''. Raises PicoError if it is neither text nor bytes."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if value is None or isinstance(value, bytes):
        return value or b""
    raise PicoError(f"{place}: column '{column}' holds {type(value).__name__}, expected text or bytes")


def _kinds(row: dict, above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _kinds(value, f"{above}{name}.")
        else:
            kind = type(value).__name__
            yield above + name, {"str": "text", "NoneType": "nothing"}.get(kind, kind)


def _typed(value: bytes):
    """What a cell of a .csv file seems to be: a column of nothing but numbers is no text, though it cannot say so."""
    return None if not value else 0.0 if is_number(value) else ""


# --- parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(file: Path, wanted: str | None, log: Callable) -> Iterator[bytes]:
    from pyarrow import compute

    with _opened_parquet(file) as table:
        kinds = dict(_arrow_kinds(table.schema_arrow))
        column = choose_column(kinds, wanted, file)
        log(column_note(column, kinds, wanted))
        path = [column] if column in table.schema_arrow.names else column.split(".")
        for batch in table.iter_batches(1024, columns=[column]):
            values = batch.column(path[0])
            if path[1:]:
                place = compute.StructFieldOptions(path[1:])
                values = compute.call_function("struct_field", [values], place)
            for value in values.to_pylist():
                yield as_bytes(value, column, file)


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[dict]:
    with _opened_parquet(file) as table:
        for batch in table.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


@contextmanager
def _opened_parquet(file: Path):
    """A ParquetFile, unpacked if it is compressed as a whole. Raises PicoError for what cannot be read of it."""
    import pyarrow
    from pyarrow import parquet

    try:
        with tempfile.SpooledTemporaryFile(1 << 26) as unpacked:
            source = file
            if compression(read_head(file)):  # parquet is read from its end
                with open_content(file, "parquet") as content:
                    shutil.copyfileobj(content, unpacked, 1 << 20)
                unpacked.seek(0)
                source = unpacked
            with parquet.ParquetFile(source) as table:
                yield table
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise PicoError(f"cannot read {file}: {str(error).splitlines()[0]}") from None


def _arrow_kinds(fields, above: str = "") -> Iterator[tuple[str, str]]:
    from pyarrow import types

    for field in fields:
        if types.is_struct(field.type):
            yield from _arrow_kinds(field.type, f"{above}{field.name}.")
        else:
            yield above + field.name, arrow_kind(field.type)


def arrow_kind(arrow_type) -> str:
    """'text', 'bytes' or the type's own name; of a dictionary (a category), that of its values."""
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if types.is_null(arrow_type):
        return "nothing"
    name = str(arrow_type)
    if name.removeprefix("large_").removesuffix("_view") == "string":
        return "text"
    return "bytes" if "binary" in name and "<" not in name else name


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json_rows(file: Path) -> Callable[[], Iterator[tuple[str, dict]]]:
    """A function that reads ('line 3', row) from the start.

    A .json file may be a list of rows, {"data": rows}, {column: values}, one row, or lines.
    """
    if suffix(file) != ".json" or _looks_like_lines(file):
        return lambda: _json_lines(file)
    with open_content(file) as content:
        content = content.read()
    content = _parse(content, str(file)) if content.strip() else []
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
            content = lists[0]
        elif lists and len(lists) == len(content):
            if len({len(values) for values in lists}) > 1:
                sizes = ", ".join(f"{name} {len(values)}" for name, values in content.items())
                raise PicoError(f"{file}: columns of different length ({sizes}): expected one value a row in each")
            content = [dict(zip(content, row, strict=True)) for row in zip(*lists, strict=True)]
    content = content if isinstance(content, list) else [content]
    return lambda: ((f"row {number}", _row(row)) for number, row in enumerate(content, 1))


def _json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    with open_content(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _row(_parse(line, f"{file}, line {number}", "; expected one value a line"))


def _row(value) -> dict:
    return value if isinstance(value, dict) else {"text": value}


def _looks_like_lines(file: Path) -> bool:
    """Whether a .json file is really JSON lines: its first line is a whole object, and not the last one."""
    with open_content(file) as lines:
        try:
            return isinstance(json.loads(lines.readline(LINE)), dict) and lines.readline(LINE).strip() != b""
        except (ValueError, RecursionError):
            return False


def _parse(text: bytes, place: str, expected: str = ""):
    try:
        return json.loads(text)
    except RecursionError:
        reason = "nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno}" if error.lineno > 1 else error.msg
    except ValueError as error:  # bytes that are no text, a number of thousands of digits
        reason = str(error).partition(";")[0]
    raise PicoError(f"cannot read {place}: not valid JSON ({reason}){expected}")
