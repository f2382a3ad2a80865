"""What a Pico may have and torch alone can run: the laws hold for each, and each is what it says."""

import pytest
import torch
from helpers import chunks, first_fast, random_tokens, texts, tiny, tiny_config, trained

from pico import PicoError
from pico.base.config import TrainConfig
from pico.base.shapes import ModelConfig
from pico.base.symbols import BOS, BYTES, EOS
from pico.decode.batch import readers
from pico.decode.generation import generate, reader
from pico.decode.torch_batch import TorchBatch
from pico.decode.torch_reader import TorchReader
from pico.model.cache import Cache
from pico.model.pico import plain_generate
from pico.model.routing import gather_routed
from pico.runs.share import transformers_config
from pico.train.optimizers import build_optimizers

EXTRAS = [
    dict(latent_update="hold"),
    dict(latent_update="smooth"),
    dict(latent_embedding_skip=True),
]
SPREAD = EXTRAS[:2]
CLOSE = dict(atol=2e-4, rtol=1e-3)


def routed(model, x, carry=None):
    tokens = random_tokens(*x.shape[:2])
    return model.router(x, tokens, tokens, torch.arange(x.shape[1]).expand_as(tokens), carry=carry)


# --- the laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("router", ["topk", "space"])
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_no_output_depends_on_a_later_byte(extra, router, disable_latent):
    tokens = torch.tensor([BOS, *b"When the cat sat, it sat on Anna's red mat; EOS: ", EOS, BOS, *b"zu."])
    rows = tokens.repeat(len(tokens) + 1, 1)
    at = torch.arange(len(tokens))
    rows[at, at] = (tokens + 101) % 256
    with torch.no_grad():
        out = tiny(router, **extra)(rows, disable_latent=disable_latent)
    for t in at:
        torch.testing.assert_close(out.logits[t, :t], out.logits[-1, :t], atol=1e-4, rtol=1e-3)
        assert torch.equal(out.routed[t, :t], out.routed[-1, :t])
        assert (out.logits[t, t] - out.logits[-1, t]).abs().max() > 0.1


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_no_gradient_comes_from_the_future_in_training_either(extra):
    """Not even where the buffer is full, and later bytes pass by."""
    model, tokens = tiny("threshold", **extra).train(), torch.randperm(256)[:60]
    model.router.bias.data.fill_(3.0)
    out = model(tokens[None])
    assert out.skipped > 0.1
    for t in range(60):
        grad = torch.autograd.grad(out.logits[0, t].sum(), model.embedding.weight, retain_graph=True)[0][tokens]
        assert not grad[t + 1 :].any() and grad[t].any()


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("router", ["topk", "threshold", "space"])
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_cache_equals_full_over_rollbacks_with_a_keep_per_row(extra, router, disable_latent):
    """Also of pieces without a routed byte, and over turns of both rings."""
    model, tokens = tiny(router, **extra), random_tokens(3, 150, seed=3)
    tokens[1] = torch.tensor([*b"Two rows, and one of them is of words."] * 4)[:150]
    cache, kept, sizes = Cache(model.config, 3), [[], [], []], [1, 7, 1, 2, 30, 1, 4]
    with torch.no_grad():
        full = model(tokens, disable_latent=disable_latent)
        for start, end in chunks(150, sizes):
            out = model(tokens[:, start:end], cache=cache, disable_latent=disable_latent)
            torch.testing.assert_close(out.logits, full.logits[:, start:end], **CLOSE)
            assert torch.equal(out.routed, full.routed[:, start:end])
        cache = Cache(model.config, 3)
        for start, end in chunks(60, sizes):
            out = model(tokens[:, start:end], cache=cache, disable_latent=disable_latent)
            for row in range(3):
                text = torch.tensor([kept[row] + tokens[row, start:end].tolist()])
                alone = model(text, disable_latent=disable_latent).logits[0, len(kept[row]) :]
                torch.testing.assert_close(out.logits[row], alone, **CLOSE)
            keep = torch.tensor([end - start, (end - start) // 2, 0 if start else 1])
            cache.rollback(keep)
            for row in range(3):
                kept[row] += tokens[row, start : start + keep[row]].tolist()


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("extra", first_fast(*EXTRAS), ids=str)
def test_greedy_speculation_is_greedy_decoding(extra, disable_latent):
    """In a batch, alone, without drafts, and by full forwards."""
    model, prompts = trained("topk", **extra), [b"", b"one t", bytes(range(256)), b"\xff\x00\xfe" * 40]
    options = dict(max_bytes=20, temperature=0, disable_latent=disable_latent)
    fast = generate(model, prompts, **options)
    together = texts(fast)
    assert together == texts(generate(model, prompts, speculative=False, **options))
    assert 1.1 < fast.stats["bytes_per_forward"] < 1 + model.config.drafts
    for prompt, text in zip(prompts, together):
        assert list(text) == plain_generate(model, [BOS, *prompt], 20, disable_latent=disable_latent)
        assert texts(generate(model, prompt, **options)) == [text]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_neither_numpy_nor_transformers_reads_it(extra):
    model, (name,) = tiny("topk", **extra), extra
    assert isinstance(reader(model, 1, 8), TorchReader)
    assert all(isinstance(each, TorchBatch) for each in readers(model, 2, 8))
    with pytest.raises(PicoError, match=rf"{name} = .*: transformers' form of Pico knows nothing of it"):
        transformers_config(model.config, BYTES)
    assert name not in transformers_config(tiny_config("topk"), BYTES)
    assert set(model.state_dict()) - set(tiny("topk").state_dict()) <= {"latent.0.mix", "latent.1.mix"}  # no signs


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_every_parameter_learns_and_is_in_a_group(extra):
    model, tokens = tiny("topk", **extra).train(), random_tokens(4, 64)
    out = model(tokens[:, :60], targets=tokens[:, 1:])
    (0.9 * out.loss + 0.1 * out.router_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert build_optimizers(model, TrainConfig())
    assert model.config.parameters == model.parts()


# --- hold and smooth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("extra", SPREAD, ids=str)
def test_an_update_reaches_the_bytes_after_it(extra, training):
    """By the formula, byte for byte; a text that goes on begins with what was kept."""
    model, x = tiny("topk", latent_capacity_factor=0.3, **extra).train(training), torch.randn(3, 40, 32)
    model.router.bias.data.fill_(-1.5)
    hold, carry = extra["latent_update"] == "hold", torch.randn(3, model.config.carry)
    for kept in (None, carry):
        routing = routed(model, x, kept)
        out, _ = model.latent_stack(x, routing, "dense", None, kept)
        y = gather_routed(x, routing, "dense")
        for block in model.latent:
            y = block(y, "dense")
        assert 0 < routing.routed.sum() < routing.routed.numel() / 2
        for row in range(3):
            where = routing.routed[row].nonzero().flatten().tolist()
            w, state = routing.weight[row], torch.zeros_like(carry[row]) if kept is None else carry[row]
            newest, h = (state, None) if hold else state.chunk(2)
            for t in range(40):
                if t in where:
                    newest = y[row, where.index(t)] - x[row, t]
                    newest = w[t] * newest if hold else newest
                if hold:
                    added = newest if t in where else w[t] * newest
                else:
                    added = h = w[t] * newest + (1 - w[t]) * h
                torch.testing.assert_close(out[row, t] - x[row, t], added, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("extra", SPREAD, ids=str)
def test_what_a_byte_does_with_an_update_teaches_both_gates(extra):
    model, x = tiny("topk", **extra).train(), torch.randn(1, 40, 32)
    routing = routed(model, x)
    out, _ = model.latent_stack(x, routing, "dense", None)
    first = int(routing.routed[0].nonzero()[0])
    at = int((~routing.routed[0, first:]).nonzero()[0]) + first  # not routed, after one that was
    (grad,) = torch.autograd.grad(out[0, at].sum(), routing.score)
    assert grad[0, at] != 0 and grad[0, at - 1] != 0 and not grad[0, at + 1 :].any()


def test_a_router_of_another_kind_spreads_nothing():
    with pytest.raises(PicoError, match="router = 'hnet' has a way of its own: expected routed"):
        ModelConfig.build(router="hnet", latent_update="hold")


# --- latent blocks that mix the embedding in --------------------------------------------------------------------------


def test_a_latent_block_mixes_in_the_embedding_of_its_own_bytes():
    model, x, embedding = tiny("topk", latent_embedding_skip=True), torch.randn(2, 40, 32), torch.randn(2, 40, 32)
    routing = routed(model, x)
    out, _ = model.latent_stack(x, routing, "dense", None, None, embedding)
    for row in range(2):
        where = routing.routed[row].nonzero().flatten()
        y = x[row, where][None]
        for block in model.latent:
            keep, add = block.mix
            mixed = keep * y + add * embedding[row, where]
            block.mix, mix = None, block.mix
            y = block(mixed, "dense")
            block.mix = mix
        moved = routing.weight[row, where, None] * (y[0] - x[row, where])
        torch.testing.assert_close(out[row, where] - x[row, where], moved, atol=1e-5, rtol=1e-4)
