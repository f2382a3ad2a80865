"""Runs that begin with the weights of another: recorded, checked, and refused where they are gone."""

import hashlib
import json
import shutil

import pytest
import torch
from helpers import first_fast
from training import SMALL, Killed, assert_same_run, config, die_at_step, go, snapshot, weights

from pico import PicoError, preset
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import checkpoints, create
from pico.train.loop import Training


def test_base_weights_start_from_another_run(path, data, monkeypatch):
    go(path, "base", data, config(max_steps=2))
    expected = weights(path, "base")
    monkeypatch.setattr(Training, "run", lambda self: self)
    for number, base in enumerate(["base", str(path / "base"), str(path / "base" / "00000002")]):
        training = go(path, f"r{number}", data, base_weights=base)
        for name, value in training.parts.model.state_dict().items():
            assert torch.equal(value, expected[name])
        assert training.state.step == 0
    with pytest.raises(PicoError, match=r"no weights at 'nowhere'.*base"):
        go(path, "r9", data, base_weights="nowhere")
    wider = create(path.parent / "wide", preset("tiny", **{**SMALL, "dim": 32}))
    with pytest.raises(PicoError, match="another architecture"):
        go(wider, "r", data, base_weights=str(path / "base"))
    assert not (wider / "r" / "train.json").exists()


@pytest.mark.parametrize("base", first_fast("base", "elsewhere"))
def test_a_run_killed_before_its_first_checkpoint_begins_from_the_same_weights(path, data, monkeypatch, base):
    go(path, "base", data, config(max_steps=2))
    other = create(path.parent / "other", preset("tiny", **SMALL))
    shutil.copytree(path / "base", other / "base")
    start = "base" if base == "base" else str(other / "base")
    go(path, "whole", data, base_weights=start)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 3)
        go(path, "killed", data, base_weights=start)
    assert not checkpoints(path / "killed")
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")
    go(path, "new", data)
    assert not torch.equal(weights(path, "new")["heads.weight"], weights(path, "whole")["heads.weight"])
    remembered = json.loads((path / "killed" / "train.json").read_text())["base_weights"]
    file = path / "base" / "00000002" / "model.safetensors"
    where = "base" if base == "base" else str((other / "base").resolve())
    assert remembered == {"run": where, "step": 2, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.slow
def test_base_weights_that_are_gone_or_others_end_a_resume_in_one_line(path, data, monkeypatch):
    go(path, "base", data, config(max_steps=2))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 3)
        go(path, "r", data, base_weights="base")
    before, kept = snapshot(path / "r"), path / "kept"
    (path / "base" / "00000002").rename(kept)
    with pytest.raises(PicoError, match=r"from the weights in .*base, and 00000002: state.json is missing: bring"):
        go(path, "r", data, resume=True)
    checkpoint.save(path / "base", 2, Pico(preset("tiny", **SMALL)), [], {})
    with pytest.raises(PicoError, match=r"00000002: model.safetensors is another one now: bring"):
        go(path, "r", data, resume=True)
    assert snapshot(path / "r") == before
    shutil.rmtree(path / "base" / "00000002")
    kept.rename(path / "base" / "00000002")
    assert go(path, "r", data, resume=True).steps == 12
    shutil.rmtree(path / "base")  # the run has weights of its own now
    assert go(path, "r", data, config(max_steps=14), resume=True).steps == 14
    for odd in ("base", {"run": "base"}, {"run": 3, "step": "x"}, []):
        record = json.loads((path / "r" / "train.json").read_text()) | {"base_weights": odd}
        for folder in checkpoints(path / "r"):
            shutil.rmtree(folder)
        (path / "r" / "train.json").write_text(json.dumps(record))
        with pytest.raises(PicoError, match="base_weights"):
            go(path, "r", data, resume=True)


def test_base_weights_and_resume_exclude_each_other(path, data):
    go(path, "r", data, config(max_steps=2))
    before = snapshot(path / "r")
    with pytest.raises(PicoError, match="--base-weights begin a new run, and --resume goes on with a run's own"):
        go(path, "r", data, resume=True, base_weights="r")
    assert snapshot(path / "r") == before
