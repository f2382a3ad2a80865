"""Before a training starts: its processes and device, and in what words the machine refuses."""

import importlib.util
import netrc
import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

from pico.base.config import TrainConfig
from pico.base.device import pick_device
from pico.base.errors import DiskFull, PicoError
from pico.base.files import is_full, reason


def make_accelerator(config: TrainConfig, folder: Path, device: str | None, unused_parameters: bool):
    """Accelerate, set up for this run. Raises PicoError for a tracker or device that is not there."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    package = config.tracker  # of the same name
    if package != "none" and importlib.util.find_spec(package) is None:
        extra = "" if package == "wandb" else f" --extra {package}"
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
    # Accelerate passes on what torch 2.15 calls otherwise, and older versions do not know by the new name.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)  # Accelerate would want to shard itself; parallel.py does
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
        raise (DiskFull if is_full(error) else PicoError)(f"{what}{reason(error)}; mend that, then --resume") from None
