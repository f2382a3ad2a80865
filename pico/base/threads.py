"""How many threads compute: what the user said, or what was measured to be faster here."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache

import torch

PROBE, PROBES = 3.0, 5  # seconds, and times, that work is tried with one thread and with all
SHORT_PROBE, SHORT_PROBES = 0.01, 15  # the same for a few small matmuls
MOST_BLAS = 64  # threads of the OpenBLAS in numpy's wheels, however many cores there are


class Blas:
    """The threads of numpy's BLAS, asked for and set as torch's are. One where it has none, or none that can be set."""

    def __init__(self):
        self.libraries = []
        with suppress(ImportError):  # then numpy's BLAS keeps its own number
            from threadpoolctl import ThreadpoolController

            self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers

    def get_num_threads(self) -> int:
        return max((library.get_num_threads() for library in self.libraries), default=1)

    def set_num_threads(self, threads: int) -> None:
        for library in self.libraries:
            library.set_num_threads(threads)


blas = cache(Blas)  # it looks through all libraries that are loaded, which takes some milliseconds


def threads_chosen(pool=torch) -> bool:
    """Whether the user, or whoever started us, has said how many threads to compute with; or there is but one.

    pool: torch, or numpy's `blas()`.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *["OPENBLAS_NUM_THREADS"] * (pool is not torch))
    named = any(os.environ.get(name) for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = pool.get_num_threads()  # without a word from anyone: one a core, or one for two that share a core
    return named or threads == 1 or threads not in (cores, cores // 2, os.cpu_count(), MOST_BLAS)


def pick_threads(
    work: Callable[[], object],
    log: Callable[[str], object] = lambda _: None,
    pool=torch,
    seconds: float = PROBE,
    times: int = PROBES,
) -> int:
    """Computes on the CPU with one thread from now on, or with all if they do `work` faster; says so if with one.

    On a machine that others use too, threads wait for each other longer than they help. `work` is done up to so many
    times with each, for about so many seconds if it is short. Nothing is measured where the number is chosen
    (`threads_chosen`).
    """
    every = pool.get_num_threads()
    if threads_chosen(pool):
        return every
    took, began = {1: [], every: []}, time.perf_counter()
    work()  # the first time allocates
    while not took[1] or (len(took[1]) < times and time.perf_counter() - began < seconds):
        for threads in reversed(took):
            pool.set_num_threads(threads)
            start = time.perf_counter()
            work()
            took[threads].append(time.perf_counter() - start)
    best = min(took, key=lambda threads: statistics.median(took[threads]))
    pool.set_num_threads(best)
    if best < every:
        log(f"computing with one of {every} threads: that was faster here; OMP_NUM_THREADS={every} takes all")
    return best


@contextmanager
def threads_given_back():
    """What is picked meanwhile is forgotten behind it: the next model may be faster with another number."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_blas_threads(work: Callable[[], object]) -> int:
    """With how many threads numpy's BLAS should do `work`, which is short; `blas_threads` then takes so many.

    As many as the user chose, for it or for torch, or else one, unless all of them are faster.
    """
    every = blas().get_num_threads()
    if threads_chosen(blas()):
        return every
    if threads_chosen():
        return min(every, torch.get_num_threads())
    with blas_threads(every):
        return pick_threads(work, pool=blas(), seconds=SHORT_PROBE, times=SHORT_PROBES)


@contextmanager
def blas_threads(threads: int):
    """numpy's BLAS computes with so many threads meanwhile."""
    before = blas().get_num_threads()
    blas().set_num_threads(threads)
    try:
        yield
    finally:
        blas().set_num_threads(before)
