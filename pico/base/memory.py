"""Whether a model fits into the memory there is, asked before it is built: what does not would end in a killed process.

Only what is certain is counted: weights, gradients and the optimizer's state, or the keys and values of generation.
"""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

from pico.base.errors import PicoError
from pico.base.shapes import Shape

CGROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container, where there is one


def free_bytes(device: str | torch.device) -> float:
    """Bytes that are free on a device, swap included on the CPU; infinite where nobody knows."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cpu":
        return float("inf")
    try:
        import psutil
    except ImportError:
        return float("inf")
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        return min(free, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return free


def training_bytes(config: Shape, optimizer: str) -> int:
    """Least bytes that training needs: fp32 weights, gradients and the state of the optimizer.

    The n-gram tables have sparse gradients and a number a row. SOAP keeps two moments, and for each side of a matrix an
    average and a basis (of the symbols' matrices, one side); AdamW two moments; Muon one, and two where AdamW steps:
    of vectors and the symbols' matrices.
    """
    total = table = sides = moments = 0
    for part, shapes in config.matrices.items():
        for count, rows, columns in shapes:
            total += count * rows * columns
            symbols = part in ("embedding", "heads", "head")
            if part == "ngrams" and rows != config.dim:
                table += count * rows * columns
                continue
            matrix = min(rows, columns) > 1 and not symbols
            moments += count * rows * columns * (1 if optimizer == "muon" and matrix else 2)
            if symbols:
                sides += count * columns**2
            elif matrix:
                sides += count * (rows**2 + columns**2)
    return 4 * (total + total - table + moments + 2 * sides * optimizer.startswith("soap"))


def require(need: float, device: str | torch.device, what: str, instead: str) -> None:
    """Raises PicoError if a device has not so many bytes; what they are for, and what to do instead."""
    have = free_bytes(device)
    if need > have:
        raise PicoError(f"{what}: {need / 1e9:,.1f} GB needed on {device}, {have / 1e9:,.1f} GB available; {instead}")


def require_weights(config: Shape, device: str | torch.device = "cpu") -> None:
    """Raises PicoError for a model whose weights fit neither the CPU, where they are made, nor their device."""
    size = 4 * sum(config.parameters.values())
    for place in {"cpu", str(device)}:
        require(size, place, "the weights of this model do not fit", "take a smaller model or a larger machine")


def forget_peak(device: str | torch.device) -> None:
    """From here on `peak_memory` counts anew, where the system can do that: on CUDA and on Linux."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError, TypeError):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free, and was kept
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str | torch.device) -> int:
    """Bytes held at most: of a GPU by tensors, else by the whole process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, IndexError):  # the one figure that forget_peak resets
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 2**10
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        from psutil import Process

        return Process().memory_info().peak_wset
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)  # there bytes, else kilobytes


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
