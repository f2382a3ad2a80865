"""Which optimizer moves which parameter, and how fast."""

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
    """An optimizer for each of the model's parameter groups; see `Pico.parameter_groups`.

    SOAP or AdamW for everything, or Muon for the matrices and AdamW for the rest; never weight decay for what is
    undecayed. The tables have an Adagrad that steps only the rows that were looked up, at a rate of its own. A group's
    `rate` is what its learning rate is multiplied by.
    """
    rate, decay = config.learning_rate, config.weight_decay
    tables, symbols, matrices, undecayed = (
        {"params": model.parameter_groups()[group]} for group in ("tables", "symbols", "matrices", "undecayed")
    )
    undecayed["weight_decay"] = 0.0
    lookups = [RowAdagrad([tables | {"rate": TABLE_RATE}], rate)] if tables["params"] else []
    if config.optimizer == "soap":
        groups = [matrices, symbols | {"one_sided": True}, undecayed]
        return [SOAP(groups, lr=rate, weight_decay=decay, exact=config.soap_exact), *lookups]
    options = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": decay}
    if config.optimizer == "adamw":
        decayed = {"params": symbols["params"] + matrices["params"]}
        return [torch.optim.AdamW([decayed, undecayed], **options), *lookups]
    muon = torch.optim.Muon([matrices], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([symbols, undecayed], **options), *lookups]


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad with one size for a whole row, which slowly forgets: only the rows with a gradient move or age.

        square += mean(grad^2) after square *= beta;    row -= lr * grad / sqrt(square)

    A row's first step is as long as `lr`, later ones are shorter. Row-wise Adagrad is what recommenders train their
    tables with (arXiv 1906.00091); against Adam with a momentum and a size for every number it learned better here and
    touches a third of the memory (RESULTS.md). Sparse or dense gradients.
    """

    def __init__(self, params, lr: float, beta: float = 0.99, eps: float = 1e-8):
        super().__init__(params, dict(lr=lr, beta=beta, eps=eps))
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
                rows, grad = self._touched(p)
                square = state["square"].index_select(0, rows).mul_(group["beta"])
                square += grad.square().mean(1, keepdim=True)
                state["square"].index_copy_(0, rows, square)
                p.index_add_(0, rows, grad.div_(square.sqrt_().add_(group["eps"])), alpha=-group["lr"])
        return loss

    def _touched(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that have a gradient and the gradient there. Sparse ones are summed without the sort of coalesce."""
        if not p.grad.is_sparse:
            rows = p.grad.any(1).nonzero().flatten()
            return rows, p.grad[rows]
        if p not in self._sums:
            self._sums[p] = torch.zeros_like(p)
        found, sums = p.grad._indices()[0], self._sums[p]
        rows = found.new_zeros(len(p), dtype=torch.bool).index_fill_(0, found, True).nonzero().flatten()
        grad = sums.index_add_(0, found, p.grad._values()).index_select(0, rows)
        sums.index_fill_(0, rows, 0)
        return rows, grad
