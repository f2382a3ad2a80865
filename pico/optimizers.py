"""Which optimizer moves which parameter, and how fast."""

import math

import torch
from torch import Tensor

from pico.config import TrainConfig
from pico.soap import SOAP

TABLE_RATE = 4.0  # of the n-gram tables, over that of the rest


def set_learning_rate(optimizers, config: TrainConfig, step: int, progress: float) -> float:
    """Gives every group the rate of this step and returns it: a linear warm-up, times a line from the peak to zero."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    rate = config.learning_rate * warm * (1 - progress)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate * group.get("rate", 1.0)
    return rate


def build_optimizers(model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """SOAP or AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    No weight decay on norms, biases and the router. The n-gram tables have an Adam that steps only the rows that were
    looked up, at a rate of its own. A group's `rate` is what its learning rate is multiplied by.
    """
    rate, decay = config.learning_rate, config.weight_decay
    named = list(model.named_parameters())
    tables = [p for name, p in named if name.startswith("ngrams.table")]
    named = [(name, p) for name, p in named if not name.startswith("ngrams.table")]
    lookups = [RowAdam([{"params": tables, "rate": TABLE_RATE}], rate)] if tables else []
    plain = [p for name, p in named if p.ndim < 2 or name.startswith("router")]
    wide = [p for name, p in named if p.ndim > 1 and name.startswith(("embedding", "heads"))]
    blocks = [p for name, p in named if not any(p is other for other in plain + wide)]
    undecayed = {"params": plain, "weight_decay": 0.0}
    if config.optimizer.startswith("soap"):
        groups = [{"params": blocks}, {"params": wide, "one_sided": True}, undecayed]
        return [SOAP(groups, lr=rate, weight_decay=decay, exact=config.optimizer == "soap-exact"), *lookups]
    options = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": decay}
    if config.optimizer == "adamw":
        return [torch.optim.AdamW([{"params": wide + blocks}, undecayed], **options), *lookups]
    muon = torch.optim.Muon(blocks, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([{"params": wide}, undecayed], **options), *lookups]


class RowAdam(torch.optim.Optimizer):
    """Adam for tables: only the rows with a gradient move, and only their averages age. Sparse or dense gradients.

    torch.optim.SparseAdam does the same, but takes no dense gradients, which is what several processes average.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {
                        "step": torch.tensor(0),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
                state["step"] += 1
                step = int(state["step"])
                rows, grad = touched(p.grad)
                first = state["exp_avg"][rows].lerp_(grad, 1 - beta1)
                second = state["exp_avg_sq"][rows].lerp_(grad.square(), 1 - beta2)
                state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
                size = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
                p.index_add_(0, rows, first.div_(second.sqrt_().add_(group["eps"])), alpha=-size)
        return loss


def touched(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a table's gradient that are not zero, and the gradient there."""
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.any(1).nonzero().flatten()
    return rows, grad[rows]
