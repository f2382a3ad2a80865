"""The numpy reader against the model's own full forward."""

import random

import numpy as np
import pytest
import torch
from helpers import awake, random_tokens, tiny

from pico.base.presets import preset
from pico.base.routers import ROUTERS
from pico.base.symbols import BOS, EOS
from pico.decode import numpy_reader as decode
from pico.decode.numpy_reader import NumpyReader
from pico.model.pico import Pico


@pytest.mark.parametrize("router", [router for router, rule in ROUTERS.items() if rule.scorer == "linear"])
@pytest.mark.parametrize("shape", [{}, {"fb_num_blocks": 0}, {"latent_num_blocks": 0, "chained_heads": False}])
def test_reader_equals_full_forward(router, shape, monkeypatch):
    """Any chunking, drafts rejected at any place, and long enough to shift the buffers back."""
    monkeypatch.setattr(decode, "PREFILL", 100)
    torch.manual_seed(0)
    shape = {"ngram_rows": 64, "dim": 32, "latent_num_blocks": 2, "fb_num_blocks": 1, **shape}
    config = preset("tiny", router=router, fb_att_window_size=8, latent_att_window_size=16, **shape)
    model = awake(Pico(config)).eval()
    length = 400
    tokens = torch.randint(0, 256, (1, length))
    with torch.inference_mode():
        full = model(tokens)
    text, at, rng = NumpyReader(model), 0, random.Random(1)
    while at < length:
        text.read(np.array([[1, 2, 3, 4]]))
        text.keep(np.array([0]))
        n = min(length - at, rng.choice([1, 2, 5, 9, 33, 100]))
        weight, routed = map(torch.from_numpy, text.read(tokens[:, at : at + n].numpy()))
        logits = torch.from_numpy(text.logits())[None]
        kept = rng.randint(0, n)
        text.keep(np.array([kept]))
        torch.testing.assert_close(logits[:, :kept], full.logits[:, at : at + kept, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weight[:, :kept], full.router_weight[:, at : at + kept], atol=1e-5, rtol=1e-4)
        assert torch.equal(routed[:, :kept], full.routed[:, at : at + kept])
        at += kept
        drawn, before = [7, 8, EOS, 9, 10], torch.full((1, config.history), BOS)
        read = torch.cat([before, tokens[:, :at]], dim=1)[:, -config.history :]
        most = len(drawn) if config.chained_heads else config.next_tokens - 1
        for k in range(1, 1 + most if kept else 0):
            with torch.inference_mode():
                logits = model.draft_logits(full.stream[:, at - 1], torch.tensor([drawn[:k]]), read)[0]
            ours = torch.from_numpy(text.draft_logits(kept - 1, drawn[:k]))
            torch.testing.assert_close(ours, logits, atol=1e-5, rtol=1e-4)


def test_a_sharpness_may_be_learned_away():
    """At exactly 0 a layer looks at all keys alike, but for their distance."""
    model = awake(Pico(preset("tiny", dim=32, latent_num_blocks=2, ngram_rows=64))).eval()
    for block in (*model.local_in, *model.latent[:1]):
        torch.nn.init.zeros_(block.attention.sharpness)
    text, tokens = NumpyReader(model), torch.randint(0, 256, (1, 60))
    text.read(tokens.numpy())
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.from_numpy(text.logits())[None], model(tokens).logits[:, :, 0], atol=1e-5, rtol=1e-4
        )


def test_memory_does_not_grow():
    model = Pico(preset("tiny", dim=16, latent_num_blocks=1)).eval()
    text = NumpyReader(model)
    shapes = [stack.memory.shape for stack in (text.local, text.latent)]
    for _ in range(3 * decode.PREFILL // 64):
        text.read(np.full((1, 64), 97))
        text.keep(np.array([64]))
    assert [stack.memory.shape for stack in (text.local, text.latent)] == shapes


@pytest.mark.parametrize("change", [dict(), dict(fb_num_blocks=2), dict(fb_num_blocks=0), dict(latent_num_blocks=0)])
def test_what_is_skimmed_is_known_as_if_it_were_read(change):
    """All but the `tail`: what follows says the same."""
    model, ids = tiny(**change), random_tokens(1, 120).numpy()
    for length in (1, 40, 80):
        whole, skimmed = NumpyReader(model), NumpyReader(model)
        skimmed.skim(ids[:, :length])
        skimmed.keep(np.array([length]))
        whole.read(ids[:, :length])
        whole.keep(np.array([length]))
        end = length + skimmed.tail
        for reader in whole, skimmed:
            for start in range(length, end, 3):
                reader.read(ids[:, start : min(start + 3, end)])
                reader.keep(np.array([min(3, end - start)]))
            reader.read(ids[:, end : end + 2])
        np.testing.assert_allclose(skimmed.logits(), whole.logits(), atol=1e-4)
