"""Causal attention without a bias: torch's own, and on a CPU a faster way of training.

q (B, T, H, E), k and v (B, T, K, E), K dividing H; query i sees keys i-W .. i. All of it returns (B, T, H, E).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pico.model.attention import distances

BLOCK = 64  # queries on a CPU: their scores stay in its cache, and little of the upper triangle is computed


def on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    if on_cpu(q):
        return _Blocks.apply(q, k, v, window)
    return sdpa(q, k, v) if q.shape[1] <= window + 1 else _banded(q, k, v, window)


def sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; seen (B, 1, Q, S) bool: None is all up to itself, FlashAttention's case."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, enable_gqa=grouped).transpose(1, 2)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Cut into blocks of C >= W: queries of one need its own keys and those of the block before, so cost is O(T W).

    Blocks take the place of the batch, and the batch that of more heads: so one mask serves all of it.
    """
    batch, length, heads, _ = q.shape
    size = max(32, window)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, -length % size)) for x in (q, k, v))
    q, k, v = (x.unflatten(1, (-1, size)).permute(1, 2, 0, 3, 4).flatten(2, 3) for x in (q, k, v))  # (n, C, B H, E)
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], x], dim=1) for x in (k, v))  # (n, 2 C, B K, E)
    queries = torch.arange(len(q) * size, device=q.device).view(-1, size)
    _, seen = distances(queries, torch.cat([queries - size, queries], dim=1), window)
    y = sdpa(q, k, v, seen[:, None]).unflatten(2, (batch, heads))
    return y.permute(2, 0, 1, 3, 4).flatten(1, 2)[:, :length]


class _Blocks(torch.autograd.Function):
    """Block after block of queries, with the heads of a group as rows of one matmul; the backward pass is written out.

    torch's kernel computes the weights anew in its backward pass. Kept, they take B H T^2 / 2 numbers, and a half to
    five sixths of the time is saved (docs/speed.md).
    """

    @staticmethod
    def forward(ctx, q, k, v, window):
        ctx.heads, ctx.group, ctx.window = k.shape[2], q.shape[2] // k.shape[2], window
        q, k, v = (_stacked(x, ctx.heads) for x in (q * q.shape[3] ** -0.5, k, v))
        future, past = _triangles(ctx.group, q.dtype)
        kept, out = [], []
        for start, end, rows, keys in _blocks(k.shape[1], ctx.group, window):
            scores = torch.bmm(q[:, rows], k[:, keys].mT)  # (B K, C H/K, keys)
            size, old = end - start, end - 1 - window - keys.start
            scores[..., -size:] += future[: size * ctx.group, :size]
            if old > 0:
                scores[:, -old * ctx.group :, :old] += past[: old * ctx.group, :old]
            weights = scores.softmax(-1)
            out.append(torch.bmm(weights, v[:, keys]))
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        return _unstacked(torch.cat(out, dim=1), ctx.heads, ctx.group)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        grad, grad_q, grad_k, grad_v = _stacked(grad, ctx.heads), [], torch.zeros_like(k), torch.zeros_like(v)
        for weights, (_, _, rows, keys) in zip(kept, _blocks(k.shape[1], ctx.group, ctx.window)):
            grad_v[:, keys] += torch.bmm(weights.mT, grad[:, rows])
            scores = torch.bmm(grad[:, rows], v[:, keys].mT)
            scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
            grad_q.append(torch.bmm(scores, k[:, keys]))
            grad_k[:, keys] += torch.bmm(scores.mT, q[:, rows])
        grad_q = torch.cat(grad_q, dim=1) * q.shape[2] ** -0.5
        return (
            _unstacked(grad_q, ctx.heads, ctx.group),
            *(_unstacked(x, ctx.heads, 1) for x in (grad_k, grad_v)),
            None,
        )


def _blocks(length: int, group: int, window: int):
    """Each block of queries: its first and last, its rows, the keys that it reads."""
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        yield start, end, slice(start * group, end * group), slice(max(0, start - window), end)


@lru_cache(maxsize=16)
def _triangles(group: int, dtype) -> tuple[Tensor, Tensor]:
    """Two of (C H/K, C): -inf where a key comes after a row's query, and up to the diagonal, where it is too old."""
    with torch.inference_mode(False):  # kept for a later backward pass too
        empty = torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype)
        return empty.triu(1).repeat_interleave(group, 0), empty.tril(0).repeat_interleave(group, 0)


def _stacked(x: Tensor, heads: int) -> Tensor:
    """(B, T, H, E) -> (B K, T H/K, E)"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2).reshape(len(x) * heads, -1, x.shape[3])


def _unstacked(x: Tensor, heads: int, group: int) -> Tensor:
    """The way back."""
    return x.view(-1, heads, x.shape[1] // group, group, x.shape[2]).transpose(1, 2).flatten(2, 3)
