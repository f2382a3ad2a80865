"""Steps whose numbers are read when the next one is queued, as on a GPU: the run is the same."""

import signal

import pytest
from training import assert_same_run, broken_loss, config, go, kill_at_step, metrics

from pico import PicoError
from pico.runs.folder import checkpoints
from pico.train.loop import Training


def lag(monkeypatch) -> list[int]:
    """Reads the numbers of a step when the next one is queued, as on a GPU. Returns how many steps wait, at each."""
    made, queue, waiting = Training.__init__, Training.queue, []

    def lagging(self, parts):
        made(self, parts)
        self.lags = True

    def counted(self, prefetch):
        queue(self, prefetch)
        waiting.append(len(self.queued))

    monkeypatch.setattr(Training, "__init__", lagging)
    monkeypatch.setattr(Training, "queue", counted)
    return waiting


def test_a_step_is_read_one_late_with_the_same_end(path, data, whole, monkeypatch):
    """Lines, checkpoints, validations and samples are those of a run that reads at once."""
    waiting = lag(monkeypatch)
    go(path, "late", data)
    assert waiting == [1, 2, 2, 2, 1, 2, 1, 2, 1, 2, 2, 2]  # alone after 4, 6 and 8, when something is due
    assert_same_run(path, "whole", "late")
    assert [p.name for p in checkpoints(path / "whole")] == [p.name for p in checkpoints(path / "late")]
    assert (path / "whole" / "samples.txt").read_text() == (path / "late" / "samples.txt").read_text()


@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
def test_a_signal_with_a_step_in_flight_saves_what_is_told(path, data, whole, monkeypatch, number):
    settings = config(keep_last=20)
    with monkeypatch.context() as patch:
        lag(patch)
        kill_at_step(patch, getattr(signal, number), 2)
        summary = go(path, "late", data, settings)
    if number == "SIGINT":
        assert summary.stopped == "interrupted" and summary.steps == 4  # one was queued already
        go(path, "late", data, settings, resume=True)
    else:
        assert 4 in {int(p.name) for p in checkpoints(path / "late")}
    assert_same_run(path, "whole", "late")


def test_a_step_in_flight_that_is_not_finite_moves_nothing(path, data, monkeypatch, capfd):
    lag(monkeypatch)
    broken_loss(monkeypatch, [3, 4, 9])
    assert go(path, "late", data).steps == 12
    assert [line["step"] for line in metrics(path, "late")] == list(range(1, 13))
    assert capfd.readouterr().err.count("skipped") == 3
    broken_loss(monkeypatch, range(6, 1000))
    with pytest.raises(PicoError, match=r"10 steps in a row.*last good checkpoint is .*00000006"):
        go(path, "bad", data)
