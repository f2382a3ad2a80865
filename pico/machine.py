"""The machine under a training: device, processes, precision, memory, trackers, batches made ahead."""

import ctypes
import errno
import importlib.util
import netrc
import os
import queue
import re
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pico.config import PicoError, TrainConfig

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # or over one's quota

PROBE, PROBES = 3.0, 5  # seconds, and times, that work is tried with one thread and with all
SHORT_PROBE, SHORT_PROBES = 0.01, 15  # the same for a few small matmuls
SHARE = 0.25  # of a GPU's free memory, that the text may take
MOST_BLAS = 64  # threads of the OpenBLAS in numpy's wheels, however many cores there are


def pick_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """The dtype of activations for 'auto', 'fp32' or 'bf16': auto is bf16 where the hardware multiplies it faster."""
    if precision == "auto":
        device = torch.device(device)
        if device.type == "cuda":
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() | torch.cpu._is_amx_tile_supported()
        precision = "bf16" if bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is. Raises PicoError for one that cannot be used here."""
    if name is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        return best if best is not None else torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()  # 'meta' makes tensors, and they hold nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        raise PicoError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def make_accelerator(config: TrainConfig, folder: Path, device: str | None, unused_parameters: bool):
    """Accelerate, set up for this run. Raises PicoError for a tracker or device that is not there."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    package = {"none": "torch", "wandb": "wandb", "tensorboard": "tensorboard"}[config.tracker]
    if importlib.util.find_spec(package) is None:
        extra = " --extra tensorboard" if package == "tensorboard" else ""
        raise PicoError(f"--tracker {package} needs the package {package}: uv sync{extra}, or pip install {package}")
    if config.tracker == "wandb" and not (os.environ.get("WANDB_API_KEY") or wandb_login()):
        os.environ.setdefault("WANDB_MODE", "offline")
    # Started by torchrun or `accelerate launch` without any GPU, Accelerate would make each process a run of its own.
    several_on_cpu = "LOCAL_RANK" in os.environ and not (torch.cuda.is_available() or torch.xpu.is_available())
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run's device in this process
    if device and device != "cpu":
        pick_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)  # Accelerate would want to shard itself; pico/parallel.py does
    try:
        return Accelerator(
            mixed_precision="no",
            cpu=device == "cpu" or several_on_cpu,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused_parameters)
            ],
        )
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp


def wandb_login() -> bool:
    """Whether ~/.netrc holds a wandb account."""
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


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
    say: Callable[[str], object] = lambda _: None,
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
        say(f"computing with one of {every} threads: that was faster here; OMP_NUM_THREADS={every} takes all")
    return best


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


def keep_memory() -> None:
    """Lets glibc keep freed memory instead of handing it back: page faults of fresh memory cost more than a matmul."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - AttributeError on other C libraries
    except (OSError, TypeError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 << 20)


class Batch(NamedTuple):
    """What one forward pass of training reads."""

    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T + N - 1), -100 where nothing is scored
    bytes: int  # raw ones among the next-byte targets, those of head 0
    position: dict  # of the data, after this batch, by `Batches.state_dict`


class Prefetch:
    """The batches of a step, `each` of them, made by a thread a few steps ahead; for CUDA on the GPU itself."""

    def __init__(self, batches, device: torch.device, each: int = 1, depth: int = 4):
        self.batches, self.each = batches, each
        self.on_device = None
        if device.type == "cuda":
            from pico.packing import OnDevice

            self.on_device = OnDevice(batches, device, int(torch.cuda.mem_get_info(device)[0] * SHARE))
        self.queue: queue.Queue = queue.Queue(depth)
        self.coming: list | BaseException | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        while self.thread.is_alive():
            with suppress(queue.Empty):
                self.queue.get(timeout=0.05)
        self.thread.join()

    def _work(self) -> None:
        try:
            while not self.stopping.is_set():
                self.queue.put([self._batch() for _ in range(self.each)])
        except BaseException as error:
            self.queue.put(error)

    def _batch(self) -> Batch:
        if self.on_device:
            inputs, targets, count = next(self.on_device)
        else:
            inputs, targets = next(self.batches)
            following = targets[:, : inputs.shape[1]]
            count = int(((following >= 0) & (following < 256)).sum())
        return Batch(inputs, targets, count, self.batches.state_dict())

    def failure(self) -> BaseException | None:
        """What keeps the next step's batches from being made; it waits until they are or cannot be."""
        if self.coming is None:
            self.coming = self.queue.get()
        return self.coming if isinstance(self.coming, BaseException) else None

    def __next__(self) -> list[Batch]:
        if error := self.failure():
            raise error
        made, self.coming = self.coming, None
        return made


@contextmanager
def explained(config: TrainConfig):
    """Turns what the machine refuses, memory, disk or a file, into a PicoError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        raise PicoError(
            f"out of memory: lower --batch-size {config.batch_size} (and raise --grad-accumulation-steps by as much), "
            f"--context-len {config.context_len}, or take a smaller model"
        ) from None
    except OSError as error:
        what = f"cannot use {error.filename}: " if error.filename else ""
        reason = "the disk is full" if error.errno in FULL else error.strerror or error
        raise PicoError(f"{what}{reason}; mend that, then --resume") from None
