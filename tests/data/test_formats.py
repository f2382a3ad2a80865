"""Compressed, foreign and marked files: read to the last byte, or refused by name."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
from helpers import write, write_parquet

from pico.base.errors import PicoError
from pico.data.formats import BOM, open_content, suffix
from pico.data.sources import read_files

TEXT = 'größer, "quoted" and long: ' + "abcdefgh " * 500
ROWS = [TEXT, "second\nrow", "third"]


def zstd(data):
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))


def tables(folder):
    """The same rows in every table format."""
    import csv

    lines = "".join(json.dumps({"text": text}) + "\n" for text in ROWS)
    yield write(folder / "a.jsonl", lines)
    yield write(folder / "a.ndjson", lines)
    yield write(folder / "lines.json", lines)
    yield write(folder / "list.json", json.dumps([{"text": text} for text in ROWS]))
    for name, mark in ("a.csv", ","), ("b.csv", ";"), ("a.tsv", "\t"):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=mark).writerows([("id", "text"), *enumerate(ROWS)])
        yield folder / name
    yield write_parquet(folder / "a.parquet", id=[1, 2, 3], text=ROWS)


@pytest.mark.parametrize("packer", PACKERS)
def test_every_format_is_read_in_every_compression(tmp_path, packer):
    pack = PACKERS[packer]
    encoded = [text.encode() for text in ROWS]
    for file in tables(tmp_path):
        packed = write(tmp_path / f"{file.name}.{packer}", pack(file.read_bytes()))
        assert list(read_files([packed])) == list(read_files([file])) == encoded, file
        assert list(read_files([packed], raw=True)) == [packed.read_bytes()]
    text = TEXT.encode()
    packed = write(tmp_path / f"a.txt.{packer}", pack(text))
    assert list(read_files([packed])) == [text]
    assert list(read_files([packed, write(tmp_path / "b.txt", "plain")])) == [text, b"plain"]
    packed.rename(tmp_path / "named-as-text.txt")
    assert list(read_files([tmp_path / "named-as-text.txt"])) == [text]
    assert list(read_files([write(tmp_path / f"unpacked.txt.{packer}", text)])) == [text]


@pytest.mark.parametrize("packer", PACKERS)
def test_members_that_follow_each_other_are_one_text(tmp_path, packer):
    parts = [b"one\n" * 300_000, b"two\n", b"three\n" * 9]
    packed = b"".join(map(PACKERS[packer], parts))
    assert list(read_files([write(tmp_path / f"a.txt.{packer}", packed)])) == [b"".join(parts)]


def test_zstd_that_begins_with_a_frame_to_skip(tmp_path):
    """As pzstd writes it."""
    file = write(tmp_path / "a.txt.zst", b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(b"text"))
    assert list(read_files([file])) == [b"text"]


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_truncated_and_broken_archives_are_one_line(tmp_path, packer, name):
    rows = {"a.csv": "text\n" + "some words\n" * 9999}.get(name, '{"text": "some words"}\n' * 9999)
    whole = PACKERS[packer](rows.encode())
    damaged = whole[:20] + bytes(reversed(whole[20:60])) + whole[60:]
    for data in (whole[: len(whole) // 2], damaged):
        file = write(tmp_path / f"{name}.{packer}", data)
        with pytest.raises(PicoError, match=rf"cannot read .*{name}.{packer}: its compressed data is broken") as error:
            read_files([file])
        assert "\n" not in str(error.value)


def archive(kind):
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as made:
            made.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=out, mode="w", format=kind) as made:
            made.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return out.getvalue()


FOREIGN = {
    "a zip archive": archive("zip"),
    "a tar archive": archive(tarfile.GNU_FORMAT),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4",
    "an arrow file": b"ARROW1\0\0",
    "a PDF document": b"%PDF-1.7\n",
    "a parquet file": b"PAR1\x15\x04",
    "binary data": b"MThd\0\0\0\6",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "tsv", "md"])
def test_foreign_formats_are_refused(tmp_path, name, ending):
    file = write(tmp_path / f"a.{ending}", FOREIGN[name])
    packed = write(tmp_path / f"b.{ending}.gz", gzip.compress(FOREIGN[name]))
    for path in (file, packed):
        with pytest.raises(PicoError, match=f"{path.name}.* is {name}.*--dataset-format bytes") as error:
            read_files([path])
        assert "\n" not in str(error.value)
        assert list(read_files([path], raw=True)) == [path.read_bytes()]
    with pytest.raises(PicoError, match="is binary data"):
        read_files([write(tmp_path / "c.txt", archive(tarfile.PAX_FORMAT)[:257])])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "tsv", "py"])
def test_wide_encodings_are_refused_with_the_way_out(tmp_path, encoding, ending):
    data = '{"text": "größer"}'.encode(encoding)
    data = data if encoding != "utf-16-be" else b"\xfe\xff" + data
    name = encoding[:6].upper()
    for file in write(tmp_path / f"a.{ending}", data), write(tmp_path / f"b.{ending}.xz", lzma.compress(data)):
        with pytest.raises(PicoError, match=rf"is {name} text, expected UTF-8.*iconv -f {name} -t UTF-8 .*python -c"):
            read_files([file])
        assert list(read_files([file], raw=True)) == [file.read_bytes()]


def test_the_python_command_that_is_named_converts(tmp_path, monkeypatch):
    import subprocess
    import sys

    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.txt", "größer\r\nzwei".encode("utf-16"))
    with pytest.raises(PicoError) as error:
        read_files([file])
    code = str(error.value).split('python -c "')[1].split('"`')[0]
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a-utf8.txt").read_bytes() == "größer\r\nzwei".encode()


@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "tsv"])
def test_the_mark_of_utf8_is_no_text(tmp_path, ending):
    content = {"txt": "text", "csv": "text\ntext", "tsv": "text\ntext"}.get(ending, '{"text": "text"}').encode()
    file = write(tmp_path / f"a.{ending}", BOM + content)
    packed = write(tmp_path / f"b.{ending}.gz", gzip.compress(BOM + content))
    assert list(read_files([file])) == list(read_files([packed])) == [b"text"]
    assert list(read_files([file, packed])) == [b"text", b"text"]
    assert list(read_files([file], raw=True)) == [BOM + content]


def test_what_is_compressed_twice_is_refused(tmp_path):
    twice = write(tmp_path / "a.txt.gz.gz", gzip.compress(gzip.compress(b"text")))
    with pytest.raises(PicoError, match=r"a.txt.gz.gz \(unpacked\) is compressed a second time"):
        read_files([twice])


def test_endings_beneath_a_compression(tmp_path):
    names = {"a.jsonl.gz": ".jsonl", "A.CSV.ZST": ".csv", "a.gz": ".txt", "a.tar.xz": ".tar", "a.txt": ".txt", "a": ""}
    assert {name: suffix(tmp_path / name) for name in names} == names


def test_nothing_is_unpacked_before_it_is_read(tmp_path, monkeypatch):
    """A stream of spaces that would be 4 GB: the first piece comes at once."""
    file = write(tmp_path / "a.txt.gz", gzip.compress(b" " * (1 << 22)) * 1000)
    with open_content(file) as content:
        assert content.read(1 << 20) == b" " * (1 << 20)
