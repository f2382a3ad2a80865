"""A run may be cut over processes and batches as one likes: it stays the same run.

Compared in fp64, where the order of a sum costs 1e-12 at most; see `compute_in_double`.
"""

import json
import math
import shutil
import socket

import pytest
import torch
from helpers import first_fast
from safetensors.torch import load_file
from training import SMALL, TWINS, compute_in_double, config, go, metrics, script

from pico import preset
from pico.runs import checkpoint
from pico.runs.folder import create

CLOSE = 1e-9


@pytest.fixture(autouse=True)
def double(monkeypatch):
    before = torch.get_default_dtype()
    compute_in_double(monkeypatch.setattr)
    yield
    torch.set_default_dtype(before)


def two_processes(*kind):
    """accelerate launch; not with --cpu: that starts a single process unless there is MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", *kind, "--num_processes", "2", "--num_machines", "1"]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]


def steady(**changes):
    """Without dropout, whose draws depend on how a batch is split."""
    return config(dropout=0.0, **changes)


def assert_close(ours, theirs, keys=None):
    """Metrics of two runs. Not `skipped`, a mean of ratios, which depends on how the batch is cut."""
    for a, b in zip(ours, theirs, strict=True):
        assert a["bytes"] == b["bytes"] and a.keys() == b.keys()
        for key in keys or a.keys() - {"skipped"}:
            assert math.isclose(a[key], b[key], rel_tol=CLOSE), (key, a, b)


@pytest.mark.slow
def test_two_processes_train_like_one(path, data):
    """Also: one process continues what two began."""
    go(path, "one", data, steady())
    done = script(path, data, ("two", steady(max_steps=8), {}), launch=two_processes("--multi_gpu"), double=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((path / "two" / "train.json").read_text())["processes"] == 2
    go(path, "two", data, steady(max_steps=8), resume=True)  # nothing to do, but allowed
    one, two = metrics(path, "one"), metrics(path, "two")
    assert len(two) == 8
    for step in range(4):  # before the learning rates part: 12 steps against 8
        assert one[step]["bytes"] == two[step]["bytes"]
    eight = go(path, "eight", data, steady(max_steps=8))
    assert_close(metrics(path, "eight"), two)
    assert math.isclose(eight.bpb, two[-1]["validation_bpb"], rel_tol=CLOSE)
    go(path, "eight", data, steady(), resume=True)
    go(path, "two", data, steady(), resume=True)  # the split over processes may change
    assert_close(metrics(path, "eight"), metrics(path, "two"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp"])
def test_two_processes_train_a_dense_decoder_like_one(tmp_path, short_samples, data, kind):
    """Also where each block runs again in the backward pass."""
    path, again = create(tmp_path / "twin", TWINS["simple-picolm"]), steady(gradient_checkpointing=True)
    go(path, "one", data, steady())
    done = script(path, data, ("two", steady(), {}), ("again", again, {}), launch=two_processes(*kind), double=True)
    assert done.returncode == 0, done.stderr
    for run in ("two", "again"):
        assert_close(metrics(path, "one"), metrics(path, run))


def shapes(folder):
    """Of a checkpoint's weights and optimizer state, without the random state, which each process has."""
    tensors = load_file(folder / checkpoint.WEIGHTS) | load_file(folder / checkpoint.OPTIMIZER)
    return {name: (x.shape, x.dtype) for name, x in tensors.items() if not name.startswith("state/rng")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "router, kinds",
    [("topk", ("adamw", "soap", "muon")), ("threshold", ("soap",)), ("none", ("soap",))],  # none: without a gradient
)
def test_two_sharded_processes_train_like_one(tmp_path, short_samples, data, router, kinds):
    """FSDP: a run resumed by FSDP, one continued by a single process, and one that a single process began."""
    path = create(tmp_path / "m", preset("tiny", **SMALL, router=router))
    short = {kind: steady(optimizer=kind, max_steps=5) for kind in kinds}
    long = {kind: steady(optimizer=kind) for kind in kinds}
    for kind in kinds:
        go(path, f"{kind}-one", data, short[kind])
        shutil.copytree(path / f"{kind}-one", path / f"{kind}-forth")
        go(path, f"{kind}-one", data, long[kind], resume=True)
    jobs = []
    for kind in kinds:
        jobs.append((f"{kind}-back", short[kind], {}))
        jobs.append((f"{kind}-forth", long[kind], dict(resume=True)))
        jobs.append((f"{kind}-on", short[kind], {}))
        jobs.append((f"{kind}-on", long[kind], dict(resume=True)))
    done = script(path, data, *jobs, launch=two_processes("--use_fsdp", "--fsdp_version", "2"), double=True)
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        go(path, f"{kind}-back", data, long[kind], resume=True)
        for run in ("back", "forth", "on"):
            assert_close(metrics(path, f"{kind}-one"), metrics(path, f"{kind}-{run}"))
            one, other = (path / f"{kind}-{r}" / "00000012" for r in ("one", run))  # the same names, shapes and order
            assert checkpoint.read_state(one)["optimizer"] == checkpoint.read_state(other)["optimizer"]
            assert shapes(one) == shapes(other)


@pytest.mark.parametrize("optimizer", first_fast("adamw", "soap", "muon"))
def test_accumulated_batches_train_like_one_batch(path, data, optimizer):
    go(path, "one", data, steady(optimizer=optimizer))
    go(path, "two", data, steady(optimizer=optimizer, batch_size=2, grad_accumulation_steps=2))
    assert_close(metrics(path, "one"), metrics(path, "two"))
    go(path, "three", data, steady(optimizer=optimizer, max_steps=8))
    go(path, "three", data, steady(optimizer=optimizer, batch_size=1, grad_accumulation_steps=4), resume=True)
