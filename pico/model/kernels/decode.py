"""Attention of a few new queries a row against a ring cache of keys and values, as one Triton kernel.

The cache keeps slots in any order: what a query may see is decided by positions alone, so a ring that wrapped, a
slot emptied by a rollback (position -1) and rows at different places need nothing special. One program serves all
queries and all query heads of one key head, so that keys and values are read from memory once.

    from pico.model.kernels.decode import decode_attention
    out = decode_attention(q, cache_k, cache_v, key_positions, query_positions, window, slopes)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pico.model.kernels.attention import LOG2E, check_width, dot, load_rows


@triton.jit
def _decode(
    q, k, v, out, key_positions, query_positions, slopes,
    q_b, q_n, q_h, k_b, k_r, k_h, v_b, v_r, v_h, kp_b, kp_r, qp_b, qp_n,
    N, R, K, window, scale,
    GROUP: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BM pairs of (query, head of the group) of one key head against the whole ring; scores in base 2."""
    b, kv_head = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K
    k += b * k_b * UNIT + kv_head * k_h * UNIT
    v += b * v_b * UNIT + kv_head * v_h * UNIT

    pair = tl.program_id(1) * BM + tl.arange(0, BM)
    n, h = pair // GROUP, kv_head * GROUP + pair % GROUP
    column = tl.arange(0, BE)
    mask = (n[:, None] < N) & (column[None, :] < E)
    offset = n[:, None] * (q_n * UNIT) + h[:, None] * (q_h * UNIT) + column[None, :]
    query = tl.load(q + b * q_b * UNIT + offset, mask=mask, other=0.0)
    i = tl.load(query_positions + b * qp_b + n * qp_n, mask=n < N, other=-1)
    slope = tl.load(slopes + h) * LOG2E

    peak = tl.full([BM], -1e30, tl.float32)  # finite: a query with nothing to see yet must not give inf - inf
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BE], tl.float32)
    for first in range(0, R, BN):
        slot = first + tl.arange(0, BN)
        j = tl.load(key_positions + b * kp_b + slot * kp_r, mask=slot < R, other=-1)
        key = load_rows(k, slot, k_r * UNIT, R, E, BE)
        value = load_rows(v, slot, v_r * UNIT, R, E, BE)
        distance = i[:, None] - j[None, :]
        score = dot(query, tl.trans(key)) * scale - slope[:, None] * distance.to(tl.float32)
        score = tl.where((distance.to(tl.uint32) <= window) & (j >= 0)[None, :], score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        p = tl.exp2(score - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(p, 1)
        acc = dot(p.to(value.dtype), value, acc * decay[:, None])
        peak = new_peak

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    offset = (n * K * GROUP + h)[:, None] * E + column[None, :]
    tl.store(out + b * N * K * GROUP * E + offset, acc.to(out.dtype.element_ty), mask=mask)


# As an operator of torch's own registry the launch is opaque to torch.compile, which needs its shapes only.
@torch.library.custom_op("pico::decode_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_positions: Tensor, query_positions: Tensor, window: int, slopes: Tensor
) -> Tensor:
    (B, n, H, E), (R, K) = q.shape, k.shape[1:3]
    out = q.new_empty(q.shape)
    strides = [s for tensor in (q, k, v) for s in tensor.stride()[:3]]
    # Triton knows that a stride is a multiple of 16, but not of 8 (head width 40): in units of 8 it does
    unit = 8 if all(s % 8 == 0 for s in strides) else 1
    # Few programs run, so each has as much of the ring in flight as fits 100 kB of shared memory
    rows, columns, stages = (16, 32, 1) if q.dtype == torch.float32 else (64, 128, 2)
    rows = max(16, min(rows, triton.next_power_of_2(n * (H // K))))
    columns = max(16, min(columns // 2 if rows == 64 else columns, triton.next_power_of_2(R)))
    with torch.cuda.device_of(q):
        _decode[(B * K, triton.cdiv(n * (H // K), rows))](
            q, k, v, out, key_positions, query_positions, slopes,
            *(s // unit for s in strides), *key_positions.stride(), *query_positions.stride(),
            n, R, K, window, E**-0.5 * LOG2E.value,
            GROUP=H // K, E=E, BE=max(16, triton.next_power_of_2(E)), UNIT=unit, BM=rows, BN=columns,
            num_warps=4, num_stages=stages,
        )  # fmt: skip
    return out


@_attention.register_fake
def _(q, k, v, key_positions, query_positions, window, slopes):
    return q.new_empty(q.shape)


@torch.no_grad()
def decode_attention(q, cache_k, cache_v, key_positions, query_positions, window: int, slopes):
    """Attention of new queries against cached keys: visible where 0 <= query - key position <= window.

    q (B, n, H, E); cache_k and cache_v (B, R, K, E) with K dividing H, of q's dtype; key_positions (B, R) int32, -1
    for an empty slot; query_positions (B, n) int32, -1 for padding; slopes (H,) fp32. Any strides. The keys of the
    new positions must be in the cache already. Returns (B, n, H, E), contiguous and without gradient, zeros where a
    query sees nothing. Raises PicoError for too wide heads. Launches one kernel and never synchronises, so that it
    can be captured in a CUDA graph.
    """
    check_width(q)
    q, cache_k, cache_v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, cache_k, cache_v))
    return _attention(q, cache_k, cache_v, key_positions, query_positions, window, slopes)
