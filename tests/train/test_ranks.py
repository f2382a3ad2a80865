"""Two processes: what goes wrong in one ends both, with one line; and what they do not share."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import cats
from training import ROOT, config, go, metrics, weights

from pico.runs.folder import checkpoints

pytestmark = pytest.mark.slow

START = """
from pico.app import process; process.guard()
import hashlib, json, os, signal, sys, torch
import picolm
from pico import PicoError
from pico.data import open as data
from pico.model import blocks
from pico.train import parallel, parts
from pico.train import intervals, loop as module
from pico.model.pico import Pico
rank, forward, step = int(os.environ["RANK"]), Pico.forward, module.Training.step
intervals.SAMPLE_BYTES = 8
module.plot_losses = lambda *_: None
"""
END = """
code = picolm.main(json.loads(sys.argv[1]))
if torch.distributed.is_initialized() and not code:
    torch.distributed.barrier()
sys.stderr.flush()
os._exit(code)  # the group is kept, and its threads abort the interpreter as it ends, now and then
"""
KEEP_GROUP = "torch.distributed.destroy_process_group = lambda *_: None\n"


def two(path, data, fault, *flags):
    """`train` in two processes, each with these lines of code before it: exit codes and stderr of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    file = path / "start.py"
    file.write_text(START + KEEP_GROUP + fault + END)
    settings = {**config().model_dump(exclude_defaults=True)}
    arguments = ["train", str(path), "r", str(data.dataset), "--dataset-validation-size", "0.1", *flags]
    for name, value in settings.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    shared |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in "01":
        command = [sys.executable, str(file), json.dumps(arguments)]
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=path))
    said = [process.communicate(timeout=400)[1] for process in started]
    return [process.returncode for process in started], "".join(said)


@pytest.mark.parametrize(
    "fault, code, words",
    [
        ("def bad(*a, **k): raise MemoryError\nif rank == 1: Pico.forward = bad\n", 2, "error: out of memory: lower"),
        ("def bad(*a, **k): raise OSError(28, 'No space left')\nif rank == 0: intervals.underscored = bad\n", 2,
         "error: the disk is full"),
        ("def bad(*a, **k): raise ZeroDivisionError('a bug')\nif rank == 0: intervals.score = bad\n", 1,
         "ZeroDivisionError: a bug"),
        ("def bad(*a): raise PicoError('no such data')\nparts.open_data = bad\n", 2, "error: no such data"),
    ],
)  # fmt: skip
def test_an_error_of_one_ends_both_with_one_line(path, data, fault, code, words):
    codes, said = two(path, data, fault)
    assert codes == [code, code], said
    assert said.count(words) == 1, said
    assert said.count("rror: ") == 1 and ("Traceback" in said) == (code == 1), said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_one_line(path, data, victim):
    fault = f"""
def die(self, prefetch):
    if rank == {victim} and self.state.step == 6: os.kill(os.getpid(), {int(signal.SIGKILL)})
    return step(self, prefetch)
module.Training.step = die
"""
    codes, said = two(path, data, fault, "--quiet")
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2, (codes, said)
    assert said == "error: another process of this training was killed: start them anew, with --resume\n"
    assert checkpoints(path / "r")[-1].name == "00000006"
    assert go(path, "r", data, resume=True).steps == 12


def test_a_disk_that_is_full_ends_both_after_the_last_checkpoint(path, data):
    fault = """
from pico.runs import checkpoint
save_file = checkpoint.save_file
def full(tensors, file):
    if "00000008" in str(file): raise OSError(28, "No space left on device")
    return save_file(tensors, file)
checkpoint.save_file = full
"""
    codes, said = two(path, data, fault, "--quiet")
    assert codes == [2, 2], said
    assert said.count("\n") == 1 and "the disk is full" in said and "r/00000006 stays usable" in said, said
    assert go(path, "r", data, resume=True).steps == 12


@pytest.mark.parametrize("where", ["rank == 1", "True"])
@pytest.mark.parametrize("function", ["data.Batches.__next__", "intervals.score"])
def test_text_that_one_can_no_longer_read_ends_both_after_a_checkpoint(path, data, where, function):
    fault = f"""
from pico.base.errors import DataError
inner, calls = {function}, []
def unreadable(*a, **k):
    calls.append(a)
    if len(calls) == {8 if "next" in function else 1}: raise DataError("text.txt changed")
    return inner(*a, **k)
if {where} or "{function}" == "intervals.score": {function} = unreadable
"""
    codes, said = two(path, data, fault, "--checkpoint-interval", "100")
    assert codes == [2, 2], said
    step = 7 if "next" in function else 6
    assert said.count("rror: ") == 1 and f"error: text.txt changed; step {step} is saved, --resume goes" in said, said
    assert checkpoints(path / "r")[-1].name == f"{step:08d}"
    go(path, "r", data, resume=True)


def test_text_that_changes_for_one_before_it_is_read_again_ends_both_after_a_checkpoint(path, tmp_path):
    fault = """
from pico.base.errors import DataError
from pico.model.ngrams import NGrams
def changed(*_): raise DataError("text.txt changed")
if rank == 1: NGrams.count = changed
"""
    codes, said = two(path, cats(tmp_path, 30), fault, "--checkpoint-interval", "100", "--validation-interval", "100")
    assert codes == [2, 2], said
    assert said.count("rror: ") == 1 and "to count its n-grams" not in said, said
    assert f"text.txt changed; step {int(checkpoints(path / 'r')[-1].name)} is saved, --resume goes" in said, said


def test_they_draw_their_own_dropout_and_count_together(path, data):
    note = """
dropout, seen = blocks.dropout, []
def noted(update, share):
    if share: seen.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
    return dropout(update, share)
blocks.dropout = noted
finish = module.Training.finish
def end(self):
    flat = torch.cat([x.flatten() for x in self.parts.model.state_dict().values()])
    with open(f"{rank}.json", "w") as file:
        json.dump([seen, hashlib.sha256(flat.numpy().tobytes()).hexdigest()], file)
    return finish(self)
module.Training.finish = end
"""
    codes, said = two(path, data, note)
    assert codes == [0, 0], said
    (first, one), (second, other) = (json.loads((path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first and len(first) == len(second) and not set(first) & set(second)
    assert one == other  # the weights are still the same
    go(path, "alone", data)
    ours, alone = metrics(path, "r"), metrics(path, "alone")
    assert [line["bytes"] for line in ours] == [line["bytes"] for line in alone]
    assert [line["flops"] for line in ours][:9] == [line["flops"] for line in alone][:9]  # then the router decides
    assert weights(path, "r").keys() == weights(path, "alone").keys()
