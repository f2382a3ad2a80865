"""What is picked for the machine: threads."""

import json
import sys
import time

import pytest
import torch
from helpers import tiny
from training import assert_same_run, config, go, reroute

from pico.base import threads as machine
from pico.base.threads import Blas, pick_threads
from pico.decode import numpy_reader as decode
from pico.decode.generation import generate
from pico.train import loop, parts
from pico.train.step import optimizer_step as step


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores where nobody chose a number of threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("slow, best", [(4, 1), (1, 4)])
def test_the_faster_of_one_thread_and_all_is_taken_and_said(four_cores, slow, best):
    tried, said = [], []

    def work():
        tried.append(torch.get_num_threads())
        time.sleep(0.02 * (tried[-1] == slow))

    assert pick_threads(work, said.append) == best == torch.get_num_threads()
    assert set(tried) == {1, 4} and len(tried) <= 11
    assert len(said) == (best == 1) and all("one of 4 threads" in line for line in said)


def test_long_work_is_done_three_times_only(four_cores):
    tried = []
    pick_threads(lambda: tried.append(torch.get_num_threads()), seconds=0.0)
    assert sorted(tried) == [1, 4, 4]


@pytest.mark.parametrize("name, value", [("OMP_NUM_THREADS", "4"), ("MKL_NUM_THREADS", "4"), (None, 3), (None, 1)])
def test_what_the_user_chose_is_kept_unmeasured(four_cores, monkeypatch, name, value):
    if name:
        monkeypatch.setenv(name, value)
    else:
        torch.set_num_threads(value)
    assert pick_threads(None) == int(value) == torch.get_num_threads()


class Pool:
    """A BLAS of four threads, and a clock by which each piece of work takes as long as said."""

    def __init__(self, monkeypatch, **seconds):
        self.threads, self.now, self.seconds, self.tried = 4, 0.0, seconds, []
        monkeypatch.setattr(machine, "blas", lambda: self)
        monkeypatch.setattr(machine.time, "perf_counter", lambda: self.now)

    def get_num_threads(self):
        return self.threads

    def set_num_threads(self, threads):
        self.threads = threads

    def work(self):
        self.tried.append(self.threads)
        self.now += self.seconds["one" if self.threads == 1 else "all"]


@pytest.mark.parametrize("one, every, best", [(2**-13, 2**-7, 1), (2**-13, 2**-14, 4), (2**-13, 2**-13, 1)])
def test_one_thread_of_blas_decodes_unless_all_are_faster(four_cores, monkeypatch, one, every, best):
    """Measured in a few hundredths of a second at most, and what numpy computes with elsewhere stays as it was."""
    pool = Pool(monkeypatch, one=one, all=every)
    assert machine.pick_blas_threads(pool.work) == best
    assert pool.threads == 4 and set(pool.tried) == {1, 4} and pool.now < 0.03
    with machine.blas_threads(best):
        assert pool.threads == best
    assert pool.threads == 4


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "blas", "torch"])
def test_a_number_chosen_for_blas_or_for_torch_is_taken_unmeasured(four_cores, monkeypatch, name):
    pool = Pool(monkeypatch)
    if name == "torch":
        torch.set_num_threads(3)
    elif name == "blas":
        pool.threads = 3
    else:
        monkeypatch.setenv(name, "4")
    assert machine.pick_blas_threads(pool.work) == (3 if name in ("blas", "torch") else 4) and not pool.tried


def test_a_text_is_decoded_with_the_threads_picked_and_no_longer(monkeypatch):
    model, log, before = tiny(), [], machine.blas().get_num_threads()
    monkeypatch.setattr(decode, "pick_blas_threads", lambda work: work() is None or 7)
    monkeypatch.setattr(Blas, "set_num_threads", lambda _, threads: log.append(threads))
    for _ in generate(model, "a", max_bytes=5, temperature=0):
        assert log == [7]
    assert log == [7, before]


def test_the_threads_of_blas_are_found():
    """At least with the wheels of numpy on Linux; where none are found nothing is measured."""
    found = Blas()
    before = found.get_num_threads()
    found.set_num_threads(1)
    assert Blas().get_num_threads() == 1
    found.set_num_threads(before)
    if sys.platform == "linux":
        assert found.libraries


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_measuring_leaves_no_trace_in_a_training(path, data, monkeypatch, router):
    reroute(path, router)
    go(path, "whole", data)
    tried = []
    monkeypatch.setattr(parts, "threads_chosen", lambda: False)
    monkeypatch.setattr(parts, "pick_threads", lambda work, log: tried.extend([work(), work()]))
    go(path, "measured", data)
    assert len(tried) == 2
    assert_same_run(path, "whole", "measured")


def test_a_resumed_run_computes_with_as_many_threads_as_before(path, data, four_cores, monkeypatch):
    torch.set_num_threads(3)
    go(path, "r", data, config(max_steps=4))
    assert json.loads((path / "r/train.json").read_text())["threads"] == 3
    torch.set_num_threads(4)
    monkeypatch.setattr(parts, "pick_threads", None)  # not called
    used = []
    monkeypatch.setattr(loop, "optimizer_step", lambda *a, **k: used.append(torch.get_num_threads()) or step(*a, **k))
    go(path, "r", data, resume=True)
    assert set(used) == {3} and torch.get_num_threads() == 4


def test_one_thread_for_one_training_is_not_one_for_the_next(path, data, four_cores, monkeypatch):
    """In a comparison: what is picked for one model says nothing of another."""
    found = []

    def pick(work, log):
        found.append(torch.get_num_threads())
        torch.set_num_threads(1)

    monkeypatch.setattr(parts, "pick_threads", pick)
    for run in ("one", "two"):
        go(path, run, data, config(max_steps=1))
        assert json.loads((path / run / "train.json").read_text())["threads"] == 1
    assert found == [4, 4]
