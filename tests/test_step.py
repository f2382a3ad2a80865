"""One optimizer step against the plain way of taking it."""

import copy
import math

import pytest
import torch
from helpers import random_tokens, tiny
from torch import nn

from pico import TrainConfig
from pico.machine import Batch
from pico.optimizers import build_optimizers
from pico.routers import TopK
from pico.step import optimizer_step

CONFIG = TrainConfig(context_len=24, batch_size=2, optimizer="adamw", gradient_clip=0.5, warmup_steps=0)


def batches(count, epoch=0):
    tokens = [random_tokens(2, 24 + 4, seed=i) for i in range(count)]
    return [Batch(x[:, :24], x[:, 1:], 48, {"epoch": epoch}) for x in tokens]


def step(model, read, config=CONFIG, **options):
    optimizers = build_optimizers(model, config)
    return optimizer_step(model, model, optimizers, config, read, **{"step": 0, "progress": 0.25} | options)


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_a_step_moves_the_weights_by_the_mean_clipped_gradient(router):
    model = tiny(router).train()
    plain, read, losses, nats = copy.deepcopy(model), batches(3), [], []
    plain.lookahead.fill_(0.75)
    for batch in read:
        out = plain(batch.inputs, targets=batch.targets)
        (0.9 * out.loss + 0.1 * out.router_loss).div(3).backward()
        losses.append(out.loss.item())
        nats.append(out.head_nll[0].item())
    norm = nn.utils.clip_grad_norm_(plain.dense_parameters(), 0.5)
    for optimizer in build_optimizers(plain, CONFIG):
        for group in optimizer.param_groups:
            group["lr"] = 0.75 * 1e-2 * group.get("rate", 1.0)
        optimizer.step()
    plain.update_router()

    parts = []
    result = step(model, read, tell=lambda: [3.0, 4.0], mark=parts.append)
    for (name, moved), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(moved, expected), name
    assert result.finite and result.told == [3.0, 4.0] and result.bytes == 3 * 48
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert result.bits_per_byte == pytest.approx(sum(nats) / 3 / math.log(2))
    assert result.grad_norm == pytest.approx(norm.item()) and norm > 0.5
    assert result.learning_rate == pytest.approx(0.75e-2)
    assert parts == ["forward", "backward"] * 3 + ["optimizer"]
    assert all(p.grad is None for p in model.parameters())


def test_where_the_run_is_decides_the_rule_and_what_is_left_out():
    model, again = tiny("topk").train(), batches(1, epoch=1)
    for progress, short, read in ((0.5, True, batches(1)), (0.5, False, again), (TopK.causal_from, True, again)):
        step(model, read, progress=progress, short_text=short)
        assert model.router.causal == (progress == TopK.causal_from)
        assert model.lookahead == pytest.approx(1 - progress)
        dropped = short and read is again
        assert model.ngrams.dropout == CONFIG.ngram_dropout * dropped
        assert {block.dropout for block in (*model.local_in, *model.latent)} == {CONFIG.dropout * dropped}


def test_a_step_that_is_not_finite_moves_nothing():
    model = tiny("threshold").train()
    before = copy.deepcopy(model.state_dict())

    def forward(tokens, targets):
        out = model(tokens, targets)
        return out._replace(loss=out.loss * math.nan)

    result = optimizer_step(model, forward, build_optimizers(model, CONFIG), CONFIG, batches(1), 0, 0.0)
    assert not result.finite
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not model.router.seen.any() and all(p.grad is None for p in model.parameters())
