"""Several processes: what only the main one does, and a model cut into shards (FSDP, arXiv 2304.11277).

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 picolm.py train models/my-model my-run stories

By default each process holds the whole model, and Accelerate averages the gradients (DDP). With --use_fsdp a process
holds a slice of every parameter and gradient, and torch's `fully_shard` gathers one block at a time to compute with.
Accelerate itself shards on GPUs only; calling `fully_shard` here lets two CPU processes test what runs on eight GPUs.

AdamW is element-wise: it moves the slices as if they were whole. SOAP and Muon must see whole matrices, so each
parameter has one owner that steps all of it. Either way a process holds its part of the optimizer's state, and a
checkpoint holds the state that a single process would have: runs may change the number of processes, DDP and FSDP.
"""

import os
import re
import threading
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from pico.base.config import TrainConfig
from pico.base.device import device_of
from pico.base.errors import PicoError
from pico.base.log import log
from pico.model.build import build_model, sparse_tables
from pico.model.casts import cast_together
from pico.model.regions import compile_regions
from pico.train.optimizers import build_optimizers

FAILED, CODE, HEARD = "pico/failed", "pico/exit code", "pico/heard by "  # in the store that all processes share
LOST = "another process of this training was killed: start them anew, with --resume"
GRACE = 5.0  # seconds that a process has to stop by itself once another has failed


class Elsewhere(SystemExit):
    """Another process failed, and says why. This one ends without a word."""


def on_main(function):
    """function() on the main process, its result on every process. If it raises there, the others end: Elsewhere."""
    outcome = [None, False]
    if PartialState().is_main_process:
        try:
            outcome[0] = function()
        except BaseException:
            outcome[1] = True
            broadcast_object_list(outcome)
            raise
    broadcast_object_list(outcome)
    if outcome[1]:
        raise Elsewhere(1)
    return outcome[0]


def exit_code(error: BaseException) -> int:
    """What a process that ends by this error returns, see picolm.py."""
    return 2 if isinstance(error, PicoError) else 130 if isinstance(error, KeyboardInterrupt) else 1


@contextmanager
def together():
    """An error of one process ends all: the first says why, the others stop without a word, wherever they are.

    They may be waiting in C++ for a process that is gone, where no exception reaches them. So a thread of each asks
    twice a second whether one has failed, and ends its process if that has not ended by itself soon after.
    """
    if PartialState().num_processes == 1:
        yield
        return
    store, over = dist.distributed_c10d._get_default_store(), threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), over), daemon=True).start()
    try:
        yield
    except Elsewhere:
        raise Elsewhere(_hear(store)) from None
    except BaseException as error:
        if isinstance(error, RuntimeError) and re.search("gloo|NCCL|onnection (closed|reset)", str(error)):
            error = PicoError(LOST)
        with suppress(RuntimeError):  # the store is gone with the process that held it
            if store.add(FAILED, 1) > 1:
                raise Elsewhere(_hear(store)) from None
            over.set()  # this process ends by itself: the watcher, which waits as long, would end it without a word
            store.set(CODE, str(exit_code(error)))
            others = [f"{HEARD}{rank}" for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
            store.wait(others, timedelta(seconds=GRACE))  # the store may end with this process
        raise error from None if isinstance(error, PicoError) else error.__cause__
    finally:
        over.set()


def _hear(store) -> int:
    """The exit code of the process that failed first."""
    code = int(store.get(CODE))
    store.set(f"{HEARD}{dist.get_rank()}", "")
    return code


def _watch(store, over: threading.Event) -> None:
    code, lost = 2, False
    while not over.wait(0.5):
        try:
            if store.check([CODE]):
                code = _hear(store)
                break
        except RuntimeError:  # nor is there anybody left to ask
            lost = True
            break
    if not over.wait(GRACE):
        if lost:
            log(f"error: {LOST}")
        os._exit(code)


def prepare(model, config: TrainConfig, accelerator):
    """(forward, optimizers): the model on its device, whole, wrapped in DDP or sharded; compiled if wanted."""
    model.gradient_checkpointing = config.gradient_checkpointing
    if config.compile:
        compile_regions(model)
    if sharding():
        shard(model, accelerator.device)
        return model, sharded_optimizers(model, config)
    model.to(accelerator.device)
    if accelerator.device.type == "cuda" and accelerator.num_processes == 1 and model.dtype != torch.float32:
        cast_together(model)  # several processes average each gradient while the rest of backward runs
    # sparse gradients cannot be averaged everywhere, and MPS has few operators for them
    sparse_tables(model, accelerator.num_processes == 1 and accelerator.device.type != "mps")
    return accelerator.prepare(model), build_optimizers(model, config)


# --- shards -----------------------------------------------------------------------------------------------------------


def sharding() -> bool:
    """Whether several processes were started by `accelerate launch --use_fsdp`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and PartialState().num_processes > 1


def shard(model, device: torch.device) -> None:
    """Cuts the model, in place, into one slice a process, on the device. Each block is gathered when it is used."""
    from torch.distributed.device_mesh import init_device_mesh  # here, for they take a second to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what is in no block


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes. To be called by all of them."""
    if PartialState().num_processes > 1:
        dist.all_reduce(x)
    return x


def full_tensor(x: Tensor) -> Tensor:
    """The tensor that x is a slice of; x itself if it is whole. To be called by all processes."""
    whole = getattr(x, "full_tensor", None)
    return x if whole is None else whole()


def slice_like(x: Tensor, part) -> Tensor:
    """This process's slice of x, cut and placed as `part` is. Every process has the same x: nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(part.device), part.device_mesh, part.placements, src_data_rank=None)


def gather_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, in CPU memory, on the main process; {} elsewhere. To be called by all processes."""
    gathered = {}
    for name, x in tensors.items():
        x = full_tensor(x)
        if dist.get_rank() == 0:
            gathered[name] = x.to("cpu", copy=True)
    return gathered


def full_model(model):
    """The model, for what the main process does with it alone: if sharded, a copy there and None elsewhere.

    To be called by all processes.
    """
    if not sharding():
        return model
    weights = gather_tensors(model.state_dict())
    if dist.get_rank() > 0:
        return None
    with torch.random.fork_rng(devices=[]):  # building draws random weights that are overwritten at once
        copy = build_model(model.config, model.attention_backend, model.dtype)
    copy.load_state_dict(weights)
    return copy.to(device_of(model))


# --- optimizers -------------------------------------------------------------------------------------------------------


def sharded_optimizers(model, config: TrainConfig) -> list["Sliced | Owned"]:
    """build_optimizers for a sharded model. Their state_dict is complete on the main process alone."""
    if config.tail_average:
        raise PicoError(
            "an average of the last weights needs processes that hold the whole model: leave out --use_fsdp"
        )
    if config.optimizer == "adamw" and not model.parameter_groups()["tables"]:
        return [Sliced(optimizer) for optimizer in build_optimizers(model, config)]
    owners = Owners(model)
    return [Owned(optimizer, owners) for optimizer in build_optimizers(owners, config)]


class Sliced:
    """An element-wise optimizer, whose parameters and state are slices."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.step, self.zero_grad = optimizer, optimizer.step, optimizer.zero_grad

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def state_dict(self) -> dict:
        state = self.optimizer.state_dict()
        return {**state, "state": {index: gather_tensors(tensors) for index, tensors in state["state"].items()}}

    def load_state_dict(self, state: dict) -> None:
        parts, states = [p for group in self.param_groups for p in group["params"]], {}
        for index, own in state["state"].items():
            part = parts[index]  # moments have its shape, the step count has none
            states[index] = {name: slice_like(x, part) if x.shape == part.shape else x for name, x in own.items()}
        self.optimizer.load_state_dict({**state, "state": states})


class Owners:
    """Stand-ins for a sharded model's parameters: each is whole on the process that owns it, on others a mere shape."""

    def __init__(self, model):
        self.model, self.rank, load = model, dist.get_rank(), [0] * dist.get_world_size()
        self.parts = dict(model.named_parameters())
        self.owner = {}  # of each name: the largest first, to whom has least
        for name in sorted(self.parts, key=lambda name: -self.parts[name].numel()):
            self.owner[name] = load.index(min(load))
            load[self.owner[name]] += self.parts[name].numel()
        self.wholes = {}
        for name, part in self.parts.items():
            x = full_tensor(part.detach())
            self.wholes[name] = nn.Parameter(x.clone() if self.owner[name] == self.rank else x.to("meta"))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The model's, with the stand-ins in place of its parameters."""
        name = {id(part): name for name, part in self.parts.items()}
        groups = self.model.parameter_groups()
        return {group: [self.wholes[name[id(part)]] for part in parts] for group, parts in groups.items()}


class Owned:
    """An optimizer that needs whole matrices. On each process it moves those that the process owns.

    A stand-in that is a mere shape never gets a gradient, so it rests; yet it is counted, so the state of a parameter
    has the same number, and SOAP's refreshes the same turn, as in a single process.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, owners: Owners):
        self.optimizer, self.rank = optimizer, owners.rank
        names = {id(p): name for name, p in owners.wholes.items()}
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        self.members = [(owners.wholes[name], owners.parts[name], owners.owner[name]) for name in order]

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Gradients to their owners, one step there, the new weights back to the slices."""
        moved = [member for member in self.members if member[1].grad is not None]
        for p, part, owner in moved:
            gradient = full_tensor(part.grad)
            if owner == self.rank:
                p.grad = gradient
        self.optimizer.step()
        for p, part, owner in moved:
            p.grad = None
            new = p.detach() if owner == self.rank else torch.empty(p.shape, dtype=p.dtype, device=part.device)
            dist.broadcast(new, owner)
            part.copy_(slice_like(new, part))

    def zero_grad(self) -> None:
        for _, part, _ in self.members:
            part.grad = None

    def state_dict(self) -> dict:
        state, states = self.optimizer.state_dict(), {}
        for index, (_, _, owner) in enumerate(self.members):
            # copied: a view, as SOAP's state is, would be sent with all that it is a view of
            own = {name: x.to("cpu", copy=True) for name, x in state["state"].get(index, {}).items()}
            message = [own]
            if owner == self.rank != 0:
                dist.send_object_list(message, dst=0)
            elif self.rank == 0 != owner:
                dist.recv_object_list(message, src=owner)
            if message[0]:
                states[index] = message[0]
        return {**state, "state": states}

    def load_state_dict(self, state: dict) -> None:
        own = {index: x for index, x in state["state"].items() if self.members[index][2] == self.rank}
        self.optimizer.load_state_dict({**state, "state": own})
