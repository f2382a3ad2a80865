"""Pipes as data: read to their end, once; and what has no end, or no beginning, is refused."""

import gzip
import os
import socket
import threading

import pytest
from training import config, go

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import pipes
from pico.data.open import open_data, open_evaluation

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
ROWS = b"".join(b'{"text": "row %d of the pipe"}\n' % i for i in range(300))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PICO_CACHE", str(folder))
    monkeypatch.setattr(pipes, "_copies", {})
    return folder


@pytest.fixture
def fill():
    """Makes a named pipe and writes to it, as another process would."""
    writers = []

    def start(path, data):
        if not path.exists():
            os.mkfifo(path)
        writers.append(threading.Thread(target=lambda: path.write_bytes(data)))
        writers[-1].start()
        return str(path)

    yield start
    for writer in writers:
        writer.join()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text", b"two words\n" * 500_000),
        ("rows.jsonl", ROWS),
        ("packed", gzip.compress(ROWS)),
        ("rows.jsonl.gz", gzip.compress(ROWS)),
    ],
)
def test_a_pipe_is_read_as_a_file_of_its_name_would_be(tmp_path, fill, name, data):
    (tmp_path / "file").mkdir()
    file = tmp_path / "file" / name
    file.write_bytes(data)
    expected = [list(part) for part in open_data(DataConfig(dataset=str(file)), 0)]
    pipe = DataConfig(dataset=fill(tmp_path / name, data))
    assert [list(part) for part in open_data(pipe, 0)] == expected
    assert [list(part) for part in open_data(pipe, 0)] == expected  # though the pipe itself is empty by now
    assert list(open_evaluation(pipe))


def test_an_unnamed_pipe_and_named_parts(tmp_path, fill):
    """`/dev/stdin` and `<(command)`: the pipe is a descriptor's, and may be left by its writer already."""
    if not os.path.isdir("/dev/fd"):
        pytest.skip("descriptors have no names here")
    end, start = os.pipe()
    os.write(start, b"a few words of text")
    os.close(start)
    other = fill(tmp_path / "held", b"held out")
    train, validation = open_data(DataConfig(dataset=f"/dev/fd/{end}", validation_file=other), 0)
    os.close(end)
    assert (list(train), list(validation)) == ([b"a few words of text"], [b"held out"])


def test_copies_go_with_the_process_or_when_they_fail(tmp_path, fill, cache, monkeypatch):
    open_data(DataConfig(dataset=fill(tmp_path / "a", b"some text " * 100)), 0)
    assert len(list(cache.iterdir())) == 1
    pipes._copies.clear()
    assert not list(cache.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipes, "partial", lambda *_: full)
    os.mkfifo(tmp_path / "b")
    writer = os.open(tmp_path / "b", os.O_RDWR)
    with pytest.raises(PicoError, match=r"no room left in .* set PICO_CACHE"):
        open_data(DataConfig(dataset=str(tmp_path / "b")), 0)
    os.close(writer)
    assert not list(cache.iterdir())


def test_a_run_goes_on_only_with_the_same_text(path, tmp_path, fill):
    def once_more(data, **options):
        pipes._copies.clear()  # as another process
        return go(path, "run", DataConfig(dataset=fill(tmp_path / "pipe", data)), config(max_steps=4), **options)

    once_more(b"The cat sat on the mat.\n" * 200)
    assert once_more(b"The cat sat on the mat.\n" * 200, resume=True).steps == 4
    with pytest.raises(PicoError, match="the dataset's text is another"):
        once_more(b"The cat sat on the mat!\n" * 200, resume=True)


def test_what_has_no_end_or_no_beginning_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes, "WAIT", 0.05)
    threads = threading.active_count()
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for dataset, message in [
            ("pipe", "nobody writes to the pipe .*pipe, for"),
            ("socket", "socket is a socket: expected a file, a folder or a pipe"),
            *[("/proc/cpuinfo", "/proc/cpuinfo has no size, though")] * os.path.exists("/proc/cpuinfo"),
            ("/dev/zero", "/dev/zero is a device: expected"),
            ("/dev/urandom", "/dev/urandom is a device: expected"),
        ]:
            with pytest.raises(PicoError, match=message) as error:
                open_data(DataConfig(dataset=dataset), 0)
            assert "\n" not in str(error.value)
            (tmp_path / "a.txt").write_text("a text")
            with pytest.raises(PicoError, match=message):
                open_data(DataConfig(dataset="a.txt", validation_file=os.path.abspath(dataset)), 0)
    assert threading.active_count() == threads


def test_several_processes_cannot_share_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PicoError, match="several processes cannot share: write it to a file"):
        open_data(DataConfig(dataset=str(tmp_path / "pipe")), 0)
