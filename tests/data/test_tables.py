"""Rows of every table format become the same documents; what cannot is refused with its place."""

import json
import os

import pytest
from helpers import write, write_parquet

from pico.base.errors import PicoError
from pico.data import storage
from pico.data.sources import read_files
from pico.data.tables import choose_column

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
    yield write(folder / "a.ndjson", "\n".join(json.dumps(text) for text in TEXTS))
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
        ({"a": "int64"}, None, r"no column of x holds text, it has a \(int64\): write the text into a column named"),
        (dict.fromkeys("abcdefghijklmnop", "text"), None, r"several columns .* l \(text\) and 4 more: choose"),
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
        ("a.json", '[\n"a"\n"b"]', r"a.json: not valid JSON \(Expecting ',' delimiter, line 3\)"),
        ("a.jsonl", '{\n"text": "x"\n}', r"a.jsonl, line 1: not valid JSON .*; expected one value a line"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl, line 1: not valid JSON \(nested too deeply\)"),
        ("a.csv", "sep=;\nid;text\n1;x\n", r"a.csv, line 1: 'sep=;' is a mark for Excel: remove that line"),
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


# --- .csv and .tsv ---------------------------------------------------------------------------------------------------


def csv_file(folder, *lines, name="a.csv"):
    return write(folder / name, "".join(f"{line}\n" for line in lines))


def refused(file, message, **settings):
    with pytest.raises(PicoError, match=message) as error:
        read_files([file], **settings)
    assert "\n" not in str(error.value)


def test_rows_of_another_width_are_refused_with_their_line(tmp_path):
    rows = ["text,id", "fine,1", "hello, this is, a text,2"]
    refused(csv_file(tmp_path, *rows), r"a.csv, line 3: 4 cells, the header has 2: quote .*--dataset-csv-separator")
    refused(csv_file(tmp_path, "text,id", '"two\nlines",1', "alone"), r"a.csv, line 4: 1 cells, the header has 2")
    refused(csv_file(tmp_path, "text", "hello, world"), r"a.csv, line 2: 2 cells, the header has 1")
    refused(csv_file(tmp_path, "text\tid", "a\tb\tc", name="a.tsv"), r"a.tsv, line 2: 3 cells, the header has 2")
    assert list(read_files([csv_file(tmp_path, "text,id", "fine,1,", "", "too,2")])) == [b"fine", b"too"]


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_separators_are_found(tmp_path, separator):
    story = '"It was happy, and; the dog | came\tby."'
    file = csv_file(tmp_path, f"id{separator}text", *(f"{i}{separator}{story}" for i in range(5)))
    said = []
    assert list(read_files([file], log=said.append)) == [story.strip('"').encode()] * 5
    assert said[-1] == "column 'text'" and (separator in ",\t" or said[0] == f"cells separated by {separator!r}")
    assert list(read_files([file], separator=separator)) == [story.strip('"').encode()] * 5


def test_unclear_separator_is_asked_for(tmp_path):
    file = csv_file(tmp_path, "id;text,more", "1;a,b", "2;c,d")
    refused(file, "may be separated by ',' or ';': choose with --dataset-csv-separator", column="text")
    assert list(read_files([file], "text,more", separator=";")) == [b"a,b", b"c,d"]
    refused(
        csv_file(tmp_path, "text;id", "a;1"), "a.csv, line 1: no ',' in it, .* but ';'", column="text", separator=","
    )


def test_a_table_without_header_is_refused(tmp_path):
    for first in ('"first row is no header"', "It rained.", "17,The cat sat on the mat with the dog", "1,2"):
        refused(csv_file(tmp_path, first, first), "a.csv, line 1: no names of columns .*--dataset-column-name")
    file = csv_file(tmp_path, "What do you think of it all?", "much")
    assert list(read_files([file], "What do you think of it all?")) == [b"much"]
    refused(csv_file(tmp_path, "text,text", "a,b"), "several columns named 'text'")


def test_wrong_quotes_are_refused_with_their_line(tmp_path):
    refused(csv_file(tmp_path, "text,id", "a,1", '"never closed,2', "b,3"), "a.csv, line 3: unexpected end of data")
    refused(csv_file(tmp_path, "text,id", '"he said \\"no\\", then",2'), "a.csv, line 2: .*quotes .* written twice")


def test_columns_are_told_from_their_first_values_however_late(tmp_path):
    empty = 500
    lines = ["id,text", *(f"{i}," for i in range(empty)), "1,late"]
    assert list(read_files([csv_file(tmp_path, *lines)])) == [b"late"]
    assert list(read_files([csv_file(tmp_path, *(line.replace("text", "b") for line in lines))])) == [b"late"]
    for start in ({"text": None, "n": 1}, {"n": 1}, {}):
        rows = [json.dumps(start)] * empty + ['{"text": "late"}']
        assert list(read_files([write(tmp_path / "a.jsonl", "\n".join(rows))])) == [b"late"]
        assert list(read_files([tmp_path / "a.jsonl"], "text")) == [b"late"]
    assert read_files([tmp_path / "a.jsonl"], "text").empty == empty


def test_a_column_that_changes_its_name_is_an_error(tmp_path):
    for half in (5, 300):
        rows = ['{"id": "x", "text": "old"}'] * half + ['{"id": "x", "content": "new"}'] * half
        for lines in rows, rows[::-1]:
            place = half + 1 if lines is rows else 1
            file = write(tmp_path / "a.ndjson", "\n".join(lines))
            for column in None, "text":
                message = rf"a.ndjson, line {place}: column 'content' instead of 'text'"
                refused(
                    file,
                    "several columns" if column is None and lines is not rows and half > 5 else message,
                    column=column,
                )
    rows = ['{"id": "no text"}', '{"id": "x", "text": "old"}', '{"id": "none"}', "{}", '{"text": null}']
    documents = read_files([write(tmp_path / "b.jsonl", "\n".join(rows))])
    assert list(documents) == [b"old"] and documents.empty == 4


def test_columns_of_different_length(tmp_path):
    refused(
        write(tmp_path / "a.json", '{"text": ["a", "b"], "id": [1]}'), r"a.json: columns of different length \(text 2"
    )


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_a_given_separator_that_the_header_has_not(tmp_path):
    file = write(tmp_path / "a.csv", "text;id\none;1\n")
    with pytest.raises(PicoError, match=r"a.csv, line 1: no '\|' in it, which --dataset-csv-separator says, but ';'"):
        read_files([file], separator="|")
    alone = write(tmp_path / "b.csv", "text\none\n")
    assert list(read_files([file, alone], separator=";")) == [b"one", b"one"]


def test_lists_beside_the_only_text_are_named(tmp_path):
    rows = {"source": ["web", "book"], "messages": [["hello"], ["good night"]]}
    lines = "\n".join(json.dumps(dict(zip(rows, row))) for row in zip(*rows.values()))
    for file in write_parquet(tmp_path / "a.parquet", **rows), write(tmp_path / "a.jsonl", lines):
        said = []
        read_files([file], log=said.append)
        read_files([file], "source", log=said.append)
        assert said == ["column 'source', the only one with text; not read: messages", "column 'source'"]


def test_a_column_of_nulls_is_no_other_type(tmp_path):
    full = write_parquet(tmp_path / "a.parquet", text=["one"])
    empty = write_parquet(tmp_path / "b.parquet", text=[None, None])
    documents = read_files([full, empty])
    assert list(documents) == [b"one"] and documents.empty == 2


def test_categories_and_structs_of_parquet(tmp_path):
    import pyarrow

    texts = ["one", None, "one", "three"]
    category = pyarrow.array(texts).dictionary_encode()
    for column in (category, category.cast(pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()))):
        file = write_parquet(tmp_path / "a.parquet", text=column)
        assert list(read_files([file])) == list(read_files([file], "text")) == [b"one", b"one", b"three"]
    rows = [{"text": text, "n": 1, "deep": {"er": "x"}} for text in texts]
    file = write_parquet(tmp_path / "b.parquet", meta=[*rows[:2], None, rows[3]], id=[1] * 4)
    assert list(read_files([file], "meta.text")) == [b"one", b"three"]
    assert list(read_files([file], "meta.deep.er")) == [b"x"] * 3
    refused(file, r"several columns of .*it has meta.text \(text\), meta.n \(int64\), meta.deep.er \(text\), id")
    refused(file, r"no column 'meta' in .*, it has meta.text", column="meta")
    file = write_parquet(tmp_path / "c.parquet", **{"meta.text": texts, "meta": rows})
    assert list(read_files([file], "meta.text")) == [b"one", b"one", b"three"]
    lines = "\n".join(json.dumps({"id": 1, "meta": {"text": text, "by": "x"}}) for text in texts)
    assert list(read_files([write(tmp_path / "a.jsonl", lines)], "meta.text")) == [b"one", b"one", b"three"]
