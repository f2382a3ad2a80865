"""Rows of every table format become the same documents; what cannot is refused with its place."""

import json
import os

import pytest
from helpers import write, write_parquet

from pico import storage
from pico.config import PicoError
from pico.sources import read_files
from pico.tables import choose_column

TEXTS = ["plain", 'quoted "text", with commas', "two\nlines", "größer 🙂 日本", "tab\tand \\ slash"]
BYTES = [text.encode() for text in TEXTS]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PICO_CACHE", str(folder))
    return folder


def table_files(folder):
    import csv

    yield write(folder / "a.jsonl", "\n\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(TEXTS)))
    yield write(folder / "list.json", json.dumps([{"id": 1, "text": text} for text in TEXTS], indent=1))
    yield write(folder / "strings.json", json.dumps(TEXTS))
    yield write(folder / "nested.json", json.dumps({"version": 2, "data": [{"text": text} for text in TEXTS]}))
    yield write(folder / "columns.json", json.dumps({"id": [1] * len(TEXTS), "text": TEXTS}))
    yield write(folder / "lines.json", "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS))
    with open(folder / "a.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("text", "id"), *((text, i) for i, text in enumerate(TEXTS))])
    yield folder / "a.csv"
    yield write_parquet(folder / "a.parquet", text=TEXTS, id=list(range(len(TEXTS))))
    yield write_parquet(folder / "bytes.parquet", id=list(range(len(TEXTS))), content=BYTES)


def test_every_table_gives_the_same_documents(tmp_path):
    for file in table_files(tmp_path):
        assert list(read_files([file])) == BYTES, file


def test_tables_as_raw_bytes(tmp_path):
    for file in table_files(tmp_path):
        assert list(read_files([file], raw=True)) == [file.read_bytes()]


def test_several_files_of_all_kinds(tmp_path):
    table, text = (
        write(tmp_path / "a.jsonl", '{"text": "row"}\n{"text": null}\n{}'),
        write(tmp_path / "b.txt", "file\n"),
    )
    assert list(read_files([table, text, write(tmp_path / "c.txt", "")])) == [b"row", b"file\n"]


def test_any_bytes_survive_in_csv_and_parquet(tmp_path):
    data = bytes(range(1, 34)) + bytes(range(35, 256))
    assert list(read_files([write(tmp_path / "a.csv", b'text\n"' + data + b'"\n')])) == [data]
    assert list(read_files([write_parquet(tmp_path / "a.parquet", blob=[data])])) == [data]


def test_changed_file_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SMALL", 1)
    file = write(tmp_path / "a.jsonl", '{"text": "before"}')
    assert list(read_files([file])) == [b"before"]
    write(file, '{"text": "behind"}')
    os.utime(file, (1, 1))
    assert list(read_files([file])) == [b"behind"]


def test_column_rules():
    kinds = {"id": "int64", "text": "text", "title": "text", "blob": "bytes"}
    assert choose_column(kinds, None, "x") == "text"
    assert choose_column(kinds, "title", "x") == "title"
    assert choose_column(kinds, "blob", "x") == "blob"
    assert choose_column({"id": "int64", "story": "text"}, None, "x") == "story"
    assert choose_column({"id": "int64", "story": "bytes"}, None, "x") == "story"
    for columns, wanted, message in [
        (kinds, "body", r"no column 'body' in x, it has id \(int64\), text \(text\), title"),
        (kinds, "id", r"column 'id' of x holds int64, expected text or bytes"),
        ({"text": "int64", "b": "text"}, None, r"column 'text' of x holds int64"),
        ({"a": "text", "b": "text"}, None, r"several columns of x could be the text, it has a \(text\), b"),
        ({"a": "int64"}, None, r"no column of x could be the text, it has a \(int64\): .*--dataset-column-name"),
    ]:
        with pytest.raises(PicoError, match=message):
            choose_column(columns, wanted, "x")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_column_errors_of_every_format(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        write_parquet(file, n=[1, 2], a=["x", "y"], b=["x", "y"])
    elif suffix == "csv":
        write(file, "n,a,b\n1,x,y\n2,x,y\n")
    else:
        rows = [{"n": 1, "a": "x", "b": "y"}] * 2
        write(file, json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    assert list(read_files([file], "a")) == [b"x", b"x"] or suffix == "parquet"
    for column, message in [("text", "no column 'text'"), ("n", "column 'n' .* holds"), (None, "several columns")]:
        with pytest.raises(PicoError, match=message):
            read_files([file], column)


def test_wrong_type_far_down_is_named(tmp_path):
    lines = ['{"text": "x"}'] * 150 + ['{"text": [1]}']
    with pytest.raises(PicoError, match=r"a.jsonl, line 151: column 'text' holds list"):
        read_files([write(tmp_path / "a.jsonl", "\n".join(lines))])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', r"a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}', r"a.jsonl, line 1: not valid JSON"),
        ("a.json", "[1, 2", r"a.json: not valid JSON"),
        ("a.parquet", b"PAR1 this is not a table", r"cannot read .*a.parquet: "),
        ("a.parquet", b"", r"cannot read .*a.parquet: "),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    with pytest.raises(PicoError, match=message) as error:
        read_files([write(tmp_path / name, data)])
    assert "\n" not in str(error.value)


def test_unreadable_file(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "secret")
    if os.geteuid() == 0:  # root may read everything

        def refuse(path, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refuse)
    else:
        file.chmod(0)
    with pytest.raises(PicoError, match=r"cannot read .*a.txt: Permission denied"):
        read_files([file])
