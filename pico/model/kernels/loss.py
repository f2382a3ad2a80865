"""The cross-entropy of all prediction heads: a matmul a head, then one kernel for softmax, loss and gradient.

With a vocabulary of bytes the logits are small beside the activations, so they exist once as a whole, in the dtype of
the stream, and the kernel overwrites them with their gradient: a row is read once and written once. Nothing waits for
the device, and no sum is atomic: results repeat exactly.

    from pico.model.kernels.loss import head_nats
    totals, nats = head_nats(hidden, weight, targets)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # logits that one program holds


@triton.jit
def _softmax(logits, targets, nats, R, total, t_r, t_n, V: tl.constexpr, BV: tl.constexpr, BR: tl.constexpr):
    """BR rows of logits (N, R, V) become d nats / d logits; targets (R, N), negative where nothing is scored."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    target = tl.load(targets + row % R * t_r + row // R * t_n, mask=row < total, other=-1)[:, None]
    column = tl.arange(0, BV)[None, :]
    at, mask = logits + row[:, None] * V + column, (row[:, None] < total) & (column < V)
    x = tl.load(at, mask=mask, other=float("-inf")).to(tl.float32)
    x -= tl.max(x, 1)[:, None]
    p = tl.exp(x)
    length = tl.sum(p, 1)
    hit, scored = column == target, target >= 0
    nll = tl.log(length) - tl.sum(tl.where(hit, x, 0.0), 1)
    tl.store(nats + row, tl.where(tl.max(target, 1) >= 0, nll, 0.0), mask=row < total)
    grad = tl.where(scored, p / length[:, None] - tl.where(hit, 1.0, 0.0), 0.0)
    tl.store(at, grad.to(logits.dtype.element_ty), mask=mask)


# As an operator of torch's own registry the launch is opaque to torch.compile, which needs its shapes only.
@torch.library.custom_op("pico::softmax_gradient_", mutates_args=("logits",))
def _softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, R) nats, fp32."""
    N, R, V = logits.shape
    nats = logits.new_empty(N, R, dtype=torch.float32)
    columns = triton.next_power_of_2(V)
    rows = max(1, TILE // columns)
    with torch.cuda.device_of(logits):
        _softmax[(triton.cdiv(N * R, rows),)](
            logits, targets, nats, R, N * R, *targets.stride(), V=V, BV=columns, BR=rows, num_warps=4
        )
    return nats


@_softmax_gradient_.register_fake
def _(logits, targets):
    return logits.new_empty(logits.shape[:2], dtype=torch.float32)


class _HeadNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, targets, *hidden):
        logits = weight.new_empty(len(hidden), len(targets), weight.shape[1])
        for x, w, out in zip(hidden, weight, logits):
            torch.mm(x, w.T, out=out)
        nats = _softmax_gradient_(logits, targets)
        ctx.save_for_backward(weight, logits, *hidden)
        first = nats[0].contiguous()
        ctx.mark_non_differentiable(first)
        return nats.sum(1), first

    @staticmethod
    def backward(ctx, grad, _):
        weight, gradient, *hidden = ctx.saved_tensors
        scaled = (weight * grad[:, None, None]).to(weight.dtype)  # much smaller than what it is multiplied with
        dhidden = [torch.mm(g, w) for g, w in zip(gradient, scaled)]
        dweight = torch.stack([torch.mm(g.T, x) for g, x in zip(gradient, hidden)])
        return (dweight * grad[:, None, None]).to(weight.dtype), None, *dhidden


def head_nats(hidden: list[Tensor], weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) fp32: the summed nats of each head; and (R,) those of the first head in each row.

    hidden: N of (R, D); weight (N, V, D) of their dtype; targets (R, N) integers, negative where nothing is scored.
    Gradients go to hidden and weight.
    """
    return _HeadNats.apply(weight, targets, *hidden)
