"""The decoder's numpy reader against its own full forward."""

import random

import numpy as np
import pytest
import torch
from helpers import texts, tiny_gpt

from pico.base.symbols import BOS
from pico.decode import numpy_gpt
from pico.decode.generation import generate
from pico.decode.numpy_gpt import NumpyGPT

SIMPLE = dict(
    qk_norm="before", norm_gain=True, sandwich_norm=True, gate="query", qkv_bias=True, embedding_scale="sqrt",
    rope_fraction=0.5, att_kv_heads=1,
)  # fmt: skip
SWITCHES = [
    dict(), SIMPLE, SIMPLE | dict(qk_norm="after", gate="input", mlp="relu2"), dict(qk_norm="none", qkv_bias=True),
    dict(embedding_scale="norm", logit_softcap=2.0, mlp="relu2", att_kv_heads=4), dict(rope_fraction=0.0, tied=True),
    dict(ngram_max=3, ngram_rows=64, ngram_dim=8, embedding_scale="norm"), dict(window=3, gate="input"),
    dict(norm_gain=True), dict(norm_gain=True, qk_norm="none", sandwich_norm=True, mlp_ratio_last=4.0),
]  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))
def test_reader_equals_full_forward(switch, monkeypatch):
    """Any chunking, what was read rejected at any place, and long enough to shift the memory back."""
    monkeypatch.setattr(numpy_gpt, "PREFILL", 100)
    model, length = tiny_gpt(**switch), 300
    tokens = torch.randint(0, 256, (1, length))
    with torch.inference_mode():
        full = model(tokens).logits[:, :, 0]
    text, at, rng = NumpyGPT(model), 0, random.Random(1)
    while at < length:
        text.read(np.array([[1, 2, 3, 4]]))
        text.keep(np.array([0]))
        n = min(length - at, rng.choice([1, 2, 5, 9, 33, 100]))
        text.read(tokens[:, at : at + n].numpy())
        kept = rng.randint(0, n)
        logits = torch.from_numpy(text.logits())[None, :kept]
        torch.testing.assert_close(logits, full[:, at : at + kept], atol=1e-4, rtol=1e-4)
        text.keep(np.array([kept]))
        at += kept


def test_generation_is_the_plain_way_of_it():
    """Greedy text by full forwards, past the context."""
    model, ids = tiny_gpt(**SIMPLE), [BOS, *b"abc"]
    with torch.inference_mode():
        while len(ids) < 40:
            logits = model(torch.tensor([ids])).logits[0, -1, 0]
            logits[256:] = -torch.inf
            ids.append(int(logits.argmax()))
    made = texts(generate(model, b"abc", temperature=0, max_bytes=36, stop_symbols=frozenset()))
    assert made == [bytes(ids[4:])]


def test_memory_does_not_grow():
    text = NumpyGPT(tiny_gpt())
    shape = text.local.memory.shape
    for _ in range(30):
        text.read(np.full((1, 64), 97))
        text.keep(np.array([64]))
    assert text.local.memory.shape == shape
