"""What is picked for the machine: threads."""

import json
import time

import pytest
import torch
from training import assert_same_run, config, go

from pico import machine
from pico import train as module
from pico.machine import pick_threads


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores where nobody chose a number of threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
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


def test_long_work_is_done_three_times_only(four_cores, monkeypatch):
    monkeypatch.setattr(machine, "PROBE", 0.0)
    tried = []
    pick_threads(lambda: tried.append(torch.get_num_threads()))
    assert sorted(tried) == [1, 4, 4]


@pytest.mark.parametrize("name, value", [("OMP_NUM_THREADS", "4"), ("MKL_NUM_THREADS", "4"), (None, 3), (None, 1)])
def test_what_the_user_chose_is_kept_unmeasured(four_cores, monkeypatch, name, value):
    if name:
        monkeypatch.setenv(name, value)
    else:
        torch.set_num_threads(value)
    assert pick_threads(None) == int(value) == torch.get_num_threads()


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_measuring_leaves_no_trace_in_a_training(path, data, monkeypatch, router):
    go(path, "whole", data, router=router)
    tried = []
    monkeypatch.setattr(module, "threads_chosen", lambda: False)
    monkeypatch.setattr(module, "pick_threads", lambda work, say: tried.extend([work(), work()]))
    go(path, "measured", data, router=router)
    assert len(tried) == 2
    assert_same_run(path, "whole", "measured")


def test_a_resumed_run_computes_with_as_many_threads_as_before(path, data, four_cores, monkeypatch):
    torch.set_num_threads(3)
    go(path, "r", data, config(max_steps=4))
    assert json.loads((path / "r/train.json").read_text())["threads"] == 3
    torch.set_num_threads(4)
    monkeypatch.setattr(module, "pick_threads", None)  # not called
    go(path, "r", data, resume=True)
    assert torch.get_num_threads() == 3
