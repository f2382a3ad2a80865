"""RMSNorm without a gain, and the one EPS of every norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = torch.finfo(torch.float32).eps  # of every norm, whatever its dtype: decode/numpy_reader.py has the same
VECTOR = 32  # numbers of 16 bits, on a CPU with AVX-512


class _RMSNorm(torch.autograd.Function):
    """torch's own decomposes into nine passes over a bf16 tensor on CPU; this takes two, and four backward."""

    @staticmethod
    def forward(ctx, x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(EPS).rsqrt_().to(x.dtype)
        y = x * _spread(scale, x)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, _spread(along, y), value=-1).mul_(_spread(scale, y))


def _spread(each: Tensor, x: Tensor) -> Tensor:
    """A number for each row, as often as the row is long: on a CPU torch takes five times as long to multiply a row of
    bf16 by one number, where it is no multiple of its vectors."""
    return each if x.dtype == torch.float32 or x.shape[-1] % VECTOR == 0 else each.expand_as(x).contiguous()


def norm(x: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467) without a gain: the Linear that follows every norm absorbs it.

    x / sqrt(mean(x^2) + EPS), in training as in evaluation.
    """
    return F.rms_norm(x, x.shape[-1:], eps=EPS) if x.is_cuda else _RMSNorm.apply(x)
