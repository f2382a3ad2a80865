"""Resume is exact (law 5), whenever a run was killed, and nothing that was good is lost."""

import random
import signal

import pytest
import torch
from helpers import first_fast
from torch.amp import GradScaler
from training import SMALL, TWINS, Killed, assert_same_run, config, die_at_step, go, metrics, reroute, script, weights

from pico import load, preset
from pico.runs import checkpoint
from pico.runs.folder import checkpoints, create
from pico.train import parts
from pico.train.loop import Training, train


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
    "die, step",
    first_fast((die_at_step, 7), (die_at_step, 2), (die_at_step, 12), (die_while_saving, 8), (die_before_pruning, 8)),
)
def test_a_killed_run_resumes_bit_for_bit(path, data, whole, monkeypatch, die, step):
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


@pytest.mark.parametrize(
    "router, optimizer",
    first_fast(
        *((router, "soap") for router in ("topk", "threshold", "random", "none", "hnet", "entropy", "space+random")),
        *(("topk", optimizer) for optimizer in ("adamw", "muon")),
    ),
)
def test_resume_is_exact_for_every_optimizer_and_router(path, data, monkeypatch, optimizer, router):
    settings = config(optimizer=optimizer, grad_accumulation_steps=2, batch_size=2)
    reroute(path, router)
    assert_resume_is_exact(path, data, settings, monkeypatch)


@pytest.mark.slow
def test_resume_is_exact_while_a_teacher_routes_and_capacity_rises(path, data, monkeypatch):
    """Killed at step 6 of 52: the teacher goes with the next one, and the capacity has risen and goes on rising."""
    reroute(path, "topk", router_teacher="last-letter", latent_capacity_start=0.0625, latent_capacity_factor=0.25)
    assert_resume_is_exact(path, data, config(max_steps=52, batch_size=2), monkeypatch)
    routed = [line["routed"] for line in metrics(path, "killed")]
    assert routed[8] == 3 / 32 and routed[41] == 8 / 32 and set(routed[:7]) != {1 / 16}


@pytest.mark.parametrize(
    "twin, optimizer",
    first_fast(*((twin, "muon") for twin in TWINS), ("simple-picolm", "soap"), ("simple-picolm", "adamw")),
)
def test_resume_is_exact_for_every_dense_decoder(tmp_path, short_samples, data, monkeypatch, twin, optimizer):
    path, settings = create(tmp_path / "twin", TWINS[twin]), config(optimizer=optimizer)
    assert_resume_is_exact(path, data, settings, monkeypatch)
    assert metrics(path, "whole")[-1]["loss"] < metrics(path, "whole")[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [preset("tiny", **SMALL), TWINS["simple-picolm"]], ids=["pico", "gpt"])
def test_gradient_checkpointing_changes_no_bit(tmp_path, short_samples, data, shape):
    path, again = create(tmp_path / "m", shape), config(gradient_checkpointing=True)
    go(path, "kept", data)
    go(path, "again", data, again)
    assert_same_run(path, "kept", "again")


OWN_RATES = dict(embedding_rate=3e-2, head_rate=1e-3, vector_rate=2e-3)


@pytest.mark.parametrize(
    "settings",
    first_fast(
        *[dict(schedule=name) for name in ("steps", "warmdown", "cosine")],
        *[dict(optimizer=name, **OWN_RATES) for name in ("soap", "adamw", "muon")],
        dict(soap_beta2=0.99, soap_cautious=True, tail_average=0.6),
    ),
)
def test_resume_is_exact_for_every_schedule_and_with_own_rates(path, data, monkeypatch, settings):
    settings = config(**settings)
    assert_resume_is_exact(path, data, settings, monkeypatch)


def test_resume_is_exact_in_fp16_and_keeps_the_scale(path, data, monkeypatch):
    monkeypatch.setattr(parts, "loss_scaler", lambda *_: GradScaler("cpu", 4.0, growth_interval=5))
    settings = config(precision="fp16")
    assert_resume_is_exact(path, data, settings, monkeypatch)
    scales = [checkpoint.read_state(path / run / "00000012")["scaler"] for run in ("whole", "killed")]
    assert scales[0] == scales[1] and scales[0]["scale"] == 16 and scales[0]["_growth_tracker"] == 2


def test_a_setting_that_may_change_counts_from_there_on(path, data, monkeypatch, capfd):
    for run in ("weak", "strong"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at_step(patch, 6)
            go(path, run, data)
    train(path, "weak", data, config(), resume=True, device="cpu")
    assert "from here on --" not in capfd.readouterr().err
    train(path, "strong", data, config(weight_decay=5.0), resume=True, device="cpu")
    assert "from here on --weight-decay 0.01 -> 5.0" in capfd.readouterr().err
    weak, strong = (sum(x.square().sum() for x in weights(path, run).values()) for run in ("weak", "strong"))
    assert strong < 0.9 * weak


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


def test_resume_skips_a_damaged_checkpoint_and_names_it(path, data, whole, capfd):
    go(path, "r", data, config(max_steps=8))
    file = path / "r" / "00000008" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    go(path, "r", data, resume=True)
    assert "skipped checkpoint 00000008: model.safetensors" in capfd.readouterr().err
    assert torch.equal(weights(path, "r", 12)["heads.weight"], load(path, "r").heads.weight)
    assert checkpoint.verify_checkpoint(path / "r" / "00000012") is None


@pytest.mark.slow
def test_sigkill_while_saving_loses_nothing(path, data, whole):
    done = script(path, data, ("killed", config(), {}), kill=".00000008.tmp")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (path / "killed" / ".00000008.tmp" / "model.safetensors").exists()
    assert [p.name for p in checkpoints(path / "killed")] == ["00000004", "00000006"]
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")
    assert not (path / "killed" / ".00000008.tmp").exists()


@pytest.mark.slow
def test_samples_are_cut_back_to_the_checkpoint(path, data, monkeypatch):
    """Whatever the samples say, the words that begin one included."""
    monkeypatch.setattr("pico.train.intervals.underscored", lambda pieces: "step 1\nstep 99\n\nstep 3")
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


def test_a_finished_run_holds_no_lock_and_nothing_half_written(path, data):
    (path / "r").mkdir()
    (path / "r" / ".train.json.4242.tmp").write_text("{")
    go(path, "r", data, config(max_steps=2))
    assert not list((path / "r").glob(".*"))
