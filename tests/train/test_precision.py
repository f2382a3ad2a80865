"""fp16: the loss is scaled, so that small gradients do not vanish; what overflows is left out, and the scale halves."""

import pytest
import torch
from helpers import random_tokens, tiny
from torch.amp import GradScaler

from pico.base.config import TrainConfig
from pico.base.device import pick_dtype
from pico.data.prefetch import Batch
from pico.train.optimizers import build_optimizers
from pico.train.step import optimizer_step

CONFIG = TrainConfig(context_len=24, batch_size=2, optimizer="adamw", warmup_steps=0)


def step(model, scaler, optimizers=None):
    tokens = random_tokens(2, 24 + 4)
    read = [Batch(tokens[:, :24], tokens[:, 1:], 48, {}, [0] * len(tokens))]
    optimizers = optimizers or build_optimizers(model, CONFIG)
    return optimizer_step(model, model, optimizers, CONFIG, read, 0, 0.0, scaler=scaler).get()


def test_auto_is_bf16_then_fp16_on_cuda(monkeypatch):
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=supported: found)
        assert pick_dtype("auto", "cuda") == dtype
    assert pick_dtype("fp16", "cpu") == torch.float16 and pick_dtype("auto", "mps") == torch.float32


def test_a_scaled_step_has_the_gradients_of_one_in_fp32():
    half, full = (
        step(tiny(dtype=dtype).train(), GradScaler("cpu", 2.0**8, enabled=dtype == torch.float16))
        for dtype in (torch.float16, torch.float32)
    )
    assert half.finite and half.grad_norm == pytest.approx(full.grad_norm, rel=0.02)
    assert half.loss == pytest.approx(full.loss, rel=0.01)


def test_a_step_with_infinite_gradients_is_skipped_and_the_scale_halves():
    model, scaler = tiny(dtype=torch.float16).train(), GradScaler("cpu", init_scale=2.0**10)
    hook = model.heads.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert not step(model, scaler).finite and scaler.get_scale() == 2.0**9
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    hook.remove()
    assert step(model, scaler).finite and scaler.get_scale() == 2.0**9
    assert not torch.equal(model.heads.weight, before["heads.weight"])


def test_precision_is_bf16_only_where_the_hardware_multiplies_it(monkeypatch):
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert pick_dtype("auto", "cpu") == expected
    assert pick_dtype("auto", "mps") == torch.float32
    assert (pick_dtype("fp32", "cpu"), pick_dtype("bf16", "cpu")) == (torch.float32, torch.bfloat16)
