"""Runs that are refused: other settings, data or models than before, odd files; nothing is overwritten or left."""

import json
import os
from pathlib import Path

import pytest
from helpers import first_fast
from training import config, go, snapshot

from pico import PicoError
from pico.runs import checkpoint, verify
from pico.runs.folder import lock
from pico.train.loop import train


@pytest.mark.parametrize(
    "changes, options, expected",
    first_fast(
        ({}, dict(resume=False), r"already holds a run: continue it with --resume"),
        (dict(context_len=16), {}, r"--context-len 32 -> 16; undo that, or start"),
        (dict(seed=1), {}, r"--seed 0 -> 1"),
        (dict(optimizer="adamw"), {}, r"--optimizer soap -> adamw"),
        (dict(head_rate=1e-3), {}, r"--head-rate None -> 0.001"),
        (dict(batch_size=8), {}, r"--batch-size x --grad-accumulation-steps 4 -> 8"),
    ),
)
def test_a_run_is_never_overwritten_nor_resumed_with_other_settings(path, data, changes, options, expected):
    go(path, "r", data, config(max_steps=2))
    before = snapshot(path / "r")
    with pytest.raises(PicoError, match=expected) as error:
        go(path, "r", data, config(**changes), **{"resume": True, **options})
    assert "\n" not in str(error.value)
    assert snapshot(path / "r") == before


def test_resume_refuses_other_data_and_another_model(path, data, tmp_path):
    go(path, "r", data, config(max_steps=2))
    before = snapshot(path / "r")
    other = tmp_path / "other.jsonl"
    other.write_text(Path(data.dataset).read_text().replace("cats", "dogs"))
    with pytest.raises(PicoError, match=r"DATASET .*data.jsonl -> .*other.jsonl; the dataset's text is another"):
        go(path, "r", data.model_copy(update={"dataset": str(other)}), resume=True)
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(json.dumps({**json.loads(text), "dim": 32}))
    with pytest.raises(PicoError, match=r"model.json's dim 16 -> 32"):
        go(path, "r", data, resume=True)
    assert snapshot(path / "r") == before
    (path / "model.json").write_text(text)
    copy = tmp_path / "copy.jsonl"  # the same data elsewhere is the same data
    copy.write_text(Path(data.dataset).read_text())
    go(path, "r", data.model_copy(update={"dataset": str(copy)}), resume=True)


def test_resume_needs_a_run_and_a_valid_checkpoint(path, data):
    with pytest.raises(PicoError, match=r"no run 'r'"):
        go(path, "r", data, resume=True)
    assert not (path / "r").exists()
    (path / "empty").mkdir()
    with pytest.raises(PicoError, match="nothing to resume"):
        go(path, "empty", data, resume=True)
    go(path, "r", data, config(max_steps=2))
    (path / "r" / "00000002" / "state.json").write_text("{}")
    with pytest.raises(PicoError, match=r"no valid checkpoint in .*00000002: state.json"):
        go(path, "r", data, resume=True)


def test_a_locked_run_is_refused(path, data):
    with lock(path / "r"), pytest.raises(PicoError, match="locked by a live training"):
        go(path, "r", data)


def test_a_checkpoint_of_another_user_is_no_riddle(path, data, monkeypatch):
    """One that cannot be read is skipped, and its place cannot be taken: known before hours of training."""
    go(path, "r", data, config(max_steps=8))
    (path / "r" / "00000008" / "state.json").write_text("{}")
    monkeypatch.setattr(checkpoint, "remove", lambda folder: None)
    with pytest.raises(
        PicoError, match=r"00000008: there is one that can be neither read nor removed; .*00000006 stays"
    ):
        go(path, "r", data, resume=True)
    owned = os.stat(path)
    monkeypatch.setattr(os, "geteuid", lambda: owned.st_uid + 1)
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name != "00000008")
    with pytest.raises(
        PicoError, match=rf"00000008 .*belongs to user {owned.st_uid}: remove it, .* from 00000006"
    ) as error:
        go(path, "r", data, resume=True)
    assert "\n" not in str(error.value)


def test_a_refused_run_leaves_nothing(path, data, tmp_path):
    for changes, options in (
        ({}, dict(base_weights="nowhere")),
        (dict(batch_size=4), dict(device="abacus")),
    ):
        with pytest.raises(PicoError):
            train(path, "r", data, config(**changes), quiet=True, **{"device": "cpu", **options})
        assert [p.name for p in path.iterdir()] == ["model.json"]
    for name in ("../escaped", "a/b", "model.json", "a" * 300, "-x", "12345678", ""):
        with pytest.raises(PicoError, match="one plain folder name"):
            go(path, name, data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "m"]
    assert [p.name for p in path.iterdir()] == ["model.json"]


@pytest.mark.parametrize("content", first_fast("[1]", "{}", '{"train": 3}', '{"train": {}}', "[" * 100_000, "\x00"))
def test_resume_on_an_odd_train_json_is_one_line(path, data, content):
    go(path, "r", data, config(max_steps=2))
    (path / "r" / "train.json").write_text(content)
    before = snapshot(path / "r")
    with pytest.raises(PicoError, match=r"train.json") as error:
        go(path, "r", data, resume=True)
    assert "\n" not in str(error.value) and snapshot(path / "r") == before


def test_optimizer_state_of_another_shape_is_one_line(path, data):
    go(path, "r", data, config(max_steps=2))
    file = path / "r" / "00000002" / "state.json"
    record = json.loads(file.read_text())
    for change in ({"optimizer": []}, {"bytes": None}, {"rng": [{}]}, {"data": 3}):
        odd = {key: value for key, value in {**record, **change}.items() if value is not None}
        odd["checksum"] = verify._checksum(odd)
        file.write_text(json.dumps(odd))
        with pytest.raises(PicoError, match=r"00000002 is of another version of Pico or this run") as error:
            go(path, "r", data, resume=True)
        assert "\n" not in str(error.value)


def test_a_tracker_that_is_not_installed_is_named(path, data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PicoError, match="--tracker tensorboard needs the package tensorboard: uv sync"):
        go(path, "r", data, config(tracker="tensorboard"))


def test_an_unknown_device_is_one_line(path, data):
    with pytest.raises(PicoError, match="device 'abacus' cannot be used here"):
        train(path, "r", data, config(), quiet=True, device="abacus")
