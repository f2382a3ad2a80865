"""Documents, and everything they are read from: files, tables, folders."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico import documents as module
from pico.config import PicoError
from pico.documents import Documents, collect, find_files, read_files, split_name
from pico.tables import choose_column

TEXTS = ["plain", 'quoted "text", with commas', "two\nlines", "größer 🙂 日本", "tab\tand \\ slash"]
BYTES = [text.encode() for text in TEXTS]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PICO_CACHE", str(folder))
    return folder


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_parquet(path, **columns):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


# --- Documents -------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_collected_documents_read_back(texts):
    documents = collect(texts)
    kept = [text for text in texts if text]
    assert list(documents) == kept and len(documents) == len(kept)
    assert documents.bytes == sum(map(len, kept))
    with pytest.raises(IndexError):
        documents[len(kept)]


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([b"a", b"ab", b"aa", b"\n\n"]), st.data())
def test_split_is_bytes_split(texts, separator, data):
    texts = [data.draw(st.lists(st.sampled_from([text, separator, b"a", b"\n"]))) for text in texts]
    texts = [b"".join(parts) for parts in texts]
    pieces = [piece for text in texts for piece in text.split(separator) if piece]
    before, module.PIECE = module.PIECE, 7  # so that separators lie across the edge of what is scanned at once
    try:
        assert list(collect(texts).split(separator.decode())) == pieces
    finally:
        module.PIECE = before


def test_split_understands_escapes_and_none():
    documents = collect([b"one\n\ntwo\tthree"])
    assert list(documents.split(r"\n\n")) == [b"one", b"two\tthree"]
    assert list(documents.split(r"\t")) == [b"one\n\ntwo", b"three"]
    assert documents.split(None) is documents


def test_big_collections_lie_on_disk_and_are_found_again(cache, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 100)
    texts = [b"x" * 30 + bytes([i]) for i in range(20)]
    first = collect(iter(texts), key="these")
    assert not isinstance(first.buffer, bytes) and list(first) == texts
    again = collect(iter([b"never read"]), key="these")
    assert list(again) == texts and again.fingerprint == first.fingerprint
    assert list(collect(iter(texts[:9]), key="others")) == texts[:9]
    assert len(list(cache.iterdir())) == 4
    assert list(collect(iter(texts))) == texts  # without a key nothing stays behind
    assert len(list(cache.iterdir())) == 4
    next(cache.glob("*.bytes")).write_bytes(b"cut short")
    assert list(collect(iter(texts), key="these")) == texts
    assert list(collect(iter(texts[:9]), key="others")) == texts[:9]


def test_failing_collection_leaves_no_files(cache, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 100)

    def broken():
        yield b"x" * 200
        raise PicoError("no more")

    with pytest.raises(PicoError, match="no more"):
        collect(broken(), key="these")
    assert not list(cache.iterdir())


def test_unwritable_cache_and_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 100)
    monkeypatch.setenv("PICO_CACHE", str(write(tmp_path / "file", "in the way") / "below"))
    with pytest.raises(PicoError, match=r"cannot write .* set PICO_CACHE"):
        collect([b"x" * 200])
    monkeypatch.setenv("PICO_CACHE", str(tmp_path))
    if os.path.exists("/dev/full"):
        monkeypatch.setattr(module.os, "getpid", lambda: "full")
        name = module.hashlib.blake2b(b"these", digest_size=16).hexdigest()
        (tmp_path / f"{name}.full.part").symlink_to("/dev/full")
        with pytest.raises(PicoError, match=r"no room left in .* set PICO_CACHE"):
            collect([b"x" * 200, b"y" * (2 << 20)], key="these")


@pytest.mark.parametrize("small", [1, 1 << 20])
def test_fingerprint_depends_on_text_and_boundaries(small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    texts = [b"some text", b"more text " * 1000]
    prints = [
        collect(changed).fingerprint
        for changed in (texts, [b"other" + texts[0][5:], texts[1]], [b"".join(texts)], texts[::-1], texts[:1])
    ]
    assert len(set(prints)) == 5
    assert collect(texts).fingerprint == prints[0]


def test_text_file_is_mapped_not_copied(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 1)
    text = bytes(range(256)) * 40
    documents = read_files([write(tmp_path / "a.txt", text)])
    assert list(documents) == [text] and not isinstance(documents.buffer, bytes)
    assert not list(cache.iterdir())
    documents.release()
    documents.expect(np.array([-1, 0, 5000, 10**9]))
    assert documents[0] == text


# --- tables ----------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(module, "SMALL", 1)
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


# --- folders ---------------------------------------------------------------------------------------------------------


def found(root, raw=False):
    splits, as_text = find_files(root, raw)
    return {split: [file.relative_to(root).as_posix() for file in files] for split, files in splits.items()}, as_text


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, f"text of {name}")


def test_split_names():
    for name, split in [
        ("train.jsonl", "train"), ("training.txt", "train"),
        ("valid.jsonl", "validation"), ("my-dev.csv", "validation"),
        ("val/a.txt", "validation"), ("data/validation-00000-of-00001.parquet", "validation"), ("test_2.txt", "test"),
        ("TinyStoriesV2-GPT4-train.txt", "train"), ("trainer.txt", ""), ("contest.txt", ""), ("valley.txt", ""),
    ]:  # fmt: skip
        assert split_name(name) == split, name


def test_data_folder_with_splits(tmp_path):
    fill(tmp_path, "train.jsonl", "sub/valid.jsonl", "more.jsonl", "README.md", "LICENSE", "prepare.py", ".git/x.txt")
    assert found(tmp_path) == ({"train": ["more.jsonl", "train.jsonl"], "validation": ["sub/valid.jsonl"]}, False)


def test_folder_of_books(tmp_path):
    fill(tmp_path, "b.txt", "a.txt")
    assert found(tmp_path) == ({"train": ["a.txt", "b.txt"]}, False)


def test_code_folder_is_text_and_has_no_splits(tmp_path):
    fill(tmp_path, "train.py", "test/test_a.py", "package.json", "__pycache__/a.pyc", "README.md")
    write(tmp_path / "picture.png", b"\x89PNG\0\0")
    names = ["README.md", "package.json", "test/test_a.py", "train.py"]
    assert found(tmp_path) == ({"train": names}, True)
    assert found(tmp_path, raw=True) == ({"train": sorted([*names, "picture.png"])}, True)


def test_raw_folder_whose_every_name_is_a_split(tmp_path):
    fill(tmp_path, "train.bin", "val.bin")
    assert found(tmp_path, raw=True) == ({"train": ["train.bin"], "validation": ["val.bin"]}, True)


def test_documents_are_slices_of_one_buffer():
    documents = Documents(b"abcdefgh", np.array([1, 4, 5]), np.array([2, 0, 3]))
    assert list(documents) == [b"bc", b"fgh"]
    assert list(documents.select(np.array([1]))) == [b"fgh"]
    assert list(documents.select(np.array([True, False]))) == [b"bc"]
    assert documents.block(3) is documents
