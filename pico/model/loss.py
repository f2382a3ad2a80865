"""The multi-byte loss: N cross-entropies weighted by powers of the golden ratio.

On a CPU (B, T, N, vocabulary) logits and their gradient cost more memory traffic than the matmuls, so loss and
gradient are computed together over slices of rows that stay in cache (as in Liger Kernel, arXiv 2410.10989). A GPU
makes all logits and turns them into their gradient in place, see pico/model/kernels/loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pico.base.symbols import VOCABULARY
from pico.model import kernels

PHI = (1 + 5**0.5) / 2
SLICE = 2048  # rows whose logits exist at once: with fewer the matmuls are slower, with more nothing is gained
LEAST = 256  # of them, however large the vocabulary
LARGEST = 4096  # vocabulary whose row of logits a GPU's kernel holds


def head_weights(heads: int, device=None) -> Tensor:
    """(N,) weights phi^-k: 1 for the first, and each is the sum of the next two."""
    return PHI ** -torch.arange(heads, dtype=torch.float32, device=device)


def head_targets(targets: Tensor, length: int, heads: int) -> Tensor:
    """targets (B, T + N - 1), the bytes after each input byte -> (B, T, N): head k predicts byte t + 1 + k."""
    return targets.unfold(1, heads, 1)[:, :length]


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(logits / cap), worked out in fp32: none is beyond the cap (Gemma 2, arXiv 2408.00118)."""
    return logits if cap is None else (cap * torch.tanh(logits.float() / cap)).to(logits.dtype)


class _FusedCrossEntropy(torch.autograd.Function):
    """hidden (R, D), weight (V, D), targets (R,) -> sum of nats, and those of each (R,). cap: of the logits."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, cap):
        train = hidden.requires_grad or weight.requires_grad
        w = weight.to(hidden.dtype)
        nats = torch.empty(len(hidden), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if train else None
        grad_weight = torch.zeros_like(weight) if train else None
        rows = max(LEAST, SLICE * VOCABULARY // len(weight)) * (1 if hidden.device.type == "cpu" else 8)
        for start in range(0, len(hidden), rows):
            x, y = hidden[start : start + rows], targets[start : start + rows, None]
            logits = F.linear(x, w)
            if cap is not None:
                bent = torch.tanh(logits.float() / cap)
                logits = cap * bent
            p = logits.softmax(-1, dtype=torch.float32)
            mask = y >= 0
            y = y.clamp(min=0)
            nats[start : start + rows] = -(p.gather(-1, y).clamp(min=1e-30).log() * mask)[:, 0]
            if grad_hidden is not None and grad_weight is not None:
                p.scatter_add_(-1, y, torch.full_like(y, -1, dtype=p.dtype))  # d nll / d logits
                if cap is not None:
                    p *= 1 - bent.square()
                grad = torch.mul(p, mask, out=torch.empty_like(p, dtype=x.dtype))
                torch.mm(grad, w, out=grad_hidden[start : start + rows])
                grad_weight += grad.T @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx, grad_total, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total.to(grad_hidden.dtype), grad_weight * grad_total, None, None


def multi_byte_loss(
    hidden: list[Tensor], weight: Tensor, targets: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of all heads. hidden: N of (B, T, D), what each head reads; weight (N V, D); targets (B, T + N - 1), -100
    where there is none; cap: see `soft_capped`.

    Returns the loss, sum_k phi_k * (nats of head k) / (B T); the mean nats of each head (N,) over its targets; and
    the nats of head 0 for each byte (B, T), 0 where there is no target.
    The divisor counts padding too, so that every byte weighs the same however the batch is cut over processes.
    """
    batch, length, _ = hidden[0].shape
    assert targets.shape[1] == length + len(hidden) - 1, "each head needs a target for each byte"
    wanted = head_targets(targets, length, len(hidden)).flatten(0, 1)  # (B T, N)
    rows, weights = [x.flatten(0, 1) for x in hidden], weight.chunk(len(hidden))
    if weight.is_cuda and cap is None and len(weights[0]) <= LARGEST and kernels.available():
        from pico.model.kernels.loss import head_nats

        totals, nats = head_nats(rows, torch.stack(weights).to(rows[0].dtype), wanted)
    else:
        each = [_FusedCrossEntropy.apply(*of, cap) for of in zip(rows, weights, wanted.unbind(1))]
        totals, nats = torch.stack([total for total, _ in each]), each[0][1]
    loss = totals @ head_weights(len(hidden), totals.device) / (batch * length)
    return loss, totals.detach() / (wanted >= 0).sum(0).clamp(min=1), nats.view(batch, length)
