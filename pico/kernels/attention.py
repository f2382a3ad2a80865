"""Sliding-window ALiBi grouped-query attention, forward and backward, as Triton kernels.

FlashAttention-2 (arXiv 2307.08691) with the loops cut to the window: a tile of queries meets only the keys its
window reaches, a tile of keys only the queries that reach it, so the work is O(T W) and nothing of size (T, T)
exists. ALiBi (arXiv 2108.12409) is computed from the distance, in fp32. The forward keeps one number a query, the
base-2 log-sum-exp. The backward runs one kernel for dq, which leaves delta = sum(out * dout) behind, then one for
dk and dv, which goes over the query heads of its group itself: no sum is atomic, results repeat exactly.

    from pico.kernels.attention import window_attention
    out = window_attention(q, k, v, window, slopes)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pico.config import PicoError
from pico.kernels import MAX_HEAD_DIM, interpreted

LOG2E = tl.constexpr(1.4426950408889634)
WIDEN = tl.constexpr(interpreted())  # the interpreter multiplies bf16 as if it were integers


@triton.jit
def dot(a, b, acc=None):
    """a @ b + acc in fp32; exact products for fp32 inputs, never tf32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def load_rows(pointer, row, stride, limit, UNIT: tl.constexpr, E: tl.constexpr, BE: tl.constexpr):
    """Rows of one head, (rows, BE); zeros for rows from `limit` on and for the padding of the head width."""
    column = tl.arange(0, BE)
    mask = (row[:, None] < limit) & (column[None, :] < E)
    return tl.load(pointer + row[:, None] * (stride * UNIT) + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, row, value, stride, limit, E: tl.constexpr, BE: tl.constexpr):
    column = tl.arange(0, BE)
    mask = (row[:, None] < limit) & (column[None, :] < E)
    tl.store(pointer + row[:, None] * stride + column[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _score(product, i, j, start, window, scale, slope):
    """Scores of queries i and keys j (shaped to broadcast), plus slope (i - start); -inf outside the window.

    Softmax does not see that term of the query, and without it a score costs one multiply-add. It stays small, and
    exact in fp32, because positions count from the tile's start. The length needs no test: what a live query may
    see is at or before it, so live too.
    """
    score = product * scale + slope * (j - start).to(tl.float32)
    # as an unsigned number a negative distance is huge: one comparison tests both ends of the window
    return tl.where((i - j).to(tl.uint32) <= window, score, float("-inf"))


@triton.jit
def _forward(
    q, k, v, out, lse, slopes, lengths,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h,
    T, H, window, scale,
    GROUP: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, UNIT: tl.constexpr, LENGTHS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of BM queries of one head. Scores are in base 2: `scale` holds log2(e)."""
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    start = tl.program_id(1) * BM
    length = tl.load(lengths + b) if LENGTHS else T
    slope = tl.load(slopes + h) * LOG2E
    k += b * k_b * UNIT + (h // GROUP) * k_h * UNIT
    v += b * v_b * UNIT + (h // GROUP) * v_h * UNIT

    i = start + tl.arange(0, BM)
    query = load_rows(q + b * q_b * UNIT + h * q_h * UNIT, i, q_t, length, UNIT, E, BE)
    peak = tl.full([BM], -1e30, tl.float32)  # finite: a query with nothing to see yet must not give inf - inf
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BE], tl.float32)
    for first in range(tl.maximum(start - window, 0), tl.minimum(start + BM, length), BN):
        j = first + tl.arange(0, BN)
        key = load_rows(k, j, k_t, length, UNIT, E, BE)
        value = load_rows(v, j, v_t, length, UNIT, E, BE)
        score = _score(dot(query, tl.trans(key)), i[:, None], j[None, :], start, window, scale, slope)
        new_peak = tl.maximum(peak, tl.max(score, 1))
        p = tl.exp2(score - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(p, 1)
        acc = dot(p.to(value.dtype), value, acc * decay[:, None])
        peak = new_peak

    live = (total > 0) & (i < length)
    total = tl.where(live, total, 1.0)
    acc = tl.where(live[:, None], acc / total[:, None], 0.0)
    store_rows(out + (b * T * H + h) * E, i, acc, H * E, T, E, BE)
    # +inf where there is nothing to see makes the probabilities 0 in the backward pass
    row_lse = tl.where(live, peak + tl.log2(total) - slope * (i - start).to(tl.float32), float("inf"))
    tl.store(lse + (b * H + h) * T + i, row_lse, mask=i < T)


@triton.jit
def _backward_q(
    q, k, v, out, grad, dq, lse, delta, slopes, lengths,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h,
    T, H, window, scale,
    GROUP: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, UNIT: tl.constexpr, LENGTHS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq, and delta for the other kernel, of one tile of BM queries of one head."""
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    start = tl.program_id(1) * BM
    length = tl.load(lengths + b) if LENGTHS else T
    slope = tl.load(slopes + h) * LOG2E
    k += b * k_b * UNIT + (h // GROUP) * k_h * UNIT
    v += b * v_b * UNIT + (h // GROUP) * v_h * UNIT

    i = start + tl.arange(0, BM)
    query = load_rows(q + b * q_b * UNIT + h * q_h * UNIT, i, q_t, length, UNIT, E, BE)
    dout = load_rows(grad + b * g_b * UNIT + h * g_h * UNIT, i, g_t, length, UNIT, E, BE)
    row_out = load_rows(out + (b * T * H + h) * E, i, H * E, T, 1, E, BE)
    row = (b * H + h) * T + i
    row_lse = tl.load(lse + row, mask=i < T, other=float("inf")) + slope * (i - start).to(tl.float32)
    row_delta = tl.sum(row_out.to(tl.float32) * dout.to(tl.float32), 1)
    tl.store(delta + row, row_delta, mask=i < T)
    acc = tl.zeros([BM, BE], tl.float32)
    for first in range(tl.maximum(start - window, 0), tl.minimum(start + BM, length), BN):
        j = first + tl.arange(0, BN)
        key = load_rows(k, j, k_t, length, UNIT, E, BE)
        value = load_rows(v, j, v_t, length, UNIT, E, BE)
        score = _score(dot(query, tl.trans(key)), i[:, None], j[None, :], start, window, scale * LOG2E, slope)
        p = tl.exp2(score - row_lse[:, None])
        dp = dot(dout, tl.trans(value))
        dscore = p * (dp - row_delta[:, None])
        acc = dot(dscore.to(key.dtype), key, acc)
    store_rows(dq + (b * T * H + h) * E, i, acc * scale, H * E, T, E, BE)


@triton.jit
def _backward_kv(
    q, k, v, grad, dk, dv, lse, delta, slopes, lengths,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h,
    T, H, window, scale,
    GROUP: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, UNIT: tl.constexpr, LENGTHS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of BM keys of one key head: all queries that see it, in all heads of its group."""
    K = H // GROUP
    b, kv_head = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K
    start = tl.program_id(1) * BM
    length = tl.load(lengths + b) if LENGTHS else T
    q += b * q_b * UNIT
    grad += b * g_b * UNIT

    j = start + tl.arange(0, BM)
    key = load_rows(k + b * k_b * UNIT + kv_head * k_h * UNIT, j, k_t, length, UNIT, E, BE)
    value = load_rows(v + b * v_b * UNIT + kv_head * v_h * UNIT, j, v_t, length, UNIT, E, BE)
    dkey = tl.zeros([BM, BE], tl.float32)
    dvalue = tl.zeros([BM, BE], tl.float32)
    for h in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        slope = tl.load(slopes + h) * LOG2E
        for first in range(start, tl.minimum(start + BM + window, length), BN):
            i = first + tl.arange(0, BN)
            query = load_rows(q + h * q_h * UNIT, i, q_t, length, UNIT, E, BE)
            dout = load_rows(grad + h * g_h * UNIT, i, g_t, length, UNIT, E, BE)
            row = (b * H + h) * T + i
            row_lse = tl.load(lse + row, mask=i < length, other=float("inf")) + slope * (i - start).to(tl.float32)
            row_delta = tl.load(delta + row, mask=i < length, other=0.0)
            # all transposed, keys down and queries across: neither sum needs a transpose of p in registers
            product = dot(key, tl.trans(query))
            score = _score(product, i[None, :], j[:, None], start, window, scale * LOG2E, slope)
            p = tl.exp2(score - row_lse[None, :])
            dvalue = dot(p.to(dout.dtype), dout, dvalue)
            dp = dot(value, tl.trans(dout))
            dscore = p * (dp - row_delta[None, :])
            dkey = dot(dscore.to(query.dtype), query, dkey)
    store_rows(dk + (b * T * K + kv_head) * E, j, dkey * scale, K * E, T, E, BE)
    store_rows(dv + (b * T * K + kv_head) * E, j, dvalue, K * E, T, E, BE)


def tiles(width: int, window: int, dtype: torch.dtype, backward: bool) -> tuple[int, int, int, int]:
    """(BM, BN, num_warps, num_stages): rows kept, rows met at a time. `width` is the padded head width.

    A narrow window takes narrow steps, since all that a step covers beyond BM + window is thrown away. In 16 bits these
    fit 100 kB of shared memory and spill (next to) no registers on compute capabilities 8.0 and 9.0; fp32 is for tests.
    """
    if dtype == torch.float32:
        return 32, 16, 4, 1
    if backward or window <= 64:
        return 64, 32, 4, 2
    return (128, 64, 8, 3) if width <= 64 else (64, 64, 4, 2)


def _launch(kernel, heads: int, backward: bool, tensors: tuple, strided: tuple, q, slopes, lengths, window, scale):
    """Launch `kernel` on a grid of (batch * heads, tiles). `strided` are the inputs that may be views."""
    batch, length, query_heads, width = q.shape
    strides = [s for tensor in strided for s in tensor.stride()[:3]]
    # Triton knows that a stride is a multiple of 16, but not of 8 (head width 40): in units of 8 it does
    unit = 8 if all(s % 8 == 0 for s in strides) else 1
    padded = max(16, triton.next_power_of_2(width))
    rows, columns, warps, stages = tiles(padded, window, q.dtype, backward)
    with torch.cuda.device_of(q):
        kernel[(batch * heads, triton.cdiv(length, rows))](
            *tensors, slopes, slopes if lengths is None else lengths, *(s // unit for s in strides),
            length, query_heads, window, scale,
            GROUP=query_heads // strided[1].shape[2], E=width, BE=padded, UNIT=unit, LENGTHS=lengths is not None,
            BM=rows, BN=columns, num_warps=warps, num_stages=stages,
        )  # fmt: skip


# As operators of torch's own registry the launches are opaque to torch.compile, which needs their shapes only.
@torch.library.custom_op("pico::window_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, lengths: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """(out (B, T, H, E), base-2 log-sum-exp (B, H, T) fp32)"""
    H, E = q.shape[2:]
    out, lse = _attention_shapes(q, k, v, slopes, lengths, window)
    scale = E**-0.5 * LOG2E.value
    _launch(_forward, H, False, (q, k, v, out, lse), (q, k, v), q, slopes, lengths, window, scale)
    return out, lse


@_attention.register_fake
def _attention_shapes(q, k, v, slopes, lengths, window):
    B, T, H, E = q.shape
    return q.new_empty(B, T, H, E), q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("pico::window_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, slopes: Tensor,
    lengths: Tensor | None, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    H, K, E = q.shape[2], k.shape[2], q.shape[3]
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = _attention_backward_shapes(grad, q, k, v, out, lse, slopes, lengths, window)
    delta = torch.empty_like(lse)
    shared = ((q, k, v, grad), q, slopes, lengths, window, E**-0.5)
    _launch(_backward_q, H, True, (q, k, v, out, grad, dq, lse, delta), *shared)
    _launch(_backward_kv, K, True, (q, k, v, grad, dk, dv, lse, delta), *shared)
    return dq, dk, dv


@_attention_backward.register_fake
def _attention_backward_shapes(grad, q, k, v, out, lse, slopes, lengths, window):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, slopes, lengths, window):
        out, lse = _attention(q, k, v, slopes, lengths, window)
        ctx.save_for_backward(q, k, v, out, lse, slopes, lengths)
        ctx.window = window
        return out

    @staticmethod
    def backward(ctx, grad):
        return *_attention_backward(grad, *ctx.saved_tensors, ctx.window), None, None, None


def check_width(q):
    """Raises PicoError where a head is wider than the kernels' tiles."""
    if q.shape[-1] > MAX_HEAD_DIM:
        raise PicoError(
            f"heads {q.shape[-1]} wide: the triton backend takes up to {MAX_HEAD_DIM}; raise --att-q-heads or use "
            "--attention-backend blocked"
        )


def window_attention(q, k, v, window: int, slopes, lengths=None):
    """Causal sliding-window attention: query i sees keys i-window .. i of its row, with bias -slope (i - j).

    q (B, T, H, E), k and v (B, T, K, E) with K dividing H, one dtype (bf16, fp16 or fp32), any strides; slopes (H,)
    fp32, without gradient; lengths (B,) int32 or None: positions from a row's length on are padding, their keys are
    not seen and their own outputs are zero. Returns (B, T, H, E), contiguous. Raises PicoError for too wide heads.
    """
    check_width(q)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return _WindowAttention.apply(q, k, v, slopes, lengths, window)
