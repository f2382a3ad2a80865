"""Sliding-window ALiBi grouped-query attention with QK-norm, forward and backward, as Triton kernels.

FlashAttention-2 (arXiv 2307.08691) with the loops cut to the window: a tile of queries meets only the keys its
window reaches, a tile of keys only the queries that reach it, so the work is O(T W) and nothing of size (T, T)
exists. ALiBi (arXiv 2108.12409) is computed from the distance, in fp32. The forward keeps one number a query, the
base-2 log-sum-exp. The backward runs one kernel for dq, which leaves delta = sum(out * dout) behind, then one for
dk and dv, which goes over the query heads of its group itself: no sum is atomic, results repeat exactly.

QK-norm (arXiv 2010.04245) needs no normalised copies: a row's norm is one factor, r = 1 / sqrt(mean(x^2) + EPS), so the
score of raw rows is multiplied by the two factors, in fp32. Backward, the gradient of a unit row u = r x becomes that
of x by r (du - u mean(du u)), and the sum of du u over all queries is the gradient of the sharpness.

    from pico.model.kernels.attention import window_attention
    out = window_attention(qkv, sharpness, slopes, window)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pico.base.errors import PicoError
from pico.model.kernels import MAX_HEAD_DIM, interpreted
from pico.model.norm import EPS

LOG2E = tl.constexpr(1.4426950408889634)
NORM_EPS = tl.constexpr(EPS)
WIDEN = tl.constexpr(interpreted())  # the interpreter multiplies bf16 as if it were integers


@triton.jit
def dot(a, b, acc=None):
    """a @ b + acc in fp32; exact products for fp32 inputs, never tf32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def load_rows(pointer, row, stride, limit, E: tl.constexpr, BE: tl.constexpr):
    """Rows of one head, (rows, BE); zeros for rows from `limit` on and for the padding of the head width."""
    column = tl.arange(0, BE)
    mask = (row[:, None] < limit) & (column[None, :] < E)
    return tl.load(pointer + row[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, row, value, stride, limit, E: tl.constexpr, BE: tl.constexpr):
    column = tl.arange(0, BE)
    mask = (row[:, None] < limit) & (column[None, :] < E)
    tl.store(pointer + row[:, None] * stride + column[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _row_norm(x, E: tl.constexpr):
    """The factor by which QK-norm multiplies each row of x (rows, BE)."""
    x = x.to(tl.float32)
    return tl.rsqrt(tl.sum(x * x, 1) / E + NORM_EPS)


@triton.jit
def _score(product, i, j, start, window, slope):
    """Scores of queries i and keys j (shaped to broadcast), plus slope (i - start); -inf outside the window.

    Softmax does not see that term of the query, and without it a score costs one multiply-add. It stays small, and
    exact in fp32, because positions count from the tile's start. The length needs no test: what a query may see is at
    or before it, and what lies past the end is not stored.
    """
    score = product + slope * (j - start).to(tl.float32)
    # as an unsigned number a negative distance is huge: one comparison tests both ends of the window
    return tl.where((i - j).to(tl.uint32) <= window, score, float("-inf"))


# In all kernels: qkv (B, T, H + 2K, E), and norms (B, H + K, T) fp32, the factors of QK-norm, used if NORM. They take
# the same last arguments, so that one function launches them.


@triton.jit
def _key_norms(
    qkv, norms, slopes, sharpness, T, window, scale,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, NORM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of one tile of BM keys of one key head: every tile of queries around needs them."""
    b, head = (tl.program_id(0) // K).to(tl.int64), H + tl.program_id(0) % K
    S: tl.constexpr = H + 2 * K
    j = tl.program_id(1) * BM + tl.arange(0, BM)
    key = load_rows(qkv + b * T * (S * E) + head * E, j, S * E, T, E, BE)
    tl.store(norms + (b * (H + K) + head) * T + j, _row_norm(key, E), mask=j < T)


@triton.jit
def _forward(
    qkv, norms, out, lse, slopes, sharpness, T, window, scale,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, NORM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of BM queries of one head; it leaves their norms behind. Scores are in base 2."""
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    S: tl.constexpr = H + 2 * K
    start = tl.program_id(1) * BM
    slope = tl.load(slopes + h) * LOG2E
    kv_head = H + h // (H // K)
    qkv += b * T * (S * E)
    norms += b * (H + K) * T

    i = start + tl.arange(0, BM)
    query = load_rows(qkv + h * E, i, S * E, T, E, BE)  # (BM, BE), as stored: normed by a factor on the scores
    scale *= LOG2E
    if NORM:
        query_norm = _row_norm(query, E)
        tl.store(norms + h * T + i, query_norm, mask=i < T)
        query_scale = query_norm * (tl.load(sharpness) * scale)
    peak = tl.full([BM], -1e30, tl.float32)  # finite: a query with nothing to see yet must not give inf - inf
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BE], tl.float32)
    # Online softmax over the tiles of keys in the window: when the largest score seen so far rises, what was summed
    # by the old one is scaled down (`decay`), so that no score has to be kept.
    for first in range(tl.maximum(start - window, 0), tl.minimum(start + BM, T), BN):
        j = first + tl.arange(0, BN)
        key = load_rows(qkv + kv_head * E, j, S * E, T, E, BE)
        value = load_rows(qkv + (kv_head + K) * E, j, S * E, T, E, BE)
        product = dot(query, tl.trans(key))  # (BM, BN)
        if NORM:
            key_norm = tl.load(norms + kv_head * T + j, mask=j < T, other=0.0)
            product *= query_scale[:, None] * key_norm[None, :]
        else:
            product *= scale
        score = _score(product, i[:, None], j[None, :], start, window, slope)
        new_peak = tl.maximum(peak, tl.max(score, 1))
        p = tl.exp2(score - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(p, 1)
        acc = dot(p.to(value.dtype), value, acc * decay[:, None])
        peak = new_peak

    total = tl.where(i < T, total, 1.0)  # rows past the end have seen nothing: 0 / 0 otherwise
    store_rows(out + (b * T * H + h) * E, i, acc / total[:, None], H * E, T, E, BE)
    row_lse = peak + tl.log2(total) - slope * (i - start).to(tl.float32)
    tl.store(lse + (b * H + h) * T + i, row_lse, mask=i < T)


@triton.jit
def _backward_q(
    qkv, norms, out, grad, dqkv, lse, delta, dsharpness, slopes, sharpness, T, window, scale,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, NORM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq of one tile of BM queries of one head, their parts of dsharpness, and delta for the other kernel."""
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    S: tl.constexpr = H + 2 * K
    start = tl.program_id(1) * BM
    slope = tl.load(slopes + h) * LOG2E
    kv_head = H + h // (H // K)
    qkv += b * T * (S * E)
    norms += b * (H + K) * T

    i = start + tl.arange(0, BM)
    query = load_rows(qkv + h * E, i, S * E, T, E, BE)
    dout = load_rows(grad + (b * T * H + h) * E, i, H * E, T, E, BE)
    row_out = load_rows(out + (b * T * H + h) * E, i, H * E, T, E, BE)
    row = (b * H + h) * T + i
    # +inf makes the probabilities of what lies past the end zero
    row_lse = tl.load(lse + row, mask=i < T, other=float("inf")) + slope * (i - start).to(tl.float32)
    # the softmax's gradient: dscore = p (dp - sum of p dp over the keys), and that sum is out . dout
    row_delta = tl.sum(row_out.to(tl.float32) * dout.to(tl.float32), 1)
    tl.store(delta + row, row_delta, mask=i < T)
    if NORM:
        sharp = tl.load(sharpness)
        query_norm = tl.load(norms + h * T + i, mask=i < T, other=0.0)
        query_scale = query_norm * (sharp * scale * LOG2E)
    acc = tl.zeros([BM, BE], tl.float32)
    for first in range(tl.maximum(start - window, 0), tl.minimum(start + BM, T), BN):
        j = first + tl.arange(0, BN)
        key = load_rows(qkv + kv_head * E, j, S * E, T, E, BE)
        value = load_rows(qkv + (kv_head + K) * E, j, S * E, T, E, BE)
        product = dot(query, tl.trans(key))
        if NORM:
            key_norm = tl.load(norms + kv_head * T + j, mask=j < T, other=0.0)
            product *= query_scale[:, None] * key_norm[None, :]
        else:
            product *= scale * LOG2E
        score = _score(product, i[:, None], j[None, :], start, window, slope)
        p = tl.exp2(score - row_lse[:, None])  # (BM, BN), computed again instead of kept
        dp = dot(dout, tl.trans(value))
        dscore = p * (dp - row_delta[:, None])
        if NORM:
            dscore *= key_norm[None, :]
        acc = dot(dscore.to(key.dtype), key, acc)
    acc *= scale
    if NORM:  # back through query / |query|: what points along the query moves the sharpness alone
        unit = query.to(tl.float32) * query_norm[:, None]
        along = tl.sum(acc * unit, 1)
        tl.store(dsharpness + row, along, mask=i < T)
        acc = (acc - unit * (along / E)[:, None]) * (query_norm * sharp)[:, None]
    store_rows(dqkv + b * T * (S * E) + h * E, i, acc, S * E, T, E, BE)


@triton.jit
def _backward_kv(
    qkv, norms, grad, dqkv, lse, delta, slopes, sharpness, T, window, scale,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, NORM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of BM keys of one key head: all queries that see it, in all heads of its group."""
    b, kv_head = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K
    S: tl.constexpr = H + 2 * K
    start = tl.program_id(1) * BM
    qkv += b * T * (S * E)
    dqkv += b * T * (S * E) + (H + kv_head) * E
    norms += b * (H + K) * T
    grad += b * T * (H * E)

    j = start + tl.arange(0, BM)
    key = load_rows(qkv + (H + kv_head) * E, j, S * E, T, E, BE)
    value = load_rows(qkv + (H + K + kv_head) * E, j, S * E, T, E, BE)
    if NORM:
        scale *= tl.load(sharpness)
        key_norm = tl.load(norms + (H + kv_head) * T + j, mask=j < T, other=0.0)
        key_scale = key_norm * (scale * LOG2E)
    dkey = tl.zeros([BM, BE], tl.float32)
    dvalue = tl.zeros([BM, BE], tl.float32)
    # A key is seen from itself on to `window` later, by all query heads that share it: their gradients add up here,
    # in one program, so nothing is added atomically and the result does not depend on any order.
    for h in range(kv_head * (H // K), (kv_head + 1) * (H // K)):
        slope = tl.load(slopes + h) * LOG2E
        for first in range(start, tl.minimum(start + BM + window, T), BN):
            i = first + tl.arange(0, BN)
            query = load_rows(qkv + h * E, i, S * E, T, E, BE)
            dout = load_rows(grad + h * E, i, H * E, T, E, BE)
            row = (b * H + h) * T + i
            row_lse = tl.load(lse + row, mask=i < T, other=float("inf")) + slope * (i - start).to(tl.float32)
            row_delta = tl.load(delta + row, mask=i < T, other=0.0)
            # all transposed, keys down and queries across: neither sum needs a transpose of p in registers
            product = dot(key, tl.trans(query))
            if NORM:
                query_norm = tl.load(norms + h * T + i, mask=i < T, other=0.0)
                product *= key_scale[:, None] * query_norm[None, :]
            else:
                product *= scale * LOG2E
            score = _score(product, i[None, :], j[:, None], start, window, slope)
            p = tl.exp2(score - row_lse[None, :])
            dvalue = dot(p.to(dout.dtype), dout, dvalue)
            dp = dot(value, tl.trans(dout))
            dscore = p * (dp - row_delta[None, :])
            if NORM:
                dscore *= query_norm[None, :]
            dkey = dot(dscore.to(query.dtype), query, dkey)
    dkey *= scale
    if NORM:  # back through key / |key|
        unit = key.to(tl.float32) * key_norm[:, None]
        dkey = (dkey - unit * (tl.sum(dkey * unit, 1) / E)[:, None]) * key_norm[:, None]
    store_rows(dqkv, j, dkey, S * E, T, E, BE)
    store_rows(dqkv + K * E, j, dvalue, S * E, T, E, BE)


def tiles(width: int, window: int, dtype: torch.dtype, backward: bool) -> tuple[int, int, int, int]:
    """(BM, BN, num_warps, num_stages): rows kept, rows met at a time. `width` is the padded head width.

    A narrow window takes narrow steps, since all that a step covers beyond BM + window is thrown away. In 16 bits these
    fit 100 kB of shared memory and spill (next to) no registers on compute capabilities 8.0 and 9.0; fp32 is for tests.
    """
    if dtype == torch.float32:
        return 32, 16, 4, 1
    if backward and width > 64:
        return 64, 16, 4, 2
    if backward or window <= 64:
        return 64, 32, 4, 2
    return (128, 64, 8, 3) if width <= 64 else (64, 64, 4, 2)


def _launch(kernel, over: int, backward: bool, tensors: tuple, qkv, sharpness, slopes, window: int):
    """Launch `kernel` on a grid of (batch * `over` heads, tiles)."""
    (batch, length, heads, width), query_heads = qkv.shape, len(slopes)
    padded = max(16, triton.next_power_of_2(width))
    rows, columns, warps, stages = tiles(padded, window, qkv.dtype, backward)
    with torch.cuda.device_of(qkv):
        kernel[(batch * over, triton.cdiv(length, rows))](
            qkv, *tensors, slopes, slopes if sharpness is None else sharpness, length, window, width**-0.5,
            H=query_heads, K=(heads - query_heads) // 2, E=width, BE=padded, NORM=sharpness is not None,
            BM=rows, BN=columns, num_warps=warps, num_stages=stages,
        )  # fmt: skip


# As operators of torch's own registry the launches are opaque to torch.compile, which needs their shapes only.
@torch.library.custom_op("pico::window_attention", mutates_args=())
def _attention(qkv: Tensor, sharpness: Tensor | None, slopes: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """(out (B, T, H, E), base-2 log-sum-exp (B, H, T) fp32, norms (B, H + K, T) fp32, none without QK-norm)"""
    shared = qkv, sharpness, slopes, window
    out, lse, norms = _attention_shapes(*shared)
    if sharpness is not None:
        _launch(_key_norms, norms.shape[1] - len(slopes), False, (norms,), *shared)
    _launch(_forward, len(slopes), False, (norms, out, lse), *shared)
    return out, lse, norms


@_attention.register_fake
def _attention_shapes(qkv, sharpness, slopes, window):
    (B, T, S, E), H = qkv.shape, len(slopes)
    normed = 0 if sharpness is None else (S + H) // 2
    lse, norms = (qkv.new_empty(B, rows, T, dtype=torch.float32) for rows in (H, normed))
    return qkv.new_empty(B, T, H, E), lse, norms


@torch.library.custom_op("pico::window_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, norms: Tensor, sharpness: Tensor | None, slopes: Tensor,
    window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dqkv (B, T, H + 2K, E), each query's part of dsharpness (B, H, T) fp32, meaningless without QK-norm)"""
    dqkv, dsharpness = _attention_backward_shapes(grad, qkv, out, lse, norms, sharpness, slopes, window)
    delta, H = torch.empty_like(lse), len(slopes)
    shared = qkv, sharpness, slopes, window
    _launch(_backward_q, H, True, (norms, out, grad, dqkv, lse, delta, dsharpness), *shared)
    _launch(_backward_kv, (qkv.shape[2] - H) // 2, True, (norms, grad, dqkv, lse, delta), *shared)
    return dqkv, dsharpness


@_attention_backward.register_fake
def _attention_backward_shapes(grad, qkv, out, lse, norms, sharpness, slopes, window):
    return qkv.new_empty(qkv.shape), lse.new_empty(lse.shape)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, sharpness, slopes, window):
        out, lse, norms = _attention(qkv, sharpness, slopes, window)
        ctx.save_for_backward(qkv, out, lse, norms, sharpness, slopes)
        ctx.window = window
        return out

    @staticmethod
    def backward(ctx, grad):
        dqkv, dsharpness = _attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.window)
        return dqkv, dsharpness.sum()[None] if ctx.needs_input_grad[1] else None, None, None


def check_width(q):
    """Raises PicoError where a head is wider than the kernels' tiles."""
    if q.shape[-1] > MAX_HEAD_DIM:
        raise PicoError(
            f"heads {q.shape[-1]} wide: the triton backend takes up to {MAX_HEAD_DIM}; raise --att-q-heads or use "
            "--attention-backend blocked"
        )


def window_attention(qkv, sharpness, slopes, window: int):
    """Causal sliding-window attention: query i sees keys i-window .. i of its row, with bias -slope (i - j).

    qkv (B, T, H + 2K, E), in bf16, fp16 or fp32: H query heads, then K key and K value heads, with K dividing H.
    sharpness (1,) fp32: queries and keys get QK-norm, scores are multiplied by it; None: neither. slopes (H,) fp32,
    without gradient. Returns (B, T, H, E), contiguous; the gradient of qkv is one tensor. Raises PicoError for too
    wide heads.
    """
    check_width(qkv)
    return _WindowAttention.apply(qkv.contiguous(), sharpness, slopes, window)
