"""Mixing with n-grams of the text so far: normalised, causal, in eval what it is in generation."""

import numpy as np
import pytest
import torch
from helpers import texts, tiny, tiny_gpt
from hypothesis import given
from hypothesis import strategies as st

from pico.base.symbols import BOS, EOS, VOCABULARY
from pico.decode import generation
from pico.decode.generation import generate
from pico.decode.online import ORDERS, OnlineNgrams, mixed_bits
from pico.decode.torch_reader import TorchReader
from pico.evaluate.score import traces

IDS = st.lists(st.sampled_from([*b"ab ", 255, EOS]), min_size=1, max_size=150)


def said(seed: int, count: int) -> np.ndarray:
    """What a model might say: (count, V)."""
    return np.random.default_rng(seed).dirichlet(np.full(VOCABULARY, 0.05), count) + 1e-9


@given(IDS, st.integers(0, 99))
def test_every_distribution_sums_to_one_and_is_what_is_charged(ids, seed):
    ngrams = OnlineNgrams()
    for symbol, p in zip(ids, said(seed, len(ids))):
        mixed = ngrams.mixed(p)
        assert mixed.sum() == pytest.approx(p.sum(), abs=1e-6) and mixed.min() > 0
        assert ngrams.read(symbol, p[symbol]) == pytest.approx(mixed[symbol])


@given(IDS, st.integers(0, 149), st.sampled_from([*b"abc"]), st.integers(0, 99))
def test_a_later_symbol_changes_no_earlier_cost(ids, place, other, seed):
    place, bits = place % len(ids), -np.log2(said(seed, len(ids))[range(len(ids)), ids])
    ids = np.array(ids)
    first = mixed_bits(ids, bits)
    ids[place] = other
    bits[place:] += 1
    assert (mixed_bits(ids, bits)[:place] == first[:place]).all()


def test_counts_are_those_of_all_of_the_text():
    """Against contexts that are looked for in the text itself; a symbol that is not scored counts as much."""
    ids = np.random.default_rng(0).integers(97, 99, 300)
    ngrams = OnlineNgrams()
    for i, symbol in enumerate(ids.tolist()):
        ngrams.read(symbol, None if i % 3 == 0 else 0.1)
    text = "".join(map(chr, ids))
    assert {len(context) for context in ngrams.counts} == set(ORDERS)
    for context, counts in ngrams.counts.items():
        follow = [text[i + len(context)] for i in range(299) if text[i:].startswith(context) and i + len(context) < 300]
        assert counts.pop(-1) == len(follow)
        assert counts == {ord(symbol): follow.count(symbol) for symbol in follow}


def test_a_weight_becomes_the_share_of_the_text_that_repeats():
    """Of a text whose every second symbol is random: repetition is learned, and chance costs hardly more."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, 256, 2000), np.full(2000, 7)], axis=1).ravel()
    bits = mixed_bits(ids, np.full(4000, 8.0)).reshape(-1, 2)[1000:].mean(0)
    assert bits[0] < 8.1 and bits[1] < 0.5
    assert (mixed_bits(~ids, np.zeros(4000)) == 0).all()


@pytest.mark.parametrize("kind", ["numpy", "torch", "gpt"])
def test_generation_draws_from_the_mixture_that_is_scored(kind, monkeypatch):
    """Symbol by symbol the surprise of each step is its cost in the mixture, and the likeliest is drawn."""
    model = tiny_gpt(max_context=64) if kind == "gpt" else tiny()
    if kind == "torch":
        monkeypatch.setattr(generation, "reader", lambda model, batch, feed, **options: TorchReader(model, batch, feed))
    run = generate(model, b"abcabc", temperature=0, max_bytes=40, mix_online=True, stop_symbols=frozenset())
    steps = list(run)
    assert run.stats["bytes_per_forward"] == 1
    ids = [BOS, *b"abcabc", *(step.id for step in steps)]
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0, :, 0].double().softmax(-1).numpy()
    ngrams = OnlineNgrams()
    for symbol in b"abcabc":
        ngrams.read(symbol)
    for step, says in zip(steps, p[6:]):
        mixed = ngrams.mixed(says)
        assert step.surprise == pytest.approx(-np.log2(mixed[step.id]), abs=1e-3)
        assert mixed[step.id] >= mixed[:256].max() - 1e-4
        ngrams.read(step.id, says[step.id])


def test_each_text_of_a_batch_has_n_grams_of_its_own():
    model = tiny()
    options = dict(mix_online=True, max_bytes=30, temperature=0)
    prompts = [b"abcabcabc", b"xyz", b""]
    together = list(generate(model, prompts, **options))
    for row, prompt in enumerate(prompts):
        alone = list(generate(model, prompt, **options))
        there = [step for step in together if step.row == row]
        assert [step.id for step in there] == [step.id for step in alone]
        assert [step.surprise for step in there] == pytest.approx([step.surprise for step in alone], abs=1e-3)
    several = generate(model, b"abab", mix_online=True, num_samples=3, max_bytes=20, temperature=1)
    assert len(set(texts(several))) == 3 and texts(several) == texts(several)


def test_a_document_costs_the_same_wherever_it_stands():
    model, documents = tiny(), [b"The cat sat. The cat sat. The cat sat.", b"A dog.", b"The cat sat."]
    there = [mixed_bits(trace.ids, trace.bits) for trace in traces(model, documents, 16)]
    alone = [mixed_bits(trace.ids, trace.bits) for text in documents for trace in traces(model, [text], 16)]
    for one, other in zip(there, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)
