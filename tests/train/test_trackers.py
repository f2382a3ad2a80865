"""A tracker goes on with its run, and its trouble is never the training's."""

import json
from types import SimpleNamespace

import pytest
from training import config, go

from pico import PicoError, TrainConfig
from pico.train import launch
from pico.train.trackers import Tracker


def fake(failing=()):
    """An Accelerator whose calls fail in these turns."""
    calls = []

    def called(kind):
        def call(*arguments, **named):
            calls.append((kind, *arguments))
            if len(calls) in failing:
                raise ConnectionError("no network\nat all")

        return call

    return SimpleNamespace(
        init_trackers=called("start"), log=called("log"), end_training=called("end"), trackers=[1], calls=calls
    )


def tracker(accelerator, tmp_path, said, kind="wandb", step=0):
    return Tracker(accelerator, TrainConfig(tracker=kind), {}, tmp_path / "r", "abcd", step, said.append)


@pytest.mark.parametrize("mode, resume", [("online", {"resume": "allow"}), ("offline", {})])
def test_wandb_is_given_the_name_that_the_run_has_kept(tmp_path, monkeypatch, mode, resume):
    monkeypatch.setenv("WANDB_MODE", mode)
    accelerator, said = fake(), []
    tracker(accelerator, tmp_path, said).log({"step": 1})
    (_, project, _, options), log = accelerator.calls
    assert project == "pico" and options["wandb"] == {"name": "r", "dir": str(tmp_path / "r"), "id": "abcd"} | resume
    assert log == ("log", {"step": 1}) and not said


def test_without_a_network_wandb_writes_to_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    accelerator, said = fake(failing=[1]), []
    tracker(accelerator, tmp_path, said)
    assert [call[0] for call in accelerator.calls] == ["start", "start"] and len(said) == 1
    assert "wandb" in said[0] and "metrics.jsonl goes on: no network at all" in said[0]


def test_what_fails_later_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    accelerator, said = fake(failing=[2]), []
    log = tracker(accelerator, tmp_path, said).log
    log({"step": 1})
    assert accelerator.trackers == [] and len(said) == 1


def test_what_fails_at_the_end_keeps_nothing_from_ending(tmp_path):
    accelerator, said = fake(failing=[2]), []
    tracker(accelerator, tmp_path, said, "trackio").close()
    assert [call[0] for call in accelerator.calls] == ["start", "end", "end"] and len(said) == 1


def test_tensorboard_forgets_the_steps_that_are_trained_again(tmp_path):
    accelerator = fake()
    tracker(accelerator, tmp_path, [], "tensorboard", step=8)
    assert accelerator.calls[0][3]["tensorboard"] == {"purge_step": 9}


def test_trackio_goes_on_with_the_run_of_this_name(tmp_path, capsys):
    accelerator, said = fake(), []
    start = accelerator.init_trackers
    accelerator.init_trackers = lambda *arguments: print("* Created new run") or start(*arguments)
    tracker(accelerator, tmp_path, said, "trackio").log({"step": 1, "loss": 2.0})
    assert accelerator.calls[0][3]["trackio"] == {"name": "r-abcd", "resume": "allow"} and not said
    assert accelerator.calls[1] == ("log", {"loss": 2.0})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "kind, extra", [("wandb", ""), ("tensorboard", " --extra tensorboard"), ("trackio", " --extra trackio")]
)
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, kind, extra):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PicoError, match=f"needs the package {kind}: uv sync{extra}, or pip install {kind}"):
        launch.make_accelerator(TrainConfig(tracker=kind), tmp_path, "cpu", False)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_of_wandb(path, data, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    go(path, "r", data, config(max_steps=12, tracker="wandb"))
    go(path, "r", data, config(max_steps=14, tracker="wandb"), resume=True)
    name = json.loads((path / "r/train.json").read_text())["tracker_run"]
    folders = [p.name for p in (path / "r/wandb").iterdir() if p.name.startswith("offline-run")]
    assert folders and all(folder.endswith(f"-{name}") for folder in folders)
