"""Sliding-window grouped-query attention with ALiBi (arXiv 2108.12409): one function, several backends.

Query i sees keys i-W .. i, with bias -m_h (i - j) and m_h = 2^(-8(h+1)/H); i and j are integer positions.
`dense` is the O(T^2) oracle; `blocked` is pure torch in O(T W) on any device; `flash`, `flex` and `triton` are
for CUDA. `attend_cached` is the same attention for a few new bytes against a ring cache.
"""

import importlib.util
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pico import kernels
from pico.config import PicoError

INSTALL = {
    "flash": "an NVIDIA GPU and flash-attn (uv sync --extra flash)",
    "flex": "an NVIDIA GPU",
    "triton": "an NVIDIA GPU and triton (pip install triton)",
}


@lru_cache(maxsize=64)
def alibi_slopes(heads: int, device=None) -> Tensor:
    """(H,) fp32 slopes 2^(-8(h+1)/H): steep heads look near, flat heads look far."""
    with torch.inference_mode(False):  # kept for a later backward pass too
        return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device) / heads)


def available_backends(device: torch.device) -> list[str]:
    """Backends that can run on this device, the one that measures fastest first."""
    names = []
    if device.type == "cuda":
        names += ["triton"] * kernels.available()
        names += ["flash"] * (importlib.util.find_spec("flash_attn") is not None) + ["flex"]
    names += ["blocked", "dense"]
    return names + ["triton"] * (device.type == "cpu" and kernels.interpreted() and kernels.available())


def choose_backend(device: torch.device, wanted: str | None = None) -> str:
    """The wanted backend, or the fastest here. Raises PicoError when the wanted one cannot run on this device."""
    names = available_backends(device)
    if wanted and wanted not in names:
        raise PicoError(
            f"attention backend '{wanted}' cannot run on {device.type}: it needs {INSTALL.get(wanted, 'nothing')}; "
            f"use one of {', '.join(names)}"
        )
    return wanted or names[0]


def attention(q: Tensor, k: Tensor, v: Tensor, window: int, backend: str) -> Tensor:
    """Causal sliding-window attention over a whole sequence.

    q (B, T, H, E); k, v (B, T, K, E) with K dividing H; returns (B, T, H, E) in q's dtype.
    """
    window = min(window, q.shape[1] - 1)
    return _BACKENDS[backend](q, k, v, window)


def _bias(q_positions: Tensor, k_positions: Tensor, heads: int, window: int, dtype: torch.dtype) -> Tensor:
    """ALiBi and window mask (..., H, Q, S) from integer positions (..., Q) and (..., S); negative keys are empty."""
    distance = q_positions[..., :, None] - k_positions[..., None, :]
    seen = (distance >= 0) & (distance <= window) & (k_positions >= 0)[..., None, :]
    slopes = alibi_slopes(heads, distance.device)[:, None, None]
    return (-slopes * distance[..., None, :, :]).masked_fill(~seen[..., None, :, :], float("-inf")).to(dtype)


def _weighted_sum(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v, with the query heads of a group stacked as rows of one matmul.

    q (X, Q, H, E); k, v (X, S, K, E); bias (1 or X, H, Q, S), never empty in a row that is used.
    """
    x, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    rows = heads // kv_heads * queries
    q = q.transpose(1, 2).reshape(x * kv_heads, rows, width)
    k = k.permute(0, 2, 3, 1).reshape(x * kv_heads, width, keys)
    v = v.transpose(1, 2).reshape(x * kv_heads, keys, width)
    bias = bias.view(-1, kv_heads, rows, keys).expand(x, -1, -1, -1).reshape(x * kv_heads, rows, keys)
    weights = torch.baddbmm(bias, q, k, alpha=width**-0.5).softmax(-1)
    out = torch.bmm(weights, v)  # (X K, rows, E)
    return out.view(x, heads, queries, width).transpose(1, 2)


def _dense(q, k, v, window):
    positions = torch.arange(q.shape[1], device=q.device)
    return _weighted_sum(q, k, v, _bias(positions, positions, q.shape[2], window, q.dtype)[None])


def _blocked(q, k, v, window):
    """Cut into blocks of C >= W: a block of queries needs its own keys and the block before, so cost is O(T W)."""
    batch, length, heads, width = q.shape
    size = max(32, window)
    if length <= 2 * size:
        return _dense(q, k, v, window)
    blocks = -(-length // size)
    padding = blocks * size - length
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)).view(batch, blocks, size, -1, width) for x in (q, k, v))

    def with_previous(x):  # (B, blocks, C, K, E) -> (B blocks, 2C, K, E)
        before = F.pad(x[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([before, x], 2).flatten(0, 1)

    bias = _block_bias(size, heads, window, q.dtype, q.device)
    first = _block_bias(size, heads, window, q.dtype, q.device, first=True)
    bias = torch.cat([first, bias.expand(blocks - 1, -1, -1, -1)]).repeat(batch, 1, 1, 1)
    out = _weighted_sum(q.flatten(0, 1), with_previous(k), with_previous(v), bias)
    return out.reshape(batch, blocks * size, heads, width)[:, :length]


@lru_cache(maxsize=64)
def _block_bias(size, heads, window, dtype, device, first=False):
    queries = torch.arange(size, device=device) + (0 if first else size)
    keys = torch.arange(2 * size, device=device) - (size if first else 0)
    return _bias(queries, keys, heads, window, dtype)[None]


def _flash(q, k, v, window):
    from flash_attn import flash_attn_func

    slopes = alibi_slopes(q.shape[2], q.device)
    return flash_attn_func(q, k, v, causal=True, window_size=(window, 0), alibi_slopes=slopes)


@lru_cache(maxsize=64)
def _flex_mask(length, window, device):
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b, h, i, j):
        return (i >= j) & (i - j <= window)

    return create_block_mask(seen, None, None, length, length, device=device)


@lru_cache(maxsize=1)
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(q, k, v, window):
    slopes = alibi_slopes(q.shape[2], q.device)

    def alibi(score, b, h, i, j):
        return score - slopes[h] * (i - j)

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = _flex_mask(q.shape[2], window, q.device)
    return _compiled_flex()(q, k, v, score_mod=alibi, block_mask=mask, enable_gqa=True).transpose(1, 2)


def _triton(q, k, v, window):
    from pico.kernels.attention import window_attention

    return window_attention(q, k, v, window, alibi_slopes(q.shape[2], q.device))


_BACKENDS = {"dense": _dense, "blocked": _blocked, "flash": _flash, "flex": _flex, "triton": _triton}


class Positions(NamedTuple):
    """What a kernel works out the bias from."""

    queries: Tensor  # (B, n) int32
    keys: Tensor  # (B, R) int32, negative where a slot is empty
    window: int


def attend_cached(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | Positions) -> Tensor:
    """New queries (B, n, H, E) against the ring k, v (B, R, K, E) under `ring_bias`; returns (B, n, H, E)."""
    if isinstance(bias, Positions):
        from pico.kernels.decode import decode_attention

        return decode_attention(q, k, v, bias.keys, bias.queries, bias.window, alibi_slopes(q.shape[2], q.device))
    return _weighted_sum(q, k, v, bias)


def ring_bias(
    q_positions: Tensor, slots: int, heads: int, window: int, dtype: torch.dtype, backend: str | None = None
) -> Tensor | Positions:
    """(B, H, n, R) bias for queries at q_positions (B, n), the newest written positions of a ring of R slots.

    Slot s holds the newest position p with p % R == s. Entries left behind by a rollback are at positions after
    the query, or derive to positions before its window, so the mask hides them (needs R >= W + n).
    """
    last = q_positions[:, -1:]
    slot = torch.arange(slots, device=q_positions.device)
    k_positions = last - (last - slot) % slots
    if backend == "triton":
        return Positions(q_positions.int(), k_positions.int(), window)
    return _bias(q_positions, k_positions, heads, window, dtype)
