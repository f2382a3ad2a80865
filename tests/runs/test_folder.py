"""The folder of a model: names, the lock, what is read and written in it, and what must not stop anybody."""

import errno
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico import PicoError, preset
from pico.base import files
from pico.base.files import append, cut, read_json, write_json, write_whole
from pico.runs import folder
from pico.runs.folder import check_name, create, lock, name_problem, read_config, read_record, run_folder, runs
from pico.runs.metrics import cut_back, read_metrics

unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


@pytest.fixture
def model(tmp_path):
    return create(tmp_path / "m", preset("tiny"))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- names ------------------------------------------------------------------------------------------------------------

BAD = [
    "", ".", "..", "../x", "a/b", "a\\b", "/x", "C:x", ".hidden", "-rf", " a", "a ", "a.", "12345678", "a\nb", "a\x1bb",
    "a" * 100, "😀" * 70, "con", "NUL.txt", "com1", "model.json", "README.md", "what?", "a*b", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_run_name_is_one_plain_folder(model, name):
    with pytest.raises(PicoError, match="expected one plain folder name") as error:
        check_name(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 200
    if name:
        with pytest.raises(PicoError, match="expected one plain folder name"):
            run_folder(model, name)


@pytest.mark.parametrize("name", ["my-run", "seed 0", "a", "1234567", "123456789", "x" * 99, "конь", "a.b", "_"])
def test_plain_names_are_allowed(name):
    assert check_name(name) == name


@given(st.text(max_size=20))
def test_an_allowed_name_stays_in_its_folder(name):
    if name_problem(name) is None:
        assert Path("m", name).name == name and len(Path("m", name).parts) == 2


# --- JSON -------------------------------------------------------------------------------------------------------------

ODD = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep enough": b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    "list": b"[1, 2]",
    "text": b'"text"',
    "number": b"3",
    "no UTF-8": b'{"dim": "\xff\xfe"}',
    "binary": bytes(range(256)),
    "empty": b"",
    "cut": b'{"dim": 1',
    "long number": b'{"dim": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["model.json", "train.json"])
def test_odd_json_is_one_line(model, name, content):
    (model / "r").mkdir()
    file = model / name if name == "model.json" else model / "r" / name
    file.write_bytes(content)
    with pytest.raises(PicoError, match=rf"{name} cannot be read as JSON") as error:
        read_config(model) if name == "model.json" else read_record(model / "r")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("content", ['{"train": 3}', '{"data": []}', '{"model": "tiny"}'])
def test_sections_of_train_json_are_objects(model, content):
    (model / "r").mkdir()
    (model / "r" / "train.json").write_text(content)
    with pytest.raises(PicoError, match="is not an object: mend it"):
        read_record(model / "r")


def test_a_json_file_too_large_to_be_one_is_refused(model, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 100)
    with pytest.raises(PicoError, match="has more than"):
        read_config(model)


def test_a_mark_of_byte_order_is_no_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@unix
def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket"))
    for name in ("fifo", "folder", "loop", "zero", "socket"):
        with pytest.raises(PicoError, match=f"{name} cannot be read"):
            read_json(tmp_path / name)
        with pytest.raises(PicoError, match=f"{name} cannot be read"):
            read_metrics(tmp_path / name)
    listener.close()


def test_a_read_that_fails_is_one_line(model, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "open_regular", broken)
    with pytest.raises(PicoError, match=r"model.json cannot be read: Input/output error: mend it"):
        read_config(model)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(PicoError, match=r"cannot write .*a.json: the disk is full; free space, or"):
            write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@unix
def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    for name in ("whole", "more", "less"):
        (tmp_path / name).symlink_to("theirs")
    write_whole(tmp_path / "whole", b"ours")
    for write in (lambda: append(tmp_path / "more", "ours"), lambda: cut(tmp_path / "less", 0)):
        with pytest.raises(PicoError, match="cannot write"):
            write()
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "whole").read_text() == "ours"


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["fsync", "replace", "mkdir"])
def test_a_model_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch, place):
    monkeypatch.setattr(*((files.os, "fsync") if place == "fsync" else (Path, place)), full)
    with pytest.raises(PicoError, match=r"cannot write .*model.json: the disk is full; free space, or"):
        create(tmp_path / "a" / "b" / "m", preset("tiny"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unprivileged():
    """Root may read and write everything: somebody else, for a while."""
    if os.name == "nt":
        pytest.skip("Windows has other permissions")
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def closed(tmp_path):
    """A model of two runs; in one of them nothing may be read. Others may come as far as here."""
    for place in (tmp_path, *tmp_path.parents[:-1]):
        if place.stat().st_uid == os.getuid():
            place.chmod(place.stat().st_mode | 0o55)
    path = create(tmp_path / "m", preset("tiny"))
    for run in ("open", "shut"):
        (path / run).mkdir()
        (path / run / "train.json").write_text("{}")
    (path / "shut").chmod(0)
    yield path
    (path / "shut").chmod(0o755)


@unix
def test_a_folder_that_cannot_be_read_hides_itself_alone(closed, request):
    request.getfixturevalue("unprivileged")
    assert runs(closed) == ["open"] and run_folder(closed) == closed / "open"
    assert read_metrics(closed / "open" / "metrics.jsonl") == []
    with pytest.raises(PicoError, match=r"cannot read the folder .*shut: Permission denied"):
        folder.checkpoints(closed / "shut")
    with pytest.raises(PicoError, match=r"train.json cannot be read: Permission denied"):
        read_record(closed / "shut")
    with pytest.raises(PicoError, match=r"cannot write .*shut"), lock(closed / "shut"):
        pass


@unix
def test_a_model_in_a_folder_that_cannot_be_written_leaves_nothing(closed, request):
    request.getfixturevalue("unprivileged")
    (closed.parent).chmod(0o555) if os.geteuid() != 65534 else None
    with pytest.raises(PicoError, match=r"cannot write .*model.json: Permission denied"):
        create(closed / "new" / "m", preset("tiny"))
    with pytest.raises(PicoError, match=r"cannot write .*: Permission denied"), lock(closed / "new-run"):
        pass
    assert not (closed / "new").exists() and not (closed / "new-run").exists()


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_run_folder_has_one_trainer(tmp_path):
    run = tmp_path / "m" / "r"
    locked = pytest.raises(PicoError, match=f"locked by a live training .process {os.getpid()}")
    with lock(run), locked, lock(run):
        pass
    with lock(run):  # free again
        pass


def test_who_writes_nothing_leaves_nothing(tmp_path):
    run = tmp_path / "r"
    with lock(run):
        assert (run / ".lock").exists()
    assert not run.exists()
    with pytest.raises(KeyError), lock(run):
        raise KeyError
    assert not run.exists()
    run.mkdir()
    (run / "train.json").write_text("{}")
    with lock(run):
        with pytest.raises(PicoError), lock(run):
            pass
        assert (run / ".lock").exists()  # the refused one does not remove the other's
    assert [file.name for file in run.iterdir()] == ["train.json"]


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    run = tmp_path / "r"
    run.mkdir()
    for name in (".train.json.123.tmp", ".metrics.jsonl.77.tmp", ".00000004.tmp/model.safetensors", "metrics.jsonl"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    with lock(run):
        assert sorted(file.name for file in run.iterdir()) == [".lock", "metrics.jsonl"]


def test_a_lock_removed_while_it_is_waited_for_is_taken_anew(tmp_path, monkeypatch):
    """Its holder removes it between the other's open and lock: what is locked then is a file nobody finds."""
    run, hold, calls = tmp_path / "r", folder.hold, []

    def late(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            (run / ".lock").unlink()
        hold(descriptor)

    monkeypatch.setattr(folder, "hold", late)
    with lock(run):
        assert len(calls) == 2
        with pytest.raises(folder.Locked), lock(run):
            pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def unknown(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder, "hold", unknown)
    with lock(tmp_path / "r") as note:
        assert note.endswith("r is not locked (No locks available): start no second training there")


def test_windows_has_a_lock_too(tmp_path, monkeypatch):
    held = set()

    def locking(descriptor, mode, count):
        assert (mode, count) == ("LK_NBLCK", 1) and os.lseek(descriptor, 0, os.SEEK_CUR) > 1000
        if (found := os.fstat(descriptor).st_ino) in held:
            raise OSError(errno.EACCES, "Permission denied")
        held.add(found)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="LK_NBLCK"))
    spec = importlib.util.find_spec("pico.base.files")
    windows = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        spec.loader.exec_module(windows)
    monkeypatch.setattr(folder, "hold", windows.hold)
    with lock(tmp_path / "r") as note:
        assert note is None
        with pytest.raises(folder.Locked, match=f"process {os.getpid()}"), lock(tmp_path / "r"):
            pass
    assert not (tmp_path / "r").exists()


@unix
@pytest.mark.parametrize("name", folder.WRITTEN)
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_a_run_that_would_write_elsewhere_is_refused(tmp_path, name, kind):
    run, theirs = tmp_path / "r", tmp_path / "theirs"
    run.mkdir()
    theirs.write_text("theirs")
    if kind == "folder":
        (run / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(theirs if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(PicoError, match=f"{name} is a link or no file: .*remove it"), lock(run):
        pass
    assert theirs.read_text() == "theirs" and not (tmp_path / "nowhere").exists()
    assert [file.name for file in run.iterdir()] == [name]


def test_a_killed_trainer_holds_no_lock(tmp_path):
    code = f"""
from pathlib import Path
from pico.runs.folder import lock
with lock(Path({str(tmp_path)!r}) / "r"):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PicoError, match=f"process {holder.pid}"), lock(tmp_path / "r"):
        pass
    holder.kill()
    holder.wait()
    with lock(tmp_path / "r"):
        pass


# --- metrics and samples ----------------------------------------------------------------------------------------------


def test_odd_lines_of_metrics_are_passed_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = {"step": 1, "bytes": 10, "train_bpb": 2.5}
    lines = [
        json.dumps(good).encode(), b"[1, 2]", b'"text"', b"7", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"",
        b'{"step": "2"}', b'{"step": true}', b'{"step": 3, "bytes": "30", "loss": [1], "a": NaN, "b": 1e999}',
        b'{"step": 4, "bytes": ' + b"9" * 400 + b"}", b'{"step": 5, "by',
    ]  # fmt: skip
    file.write_bytes(b"\n".join(lines))
    assert read_metrics(file) == [good, {"step": 3}, {"step": 4}]
    assert read_metrics(tmp_path / "none.jsonl") == []
    cut_back(tmp_path, 3, None)
    assert file.read_bytes() == lines[0] + b"\n" + lines[11] + b"\n"


@pytest.mark.parametrize("size, left", [(0, b""), (3, b"abc"), (6, b"abcdef"), (9, b"abcdef"), (None, b"abcdef")])
def test_samples_are_cut_back_but_never_made_longer(tmp_path, size, left):
    (tmp_path / "samples.txt").write_bytes(b"abcdef")
    cut_back(tmp_path, 0, size)
    assert (tmp_path / "samples.txt").read_bytes() == left
    cut_back(tmp_path / "none", 0, size)
    assert not (tmp_path / "none").exists()
