"""The training loop: resume is exact, processes agree, nothing is overwritten, and every failure is one clear line."""

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pico import DataConfig, PicoError, TrainConfig, checkpoint, load, preset
from pico import train as module
from pico.machine import pick_dtype
from pico.model import NGrams, Pico
from pico.optimizers import build_optimizers, set_learning_rate
from pico.train import Training, train

ROOT = Path(__file__).parents[1]
SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=256, ngram_dim=4,
)  # fmt: skip
QUICK = dict(
    context_len=32, batch_size=4, max_steps=12, warmup_steps=4, checkpoint_interval=4, validation_interval=6,
    sample_interval=8, precision="fp32", keep_last=2,
)  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 8)
    monkeypatch.setattr(module, "plot_losses", lambda *_: None)  # its own test is elsewhere; one of ours undoes this


@pytest.fixture
def data(tmp_path):
    """A corpus of 30 documents; 12 steps of 4 x 32 bytes read it about once and a half."""
    file = tmp_path / "data.jsonl"
    lines = [{"text": f"{i} cats sat on {i * 7 % 13} mats, purring."} for i in range(30)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(dataset=str(file), validation_size=0.1)


@pytest.fixture
def path(tmp_path):
    return checkpoint.create(tmp_path / "m", preset("tiny", **SMALL))


def config(**changes):
    return TrainConfig(**{**QUICK, **changes})


def go(path, run, data, settings=None, **options):
    return train(path, run, data, settings or config(), quiet=True, device="cpu", **options)


def metrics(path, run):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "kB_per_s")} for line in lines]


def weights(path, run, step=-1):
    return load(path, run, step).state_dict()


def assert_same_run(path, one, other):
    assert metrics(path, one) == metrics(path, other)
    before, after = weights(path, one), weights(path, other)
    for name in before:
        assert torch.equal(before[name], after[name]), name
    before, after = (checkpoint.read_state(checkpoint.newest(path / run)[0]) for run in (one, other))
    for name in ("step", "bytes", "best", "validation_bpb", "data"):
        assert before[name] == after[name], name


# --- resume is exact (law 5) ------------------------------------------------------------------------------------------


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
        original(run, *rest)

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


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from pico import DataConfig, TrainConfig, checkpoint
from pico import train as module
module.SAMPLE_BYTES = 8
module.plot_losses = lambda *_: None
path, dataset, jobs, kill = json.loads(sys.argv[1])
if kill:
    original = checkpoint.save_file
    def save_file(tensors, file):
        original(tensors, file)
        if file.parent.name == kill and file.name == checkpoint.WEIGHTS:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save_file = save_file
data = DataConfig(dataset=dataset, validation_size=0.1)
destroy = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda *_: None  # several jobs share it: a second may hang in its making
for run, settings, options in jobs:
    module.train(path, run, data, TrainConfig(**settings), quiet=True, **options)
if torch.distributed.is_initialized():
    destroy()  # its threads must end before the interpreter does, which aborts otherwise, now and then
"""


def script(path, data, *jobs, launch=(), kill=None):
    """Trainings, each (run, settings, options of train), in a process of their own, or in several."""
    jobs = [(run, settings.model_dump(), options) for run, settings, options in jobs]
    arguments = json.dumps([str(path), data.dataset, jobs, kill])
    file = path / "train_script.py"
    file.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launch, str(file), arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path, timeout=400)


def test_sigkill_while_saving_loses_nothing(path, data):
    go(path, "whole", data)
    done = script(path, data, ("killed", config(), {}), kill=".00000008.tmp")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (path / "killed" / ".00000008.tmp" / "model.safetensors").exists()
    assert [p.name for p in checkpoint.checkpoints(path / "killed")] == ["00000004", "00000006"]
    go(path, "killed", data, resume=True)
    assert_same_run(path, "whole", "killed")
    assert not (path / "killed" / ".00000008.tmp").exists()


# --- processes, accumulation, limits ----------------------------------------------------------------------------------


def two_processes(*kind):
    """accelerate launch; not with --cpu: that starts a single process unless there is MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", *kind, "--num_processes", "2", "--num_machines", "1"]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]


def steady(**changes):
    """Without dropout, whose draws depend on how a batch is split."""
    return config(ngram_dropout=0.0, **changes)


def test_two_processes_train_like_one(path, data):
    """Also: one process continues what two began."""
    go(path, "one", data, steady())
    done = script(path, data, ("two", steady(max_steps=8), {}), launch=two_processes("--multi_gpu"))
    assert done.returncode == 0, done.stderr
    assert json.loads((path / "two" / "train.json").read_text())["processes"] == 2
    go(path, "two", data, steady(max_steps=8), resume=True)  # nothing to do, but allowed
    one, two = metrics(path, "one"), metrics(path, "two")
    assert len(two) == 8
    for step in range(4):  # before the learning rates part: 12 steps against 8
        assert one[step]["bytes"] == two[step]["bytes"]
    eight = go(path, "eight", data, steady(max_steps=8))
    for a, b in zip(metrics(path, "eight"), two):
        for key in ("loss", "train_bpb", "routed", "grad_norm"):
            assert math.isclose(a[key], b[key], rel_tol=2e-4), (a, b)
    assert math.isclose(eight.bpb, two[-1]["validation_bpb"], rel_tol=2e-4)
    go(path, "eight", data, steady(), resume=True)
    go(path, "two", data, steady(), resume=True)  # the split over processes may change
    for a, b in zip(metrics(path, "eight"), metrics(path, "two"), strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=5e-4), (a, b)


def shapes(folder):
    """Of a checkpoint's weights and optimizer state, without the random state, which each process has."""
    tensors = load_file(folder / checkpoint.WEIGHTS) | load_file(folder / checkpoint.OPTIMIZER)
    return {name: (x.shape, x.dtype) for name, x in tensors.items() if not name.startswith("state/rng")}


def test_two_sharded_processes_train_like_one(path, data):
    """FSDP: a run resumed by FSDP, one continued by a single process, and one that a single process began."""
    kinds = {"adamw": "threshold", "soap": "topk", "muon": "none"}  # none: the router gets no gradient
    short = {kind: steady(optimizer=kind, max_steps=5) for kind in kinds}
    long = {kind: steady(optimizer=kind) for kind in kinds}
    for kind, router in kinds.items():
        go(path, f"{kind}-one", data, short[kind], router=router)
        shutil.copytree(path / f"{kind}-one", path / f"{kind}-forth")
        go(path, f"{kind}-one", data, long[kind], resume=True)
    jobs = []
    for kind, router in kinds.items():
        jobs.append((f"{kind}-back", short[kind], dict(router=router)))
        jobs.append((f"{kind}-forth", long[kind], dict(resume=True)))
        jobs.append((f"{kind}-on", short[kind], dict(router=router)))
        jobs.append((f"{kind}-on", long[kind], dict(resume=True)))
    done = script(path, data, *jobs, launch=two_processes("--use_fsdp", "--fsdp_version", "2"))
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        go(path, f"{kind}-back", data, long[kind], resume=True)
        for run in ("back", "forth", "on"):
            for a, b in zip(metrics(path, f"{kind}-one"), metrics(path, f"{kind}-{run}"), strict=True):
                assert a["bytes"] == b["bytes"] and a.keys() == b.keys()
                for key in a.keys() - {"skipped"}:  # a mean of ratios, which depends on how the batch is cut
                    # a row of the n-gram tables makes a first step of full length, however its gradient is rounded
                    close = 3e-3 if key == "grad_norm" else 5e-4
                    assert math.isclose(a[key], b[key], rel_tol=close), (run, key, a, b)
            one, other = (path / f"{kind}-{r}" / "00000012" for r in ("one", run))  # the same names, shapes and order
            assert checkpoint.read_state(one)["optimizer"] == checkpoint.read_state(other)["optimizer"]
            assert shapes(one) == shapes(other)


def test_accumulated_batches_train_like_one_batch(path, data):
    go(path, "one", data, steady())
    go(path, "two", data, steady(batch_size=2, grad_accumulation_steps=2))
    for a, b in zip(metrics(path, "one"), metrics(path, "two"), strict=True):
        assert a["bytes"] == b["bytes"]
        for key in ("loss", "train_bpb", "routed"):
            assert math.isclose(a[key], b[key], rel_tol=2e-4), (a, b)
    go(path, "three", data, steady(max_steps=8))
    go(path, "three", data, steady(batch_size=1, grad_accumulation_steps=4), resume=True)  # so may this split


@pytest.mark.parametrize("rows,expected", [(256, {0: 0.0, 1: 0.7}), (16, {0: 0.0, 1: 0.0})])
def test_lookups_are_left_out_when_a_short_text_is_read_again(rows, expected, path, data, monkeypatch):
    """Short: of fewer bytes than the n-gram tables have numbers."""
    forward, step, used, seen = NGrams.forward, Training.optimizer_step, [], {}
    monkeypatch.setattr(NGrams, "forward", lambda self, *args: used.append(self.dropout) or forward(self, *args))

    def watched(self, prefetch):
        used.clear()
        line = step(self, prefetch)
        seen.setdefault(self.position["epoch"], set()).update(used)
        return line

    monkeypatch.setattr(Training, "optimizer_step", watched)
    go(checkpoint.create(path.parent / "other", preset("tiny", **SMALL | {"ngram_rows": rows})), "r", data)
    assert seen == {epoch: {share} for epoch, share in expected.items()}


def test_epochs_and_steps_whichever_ends_first(path, data):
    steps = go(path, "epoch", data, config(max_steps=None)).steps
    assert steps == go(path, "same", data, config(max_steps=1000, epochs=1)).steps
    assert go(path, "half", data, config(max_steps=None, epochs=0.5)).steps == math.ceil(steps / 2)
    text = sum(len(json.loads(line)["text"]) for line in Path(data.dataset).read_text().splitlines())
    assert 0.7 * text < metrics(path, "epoch")[-1]["bytes"] < 1.3 * text


@pytest.mark.parametrize("limits", [dict(max_steps=None), dict(epochs=1)])
def test_a_stream_needs_a_limit_that_can_be_counted(path, tmp_path, limits):
    from pyarrow import parquet, table

    folder = tmp_path / "stream"
    folder.mkdir()
    parquet.write_table(table({"text": ["a cat sat on a mat"] * 40}), folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n")
    data = DataConfig(dataset=str(folder), streaming=True)
    with pytest.raises(PicoError, match="--max-steps or --max-minutes, not --epochs"):
        go(path, "r", data, config(**limits))
    assert go(path, "r", data, config(max_steps=2)).steps == 2


def test_the_clock_is_part_of_the_run(path, data):
    settings = config(max_steps=None, max_minutes=0.01, checkpoint_interval=1000)
    first = go(path, "r", data, settings)
    assert first.seconds >= 0.6 and first.stopped == "finished"
    rates = [line["learning_rate"] for line in metrics(path, "r")]
    assert rates[-1] < max(rates)
    again = go(path, "r", data, settings, resume=True)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    more = go(path, "r", data, config(max_steps=None, max_minutes=0.015), resume=True)
    assert more.seconds >= 0.9 and more.steps > first.steps


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=10)
    p = torch.zeros(1)
    optimizer = torch.optim.SGD([{"params": [p]}, {"params": [p.clone()], "rate": 2.0}], lr=7.0)
    rates = [set_learning_rate([optimizer], settings, step, 0.0) for step in (0, 4, 9, 50)]
    assert rates == [0.1, 0.5, 1.0, 1.0]
    assert set_learning_rate([optimizer], settings, 50, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    assert set_learning_rate([optimizer], settings, 50, 1.0) == 0.0
    assert set_learning_rate([], TrainConfig(learning_rate=1.0, warmup_steps=0), 0, 0.0) == 1.0


@pytest.mark.parametrize("name", ["soap", "adamw", "muon"])
def test_every_parameter_is_moved_once_and_only_matrices_decay(name):
    """But for the router's, and the tables', whose rows move only when they are looked up."""
    model = Pico(preset("tiny", **SMALL))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decay = {}
    for optimizer in build_optimizers(model, TrainConfig(optimizer=name, weight_decay=0.5)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[id(parameter)] not in decay
                decay[names[id(parameter)]] = group.get("weight_decay", 0.0)
    assert set(decay) == set(names.values())
    for key, value in decay.items():
        still = key.endswith(("mix", "sharpness", "table.weight")) or "router" in key
        assert value == (0.0 if still else 0.5), key


def test_the_gradient_is_clipped(path, data):
    go(path, "r", data, config(max_steps=1, optimizer="adamw", gradient_clip=0.1))
    norm = metrics(path, "r")[0]["grad_norm"]
    state = checkpoint.load_training(path / "r" / "00000001")[0][0]["state"]
    clipped = math.sqrt(sum(float((s["exp_avg"] / 0.1).square().sum()) for s in state.values()))
    assert norm > 0.2 and math.isclose(clipped, 0.1, rel_tol=1e-3)


def test_training_learns(path, data):
    go(path, "r", data, config(max_steps=60, learning_rate=1e-2))
    losses = [line["train_bpb"] for line in metrics(path, "r")]
    assert losses[0] > 7 and losses[-1] < 5


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_run_folder(path, data, monkeypatch):
    from pico.report import plot_losses

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
    assert summary.bpb == lines[-1]["validation_bpb"] and summary.bytes == lines[-1]["bytes"]
    text = (folder / "samples.txt").read_text()
    assert "step 8\n" in text and "step 12\n" in text
    state = checkpoint.read_state(folder / "00000012")
    best = min((line for line in lines if "validation_bpb" in line), key=lambda line: line["validation_bpb"])
    assert state["best"] == {"step": best["step"], "bits_per_byte": best["validation_bpb"]}


def test_the_best_checkpoint_is_kept(path, data, monkeypatch):
    """Over a resume, too."""
    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(module, "score", lambda *_, **__: type("Score", (), {"bits_per_byte": next(values)}))
    settings = dict(validation_interval=3, checkpoint_interval=2, keep_last=1)
    go(path, "r", data, config(**settings, max_steps=8))
    assert [p.name for p in checkpoint.checkpoints(path / "r")] == ["00000006", "00000008"]
    go(path, "r", data, config(**settings), resume=True)
    assert [p.name for p in checkpoint.checkpoints(path / "r")] == ["00000006", "00000012"]
    assert torch.equal(weights(path, "r", "best")["heads.weight"], weights(path, "r", 6)["heads.weight"])


def test_validation_is_causal_and_training_mode_returns(path, data, monkeypatch):
    modes = []
    original = Pico.forward

    def forward(self, *arguments, **options):
        modes.append((self.training, options.get("targets") is not None))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Pico, "forward", forward)
    go(path, "r", data, router="topk")
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
    assert f"(floor {summary.floor:.3f})" in err and f"the floor is {summary.floor:.4f}" in err


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, stopped, code", [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_a_signal_stops_with_a_checkpoint(path, data, monkeypatch, number, stopped, code):
    go(path, "whole", data)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    original = Training.optimizer_step

    def optimizer_step(self, prefetch):
        if self.step == 4:
            os.kill(os.getpid(), number)
        return original(self, prefetch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "optimizer_step", optimizer_step)
        summary = go(path, "r", data)
    assert (summary.steps, summary.stopped, summary.exit_code) == (5, stopped, code)
    assert checkpoint.newest(path / "r")[0].name == "00000005"
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


def broken_loss(monkeypatch, calls):
    """Pico whose training loss is not a number in these of its training forwards."""
    count, original = iter(range(1000)), Pico.forward

    def forward(self, *arguments, **options):
        out = original(self, *arguments, **options)
        if out.loss is None or next(count) not in calls:
            return out
        self.router.seen += math.nan  # what a forward with such scores would have left
        return out._replace(loss=out.loss * math.nan)

    monkeypatch.setattr(Pico, "forward", forward)


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

    monkeypatch.setattr(module.Batches, "__next__", broken)
    with pytest.raises(PicoError, match="went away"):
        go(path, "r", data)


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
    with checkpoint.lock(path / "r"), pytest.raises(PicoError, match="locked by a live training"):
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
    wider = checkpoint.create(path.parent / "wide", preset("tiny", **{**SMALL, "dim": 32}))
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
