"""Sliding-window grouped-query attention with ALiBi (arXiv 2108.12409): one function, several backends.

Query i sees keys i-W .. i, with bias -m_h (i - j) and m_h = 2^(-8(h+1)/H); i and j are integer positions.
`dense` is the O(T^2) oracle; `blocked` is pure torch in O(T W) on any device; `triton`, `flex` and `flash` are
for CUDA: our own kernels, what stands in where they cannot run, and FlashAttention-2 for those who install it.
`attend_cached` is the same attention for a few new bytes against a ring cache.
"""

import importlib.util
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pico.base.errors import PicoError
from pico.model import kernels
from pico.model.norm import norm

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
    """Backends that can run on this device, the one to take first."""
    names = []
    if device.type == "cuda":
        names += ["triton"] * kernels.available()
        names += ["flex"] + ["flash"] * (importlib.util.find_spec("flash_attn") is not None)
    names += ["blocked", "dense"]
    return names + ["triton"] * (device.type == "cpu" and kernels.interpreted() and kernels.available())


def choose_backend(device: torch.device, wanted: str | None = None) -> str:
    """The wanted backend, or the first one here. Raises PicoError when the wanted one cannot run on this device."""
    names = available_backends(device)
    if wanted and wanted not in names:
        raise PicoError(
            f"attention backend '{wanted}' cannot run on {device.type}: it needs {INSTALL.get(wanted, 'nothing')}; "
            f"use one of {', '.join(names)}"
        )
    return wanted or names[0]


def attention(qkv: Tensor, sharpness: Tensor | None, heads: int, window: int, backend: str) -> Tensor:
    """Causal sliding-window attention over a whole sequence, with QK-norm if there is a sharpness (1,).

    qkv (B, T, H + 2K, E): H = `heads` query heads, then K key and K value heads, with K dividing H. Returns
    (B, T, H, E) in qkv's dtype. Raises PicoError for shapes or dtypes that the backend's kernels do not have.
    """
    window = min(window, qkv.shape[1] - 1)
    if backend == "triton":  # its kernels split and normalise themselves
        from pico.model.kernels.attention import window_attention

        return window_attention(qkv, sharpness, alibi_slopes(heads, qkv.device), window)
    return _BACKENDS[backend](*split_heads(qkv, sharpness, heads), window)


def split_heads(qkv: Tensor, sharpness: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, T, H, E), keys and values (B, T, K, E), after QK-norm (arXiv 2010.04245) if there is a sharpness.

    Then a score is a cosine, times what the layer learns.
    """
    kv_heads = (qkv.shape[2] - heads) // 2
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=2)
    if sharpness is not None:
        q, k = norm(q) * sharpness.to(q.dtype), norm(k)
    return q, k, v


def distances(q_positions: Tensor, k_positions: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """How far each key is before each query, and whether that sees it: both (..., Q, S)."""
    distance = q_positions[..., :, None] - k_positions[..., None, :]
    return distance, (distance >= 0) & (distance <= window) & (k_positions >= 0)[..., None, :]


def alibi_bias(q_positions: Tensor, k_positions: Tensor, heads: int, window: int, dtype: torch.dtype) -> Tensor:
    """ALiBi and window mask (..., H, Q, S) from integer positions (..., Q) and (..., S); negative keys are empty."""
    distance, seen = distances(q_positions, k_positions, window)
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
    return _weighted_sum(q, k, v, alibi_bias(positions, positions, q.shape[2], window, q.dtype)[None])


def _blocked(q, k, v, window):
    """Cut into blocks of C >= W: a block of queries needs its own keys and the block before, so cost is O(T W)."""
    length, size = q.shape[1], max(32, window)
    if length <= 2 * size:
        size = length  # one block, which has none before it
    padding = -length % size
    if padding:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
    bias = _block_bias(min(2, q.shape[1] // size), size, q.shape[2], k.shape[2], window, q.dtype, q.device)
    return _Blocks.apply(q, k, v, bias)[:, :length]


class _Blocks(torch.autograd.Function):
    """Attention of blocks of queries to windows of keys; the backward pass is written out.

    What autograd would add, a zero tensor and a copy for each slice, pad and cat, takes longer than the matmuls.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        batch, length, heads, width = q.shape
        kv_heads, rows, keys = bias.shape[1:]
        size = rows * kv_heads // heads
        scores = q.new_empty(batch, length // size, kv_heads, rows, keys)
        scores[:, :1], scores[:, 1:] = bias[:1], bias[1:]
        q, k, v = _query_blocks(q, size, kv_heads), _key_windows(k, size, keys), _key_windows(v, size, keys)
        weights = scores.view(-1, rows, keys).baddbmm_(q, k.mT, alpha=width**-0.5).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.sizes = batch, size, kv_heads
        return _from_query_blocks(torch.bmm(weights, v), *ctx.sizes)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, weights = ctx.saved_tensors
        batch, size, kv_heads = ctx.sizes
        scale = q.shape[-1] ** -0.5
        grad = _query_blocks(grad, size, kv_heads)
        grad_v = torch.bmm(weights.mT, grad)
        grad_scores = torch._softmax_backward_data(torch.bmm(grad, v.mT), weights, -1, weights.dtype)
        grad_q = torch.baddbmm(q, grad_scores, k, beta=0, alpha=scale)
        grad_k = torch.baddbmm(k, grad_scores.mT, q, beta=0, alpha=scale)
        grad_k, grad_v = (_from_key_windows(x, batch, size, kv_heads) for x in (grad_k, grad_v))
        return _from_query_blocks(grad_q, batch, size, kv_heads), grad_k, grad_v, None


def _query_blocks(q, size, kv_heads):
    """(B, T, H, E) -> (B blocks K, H/K C, E): the query heads of a group are rows of one matmul."""
    batch, length, heads, width = q.shape
    q = q.reshape(batch, length // size, size, heads, width).transpose(2, 3)
    return q.reshape(-1, heads // kv_heads * size, width)


def _from_query_blocks(x, batch, size, kv_heads):
    """The way back: (B blocks K, H/K C, E) -> (B, T, H, E)."""
    width, heads = x.shape[2], kv_heads * x.shape[1] // size
    return x.view(batch, -1, heads, size, width).transpose(2, 3).reshape(batch, -1, heads, width)


def _key_windows(k, size, keys):
    """(B, T, K, E) -> (B blocks K, keys, E): the keys of each block, after those of the block before if keys = 2C."""
    batch, length, heads, width = k.shape
    k = k.reshape(batch, length // size, size, heads, width).transpose(2, 3)
    if keys > size:
        windows = k.new_empty(*k.shape[:3], keys, width)
        windows[..., size:, :] = k
        windows[:, 1:, :, :size] = k[:, :-1]
        windows[:, 0, :, :size] = 0
        k = windows
    return k.reshape(-1, keys, width)


def _from_key_windows(x, batch, size, kv_heads):
    """The gradient of `_key_windows`: a key's own window and the next one both have a part."""
    keys, width = x.shape[1:]
    x = x.view(batch, -1, kv_heads, keys, width)
    out = x.new_empty(batch, x.shape[1], size, kv_heads, width)
    own = out.transpose(2, 3).copy_(x[..., -size:, :])
    if keys > size:
        own[:, :-1] += x[:, 1:, :, :size]
    return out.view(batch, -1, kv_heads, width)


@lru_cache(maxsize=8)  # routed lengths vary in evaluation, and a bias can have megabytes
def _block_bias(blocks, size, heads, kv_heads, window, dtype, device):
    """(blocks, K, H/K C, keys): of the first block, which has no keys before it, and of any other if there are two."""
    positions = torch.arange(blocks * size, device=device).view(blocks, size)
    keys = positions if blocks == 1 else torch.cat([positions - size, positions], 1)
    return alibi_bias(positions, keys, heads, window, dtype).view(blocks, kv_heads, heads // kv_heads * size, -1)


def _flash(q, k, v, window):
    """FlashAttention-2 (arXiv 2307.08691): its window counts the keys before a query, its ALiBi is ours."""
    from flash_attn import flash_attn_func

    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[3] > 256:
        raise PicoError(
            f"the flash backend takes bf16 or fp16 and heads up to 256 wide, not {str(q.dtype)[6:]} and {q.shape[3]}: "
            "change --precision or --att-q-heads, or use --attention-backend flex"
        )
    slopes = alibi_slopes(q.shape[2], q.device)
    return flash_attn_func(q, k, v, causal=True, window_size=(window, 0), alibi_slopes=slopes)


# What flex_attention is given is kept, so that Dynamo's guards on it hold: it compiles once a shape and window.
@lru_cache(maxsize=64)
def _flex_mask(length, window, device):
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b, h, i, j):
        return (i >= j) & (i - j <= window)

    return create_block_mask(seen, None, None, length, length, device=device)


@lru_cache(maxsize=8)
def _flex_alibi(heads, device):
    slopes = alibi_slopes(heads, device)
    return lambda score, b, h, i, j: score - slopes[h] * (i - j)


@lru_cache(maxsize=1)
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(q, k, v, window):
    alibi, mask = _flex_alibi(q.shape[2], q.device), _flex_mask(q.shape[1], window, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return _compiled_flex()(q, k, v, score_mod=alibi, block_mask=mask, enable_gqa=True).transpose(1, 2)


_BACKENDS = {"dense": _dense, "blocked": _blocked, "flash": _flash, "flex": _flex}


class Positions(NamedTuple):
    """What a kernel works out the bias from."""

    queries: Tensor  # (B, n) int32
    keys: Tensor  # (B, R) int32, negative where a slot is empty
    window: int


def attend_cached(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | Positions) -> Tensor:
    """New queries (B, n, H, E) against the ring k, v (B, R, K, E) under `ring_bias`; returns (B, n, H, E)."""
    if isinstance(bias, Positions):
        from pico.model.kernels.decode import decode_attention

        return decode_attention(q, k, v, bias.keys, bias.queries, bias.window, alibi_slopes(q.shape[2], q.device))
    return _weighted_sum(q, k, v, bias)


def ring_bias(
    q_positions: Tensor, slots: int, heads: int, window: int, dtype: torch.dtype, backend: str | None = None
) -> Tensor | Positions:
    """(B, H, n, R) bias for queries at q_positions (B, n), the newest written positions of a ring of R slots.

    For the backend "sdpa" it is what they see, (B, 1, n, R or fewer) bool, without ALiBi.

    Slot s holds the newest position p with p % R == s. Entries left behind by a rollback are at positions after
    the query, or derive to positions before its window, so the mask hides them (needs R >= W + n).
    """
    k_positions = slot_positions(q_positions[:, -1:], slots)
    if backend == "triton":
        return Positions(q_positions.int(), k_positions.int(), window)
    if backend == "sdpa":
        if q_positions.device.type == "cpu":  # it reads no slots that are still empty
            k_positions = k_positions[:, : int(q_positions.max()) + 1]
        return distances(q_positions, k_positions, window)[1][:, None]
    return alibi_bias(q_positions, k_positions, heads, window, dtype)


def slot_positions(newest: Tensor, slots: int) -> Tensor:
    """(B, R) the position that each slot of a ring holds, where `newest` (B, 1) was written last."""
    return newest - (newest - torch.arange(slots, device=newest.device)) % slots
