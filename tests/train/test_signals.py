"""Ctrl-C, SIGTERM, a hangup, a terminal that is gone: what ends a run, what only saves, what is left."""

import os
import signal

import pytest
from helpers import first_fast
from training import assert_same_run, config, go, kill_at_step

from pico.runs import checkpoint
from pico.runs.folder import checkpoints
from pico.train import intervals
from pico.train.loop import Training, train
from pico.train.signals import ENDING

unix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")


@pytest.mark.parametrize(
    "number, stopped, code",
    [
        ("SIGINT", "interrupted", 130),
        ("SIGTERM", "terminated", 143),
        pytest.param("SIGHUP", "hung up", 129, marks=unix),
    ],
)
def test_a_signal_stops_with_a_checkpoint(path, data, whole, monkeypatch, number, stopped, code):
    number = getattr(signal, number)
    if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
        signal.signal(number, signal.SIG_DFL)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(number)
    with monkeypatch.context() as patch:
        kill_at_step(patch, number, 4)
        summary = go(path, "r", data)
    assert (summary.steps, summary.stopped, summary.exit_code) == (5, stopped, code)
    assert checkpoint.newest(path / "r")[0].name == "00000005"
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(number))
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


PLACES = {  # in the middle of what follows a step: the first call of this function at or after step 6
    "validation": (intervals, "score"),
    "sample": (intervals, "generate"),
    "weights": (checkpoint, "save_file"),
    "renaming": (checkpoint, "sync"),
}


def signal_within(monkeypatch, place, *numbers):
    owner, name = PLACES[place]
    inner, conclude, to_come, armed = getattr(owner, name), Training.conclude, list(numbers), []

    def and_signal(*arguments, **options):
        while armed and to_come:
            os.kill(os.getpid(), to_come.pop(0))
        return inner(*arguments, **options)

    def watched(self, line):
        armed.extend([True] * (self.state.step >= 6))
        return conclude(self, line)

    monkeypatch.setattr(owner, name, and_signal)
    monkeypatch.setattr(Training, "conclude", watched)
    return to_come


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "number, code", first_fast(("SIGINT", 130), ("SIGTERM", 143), pytest.param("SIGHUP", 129, marks=unix))
)
def test_a_signal_amid_validation_or_saving_loses_nothing(path, data, whole, monkeypatch, place, number, code):
    number = getattr(signal, number)
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with monkeypatch.context() as patch:
        left = signal_within(patch, place, number)
        summary = go(path, "r", data)
    signal.signal(number, before)
    assert not left and summary.exit_code == code and summary.steps < 12
    assert checkpoint.newest(path / "r") == (path / "r" / f"{summary.steps:08d}", [])
    assert go(path, "r", data, resume=True).exit_code == 0
    assert_same_run(path, "whole", "r")


@pytest.mark.parametrize("place", first_fast(*PLACES))
def test_ctrl_c_twice_amid_validation_or_saving_leaves_whole_checkpoints(path, data, whole, monkeypatch, place):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signal_within(patch, place, signal.SIGINT, signal.SIGINT)
        go(path, "r", data)
    assert checkpoint.newest(path / "r")[1] == []
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")
    assert not list((path / "r").glob(".*.tmp"))


def test_ctrl_c_says_what_it_does_and_again_ends_at_once(path, data, whole, monkeypatch, capfd):
    """During a step, whose text it does not wait for."""
    original = Training.step

    def interrupted(self, prefetch):
        if self.state.step == 6:
            for said in (ENDING, None):
                os.kill(os.getpid(), signal.SIGINT)
                while said and said not in capfd.readouterr().err:
                    pass
        return original(self, prefetch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "step", interrupted)
        go(path, "r", data)
    assert f"ended at once; --resume goes on from {path / 'r' / '00000006'}\n" in capfd.readouterr().err
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


@unix
def test_a_signal_saves_and_goes_on(path, data, monkeypatch):
    go(path, "whole", data, config(keep_last=9))
    kill_at_step(monkeypatch, signal.SIGUSR1, 4)
    assert go(path, "r", data, config(keep_last=9)).stopped == "finished"
    assert [int(p.name) for p in checkpoints(path / "whole")] == [4, 6, 8, 12]
    assert [int(p.name) for p in checkpoints(path / "r")] == [4, 5, 6, 8, 12]
    assert_same_run(path, "whole", "r")


@unix
def test_a_hangup_that_nohup_ignores_stays_ignored(path, data, monkeypatch):
    kill_at_step(monkeypatch, signal.SIGHUP, 4)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert go(path, "r", data).stopped == "finished"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Gone:
    """A terminal that died, or a pipe whose reader left, after a few lines."""

    encoding, lines = "utf-8", 2

    def __init__(self, error, terminal):
        self.error, self.isatty = error, lambda: terminal

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise self.error

    def flush(self):
        self.write("")

    def fileno(self):
        return 2


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error", first_fast(BrokenPipeError(), OSError(5, "EIO"), OSError(28, "ENOSPC"), ValueError("closed"))
)
def test_nobody_listening_ends_no_training(path, data, whole, monkeypatch, error, terminal):
    monkeypatch.setattr("sys.stderr", Gone(error, terminal))
    monkeypatch.setattr("sys.stdout", Gone(error, terminal))
    assert train(path, "r", data, config(), device="cpu").stopped == "finished"
    assert_same_run(path, "whole", "r")
    assert (path / "r/samples.txt").read_text() == (path / "whole/samples.txt").read_text()


def test_without_any_stderr(path, data, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert train(path, "r", data, config(), device="cpu").stopped == "finished"
