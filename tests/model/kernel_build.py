"""What tests/model/test_kernels.py runs in a process of its own: every kernel compiled to machine code, without a GPU.

The interpreter forgives what the compiler does not (types, shapes that are no powers of two, too much shared memory).
Here Triton is told that a GPU is present and asked to compile instead of to launch; its own assembler does the rest.
"""

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pico.model.kernels.attention import window_attention
from pico.model.kernels.decode import decode_attention
from pico.model.kernels.gather import gated_scatter, latent_gather
from pico.model.kernels.loss import head_nats
from pico.model.kernels.ngrams import ngram_hashes
from pico.model.kernels.sampling import draft, verify

SHARED_MEMORY = 99 * 1024  # bytes a block may have on 8.6 and 8.9, the least of those that count


class PretendedGpu:
    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def build(monkeypatch, tmp_path):
    """build(capability, function): the kernels that function() launches, compiled, by name."""
    launch = JITFunction.run

    def build(capability, function):
        kernels = {}

        def compile_only(self, *args, **options):
            kernels[self.__name__] = launch(self, *args, **options | {"warmup": True})

        monkeypatch.setattr(JITFunction, "run", compile_only)
        driver.set_active(PretendedGpu(capability))
        function()
        for kernel in kernels.values():
            assert f"sm_{capability}" in kernel.asm["ptx"] and kernel.asm["cubin"]
            assert kernel.metadata.shared <= SHARED_MEMORY
        return kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return build


@pytest.mark.parametrize(
    "capability,heads,kv_heads,width,window,dtype",
    [
        (90, 9, 3, 40, 512, torch.bfloat16),  # the latent blocks of original-10m
        (90, 6, 2, 64, 32, torch.bfloat16),
        (90, 8, 1, 128, 600, torch.bfloat16),
        (80, 1, 1, 40, 1, torch.float32),
    ],
)
def test_attention_builds(build, capability, heads, kv_heads, width, window, dtype):
    def run():
        qkv = torch.zeros(2, 70, heads + 2 * kv_heads, width, dtype=dtype, requires_grad=True)
        out = window_attention(qkv, torch.ones(1), torch.zeros(heads), window)
        out.backward(torch.zeros_like(out))

    kernels = build(capability, run)
    assert set(kernels) == {"_key_norms", "_forward", "_backward_q", "_backward_kv"}
    del kernels["_key_norms"]
    if dtype == torch.bfloat16:  # 16 bytes at a time, also from rows that are 80 bytes apart; tensor cores of Hopper
        assert all(key in kernel.asm["ptx"] for kernel in kernels.values() for key in ("cp.async.cg", "wgmma"))


@pytest.mark.parametrize(
    "capability,n,heads,kv_heads,width,dtype",
    [
        (90, 1, 9, 3, 40, torch.bfloat16),
        (90, 6, 6, 2, 64, torch.bfloat16),
        (80, 8, 8, 1, 128, torch.float32),
    ],
)
def test_decode_builds(build, capability, n, heads, kv_heads, width, dtype):
    q, kv = torch.zeros(2, n, heads, width, dtype=dtype), torch.zeros(2, 576, 2, kv_heads, width, dtype=dtype)
    positions, slopes = torch.zeros(2, 576, dtype=torch.int32), torch.zeros(heads)
    kernels = build(capability, lambda: decode_attention(q, *kv.unbind(2), positions, positions[:, :n], 512, slopes))
    assert set(kernels) == {"_decode"}


@pytest.mark.parametrize("width,dtype", [(372, torch.bfloat16), (768, torch.float32)])
def test_gather_builds(build, width, dtype):
    x, latent = (torch.zeros(2, length, width, dtype=dtype, requires_grad=True) for length in (64, 16))
    index, weight = torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, 16, requires_grad=True)

    def run():
        latent_gather(x, index).backward(latent.detach())
        gated_scatter(x, latent, index, weight).backward(x.detach())

    assert set(build(80, run)) == {"_gather", "_gather_backward", "_scatter", "_scatter_backward"}


@pytest.mark.parametrize("capability", [80, 90])
def test_loss_builds(build, capability):
    x, weight = torch.zeros(70, 32, dtype=torch.bfloat16), torch.zeros(4, 264, 32, dtype=torch.bfloat16)
    targets = torch.zeros(2, 38, dtype=torch.int64).unfold(1, 4, 1).flatten(0, 1)
    kernels = build(capability, lambda: head_nats([x] * 4, weight, targets))
    assert set(kernels) == {"_softmax"}
    assert "ld.global.v4.b32" in kernels["_softmax"].asm["ptx"]  # 16 bytes at a time


@pytest.mark.parametrize("capability", [80, 90])
def test_ngrams_build(build, capability):
    text = torch.zeros(2, 70, dtype=torch.int64)
    assert set(build(capability, lambda: ngram_hashes(text, 12))) == {"_hash"}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("n,temperature", [(1, 0.0), (6, 0.0), (1, 0.8), (6, 0.8)])
def test_sampling_builds(build, capability, n, temperature):
    logits, u = torch.zeros(2, n, 3 * 264, dtype=torch.bfloat16)[:, :, :264], torch.zeros(2, 2 * n).double()
    q, tokens, banned = torch.zeros(2, n, 264), torch.zeros(2, 1 + n, dtype=torch.long), torch.zeros(264) > 0

    def step():
        draft(logits[:, 0], u[:, 0], temperature, 0.0, banned, q[:, 0], tokens[:, 1])
        verify(logits, tokens[:, 1:n], q[:, : n - 1], u[:, :n], temperature, 0.0, banned)

    assert set(build(capability, step)) == {"_draft", "_verify"}
