"""Small trainings, in this process or in others, and what is compared of them. Fixtures are in conftest.py."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

import pico.train.intervals
import pico.train.loop
from pico import TrainConfig, load, preset
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.train.loop import Training, train

ROOT = Path(__file__).parents[1]
SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=256, ngram_dim=4,
)  # fmt: skip
TWIN = dict(dim=16, num_blocks=2, att_q_heads=2, att_kv_heads=1, head_dim=8, max_context=32, tokenizer="bytes")
TWINS = {  # dense decoders, with every switch in one of them
    "gpt-bytes-tiny": preset("gpt-bytes-tiny", **TWIN),
    "simple-picolm": preset("simple-picolm", **TWIN, vocab_size=264, ngram_max=3, ngram_rows=256, ngram_dim=4),
    "picochat": preset("picochat", **TWIN, vocab_size=264),
}
QUICK = dict(
    context_len=32, batch_size=4, max_steps=12, warmup_steps=4, checkpoint_interval=4, validation_interval=6,
    sample_interval=8, precision="fp32", keep_last=2,
)  # fmt: skip


def shorten(patch) -> None:
    """Samples of a few bytes and no plot, which have tests of their own, by monkeypatch or its like."""
    patch.setattr(pico.train.intervals, "SAMPLE_BYTES", 8)
    patch.setattr(pico.train.loop, "plot_losses", lambda *_: None)


def config(**changes):
    return TrainConfig(**{**QUICK, **changes})


def go(path, run, data, settings=None, **options):
    return train(path, run, data, settings or config(), quiet=True, device="cpu", **options)


def reroute(path, router, **changes) -> None:
    """Gives the untrained model at `path` another router."""
    file = path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "router": router, **changes}))


def metrics(path, run):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "kB_per_s", "peak_memory_mb")} for line in lines]


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


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


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


def kill_at_step(monkeypatch, number, step):
    original = Training.step

    def and_kill(self, prefetch):
        if self.state.step == step:
            os.kill(os.getpid(), number)
        return original(self, prefetch)

    monkeypatch.setattr(Training, "step", and_kill)


def compute_in_double(setattr) -> None:
    """From now on what says fp32 means fp64, by monkeypatch.setattr or the built-in.

    Two ways of adding up the same gradient differ by rounding alone, which an optimizer may enlarge (SOAP's bases of a
    gradient without full rank are arbitrary where it vanishes). In fp64 what remains is 1e-12 on every CPU, so a
    tolerance of 1e-9 finds any real difference.
    """
    setattr(torch, "float32", torch.float64)
    setattr(torch.Tensor, "float", torch.Tensor.double)
    setattr(pico.train.intervals, "generate", lambda *_, **__: [])  # numpy, in fp32
    torch.set_default_dtype(torch.float64)


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from training import compute_in_double
from pico import DataConfig, TrainConfig; from pico.runs import checkpoint
from pico.train import intervals, loop as module
intervals.SAMPLE_BYTES = 8
module.plot_losses = lambda *_: None
path, dataset, jobs, kill, double = json.loads(sys.argv[1])
if double:
    compute_in_double(setattr)
if kill:
    original = checkpoint.save_file
    def save_file(tensors, file):
        original(tensors, file)
        if file.parent.name == kill and file.name == checkpoint.WEIGHTS:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save_file = save_file
data = DataConfig(dataset=dataset, validation_size=0.1)
torch.distributed.destroy_process_group = lambda *_: None  # several jobs share it: a second may hang in its making
for run, settings, options in jobs:
    module.train(path, run, data, TrainConfig(**settings), quiet=True, **options)
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    os._exit(0)  # all is written; the threads of the group abort the interpreter as it ends, now and then
"""


def script(path, data, *jobs, launch=(), kill=None, double=False):
    """Trainings, each (run, settings, options of train), in a process of their own, or in several.

    double: in fp64.
    """
    jobs = [(run, settings.model_dump(), options) for run, settings, options in jobs]
    arguments = json.dumps([str(path), data.dataset, jobs, kill, double])
    file = path / "train_script.py"
    file.write_text(SCRIPT)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    command = [sys.executable, *launch, str(file), arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path, timeout=400)
