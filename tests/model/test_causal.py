"""Causal attention: every way of computing it against a dense mask and repeated heads, forward and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pico.model.causal import _banded, causal_attention, sdpa


def example(batch, length, heads, kv_heads, width=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, h, width) for h in (heads, kv_heads, kv_heads, heads)]
    q, k, v, upstream = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], upstream


def dense(q, k, v, window):
    """All scores, masked; the key/value heads repeated for the query heads of their group."""
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[3] ** 0.5
    weights = scores.masked_fill((distance < 0) | (distance > window), float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhe->bqhe", weights, v)


def both(function, inputs, upstream):
    out = function(*inputs)
    return out, *torch.autograd.grad(out, inputs, upstream)


@given(
    st.integers(1, 3),
    st.integers(1, 200),
    st.sampled_from([(1, 1), (4, 2), (4, 1), (3, 3)]),
    st.sampled_from([1, 2, 15, 63, 64, 65, 100, 199, 10**6]),
    st.integers(0, 99),
)
def test_equals_the_dense_mask(batch, length, heads, window, seed):
    inputs, upstream = example(batch, length, *heads, seed=seed)
    wanted = both(lambda *x: dense(*x, window), inputs, upstream)
    ways = [lambda *x: causal_attention(*x, window), lambda *x: _banded(*x, min(window, length))]
    if window >= length - 1:
        ways.append(sdpa)
    for way in ways:
        for ours, theirs in zip(both(way, inputs, upstream), wanted):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [40, 10**6])
def test_close_in_bf16(window):
    inputs, upstream = example(2, 150, 4, 2, width=16, dtype=torch.bfloat16)
    wanted = both(lambda *x: dense(*x, window), [x.detach().float().requires_grad_() for x in inputs], upstream.float())
    for ours, theirs in zip(both(lambda *x: causal_attention(*x, window), inputs, upstream), wanted):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_gradients_go_where_they_are_wanted():
    (q, k, v), upstream = example(1, 90, 2, 1)
    with torch.no_grad():
        assert causal_attention(q, k, v, 100).grad_fn is None
    grad = torch.autograd.grad(causal_attention(q.detach(), k, v.detach(), 100), k, upstream)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(dense(q, k, v, 100), k, upstream)[0])
