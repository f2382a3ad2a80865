"""Resume is exact (law 5), and nothing is overwritten: whatever a resumed run cannot go on from is one clear line."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from training import SMALL, assert_same_run, config, go, metrics, script, weights

from pico import PicoError, checkpoint, load, preset
from pico.folder import checkpoints, create, lock
from pico.machine import pick_dtype
from pico.train import Training, train


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def die_at_step(monkeypatch, step):
    """Killed after the weights of that step are moved, before anything of it is written."""
    original = Training.optimizer_step

    def optimizer_step(self, prefetch):
        line = original(self, prefetch)
        if self.step == step:
            raise Killed
        return line

    monkeypatch.setattr(Training, "optimizer_step", optimizer_step)


def die_while_saving(monkeypatch, step):
    """Killed with half a checkpoint on the disk."""
    original = checkpoint.save_file

    def save_file(tensors, file):
        original(tensors, file)
        if file.parent.name == f".{step:08d}.tmp":
            raise Killed

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def die_before_pruning(monkeypatch, step):
    """Killed with a whole checkpoint that the process had not yet noticed."""
    original = checkpoint.prune

    def prune(run, *rest):
        if (run / f"{step:08d}").exists():
            raise Killed
        return original(run, *rest)

    monkeypatch.setattr(checkpoint, "prune", prune)


@pytest.mark.parametrize(
    "die, step", [(die_at_step, 2), (die_at_step, 7), (die_at_step, 12), (die_while_saving, 8), (die_before_pruning, 8)]
)
def test_a_killed_run_resumes_bit_for_bit(path, data, monkeypatch, die, step):
    go(path, "whole", data)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die(patch, step)
        go(path, "killed", data)
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")
    assert [line["step"] for line in metrics(path, "killed")] == list(range(1, 13))


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("router", ["threshold", "topk", "random", "none"])
def test_resume_is_exact_for_every_optimizer_and_router(path, data, monkeypatch, optimizer, router):
    settings = config(optimizer=optimizer, grad_accumulation_steps=2, batch_size=2)
    go(path, "whole", data, settings, router=router)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 6)
        go(path, "killed", data, settings, router=router)
    go(path, "killed", data, settings, resume=True)  # the run's router is kept without being named again
    assert_same_run(path, "whole", "killed")
    assert load(path, "killed").config.router == router


def test_the_random_state_is_part_of_the_run(path, data, monkeypatch):
    """Nothing in the model draws random numbers while training; this test does."""
    original = Training.optimizer_step
    monkeypatch.setattr(
        Training, "optimizer_step", lambda *args: {**original(*args), "drawn": [torch.rand(()).item(), random.random()]}
    )
    go(path, "whole", data)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 6)
        go(path, "killed", data)
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")


def test_resume_skips_a_damaged_checkpoint_and_names_it(path, data, capfd):
    go(path, "whole", data)
    go(path, "r", data, config(max_steps=8))
    file = path / "r" / "00000008" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    go(path, "r", data, resume=True)
    assert "skipped checkpoint 00000008: model.safetensors" in capfd.readouterr().err
    assert torch.equal(weights(path, "r", 12)["heads.weight"], load(path, "r").heads.weight)
    assert checkpoint.verify(path / "r" / "00000012") is None


def test_sigkill_while_saving_loses_nothing(path, data):
    go(path, "whole", data)
    done = script(path, data, ("killed", config(), {}), kill=".00000008.tmp")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (path / "killed" / ".00000008.tmp" / "model.safetensors").exists()
    assert [p.name for p in checkpoints(path / "killed")] == ["00000004", "00000006"]
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")
    assert not (path / "killed" / ".00000008.tmp").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    "changes, options, expected",
    [
        ({}, dict(resume=False), r"already holds a run: continue it with --resume"),
        (dict(context_len=16), {}, r"context_len 32 -> 16"),
        (dict(seed=1), {}, r"seed 0 -> 1"),
        (dict(optimizer="adamw"), {}, r"optimizer soap -> adamw"),
        (dict(batch_size=8), {}, r"batch_size x grad_accumulation_steps 4 -> 8"),
        ({}, dict(router="stride"), r"router topk -> stride"),
    ],
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
    with pytest.raises(PicoError, match=r"dataset .*data.jsonl -> .*other.jsonl; dataset fingerprint \w+ -> \w+"):
        go(path, "r", data.model_copy(update={"dataset": str(other)}), resume=True)
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(json.dumps({**json.loads(text), "dim": 32}))
    with pytest.raises(PicoError, match=r"dim 16 -> 32"):
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


def test_a_full_disk_keeps_the_last_checkpoint(path, data, monkeypatch):
    original = checkpoint.save_file

    def save_file(tensors, file):
        if "00000008" in str(file):
            raise OSError(28, "No space left on device")
        original(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        with pytest.raises(PicoError, match=r"disk is full.*00000006 stays usable"):
            go(path, "r", data)
    go(path, "whole", data)
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


def test_base_weights_start_from_another_run(path, data, monkeypatch):
    go(path, "base", data, config(max_steps=2))
    expected = weights(path, "base")
    monkeypatch.setattr(Training, "run", lambda self: self)
    for number, base in enumerate(["base", str(path / "base"), str(path / "base" / "00000002")]):
        training = go(path, f"r{number}", data, base_weights=base)
        for name, value in training.model.state_dict().items():
            assert torch.equal(value, expected[name])
        assert training.step == 0
    with pytest.raises(PicoError, match=r"no weights at 'nowhere'.*base"):
        go(path, "r9", data, base_weights="nowhere")
    wider = create(path.parent / "wide", preset("tiny", **{**SMALL, "dim": 32}))
    with pytest.raises(PicoError, match="another architecture"):
        go(wider, "r", data, base_weights=str(path / "base"))
    assert not (wider / "r" / "train.json").exists()


def test_a_tracker_that_is_not_installed_is_named(path, data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PicoError, match="--tracker tensorboard needs the package tensorboard: uv sync"):
        go(path, "r", data, config(tracker="tensorboard"))


def test_an_unknown_device_is_one_line(path, data):
    with pytest.raises(PicoError, match="device 'abacus' cannot be used here"):
        train(path, "r", data, config(), quiet=True, device="abacus")


def test_precision_is_bf16_only_where_the_hardware_multiplies_it(monkeypatch):
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert pick_dtype("auto", "cpu") == expected
    assert pick_dtype("auto", "mps") == torch.float32
    assert (pick_dtype("fp32", "cpu"), pick_dtype("bf16", "cpu")) == (torch.float32, torch.bfloat16)
