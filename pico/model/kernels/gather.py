"""The way into the latent stack and out of it: gather the routed positions, scatter their gated result back.

Both are one pass over the routed rows, forward and backward. A position is routed at most once a row, so the
backward of the gather is a plain store and no sum is atomic: results repeat exactly.

    from pico.model.kernels.gather import gated_scatter, latent_gather
    chosen = latent_gather(x, index)                        # (B, T, D) -> (B, M, D)
    x = gated_scatter(x, blocks(chosen), index, weight)     # x[index] += weight * (blocks(chosen) - x[index])
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather(x, out, index, x_b, x_t, x_d, i_b, i_m, T, D, M, BD: tl.constexpr):
    """out[b, m] = x[b, index[b, m]], zeros where the index is negative."""
    b, m = tl.program_id(1).to(tl.int64), tl.program_id(0)
    t = tl.load(index + b * i_b + m * i_m)
    column = tl.arange(0, BD)
    row = tl.load(x + b * x_b + t * x_t + column * x_d, mask=column < tl.where(t >= 0, D, 0), other=0.0)
    tl.store(out + (b * M + m) * D + column, row, mask=column < D)


@triton.jit
def _gather_backward(grad, dx, index, g_b, g_m, g_d, i_b, i_m, T, D, M, BD: tl.constexpr):
    """dx[b, index[b, m]] = grad[b, m]; dx starts as zeros."""
    b, m = tl.program_id(1).to(tl.int64), tl.program_id(0)
    t = tl.load(index + b * i_b + m * i_m)
    column = tl.arange(0, BD)
    row = tl.load(grad + b * g_b + m * g_m + column * g_d, mask=column < D, other=0.0)
    tl.store(dx + (b * T + t) * D + column, row, mask=column < tl.where(t >= 0, D, 0))


@triton.jit
def _scatter(out, latent, index, weight, l_b, l_m, l_d, i_b, i_m, w_b, w_m, T, D, M, BD: tl.constexpr):
    """out[b, t] += weight * (latent[b, m] - out[b, t]) at t = index[b, m]; out starts as a copy of x."""
    b, m = tl.program_id(1).to(tl.int64), tl.program_id(0)
    t = tl.load(index + b * i_b + m * i_m)
    w = tl.load(weight + b * w_b + m * w_m).to(tl.float32)
    column = tl.arange(0, BD)
    mask = column < tl.where(t >= 0, D, 0)
    old = tl.load(out + (b * T + t) * D + column, mask=mask, other=0.0).to(tl.float32)
    new = tl.load(latent + b * l_b + m * l_m + column * l_d, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + (b * T + t) * D + column, (old + w * (new - old)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _scatter_backward(
    dx, x, latent, dlatent, index, weight, dweight,
    x_b, x_t, x_d, l_b, l_m, l_d, i_b, i_m, w_b, w_m, T, D, M, BD: tl.constexpr,
):  # fmt: skip
    """dlatent = w g, dweight = sum g (latent - x), dx = (1 - w) g, with g = dx[b, index]; dx starts as a copy of g."""
    b, m = tl.program_id(1).to(tl.int64), tl.program_id(0)
    t = tl.load(index + b * i_b + m * i_m)
    w = tl.load(weight + b * w_b + m * w_m).to(tl.float32)
    column = tl.arange(0, BD)
    mask = column < tl.where(t >= 0, D, 0)
    g = tl.load(dx + (b * T + t) * D + column, mask=mask, other=0.0).to(tl.float32)
    old = tl.load(x + b * x_b + t * x_t + column * x_d, mask=mask, other=0.0).to(tl.float32)
    new = tl.load(latent + b * l_b + m * l_m + column * l_d, mask=mask, other=0.0).to(tl.float32)
    tl.store(dlatent + (b * M + m) * D + column, (w * g).to(dlatent.dtype.element_ty), mask=column < D)
    tl.store(dweight + b * M + m, tl.sum(g * (new - old), 0).to(dweight.dtype.element_ty))
    tl.store(dx + (b * T + t) * D + column, ((1 - w) * g).to(dx.dtype.element_ty), mask=mask)


def _launch(kernel, tensors: tuple, strides: tuple, T: int, D: int, index):
    block = triton.next_power_of_2(D)
    with torch.cuda.device_of(index):
        kernel[(index.shape[1], index.shape[0])](
            *tensors, *strides, T, D, index.shape[1], BD=block, num_warps=max(1, min(8, block // 256))
        )


# As operators of torch's own registry the launches are opaque to torch.compile, which needs their shapes only.
@torch.library.custom_op("pico::latent_gather", mutates_args=())
def _latent_gather(x: Tensor, index: Tensor) -> Tensor:
    out = x.new_empty(*index.shape, x.shape[-1])
    _launch(_gather, (x, out, index), (*x.stride(), *index.stride()), *x.shape[1:], index)
    return out


@_latent_gather.register_fake
def _(x, index):
    return x.new_empty(*index.shape, x.shape[-1])


@torch.library.custom_op("pico::latent_gather_backward", mutates_args=())
def _latent_gather_backward(grad: Tensor, index: Tensor, length: int) -> Tensor:
    dx = grad.new_zeros(index.shape[0], length, grad.shape[-1])
    _launch(_gather_backward, (grad, dx, index), (*grad.stride(), *index.stride()), *dx.shape[1:], index)
    return dx


@_latent_gather_backward.register_fake
def _(grad, index, length):
    return grad.new_empty(index.shape[0], length, grad.shape[-1])


@torch.library.custom_op("pico::gated_scatter", mutates_args=())
def _gated_scatter(x: Tensor, latent: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    strides = (*latent.stride(), *index.stride(), *weight.stride())
    _launch(_scatter, (out, latent, index, weight), strides, *x.shape[1:], index)
    return out


@_gated_scatter.register_fake
def _(x, latent, index, weight):
    return x.new_empty(x.shape)


@torch.library.custom_op("pico::gated_scatter_backward", mutates_args=())
def _gated_scatter_backward(
    grad: Tensor, x: Tensor, latent: Tensor, index: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = grad.clone(memory_format=torch.contiguous_format)
    dlatent, dweight = latent.new_empty(latent.shape), weight.new_empty(weight.shape)
    strides = (*x.stride(), *latent.stride(), *index.stride(), *weight.stride())
    _launch(_scatter_backward, (dx, x, latent, dlatent, index, weight, dweight), strides, *x.shape[1:], index)
    return dx, dlatent, dweight


@_gated_scatter_backward.register_fake
def _(grad, x, latent, index, weight):
    return x.new_empty(x.shape), latent.new_empty(latent.shape), weight.new_empty(weight.shape)


class _LatentGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.length = x.shape[1]
        return _latent_gather(x, index)

    @staticmethod
    def backward(ctx, grad):
        return _latent_gather_backward(grad, *ctx.saved_tensors, ctx.length), None


class _GatedScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, latent, index, weight):
        ctx.save_for_backward(x, latent, index, weight)
        return _gated_scatter(x, latent, index, weight)

    @staticmethod
    def backward(ctx, grad):
        dx, dlatent, dweight = _gated_scatter_backward(grad, *ctx.saved_tensors)
        return dx, dlatent, None, dweight


def latent_gather(x, index):
    """The chosen positions of each row: x (B, T, D), index (B, M) integers below T -> (B, M, D).

    A negative index is padding and gives zeros. No position may appear twice in a row.
    """
    return _LatentGather.apply(x, index)


def gated_scatter(x, latent, index, weight):
    """x with x[b, t] + weight[b, m] (latent[b, m] - x[b, t]) at the chosen positions t = index[b, m].

    x (B, T, D), latent (B, M, D), index (B, M) as in latent_gather, weight (B, M) of any float type. Computed in
    fp32; returns a new tensor of x's shape and type. Gradients go to x, latent and weight; padding gets none.
    """
    return _GatedScatter.apply(x, latent, index, weight)
