"""Numbers out of hand and machines that refuse: one clear line, and nothing unsound is kept."""

import math

import numpy as np
import pytest
import torch
from helpers import first_fast
from training import assert_same_run, broken_loss, config, go, metrics, weights

from pico import PicoError
from pico.base import files
from pico.evaluate.score import Score
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import checkpoints
from pico.train import intervals, parts
from pico.train import loop as module
from pico.train.loop import Training, train


@pytest.mark.parametrize("optimizer", first_fast("soap", "adamw", "muon"))
@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_a_diverging_run_is_one_line_and_leaves_sound_weights(path, data, optimizer, rate):
    settings = dict(optimizer=optimizer, learning_rate=rate, warmup_steps=0, max_steps=40)
    often = dict(checkpoint_interval=1, validation_interval=2, sample_interval=3, keep_last=99)
    with pytest.raises(PicoError, match=r"finite.*--learning-rate below") as error:
        go(path, "r", data, config(**settings, **often))
    assert "\n" not in str(error.value)
    saved = checkpoints(path / "r")
    assert ("--resume from there" in str(error.value)) == bool(saved)
    assert ("start again" in str(error.value)) == (not saved)
    for folder in saved:
        assert all(x.isfinite().all() for x in weights(path, "r", int(folder.name)).values())
    for line in metrics(path, "r"):
        assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize("interval", ["validation_interval", "sample_interval", "checkpoint_interval"])
def test_weights_are_looked_at_before_they_are_used(path, data, monkeypatch, interval):
    conclude = Training.conclude

    def broken(self, line):
        if line["step"] == 3:
            with torch.no_grad():
                self.parts.model.local_in[0].mlp.up.weight[0, 0] = math.inf
        conclude(self, line)

    monkeypatch.setattr(Training, "conclude", broken)
    monkeypatch.setattr(intervals, "score", lambda *_, **__: pytest.fail("scored"))
    monkeypatch.setattr(intervals, "generate", lambda *_, **__: pytest.fail("sampled"))
    never = dict.fromkeys(("validation_interval", "sample_interval", "checkpoint_interval"), 1000)
    with pytest.raises(PicoError, match=r"weights of step 3 are not finite.*nothing is saved: start again"):
        go(path, "r", data, config(**never | {interval: 3}))
    assert not checkpoints(path / "r")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_not_finite_ends_the_run(path, data, monkeypatch, value):
    monkeypatch.setattr(intervals, "score", lambda *_, **__: Score(32, 16, [value], [1], 0, 1, *np.ones((3, 1))))
    with pytest.raises(PicoError, match=r"validation of step 6 is not finite.*00000004: --resume from there"):
        go(path, "r", data)
    assert all("validation_bpb" not in line for line in metrics(path, "r"))


@pytest.mark.parametrize("name", ["samples.txt", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(path, data, monkeypatch, name):
    append = intervals.append

    def full(file, text):
        append(file, text)
        if file.name == name and "8" in text[:10]:  # of step 8
            raise OSError(28, "No space left on device", str(file))

    for part in intervals, module:
        monkeypatch.setattr(part, "append", full)
    with pytest.raises(PicoError, match=rf"cannot use .*{name}: the disk is full; mend that, then --resume"):
        go(path, "r", data)
    assert [int(p.name) for p in checkpoints(path / "r")] == [4, 6]


def test_a_plot_that_cannot_be_written_is_said_only(path, data, monkeypatch, capfd):
    def full(*_):
        raise PicoError("loss.png cannot be written: No space left on device")

    monkeypatch.setattr(module, "plot_losses", full)
    assert train(path, "r", data, config(), device="cpu").exit_code == 0
    assert "loss.png cannot be written: No space left" in capfd.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_one_line(path, data):
    (path / "r").write_text("a file")
    with pytest.raises(PicoError, match=r"cannot .*r: .*exists"):
        go(path, "r", data)


def test_a_step_that_is_not_finite_is_skipped_and_said(path, data, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        broken_loss(patch, [3, 4])
        summary = go(path, "r", data)
    assert summary.steps == 12 and math.isfinite(summary.bpb)
    err = capfd.readouterr().err
    assert err.count("step 4 skipped") == 2 and "(2 in a row)" in err
    assert all(torch.isfinite(value).all() for value in weights(path, "r").values())


def test_ten_bad_steps_in_a_row_end_the_run(path, data, monkeypatch):
    broken_loss(monkeypatch, range(6, 1000))
    with pytest.raises(PicoError, match=r"10 steps in a row.*last good checkpoint is .*00000006"):
        go(path, "r", data)
    assert checkpoint.newest(path / "r")[0].name == "00000006"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
     RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(path, data, monkeypatch, error):
    def forward(*_, **__):
        raise error

    monkeypatch.setattr(Pico, "forward", forward)
    with pytest.raises(PicoError, match="out of memory: lower --batch-size 4") as raised:
        go(path, "r", data)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    go(path, "r", data, config(max_steps=1, batch_size=2))  # nothing was trained, so nothing stands in the way


def test_other_errors_are_not_hidden(path, data, monkeypatch):
    def forward(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Pico, "forward", forward)
    with pytest.raises(RuntimeError, match="a bug"):
        go(path, "r", data)


def test_an_error_while_making_batches_is_raised(path, data, monkeypatch):
    def broken(self):
        raise PicoError("the dataset went away")

    monkeypatch.setattr(parts.Batches, "__next__", broken)
    with pytest.raises(PicoError, match="went away"):
        go(path, "r", data)


def test_a_full_disk_keeps_the_last_checkpoint(path, data, whole, monkeypatch):
    original = checkpoint.save_file

    def save_file(tensors, file):
        if "00000008" in str(file):
            raise OSError(28, "No space left on device")
        original(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        with pytest.raises(PicoError, match=r"disk is full.*00000006 stays usable"):
            go(path, "r", data)
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


def test_metrics_that_cannot_be_written_end_the_run_in_one_line(path, data, whole, monkeypatch):
    original = files.os.open

    def full(file, flags, *rest, **more):
        if str(file).endswith("metrics.jsonl") and flags & files.os.O_APPEND and checkpoints(path / "r"):
            raise OSError(28, "No space left on device", str(file))
        return original(file, flags, *rest, **more)

    with (
        monkeypatch.context() as patch,
        pytest.raises(PicoError, match=r"write .*metrics.jsonl: the disk is full"),
    ):
        patch.setattr(files.os, "open", full)
        go(path, "r", data)
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")
