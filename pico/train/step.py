"""One optimizer step: what training does again and again, and what `bench` and pico/lab/gpu.py time."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler

from pico.base.config import TrainConfig
from pico.base.device import device_of
from pico.base.graphs import StepGraphs
from pico.base.numbers import perplexity
from pico.data.prefetch import Batch
from pico.model.build import Model
from pico.train import parallel
from pico.train.optimizers import gated, set_learning_rate

UNSCALED = GradScaler("cpu", enabled=False)


class StepResult(NamedTuple):
    """How a step went, over all of its batches and all processes."""

    loss: float  # nats per byte, of each head times its weight
    router_loss: float  # nats per byte
    routed: float  # fraction of the positions that went through the latent blocks
    skipped: float  # fraction of the bytes to be routed that met a full training buffer
    heads: int  # that learned
    slots: float  # positions that the latent blocks ran on, the empty ones included, over all positions
    bits_per_byte: float  # of head 0, by the routing that training uses
    perplexity: float  # of head 0, for a symbol
    bytes: int  # raw bytes that head 0 was to predict
    grad_norm: float  # before it was clipped
    learning_rate: float
    shared: list[float]  # what `to_share` gave, summed over the processes

    @property
    def finite(self) -> bool:
        """Whether the weights have moved: a step that is not finite leaves them alone."""
        return math.isfinite(self.bits_per_byte + self.loss + self.router_loss + self.grad_norm)


class Pending:
    """The result of a step that is queued, and that a GPU may not have begun."""

    def __init__(self, numbers: Tensor, result: Callable[[list[float]], StepResult]):
        self.result, self.numbers, self.arrived = result, numbers, None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers, self.arrived = host.copy_(numbers, non_blocking=True), torch.cuda.Event()
            self.arrived.record()

    def get(self) -> StepResult:
        """The result, once the device is through with the step."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.result(self.numbers.tolist())


def loss_scaler(device: torch.device, dtype: torch.dtype) -> GradScaler:
    """Of a training whose activations have this dtype: on for fp16 alone, whose small gradients would vanish."""
    return GradScaler(device.type, enabled=dtype == torch.float16)


def optimizer_step(
    model: Model,
    forward: Callable,
    optimizers: Sequence,
    config: TrainConfig,
    batches: Sequence[Batch],
    step: int,
    progress: float,
    numbers_per_byte: float = 0.0,
    to_share: Callable[[], list[float]] = list,
    mark: Callable[[str], object] = lambda part: None,
    graphs: StepGraphs | None = None,
    scaler: GradScaler = UNSCALED,
) -> Pending:
    """Moves the weights by the mean gradient of the batches; called by all processes, each with batches of its own.

    forward: the model as it is called, which may be wrapped in DDP. step, progress: how many steps came
    before, and which fraction of the run is done. numbers_per_byte: of the blocks, for a text that is read again; with
    more than one they would learn it by heart, and there is dropout. to_share: numbers that the processes share on the
    way. mark: told the name of each part when it ends, "forward", "backward" or "optimizer". graphs: replays what a GPU
    does, as one part, "optimizer". scaler: of the loss, for activations in fp16: where a gradient overflows its scale
    halves, and no weight moves.
    """
    # 1. Where the run is decides how far a step goes, and what the model does in it.
    rate = set_learning_rate(optimizers, config, step, progress)
    phase, heads = model.begin_step(progress), model.config.heads_at(progress)

    # 2. Forward and backward. Gradients of the batches add up in place, so the memory of one batch is enough.
    device, share = device_of(model), config.router_loss_weight * model.config.routes
    times = [[before * (numbers_per_byte > 0) for before in batch.epochs] for batch in batches]
    again = [any(before) for before in times]
    dropout = config.dropout * (numbers_per_byte > 1)
    tensors = [x.to(device, non_blocking=True) for batch in batches for x in (batch.inputs, batch.targets)]
    tensors.append(torch.tensor(times).to(device, non_blocking=True))
    tick = mark if graphs is None else lambda part: None

    def gradients(*tensors: Tensor) -> Tensor:
        """(8,) sums over the batches, and the norm of the gradients that the parameters have then."""
        seen: list[Tensor] = []  # of each batch, (7,), still on the device
        # inputs (B, T), targets (B, T + N - 1)
        *texts, epochs = tensors
        for number, (inputs, targets, known) in enumerate(zip(texts[::2], texts[1::2], again), start=1):
            model.set_dropout(dropout * known, epochs[number - 1] if known else None)
            length = inputs.shape[1]
            # DDP averages over the processes in a backward pass: once a step, in the last one, is enough.
            alone = getattr(forward, "no_sync", nullcontext) if number < len(batches) else nullcontext
            with alone():
                out = forward(inputs, targets=targets)
                tick("forward")
                loss = (1 - share) * out.loss + share * out.router_loss
                scaler.scale(loss / len(batches)).backward()
                tick("backward")
            symbols = (targets[:, :length] >= 0).sum()
            nats = out.head_nll[0] * symbols
            slots = nats.new_full((), out.slots / length)
            these = out.loss, out.router_loss, out.routed.float().mean(), out.skipped, slots, nats, symbols
            seen.append(torch.stack([x.detach().float() for x in these]))
        if scaler.is_enabled():
            everything: Any = SimpleNamespace(param_groups=[{"params": list(model.parameters())}])
            scaler.unscale_(everything)  # which takes an optimizer for its groups alone
        norm = torch.nn.utils.clip_grad_norm_(model.dense_parameters(), config.gradient_clip)
        return torch.cat([reduce(torch.add, seen), parallel.full_tensor(norm).float()[None]])

    def move(gate: Tensor | None) -> None:
        for optimizer in optimizers:
            if gate is not None:
                optimizer.gate = gate
            optimizer.step()
        model.end_step(gate)
        forget()

    def forget() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()

    def whole_step(*tensors: Tensor) -> Tensor:
        forget()  # of a capture that failed
        seen = gradients(*tensors)
        move(seen.isfinite().all().float())
        scaler.update()
        return seen

    if graphs is None:
        seen = gradients(*tensors)
    else:
        seen = graphs((phase, *again), whole_step, tensors)

    # 3. All that the host must know, on its way there in one transfer.
    mine = torch.tensor([len(batches), sum(batch.bytes for batch in batches), *to_share()], dtype=seen.dtype)
    numbers = parallel.total(torch.cat([seen, mine.to(device, non_blocking=True)]))

    def result(numbers: list[float]) -> StepResult:
        *sums, nats, symbols, norm, parts, text = numbers[:10]
        loss, router_loss, routed, skipped, slots = (x / parts for x in sums)  # over the batches of all processes
        return StepResult(
            loss,
            router_loss,
            routed,
            skipped,
            heads,
            slots,
            bits_per_byte=nats / math.log(2) / max(text, 1),
            perplexity=perplexity(nats / max(symbols, 1)),
            bytes=int(text),
            grad_norm=norm * len(batches) / parts,  # every process has the same one
            learning_rate=rate,
            shared=numbers[10:],
        )

    pending = Pending(numbers, result)

    # 4. The step itself, unless a number is not finite. On a GPU the optimizers see to that by a gate: the host would
    # have to wait for the backward pass, and then the GPU for the host. Elsewhere the host looks.
    if graphs is not None:
        pass  # it is done
    elif gated(device, optimizers):
        move(numbers[: len(seen)].isfinite().all().float())
    elif pending.get().finite:
        move(None)
    else:
        model.forget_step()  # what it saw is not finite either
        forget()
    if graphs is None:
        scaler.update()
    mark("optimizer")
    return pending


def step_graphs(model: Model, optimizers: Sequence, config: TrainConfig, warn=lambda _: None) -> StepGraphs | None:
    """The graphs of a training's steps, where they can be had: on one GPU, with optimizers that need no host."""
    device = device_of(model)
    alone = parallel.PartialState().num_processes == 1
    return StepGraphs(device, optimizers, warn) if config.cuda_graph and alone and gated(device, optimizers) else None
