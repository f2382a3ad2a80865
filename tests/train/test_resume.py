"""Resume is exact (law 5), and nothing is overwritten: whatever a resumed run cannot go on from is one clear line."""

import hashlib
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler
from training import SMALL, TWINS, assert_same_run, config, go, metrics, reroute, script, weights

from pico import PicoError, load, preset
from pico.base import files
from pico.base.device import pick_dtype
from pico.base.files import append
from pico.model.pico import Pico
from pico.runs import checkpoint, verify
from pico.runs.folder import checkpoints, create, lock
from pico.train import parts
from pico.train.loop import Training, train


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def die_at_step(monkeypatch, step):
    """Killed after the weights of that step are moved, before anything of it is written."""
    original = Training.conclude

    def or_die(self, line):
        if line["step"] == step:
            raise Killed
        original(self, line)

    monkeypatch.setattr(Training, "conclude", or_die)


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


def assert_resume_is_exact(path, data, settings, monkeypatch):
    """A run that is killed and goes on is the one that was not."""
    go(path, "whole", data, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 6)
        go(path, "killed", data, settings)
    go(path, "killed", data, settings, resume=True)
    assert_same_run(path, "whole", "killed")


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("router", ["threshold", "topk", "random", "none"])
def test_resume_is_exact_for_every_optimizer_and_router(path, data, monkeypatch, optimizer, router):
    settings = config(optimizer=optimizer, grad_accumulation_steps=2, batch_size=2)
    reroute(path, router)
    assert_resume_is_exact(path, data, settings, monkeypatch)


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("twin", TWINS)
def test_resume_is_exact_for_every_dense_decoder(tmp_path, short_samples, data, monkeypatch, twin, optimizer):
    path, settings = create(tmp_path / "twin", TWINS[twin]), config(optimizer=optimizer)
    assert_resume_is_exact(path, data, settings, monkeypatch)
    assert metrics(path, "whole")[-1]["loss"] < metrics(path, "whole")[0]["loss"]


@pytest.mark.parametrize("shape", [preset("tiny", **SMALL), TWINS["simple-picolm"]], ids=["pico", "gpt"])
def test_gradient_checkpointing_changes_no_bit(tmp_path, short_samples, data, shape):
    path, again = create(tmp_path / "m", shape), config(gradient_checkpointing=True)
    go(path, "kept", data)
    go(path, "again", data, again)
    assert_same_run(path, "kept", "again")


OWN_RATES = dict(embedding_rate=3e-2, head_rate=1e-3, vector_rate=2e-3)


@pytest.mark.parametrize(
    "settings",
    [dict(schedule=name) for name in ("steps", "warmdown", "cosine")]
    + [dict(optimizer=name, **OWN_RATES) for name in ("soap", "adamw", "muon")],
)
def test_resume_is_exact_for_every_schedule_and_with_own_rates(path, data, monkeypatch, settings):
    settings = config(**settings)
    assert_resume_is_exact(path, data, settings, monkeypatch)


def test_resume_is_exact_in_fp16_and_keeps_the_scale(path, data, monkeypatch):
    monkeypatch.setattr(
        parts, "GradScaler", lambda device, enabled: GradScaler(device, 4.0, growth_interval=5, enabled=enabled)
    )
    settings = config(precision="fp16")
    assert_resume_is_exact(path, data, settings, monkeypatch)
    scales = [checkpoint.read_state(path / run / "00000012")["scaler"] for run in ("whole", "killed")]
    assert scales[0] == scales[1] and scales[0]["scale"] == 16 and scales[0]["_growth_tracker"] == 2


def test_the_random_state_is_part_of_the_run(path, data, monkeypatch):
    """Nothing in the model draws random numbers while training; this test does."""
    original = Training.conclude

    def conclude(training, line):
        original(training, {**line, "drawn": [torch.rand(()).item(), random.random()]})

    monkeypatch.setattr(Training, "conclude", conclude)
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
    assert checkpoint.verify_checkpoint(path / "r" / "00000012") is None


@pytest.mark.slow
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
        (dict(context_len=16), {}, r"--context-len 32 -> 16; undo that, or start"),
        (dict(seed=1), {}, r"--seed 0 -> 1"),
        (dict(optimizer="adamw"), {}, r"--optimizer soap -> adamw"),
        (dict(head_rate=1e-3), {}, r"--head-rate None -> 0.001"),
        (dict(batch_size=8), {}, r"--batch-size x --grad-accumulation-steps 4 -> 8"),
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


@pytest.mark.parametrize("base", ["base", "elsewhere"])
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


def test_samples_are_cut_back_to_the_checkpoint(path, data, monkeypatch):
    """Whatever the samples say, the words that begin one included."""
    monkeypatch.setattr("pico.train.loop.underscored", lambda pieces: "step 1\nstep 99\n\nstep 3")
    settings = config(sample_interval=2)
    go(path, "whole", data, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 7)  # after the sample of step 6, saved with it; that of 7 is lost
        go(path, "killed", data, settings)
    with open(path / "killed" / "samples.txt", "a") as file:
        file.write("step 7\nhalf a sam")
    go(path, "killed", data, settings, resume=True)
    assert (path / "killed" / "samples.txt").read_text() == (path / "whole" / "samples.txt").read_text()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at_step(patch, 3)
        go(path, "early", data, settings)
    assert not checkpoints(path / "early") and (path / "early" / "samples.txt").stat().st_size
    go(path, "early", data, settings, resume=True)
    assert (path / "early" / "samples.txt").read_text() == (path / "whole" / "samples.txt").read_text()


def test_a_damaged_newest_checkpoint_never_costs_a_good_one(path, data, capfd):
    settings = dict(checkpoint_interval=2, validation_interval=100, sample_interval=100, keep_last=3)
    go(path, "r", data, config(max_steps=6, **settings))
    assert [p.name for p in checkpoints(path / "r")] == ["00000002", "00000004", "00000006"]
    (path / "r" / "00000006" / "model.safetensors").write_bytes(b"")
    for damaged in range(3):
        go(path, "r", data, config(max_steps=5, **settings | dict(keep_last=1, checkpoint_interval=1)), resume=True)
        assert [p.name for p in checkpoints(path / "r")][-2:] == ["00000005", "00000006"], damaged
        assert checkpoint.newest(path / "r")[0].name == "00000005"
    assert "skipped checkpoint 00000006: model.safetensors" in capfd.readouterr().err
    go(path, "r", data, config(max_steps=7, **settings | dict(keep_last=1, checkpoint_interval=1)), resume=True)
    assert [p.name for p in checkpoints(path / "r")][-1] == "00000007"
    assert "00000006" not in [p.name for p in checkpoints(path / "r")]


def test_a_removed_damaged_checkpoint_is_named(path, data, capfd):
    settings = config(max_steps=6, checkpoint_interval=2, validation_interval=100, sample_interval=100, keep_last=3)
    go(path, "r", data, settings)
    (path / "r" / "00000004" / "state.json").write_text("{}")
    go(path, "r", data, settings.model_copy(update={"max_steps": 8}), resume=True)
    said = capfd.readouterr().err
    assert "removed the damaged checkpoint 00000004: state.json does not match its checksum" in said
    assert [p.name for p in checkpoints(path / "r")] == ["00000002", "00000006", "00000008"]


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


def test_a_finished_run_holds_no_lock_and_nothing_half_written(path, data):
    (path / "r").mkdir()
    (path / "r" / ".train.json.4242.tmp").write_text("{")
    go(path, "r", data, config(max_steps=2))
    assert not list((path / "r").glob(".*"))


@pytest.mark.parametrize("content", ["[1]", "{}", '{"train": 3}', '{"train": {}}', "[" * 100_000, "\x00"])
def test_resume_on_an_odd_train_json_is_one_line(path, data, content):
    go(path, "r", data, config(max_steps=2))
    (path / "r" / "train.json").write_text(content)
    before = snapshot(path / "r")
    with pytest.raises(PicoError, match=r"train.json") as error:
        go(path, "r", data, resume=True)
    assert "\n" not in str(error.value) and snapshot(path / "r") == before


def test_metrics_that_cannot_be_written_end_the_run_in_one_line(path, data, monkeypatch):
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
    go(path, "whole", data)
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


def test_a_plot_that_cannot_be_written_costs_nothing(path, data, monkeypatch, capfd):
    monkeypatch.setattr("pico.train.loop.plot_losses", lambda *_: append(path / "r" / "no" / "loss.png", ""))
    assert go(path, "r", data, config(max_steps=2)).exit_code == 0
    assert "loss.png: No such file" in capfd.readouterr().err


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
