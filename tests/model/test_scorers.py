"""Routers of others, against what their papers write, in plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import random_tokens, tiny, tiny_config

from pico.base.shapes import ModelConfig
from pico.base.symbols import BOS
from pico.model.cache import Cache
from pico.model.cost import flops_per_symbol
from pico.model.routing import gather_routed
from pico.model.scorers import SCORERS, smoothed


def routed(model, x, tokens):
    history = model.config.history
    text = F.pad(tokens, (history, 0), value=BOS)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model.router(x, tokens, text[:, history - 1 : -1], positions, text=text)


def test_a_byte_is_routed_where_its_state_turns_away_from_the_one_before():
    model, x, tokens = tiny("hnet").train(), torch.randn(2, 30, 32), random_tokens(2, 30)
    torch.nn.init.normal_(model.router.weight)
    routing, (w_q, w_k) = routed(model, x, tokens), model.router.weight.split(32)
    stream = F.rms_norm(x, (32,))
    for row in range(2):
        for t in range(1, 30):
            q, k = w_q @ stream[row, t], w_k @ stream[row, t - 1]
            p = (1 - q @ k / q.norm() / k.norm()) / 2
            assert routing.weight[row, t].item() == pytest.approx(p.item(), abs=1e-5)
            assert routing.routed[row, t] == (p > 0.5)
    assert routing.routed[:, 0].all() and (routing.weight[:, 0] > 0.9999).all()
    assert 0.3 < routing.routed.float().mean() < 0.7


def test_the_ratio_loss_is_least_where_the_fraction_is_met():
    router = SCORERS["cosine"](tiny_config("hnet", latent_capacity_factor=0.25))
    model, tokens = tiny("hnet", latent_capacity_factor=0.25).train(), random_tokens(2, 200)
    routing = routed(model, torch.randn(2, 200, 32), tokens)
    for fraction in (0.0, 0.25, 0.5):
        chosen = torch.rand(2, 200) < fraction
        given = routing._replace(chosen=chosen)
        f, g, n = chosen.float().mean(), routing.weight.mean(), 4
        wanted = n / (n - 1) * ((n - 1) * f * g + (1 - f) * (1 - g)) - 1
        torch.testing.assert_close(router.loss(given), wanted)
    met = torch.zeros(2, 200, dtype=torch.bool)
    met[:, ::4] = True
    even = routing._replace(chosen=met, score=torch.full((2, 200), math.log(1 / 3)))
    assert router.loss(even).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(Exception, match="latent_capacity_factor below 1"):
        ModelConfig.build(router="hnet", latent_capacity_factor=1.0)


def test_smoothing_is_the_recurrence():
    p, update, before = torch.rand(2, 37, 1), torch.randn(2, 37, 3), torch.randn(2, 3)
    for first in (before, None):
        state, total = torch.zeros(2, 3) if first is None else first, []
        for j in range(37):
            state = p[:, j] * update[:, j] + (1 - p[:, j]) * state
            total.append(state)
        torch.testing.assert_close(smoothed(p, update, first), torch.stack(total, 1))


def test_what_comes_back_is_smoothed_and_its_gate_is_straight_through():
    model, x, tokens = tiny("hnet"), torch.randn(1, 40, 32), random_tokens(1, 40)
    routing = routed(model, x, tokens)
    out, smooth = model.latent_stack(x, routing, "dense", None)
    chosen = y = gather_routed(x, routing, "dense")
    for block in model.latent:
        y = block(y, "dense")
    p = routing.weight.gather(1, routing.index)[..., None]
    torch.testing.assert_close(smooth, smoothed(p, y - chosen, None))
    moved = out - x
    torch.testing.assert_close(moved[routing.routed], smooth[0], atol=1e-5, rtol=1e-4)
    assert not moved[~routing.routed].any()
    gate = model.router.gate(routing)
    assert torch.equal(gate, torch.ones(1, 40))
    (grad,) = torch.autograd.grad(gate.sum(), routing.score)
    torch.testing.assert_close(grad, routing.weight * (1 - routing.weight))


@pytest.mark.parametrize("disable_latent", [False, True])
def test_a_router_keeps_what_it_needs_over_rollbacks_with_a_keep_per_row(disable_latent):
    model, generator = tiny("hnet"), torch.Generator().manual_seed(5)
    cache, kept = Cache(model.config, 2), [[], []]
    with torch.no_grad():
        for _ in range(25):
            count = int(torch.randint(1, 8, (), generator=generator))
            tokens = torch.randint(256, (2, count), generator=generator)
            out = model(tokens, cache=cache, disable_latent=disable_latent)
            keep = torch.randint(count + 1, (2,), generator=generator)
            for row in range(2):
                full = model(torch.tensor([kept[row] + tokens[row].tolist()]), disable_latent=disable_latent)
                torch.testing.assert_close(out.logits[row], full.logits[0, len(kept[row]) :], atol=2e-4, rtol=1e-3)
                assert torch.equal(out.routed[row], full.routed[0, len(kept[row]) :])
                kept[row] += tokens[row, : keep[row]].tolist()
            cache.rollback(keep)


def test_a_byte_is_routed_where_the_small_model_is_unsure_of_the_next():
    model, tokens = tiny("entropy"), torch.tensor([[*b"A small model that knows the last bytes alone."]])
    routing, router = routed(model, torch.randn(1, 46, 32), tokens), model.router
    for t in range(46):
        seen = [BOS, BOS, BOS, *tokens[0].tolist()][t : t + 4]  # a history of three, and the byte itself
        p = (64 * router.guess(F.relu(router.hidden(router.symbols(torch.tensor(seen)).flatten())))).softmax(-1)
        entropy = -(p * p.log()).sum()
        torch.testing.assert_close(routing.at.score[0, t], entropy, atol=1e-4, rtol=1e-4)
        assert routing.routed[0, t] == (entropy > 2.5)
    assert 5 < routing.routed.sum() < 41


@pytest.mark.slow
def test_the_small_model_learns_beside_and_holds_its_fraction():
    """By a loss of its own, which touches nothing else, and is touched by nothing else."""
    model = tiny("entropy", latent_capacity_factor=0.25).train()
    model.router.threshold.zero_()
    words = [b"one ", b"two ", b"three ", b"onward! "]
    text = torch.tensor(list(b"".join(words[i] for i in random_tokens(400, high=4))))
    optimizer = torch.optim.Adam(model.router.parameters(), lr=2e-2)
    losses, fractions = [], []
    for step in range(80):
        tokens = torch.stack([text[i : i + 104] for i in range(13 * step, 13 * step + 60, 13)])
        out = model(tokens[:, :100], targets=tokens[:, 1:])
        optimizer.zero_grad(), model.zero_grad()
        out.router_loss.backward()
        optimizer.step()
        model.end_step()
        losses.append(out.router_loss.item()), fractions.append(out.routed.float().mean().item())
    beside = {f"router.{name}.weight" for name in ("symbols", "hidden", "guess")}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == beside
    assert losses[0] > 3 and losses[-1] < 1
    assert sum(fractions[-20:]) / 20 == pytest.approx(0.25, abs=0.07)
    model.zero_grad()
    model(tokens[:, :100], targets=tokens[:, 1:]).loss.backward()
    assert not any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n in beside)


def test_their_scores_are_charged():
    plain, hnet, entropy = (flops_per_symbol(tiny_config(router), 64, 0.25) for router in ("topk", "hnet", "entropy"))
    assert hnet[0] - plain[0] == 2 * (2 * 32 * 32 - 32) and hnet[1] - plain[1] == 3 * (hnet[0] - plain[0])
    assert entropy[0] - plain[0] == 2 * (4 * 16 * 64 + 64 * 264)
    assert entropy[1] - plain[1] == 3 * (entropy[0] - plain[0])
