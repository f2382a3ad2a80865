"""Which optimizer moves which parameter, and how fast."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pico.base.config import TrainConfig
from pico.base.schedules import SCHEDULES
from pico.train.soap import SOAP

TABLE_RATE = 12.0  # of the n-gram tables, over that of the rest
GRAM_BETA = 0.95  # memory of the averages that SOAP's bases follow, and of its momentum
TAIL, TAIL_MEMORY = 0.85, 0.05  # shares of a run: where an average of its weights begins, and how far back it looks


def set_learning_rate(optimizers, config: TrainConfig, step: int, progress: float) -> float:
    """Gives every group its rate of this step: its peak, times a linear warm-up, times the schedule.

    Returns that of `learning_rate`.
    """
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    share = SCHEDULES[config.schedule](progress)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        peak = getattr(config, group.get("peak", "learning_rate")) or config.learning_rate
        group["lr"] = peak * warm * share * group.get("rate", 1.0)
    return config.learning_rate * warm * share


def gated(device: torch.device, optimizers) -> bool:
    """Whether this is a GPU whose optimizers all have a `gate`: a () tensor, 1 or 0. While it is 0, a step leaves
    weights and state as they are, whatever the gradients, and the host need not know."""
    return device.type == "cuda" and all(hasattr(optimizer, "gate") for optimizer in optimizers)


def build_optimizers(model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Optimizers for all of the model's parameter groups; see `Pico.parameter_groups`.

    SOAP or AdamW for everything, or Muon for the matrices and AdamW for the rest; never weight decay for what is
    undecayed. The tables have an Adagrad that steps only the rows that were looked up. What a group's learning rate is
    of: `peak` names the setting that is its peak, and `rate` is what that is multiplied by.
    """
    parts, decay = model.parameter_groups(), config.weight_decay
    embedding, *head = parts["symbols"]
    symbols = [part([embedding], "embedding_rate", config), part(head, "head_rate", config)]
    matrices = {"params": parts["matrices"]}
    undecayed = part(parts["undecayed"], "vector_rate", config, weight_decay=0.0)
    others: list[torch.optim.Optimizer] = []
    if parts["tables"]:
        others.append(RowAdagrad([{"params": parts["tables"], "rate": TABLE_RATE}], config.learning_rate))
    if config.tail_average:
        others.append(TailAverage([p for group in parts.values() for p in group], config.tail_average))
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": decay}
    if config.optimizer == "soap":
        groups = joined(matrices, *({**group, "one_sided": True} for group in symbols), undecayed)
        options |= {"betas": (GRAM_BETA, config.soap_beta2), "gram_beta": GRAM_BETA, "cautious": config.soap_cautious}
        return [SOAP(groups, exact=config.soap_exact, **options), *others]
    beside = [*symbols, undecayed] if config.optimizer == "muon" else [*symbols, matrices, undecayed]
    rest = adamw(joined(*beside), **options, betas=(0.9, 0.95))
    if config.optimizer == "adamw":
        return [rest, *others]
    length = {"rms": "match_rms_adamw", "original": "original"}[config.muon_step]
    return [torch.optim.Muon([matrices], **options, adjust_lr_fn=length), rest, *others]


def part(parameters: list, peak: str, config: TrainConfig, **options) -> dict:
    """A param group whose peak is that setting; or the learning rate, where that is not set."""
    own = {} if getattr(config, peak) is None else {"peak": peak}
    return {"params": parameters, **own, **options}


def joined(*groups: dict) -> list[dict]:
    """The param groups, neighbours that are stepped alike as one, and none empty."""
    out = []
    for group in groups:
        if out and {**out[-1], "params": 0} == {**group, "params": 0}:
            out[-1] = {**group, "params": out[-1]["params"] + group["params"]}
        elif group["params"]:
            out.append(group)
    return out


def adamw(groups: list[dict], **options) -> torch.optim.AdamW:
    """torch's, in one kernel and with a gate for parameters that are whole on a GPU."""
    parameters = [p for group in groups for p in group["params"]]
    if all(p.is_cuda and not hasattr(p, "full_tensor") for p in parameters):
        return GatedAdamW(groups, **options, fused=True, capturable=True)
    return torch.optim.AdamW(groups, **options)


class GatedAdamW(torch.optim.AdamW):
    """torch's kernel has a gate too, for what a scaler of gradients found; see `gated`."""

    gate: Tensor | None = None

    def step(self, closure=None):
        self.found_inf = None if self.gate is None else 1 - self.gate
        return super().step(closure)


class TailAverage(torch.optim.Optimizer):
    """Steps nothing: it follows the weights over the end of a run, and then takes them a share of the way back.

    average += (weight - average) / (TAIL_MEMORY steps);    at the end  weight += share (average - weight)
    """

    def __init__(self, params, share: float):
        super().__init__(params, {"share": share})
        self.gate: Tensor | None = None  # see `gated`

    def step(self, closure=None):
        return None if closure is None else closure()

    @torch.no_grad()
    def follow(self, step: int, progress: float) -> None:
        """Call after the `step`-th step, with the fraction of the run that is done then."""
        for group in self.param_groups if progress >= TAIL else ():
            for p in group["params"]:
                if not (state := self.state[p]):
                    state["average"] = p.detach().clone()
                state["average"].lerp_(p, min(1.0, progress / step / TAIL_MEMORY))
                if progress >= 1:
                    p.lerp_(state["average"], group["share"])


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad with one size for a whole row, which slowly forgets: only the rows with a gradient move or age.

        square += mean(grad^2) after square *= beta;    row -= lr * grad / sqrt(square + others)

    others: the mean of mean(grad^2) over the rows that have a gradient in this step. Without it a row's first step is
    as long as `lr` however small its gradient, and most rows are seen seldom, many where what follows is plain.
    Row-wise Adagrad is what recommenders train their tables with (arXiv 1906.00091); against Adam with a momentum and
    a size for every number it learned better here and touches a third of the memory (docs/LOG.md). Sparse or dense
    gradients.
    """

    def __init__(self, params, lr: float, beta: float = 0.99, eps: float = 1e-8):
        super().__init__(params, dict(lr=lr, beta=beta, eps=eps))
        self.gate: Tensor | None = None  # see `gated`
        self._sums: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["square"] = p.new_zeros(len(p), 1)
                if p.is_cuda:
                    self._step_unseen(p, state["square"], group)
                elif self.gate is None or self.gate:
                    self._step_found(p, state["square"], group)
        return loss

    def _step_found(self, p: Tensor, squares: Tensor, group: dict) -> None:
        """Each row that has a gradient once, after a look at which they are."""
        assert p.grad is not None
        if p.grad.is_sparse:  # a bag for each row sums it in half the time of coalesce
            found, order = p.grad._indices()[0].sort(stable=True)
            starts = found.diff(prepend=found[:1] - 1).nonzero()[:, 0]
            rows, grad = found[starts], F.embedding_bag(order, p.grad._values(), starts, mode="sum")
        else:
            rows, grad = torch.arange(len(p), device=p.device), p.grad
        square = grad.square().mean(1, keepdim=True)
        moves = square[:, 0] > 0
        if not moves.all():
            rows, grad, square = rows[moves], grad[moves], square[moves]
        others = square.mean()
        square += squares.index_select(0, rows).mul_(group["beta"])
        squares.index_copy_(0, rows, square)
        size = square.add_(others).sqrt_().add_(group["eps"])
        p.index_copy_(0, rows, p.index_select(0, rows).addcdiv_(grad, size, value=-group["lr"]))

    def _step_unseen(self, p: Tensor, squares: Tensor, group: dict) -> None:
        """The same without the host knowing the rows: one that was found twice is written twice, with equal values."""
        assert p.grad is not None
        if p.grad.is_sparse:
            found, sums = self._summed(p)
            grad = sums.index_select(0, found)
            sums.index_fill_(0, found, 0)
        else:
            found, grad = torch.arange(len(p), device=p.device), p.grad
        new = grad.square().mean(1, keepdim=True)
        moves = new > 0
        order = found.argsort()
        first = found[order].diff(prepend=found.new_full((1,), -1)) != 0  # of those that name the same row
        once = new[order] * first[:, None]
        others = once.sum() / once.count_nonzero().clamp(min=1)
        if self.gate is not None:
            moves = moves & (self.gate > 0)
        old, row = squares.index_select(0, found), p.index_select(0, found)
        square = old * group["beta"] + new
        moved = row - group["lr"] * (grad / ((square + others).sqrt() + group["eps"]))
        squares.index_copy_(0, found, square.where(moves, old))
        p.index_copy_(0, found, moved.where(moves, row))

    def _summed(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a sparse gradient, some of them several times, and a table that holds each row's sum.

        It is zero elsewhere; to be left so everywhere. This spares the sort of coalesce.
        """
        assert p.grad is not None
        if p not in self._sums:
            self._sums[p] = torch.zeros_like(p)
        found = p.grad._indices()[0]
        return found, self._sums[p].index_add_(0, found, p.grad._values())
