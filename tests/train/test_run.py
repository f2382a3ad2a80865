"""What a run leaves and says: its folder, the best checkpoint, validation, the floor, stderr."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import assert_same_run, config, go, metrics, weights

from pico import DataConfig, TrainConfig
from pico.data.corpus import story_documents
from pico.data.stories import entropy_floor
from pico.evaluate.score import Score
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import checkpoints
from pico.train import intervals, parts
from pico.train import loop as module
from pico.train.loop import train


def test_the_run_folder(path, data, monkeypatch):
    from pico.runs.plots import plot_losses

    monkeypatch.setattr(module, "plot_losses", plot_losses)
    summary = go(path, "r", data)
    folder = path / "r"
    assert summary.folder == folder and (summary.steps, summary.stopped, summary.exit_code) == (12, "finished", 0)
    visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert visible == ["00000008", "00000012", "loss.png", "metrics.jsonl", "samples.txt", "train.json"]
    record = json.loads((folder / "train.json").read_text())
    assert TrainConfig(**record["train"]) == config() and DataConfig(**record["data"]) == data
    assert {"fingerprint", "versions", "git_revision", "model"} <= set(record)
    lines = metrics(path, "r")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_bpb" in line] == [6, 12]
    for line in lines:
        assert 1 < line["perplexity"] < 1000 and line["loss"] > 0
        assert ("validation_perplexity" in line) == ("validation_bpb" in line)
    assert math.exp(lines[-1]["validation_loss"]) == pytest.approx(lines[-1]["validation_perplexity"])
    assert 0 < lines[-1]["validation_accuracy"] < 1
    assert summary.bpb == lines[-1]["validation_bpb"] and summary.bytes == lines[-1]["bytes"]
    text = (folder / "samples.txt").read_text()
    assert "step 8\n" in text and "step 12\n" in text
    state = checkpoint.read_state(folder / "00000012")
    best = min((line for line in lines if "validation_bpb" in line), key=lambda line: line["validation_bpb"])
    assert state["best"] == {"step": best["step"], "bits_per_byte": best["validation_bpb"]}


def fake_score(bpb: float):
    return SimpleNamespace(bits_per_byte=bpb, loss=bpb, perplexity=2.0, accuracy=0.5)


def test_the_best_checkpoint_is_kept(path, data, monkeypatch):
    """Over a resume, too."""
    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(intervals, "score", lambda *_, **__: fake_score(next(values)))
    settings = dict(validation_interval=3, checkpoint_interval=2, keep_last=1)
    go(path, "r", data, config(**settings, max_steps=8))
    assert [p.name for p in checkpoints(path / "r")] == ["00000006", "00000008"]
    go(path, "r", data, config(**settings), resume=True)
    assert [p.name for p in checkpoints(path / "r")] == ["00000006", "00000012"]
    assert torch.equal(weights(path, "r", "best")["heads.weight"], weights(path, "r", 6)["heads.weight"])


def test_validation_is_causal_and_training_mode_returns(path, data, monkeypatch):
    modes = []
    original = Pico.forward

    def forward(self, *arguments, **options):
        modes.append((self.training, options.get("targets") is not None))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Pico, "forward", forward)
    go(path, "r", data)
    assert all(training == loss for training, loss in modes)
    assert (False, False) in modes and modes[-1] == (False, False)


def test_talk_goes_to_stderr_and_quiet_is_quiet(path, data, capfd, monkeypatch):
    train(path, "loud", data, config(), device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("step 1  loss", "kB/s", "routed", "validation", "sample at step 8", "Training finished", "next: "):
        assert words in err
    go(path, "quiet", data)
    assert capfd.readouterr() == ("", "")
    assert_same_run(path, "loud", "quiet")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal: one line, redrawn
    train(path, "terminal", data, config(), device="cpu")
    out, err = capfd.readouterr()
    assert out == "" and "\x1b[" in err


def test_the_floor_of_stories_is_known_and_printed(path, capfd):
    summary = train(path, "r", DataConfig(dataset="stories", validation_size=20), config(max_steps=2), device="cpu")
    err = capfd.readouterr().err
    assert 0 < summary.floor < 2 < summary.bpb
    stories = story_documents(0, 0, 20).stories
    assert summary.floor == pytest.approx(entropy_floor(stories))
    assert f"(floor {summary.floor:.3f})" in err and f"the floor is {summary.floor:.4f}" in err


def test_the_floor_is_that_of_the_stories_that_are_scored(path, monkeypatch):
    texts = []
    monkeypatch.setattr(parts, "VALIDATION_BYTES", 4000)
    monkeypatch.setattr(
        intervals,
        "score",
        lambda model, documents, *_, **__: texts.extend(documents) or Score(32, 16, [1.0], [1], 0, 1, *np.ones((3, 1))),
    )
    summary = go(path, "r", DataConfig(dataset="stories", validation_size=20), config(max_steps=1))
    stories = story_documents(0, 0, len(texts)).stories
    assert texts == [story.text.encode() for story in stories] and 0 < len(texts) < 20
    assert sum(map(len, texts)) <= 4000 and summary.floor == pytest.approx(entropy_floor(stories))


def test_stories_and_streams_are_never_read_again():
    from pico.data.corpus import Endless
    from pico.data.documents import Documents
    from pico.data.hub import Stream

    assert (Documents.repeats, Endless.repeats, Stream.repeats) == (True, False, False)
