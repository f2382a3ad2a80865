"""Files that change while they are read, and a cache that is damaged: an error or made anew, never wrong bytes."""

import gc
import inspect
import logging
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers import first_fast
from hypothesis import given
from hypothesis import strategies as st
from training import assert_same_run, config, go

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import storage
from pico.data.documents import collect
from pico.data.open import Batches, open_data
from pico.data.sources import read_files
from pico.data.storage import opened
from pico.runs.checkpoint import newest
from pico.train import parts


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PICO_CACHE", str(folder))
    return folder


@pytest.fixture
def on_disk(monkeypatch):
    """As if everything were too big for memory."""
    monkeypatch.setattr(storage, "SMALL", 100)


def write(path, data):
    path.write_bytes(data)
    return path


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pread", [True, False])
@given(data=st.binary(max_size=50), ends=st.tuples(st.integers(-60, 60), st.integers(-60, 60)), draw=st.data())
def test_a_file_is_read_like_bytes(tmp_path_factory, pread, data, ends, draw):
    file = opened(write(tmp_path_factory.mktemp("files") / "a", data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "MOST", 7)
        if not pread:  # as on Windows
            patch.delattr(os, "pread")
        assert len(file) == len(data) and file[slice(*ends)] == data[slice(*ends)]
        places = draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=30) if data else st.just([]))
        assert bytes(file.take(np.array(places, int))) == bytes(data[i] for i in places)
        runs = sorted(set(places))
        assert bytes(file.take(np.array(runs, int))) == bytes(data[i] for i in runs)


def rewrite(file, data, seconds=1):
    """In place, as `cp` and `>` do; the clock of some file systems is coarse, so it is moved on by hand."""
    write(file, data)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + seconds * 10**9))


@pytest.mark.parametrize(
    ("after", "said"),
    [(b"short", r"10,000 bytes -> 5"), (b"x" * 20_000, r"10,000 bytes -> 20,000"), (b"y" * 10_000, "written anew")],
)
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, after, said):
    file = write(tmp_path / "a.txt", b"some text " * 1000)
    documents = read_files([file])
    batches = Batches(documents, 64, 2, 4, seed=0)
    next(batches)
    rewrite(file, after)
    for read in (
        lambda: next(batches),
        lambda: documents[0],
        lambda: documents.split("text"),
        lambda: documents.fingerprint,
    ):
        with pytest.raises(PicoError, match=rf"a.txt changed while it was being read: .*{said}") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_file_that_is_replaced_or_removed_is_read_on(tmp_path):
    """What a careful writer does: the old file lives on under our descriptor."""
    file = write(tmp_path / "a.txt", b"before")
    documents = read_files([file])
    os.replace(write(tmp_path / "b.txt", b"after it"), file)
    assert list(documents) == [b"before"] and list(read_files([file])) == [b"after it"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_files_that_change_while_they_are_copied_are_an_error(tmp_path, monkeypatch, name):
    first, second = tmp_path / name, write(tmp_path / "b.txt", b"more")
    write(first, b'{"text": "one"}\n' if name.endswith("jsonl") else b"text\none\n")
    real = storage.Spool.write

    def meanwhile(self, piece):
        real(self, piece)
        rewrite(first, b'{"text": "another"}\n', seconds=5)

    monkeypatch.setattr(storage.Spool, "write", meanwhile)
    with pytest.raises(PicoError, match=rf"{name} changed while it was being read"):
        read_files([first, second])


def test_descriptors_are_given_back(tmp_path, on_disk):
    """`compare` opens its data once a run: a thousand are no more than one."""
    folder = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
    if folder is None:
        pytest.skip("no way to count open files here")
    text = write(tmp_path / "a.txt", b"a word and another\n" * 100)
    rows = write(tmp_path / "a.jsonl", b'{"text": "a row of text"}\n' * 100)
    gc.collect()
    before = len(os.listdir(folder))
    for _ in range(50):
        for file in text, rows:
            config = DataConfig(dataset=str(file), document_separator="\n", validation_size=0.1)
            train, _ = open_data(config, 0)
            list(islice(Batches(train, 16, 2, 4, seed=0), 3))
        list(collect(iter([b"without a key " * 100])))
        del train
        assert len(os.listdir(folder)) <= before + 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a call of Linux")
def test_what_will_be_read_is_asked_for_ahead(tmp_path, on_disk, monkeypatch):
    asked, taken, real = set(), set(), storage.File.take
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, __: asked.update(range(start, start + length)))

    def take(file, places):
        taken.update(places.tolist())
        return real(file, places)

    monkeypatch.setattr(storage.File, "take", take)
    batches = Batches(read_files([write(tmp_path / "a.txt", os.urandom(3_000_000))], raw=True), 512, 2, 8, seed=0)
    list(islice(batches, 20))
    assert len(taken) > 50_000 and len(taken - asked) < 0.02 * len(taken)  # a chunk may end on the next page


# --- the cache -------------------------------------------------------------------------------------------------------

TEXTS = [b"x" * 30 + bytes([i]) for i in range(20)]


def test_big_collections_lie_on_disk_and_are_found_again(cache, on_disk):
    first = collect(iter(TEXTS), key="these")
    assert not isinstance(first.buffer, bytes) and list(first) == TEXTS
    again = collect(iter([b"never read"]), key="these")
    assert list(again) == TEXTS and again.fingerprint == first.fingerprint
    assert list(collect(iter(TEXTS[:9]), key="others")) == TEXTS[:9]
    assert len(list(cache.iterdir())) == 4
    assert list(collect(iter(TEXTS))) == TEXTS  # without a key nothing stays behind
    assert len(list(cache.iterdir())) == 4


def test_documents_come_whole_in_pieces_or_as_files(tmp_path, on_disk):
    file = write(tmp_path / "a.txt", b"of a file " * 30)
    documents = collect([b"whole", iter([b"in ", b"pieces " * 30, b""]), file, iter([])])
    assert list(documents) == [b"whole", b"in " + b"pieces " * 30, file.read_bytes()]


def shift(numbers):
    numbers[-2:] += (1, -1)


def without_checksum(numbers):
    """The cache of the first version."""
    return numbers[storage.SUM_NUMBERS :]


def changed(change):
    def damage(path):
        numbers = np.load(path)
        out = change(numbers)
        np.save(path, numbers if out is None else out)

    return damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def objects(path):
    """A pickle, which must not be opened."""
    np.save(path, np.array([Path], object), allow_pickle=True)


DAMAGES = {
    "cut": lambda path: write(path, path.read_bytes()[:-1]),
    "empty": lambda path: write(path, b""),
    "zeroed": lambda path: write(path, bytes(path.stat().st_size)),
    "flipped": flip,
    "missing": Path.unlink,
}
OF_INDEX = {
    "text": lambda path: write(path, b"no array at all\n"),
    "zip": lambda path: write(path, b"PK\x03\x04 but no zip"),
    "huge": lambda path: write(path, path.read_bytes().replace(b"(24,)", b"(9" + b"9" * 15 + b",)", 1)),
    "pickle": objects,
    "shifted": changed(shift),
    "without checksum": changed(without_checksum),
    "floats": changed(lambda numbers: numbers.astype(float)),
    "scalar": changed(lambda numbers: np.array(3)),
    "none": changed(lambda numbers: numbers[:0]),
}


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        *(pytest.param(pattern, damage, id=f"{pattern} {name}") for name, damage in DAMAGES.items()
          for pattern in ("*.bytes", "*.npy")),
        pytest.param("*.bytes", lambda path: write(path, path.read_bytes() + b"\0"), id="*.bytes longer"),
        *(pytest.param("*.npy", damage, id=name) for name, damage in OF_INDEX.items()),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(cache, on_disk, caplog, pattern, damage):
    fingerprint = collect(iter(TEXTS), key="these").fingerprint
    damage(next(cache.glob(pattern)))
    again = collect(iter(TEXTS), key="these")
    assert list(again) == TEXTS and again.fingerprint == fingerprint
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "made anew" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert list(collect(iter([b"never read"]), key="these")) == TEXTS and len(caplog.records) == 1
    assert len(list(cache.iterdir())) == 2


def test_the_cache_is_synced_before_it_gets_its_name(cache, on_disk, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def note(name, real):
        def call(*args):
            events.append(name)
            return real(*args)

        return call

    monkeypatch.setattr(os, "fsync", note("fsync", fsync))
    monkeypatch.setattr(os, "replace", note("replace", replace))
    collect(iter(TEXTS), key="these")
    assert events == ["fsync", "fsync", "replace", "replace", *["fsync"] * (os.name != "nt")]


def test_a_cache_that_is_damaged_while_it_is_read_is_an_error(cache, on_disk):
    documents = collect(iter(TEXTS), key="these")
    rewrite(next(cache.glob("*.bytes")), b"cut")
    with pytest.raises(PicoError, match=r"bytes changed while it was being read: 620 bytes -> 3"):
        documents[0]


def test_failing_collection_leaves_no_files(cache, on_disk):
    def broken():
        yield b"x" * 200
        raise PicoError("no more")

    with pytest.raises(PicoError, match="no more"):
        collect(broken(), key="these")
    assert not list(cache.iterdir())


def test_unwritable_cache_and_full_disk(tmp_path, monkeypatch, on_disk):
    monkeypatch.setenv("PICO_CACHE", str(write(tmp_path / "file", b"in the way") / "below"))
    with pytest.raises(PicoError, match=r"cannot write .* set PICO_CACHE"):
        collect([b"x" * 200])
    folder = tmp_path / "full"
    monkeypatch.setenv("PICO_CACHE", str(folder))
    if os.path.exists("/dev/full"):
        folder.mkdir()
        monkeypatch.setattr(storage.os, "getpid", lambda: "full")
        collect([b"x" * 200], key="these")
        (name,) = (file.name for file in folder.glob("*.bytes"))
        for file in folder.iterdir():
            file.unlink()
        for size in 200, 2 << 20:
            (folder / f"{name}.full.part").symlink_to("/dev/full")
            with pytest.raises(PicoError, match=r"no room left in .* set PICO_CACHE"):
                collect([b"x" * 101, b"y" * size], key="these")
            assert not list(folder.iterdir())


def test_what_killed_processes_left_in_the_cache_goes_and_what_others_are_at_stays(cache, on_disk):
    left = [cache / name for name in ("a.bytes.17.part", "a.npy.17.part", "pipe-dead/text")]
    (cache / "pipe-dead").mkdir()
    (cache / "pipe-live").mkdir()
    for file in left:
        file.write_bytes(b"half of it")
    live = [storage.create_held(cache / name) for name in ("b.bytes.18.part", "pipe-live/text")]
    kept = write(cache / "c.bytes", b"whole")
    collect([b"x" * 200], key="these")
    assert not any(file.exists() for file in left) and not (cache / "pipe-dead").exists()
    assert kept.exists() and all(os.path.exists(file.name) for file in live)
    for file in live:
        file.close()
    collect([b"y" * 200], key="others")
    assert not list(cache.glob("*.part")) and not list(cache.glob("pipe-*"))


# --- a training whose text changes -----------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "grow.txt", b"The cat sat on the mat, and the dog came to see it.\n" * 400)


@pytest.mark.parametrize("when", first_fast("before a step", "between the batches of a step", "at validation"))
def test_a_training_whose_text_changes_saves_its_step_and_can_go_on(path, text, monkeypatch, when):
    data, before = DataConfig(dataset=str(text)), text.read_bytes()
    interval, reader, turn = {"at validation": (5, "validate", 1)}.get(
        when, (100, "__next__", 15 + ("between" in when))
    )
    settings = config(grad_accumulation_steps=2, batch_size=2, validation_interval=interval, checkpoint_interval=100)
    times = text.stat()
    go(path, "whole", data, settings)
    real, reads = storage.File._read, []

    def meanwhile(file, spans):
        if reader in (frame.function for frame in inspect.stack(0)):
            reads.append(spans)
            if len(reads) == turn:
                text.write_bytes(b"short text\n")
        return real(file, spans)

    monkeypatch.setattr(storage.File, "_read", meanwhile)
    with pytest.raises(PicoError, match=r"grow.txt changed .*20,800 bytes -> 11.* step \d+ is saved") as error:
        go(path, "cut", data, settings)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(storage.File, "_read", real)
    step = int(newest(path / "cut")[0].name)
    assert step == (5 if when == "at validation" else 7) and f"step {step} is saved" in str(error.value)

    write(text, before)
    os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))
    go(path, "cut", data, settings, resume=True)
    assert_same_run(path, "whole", "cut")  # with the validation that could not be made
    assert (path / "whole" / "samples.txt").read_text() == (path / "cut" / "samples.txt").read_text()


def test_a_run_is_claimed_before_its_data_is_opened(path, data, monkeypatch):
    go(path, "a", data)

    def never(*_):
        raise AssertionError("data was opened for a run that cannot start")

    monkeypatch.setattr(parts, "open_data", never)
    for run, resume, message in [("a", False, "already holds a run"), ("b", True, "no run 'b'")]:
        with pytest.raises(PicoError, match=message):
            go(path, run, data, resume=resume)
