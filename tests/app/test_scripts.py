"""The scripts beside the package: data fetched whole or not at all, the drawing as it is made."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from scripts import architecture, fetch_data, reduce_lock, sample

ROOT = Path(__file__).parents[2]
BOOK = bytes(range(256)) * 8


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def web(monkeypatch):
    """A small web of two files, one of them zipped; counts what is asked for."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("book", BOOK)
    pages, asked = {"zip": archive.getvalue(), "txt": b"To be, or not"}, []
    exact = {
        "book/train.txt": ("zip", 0, 900, digest(BOOK[:900])),
        "book/valid.txt": ("zip", 950, 1000, digest(BOOK[950:1000])),
        "play/input.txt": ("txt", 0, 13, digest(b"To be, or not")),
    }
    monkeypatch.setattr(fetch_data, "EXACT", exact)

    def opener(address):
        asked.append(address)
        return io.BytesIO(pages[address])

    return opener, pages, asked


def test_parts_are_exact_and_fetched_once(web, tmp_path, capsys):
    opener, _, asked = web
    fetch_data.fetch("book", tmp_path, 0, opener)
    assert (tmp_path / "book/train.txt").read_bytes() == BOOK[:900]
    assert (tmp_path / "book/valid.txt").read_bytes() == BOOK[950:1000]
    assert "wrote" in (said := capsys.readouterr().err) and "900 bytes" in said
    (tmp_path / "book/train.txt").write_bytes(BOOK[:800])  # cut short: made anew; the other stays
    before = (tmp_path / "book/valid.txt").stat()
    fetch_data.fetch("book", tmp_path, 0, opener)
    fetch_data.fetch("book", tmp_path, 0, opener)
    assert (tmp_path / "book/train.txt").read_bytes() == BOOK[:900] and asked == ["zip", "zip"]
    assert (tmp_path / "book/valid.txt").stat().st_mtime_ns == before.st_mtime_ns
    fetch_data.fetch("play", tmp_path, 0, opener)
    assert (tmp_path / "play/input.txt").read_bytes() == b"To be, or not"


@pytest.mark.parametrize("page", [b"To be, or", b"Not found", b""])
def test_other_bytes_are_refused_and_leave_nothing(web, tmp_path, page):
    opener, pages, _ = web
    pages["txt"] = page
    with pytest.raises(SystemExit, match="SHA-256"):
        fetch_data.fetch("play", tmp_path, 0, opener)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_stories_are_drawn_once_each_up_to_the_size(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_data, "DRAWN", {"s/valid.jsonl": ("validation", 30), "s/train.jsonl": ("train", 60)})

    def stories(split, seed):
        start = 0 if split == "validation" else 2  # two of validation's come again
        for number in range(start, 100):
            yield from (f" Story {number} of é\n", f"Story  {number} of é", "")

    fetch_data.fetch("s", tmp_path, 7, stories=stories)
    read = {f: (tmp_path / "s" / f"{f}.jsonl").read_text(encoding="utf-8").splitlines() for f in ("train", "valid")}
    texts = {f: [json.loads(line)["text"] for line in lines] for f, lines in read.items()}
    assert texts["valid"] == [f"Story {n} of é" for n in (0, 1, 2)]
    assert texts["train"] == [f"Story {n} of é" for n in range(3, 8)]
    with pytest.raises(SystemExit, match="60 were expected"):
        fetch_data.draw(["one", "one "], 60, set())


def test_an_unknown_name_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        fetch_data.main(["enwik9"])
    assert "enwik8, tinyshakespeare, tinystories" in capsys.readouterr().err


def test_the_addressed_parts_are_those_of_the_results():
    assert {file: end - start for file, (_, start, end, _) in fetch_data.EXACT.items()} == {
        "enwik8/train.txt": 9_000_000,
        "enwik8/valid.txt": 500_000,
        "tinyshakespeare/input.txt": 1_115_394,
    }


def test_the_drawing_is_the_one_in_the_repository_and_fits():
    drawn = architecture.figure()
    assert (ROOT / "assets" / "architecture.svg").read_text(encoding="utf-8") == drawn
    for x, size, text in re.findall(
        r'<text x="([\d.]+)" y="[\d.]+" class="(?:ink |soft ?)(\w*)">([^<]*)</text>', drawn
    ):
        wide = {"head": 15.5 * 0.7, "tiny": 12 * 0.56}.get(size, 14 * 0.56)  # DejaVu Sans, wider than most
        assert float(x) + wide * len(text) < architecture.WIDTH, text


def test_a_sample_shows_every_character_and_underlines_what_was_routed():
    class Step(NamedTuple):
        bytes: bytes
        routed: bool

    steps = [
        Step(bytes([byte]), i % 3 == 0) for i, byte in enumerate(b"Once upon a <time>, there was a cat & a hen.\n" * 4)
    ]
    lines = sample.wrapped(steps)
    assert bytes(ord(c) for line in lines for c, _ in line) == b"".join(step.bytes for step in steps)
    assert max(len("".join(c for c, _ in line).rstrip()) for line in lines) <= sample.COLUMNS
    drawn = ElementTree.fromstring(sample.figure(steps, steps))
    bars = [r for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == "hot"]
    assert len(bars) == 2 * sum(routed for line in lines for _, routed in line[: sample.COLUMNS])


def test_a_reduced_lock_holds_names_and_versions_only():
    full = """version = 1
revision = 3
requires-python = ">=3.11"
[[package]]
name = "two"
version = "2.0"
source = { registry = "https://index/simple" }
wheels = [{ url = "https://files/two.whl" }]
[[package]]
name = "picolm"
source = { virtual = "." }
[[package]]
name = "one"
version = "1.0"
source = { registry = "https://index/simple" }
"""
    reduced = reduce_lock.reduce(full)
    assert [line for line in reduced.splitlines() if line.startswith("name")] == ['name = "one"', 'name = "two"']
    assert "//" not in reduced and reduced == reduce_lock.reduce(reduced)
    committed = reduce_lock.LOCK.read_text(encoding="utf-8")  # completed by uv, perhaps, where the suite runs
    assert 'name = "torch"' in reduce_lock.reduce(committed)
