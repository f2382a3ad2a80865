import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_config
from hypothesis import example, given
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

import pico.model.attention
import pico.model.kernels
from pico.base.errors import PicoError
from pico.model.attention import alibi_slopes, attend_cached, attention, available_backends, choose_backend, ring_bias
from pico.model.blocks import Attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def naive(q, k, v, window):
    """One query, one head at a time."""
    batch, length, heads, width = q.shape
    rows = []
    for b in range(batch):
        for i in range(length):
            for h in range(heads):
                g = h // (heads // k.shape[2])
                first = max(0, i - window)
                distance = torch.arange(i - first, -1, -1, device=q.device)
                score = k[b, first : i + 1, g] @ q[b, i, h] / width**0.5 - 2 ** (-8 * (h + 1) / heads) * distance
                rows.append(score.softmax(0) @ v[b, first : i + 1, g])
    return torch.stack(rows).view(q.shape)


def qkv(batch, length, heads, kv_heads, width=8, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, h, width) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]


def attend(q, k, v, window, backend, sharpness=None):
    return attention(torch.cat([q, k, v], dim=2), sharpness, q.shape[2], window, backend)


def run(backend, q, k, v, window, *sharpness):
    """Output and gradients under a fixed upstream gradient."""
    out = attend(q, k, v, window, backend, *sharpness)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return [out, *torch.autograd.grad(out, (q, k, v, *sharpness), upstream)]


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (2, 1), (6, 2), (8, 1)])
@pytest.mark.parametrize("length,window", [(1, 3), (7, 1), (9, 4), (6, 20)])
def test_dense_is_the_plain_loop(heads, kv_heads, length, window):
    q, k, v = qkv(2, length, heads, kv_heads)
    torch.testing.assert_close(attend(q, k, v, window, "dense"), naive(q, k, v, window), atol=1e-5, rtol=1e-5)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 170),
    window=st.integers(1, 50),
    ratio=st.sampled_from([1, 2, 3, 8]),
    kv_heads=st.integers(1, 2),
)
@example(1, 1, 1, 3, 1)
@example(1, 65, 1, 2, 1)
@example(2, 97, 32, 1, 2)
@example(1, 103, 33, 8, 1)  # odd, a block wider than 32
@example(2, 151, 50, 3, 2)
@example(1, 5, 50, 2, 2)  # shorter than the window
def test_blocked_equals_dense_forward_and_gradients(batch, length, window, ratio, kv_heads):
    tensors = qkv(batch, length, ratio * kv_heads, kv_heads)
    for fast, slow in zip(run("blocked", *tensors, window), run("dense", *tensors, window)):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", [b for b in available_backends(DEVICE) if b != "dense"])
def test_every_backend_of_this_machine_equals_dense_in_bf16(backend):
    """Against fp32: what is allowed is the rounding of bf16, about 2^-8 of values of size one."""
    small = qkv(2, 333, 6, 2, 32, torch.bfloat16, device=DEVICE)
    exact = [x.detach().float().requires_grad_() for x in small]
    for sharpness in ([], [torch.tensor([1.4], device=DEVICE, requires_grad=True)]):
        for fast, slow in list(zip(run(backend, *small, 40, *sharpness), run("dense", *exact, 40, *sharpness)))[:4]:
            assert (fast.float() - slow).abs().max() < 0.03 * slow.abs().max()
            assert (fast.float() - slow).norm() < 0.01 * slow.norm()


@pytest.mark.parametrize("backend", [b for b in available_backends(DEVICE) if b not in ("flash", "flex")])
@pytest.mark.parametrize("window", [1, 16, 60, 500])
def test_a_query_sees_window_keys_before_it_with_alibi_weights(backend, window):
    """q = k = 0 leaves the bias alone, and v = identity shows the weights: softmax of -m (i - j) over i-W .. i."""
    length, heads = 128, 8
    zero = torch.zeros(1, length, heads, length, device=DEVICE)
    eye = torch.eye(length, device=DEVICE).view(1, length, 1, length)
    weights = attend(zero, zero[:, :, :1], eye, window, backend)[0]  # (query, head, key)
    for i in (0, 1, 17, 64, 100, 127):
        for h in (0, 3, 7):
            first = max(0, i - window)
            wanted = torch.zeros(length, device=DEVICE)
            wanted[first : i + 1] = (-(0.5 ** (h + 1)) * torch.arange(i - first, -1, -1, device=DEVICE)).softmax(0)
            torch.testing.assert_close(weights[i, h], wanted, atol=1e-6, rtol=1e-4)


def test_alibi_slopes():
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    torch.testing.assert_close(alibi_slopes(3), torch.tensor([2 ** (-8 / 3), 2 ** (-16 / 3), 2.0**-8]))
    assert alibi_slopes(16)[0] == 2.0**-0.5


@pytest.mark.parametrize("backend", ["dense", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradient_reaches_keys_outside_the_window(backend, dtype):
    """Exactly zero, past position 256 too, where bf16 could not tell positions apart."""
    length, window = 600, 20
    q, k, v = qkv(1, length, 2, 1, dtype=dtype)
    out = attend(q, k, v, window, backend)
    for i in (0, 5, 255, 256, 257, 258, 301, 511, 513, 599):
        grads = torch.autograd.grad(out[0, i].sum(), (k, v), retain_graph=True)
        seen = torch.zeros(length, dtype=torch.bool)
        seen[max(0, i - window) : i + 1] = True
        for grad in grads:
            assert not grad[0, ~seen].any()
        assert grads[1][0, seen].abs().sum(-1).all()


def test_training_works_after_evaluation_filled_the_caches():
    """Biases kept from inference mode must not break a later backward pass."""
    q, k, v = qkv(1, 131, 5, 5)  # heads that no other test has
    with torch.inference_mode():
        before = attend(q, k, v, 11, "blocked")
    for fast, slow in zip(run("blocked", q, k, v, 11), run("dense", q, k, v, 11)):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(before, attend(q, k, v, 11, "blocked").detach())


@given(st.integers(1, 9), st.integers(0, 3), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_ring_attention_equals_dense_across_wrap_around(window, spare, sizes):
    """Keys and values live in a ring of W + n + spare slots; the text is many times as long."""
    length, heads = 120, 4
    q, k, v = qkv(2, length, heads, 2)
    slots = window + max(sizes) + spare
    ring_k, ring_v = torch.full((2, 2, slots, 2, 8), 1e3).unbind(0)  # what was never written must not be seen
    out, start = [], 0
    while start < length:
        new = torch.arange(start, min(start + sizes[start % len(sizes)], length))
        ring_k[:, new % slots], ring_v[:, new % slots] = k[:, new].detach(), v[:, new].detach()
        bias = ring_bias(new.expand(2, -1), slots, heads, window, torch.float32)
        out.append(attend_cached(q[:, new], ring_k, ring_v, bias))
        start = int(new[-1]) + 1
    torch.testing.assert_close(torch.cat(out, 1), attend(q, k, v, window, "dense"), atol=1e-5, rtol=1e-4)


def test_unavailable_backend_names_what_to_install():
    cpu = torch.device("cpu")
    assert choose_backend(cpu) == "blocked"
    assert choose_backend(cpu, "dense") == "dense"
    for name, needs in (("flash", "flash-attn"), ("flex", "GPU"), ("triton", "triton")):
        with pytest.raises(PicoError, match=f"'{name}' cannot run on cpu: it needs .*{needs}.*; use one of blocked"):
            choose_backend(cpu, name)


def test_flash_is_asked_for_our_window_and_alibi(monkeypatch):
    """A stand-in with the arguments of flash_attn 2, which computes what its documentation says."""
    asked = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                        alibi_slopes=None, deterministic=False, return_attn_probs=False):  # fmt: skip
        assert q.dtype in (torch.bfloat16, torch.float16) and causal and window_size[1] == 0
        assert alibi_slopes.dtype == torch.float32 and alibi_slopes.shape == (q.shape[2],)
        asked.append(window_size[0])
        position, group = torch.arange(q.shape[1]), q.shape[2] // k.shape[2]
        distance = position[:, None] - position
        k, v = (x.repeat_interleave(group, 2).float() for x in (k, v))
        score = torch.einsum("bihe,bjhe->bhij", q.float(), k) / q.shape[3] ** 0.5
        score -= alibi_slopes[:, None, None] * distance.abs()
        score = score.masked_fill((distance < 0) | (distance > window_size[0]), -torch.inf)
        return torch.einsum("bhij,bjhe->bihe", score.softmax(-1), v).to(q.dtype)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    tensors = qkv(2, 20, 6, 2, dtype=torch.bfloat16)
    for window in (0, 5, 100):
        for fast, slow in zip(run("flash", *tensors, window), run("dense", *tensors, window)):
            torch.testing.assert_close(fast, slow, atol=0.03, rtol=0.03)
    assert asked == [0, 5, 19]
    with pytest.raises(
        PicoError, match="the flash backend takes bf16 or fp16 and heads up to 256 wide, not float32 and 8"
    ):
        attend(*qkv(1, 9, 2, 1), 4, "flash")


@pytest.mark.slow
def test_flex_is_compiled_once_for_each_shape_and_window(monkeypatch):
    """On a CPU, with a compiler that only counts."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    flex = torch.compile(flex_attention, backend=count, dynamic=False)
    monkeypatch.setattr(pico.model.attention, "_compiled_flex", lambda: flex)
    torch._dynamo.reset()
    with torch.no_grad():
        for window, length in ((5, 20), (9, 20), (5, 33)) * 2:
            tensors = qkv(1, length, 6, 2)
            torch.testing.assert_close(attend(*tensors, window, "flex"), attend(*tensors, window, "dense"))
    assert len(compiled) == 3


def test_our_own_kernels_come_first_then_what_stands_in(monkeypatch):
    gpu, names = torch.device("cuda"), ["triton", "flex", "flash", "blocked", "dense"]
    monkeypatch.setattr(pico.model.kernels, "available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "flash_attn" or None)
    assert available_backends(gpu) == names and choose_backend(gpu) == "triton"
    monkeypatch.setattr(pico.model.kernels, "available", lambda: False)
    assert choose_backend(gpu) == "flex" and choose_backend(gpu, "flash") == "flash"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_our_kernels_leave_a_block_one_graph_without_copies_of_their_gradients():
    """Traced on tensors without content: no kernel runs."""
    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = Attention(tiny_config(), 5)
        x = torch.randn(2, 30, 32, dtype=torch.bfloat16, requires_grad=True)
        layer.compile(backend=aot_autograd(fw_compiler=keep), fullgraph=True, dynamic=False)
        layer(x, "triton", None, 0).sum().backward()
    forward, backward = graphs
    assert "pico.window_attention.default" in forward and "pico.window_attention_backward.default" in backward
    assert not any("cat" in name for name in forward | backward)
    assert layer.sharpness.grad.shape == (1,) and x.grad.shape == x.shape
