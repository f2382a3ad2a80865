"""From logits to the distribution that is drawn from: filters, temperature, the penalty for repetition."""

import math

import numpy as np
import pytest
import torch
from helpers import filtered, penalised
from hypothesis import given
from hypothesis import strategies as st

from pico.base.symbols import BOS, BYTES, EOS, VOCABULARY
from pico.decode.sampling import Sampling, numpy_distribution, numpy_penalised, torch_distribution, torch_penalised


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 2, 5, 40, 1000]),
    st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_filters_equal_a_plain_reference(seed, temperature, top_k, top_p, min_p):
    logits = 3 * torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = Sampling(**options)
    p = numpy_distribution(logits.numpy().copy(), sampling, sampling.banned(BYTES))
    on_device = torch_distribution(logits, sampling, torch.from_numpy(sampling.banned(BYTES))).numpy()
    np.testing.assert_allclose(on_device, p, atol=1e-6, rtol=1e-4)
    for row in range(2):
        wanted = torch.zeros(VOCABULARY)
        for i, x in filtered(logits[row].double(), **options).items():
            wanted[i] = x
        torch.testing.assert_close(torch.from_numpy(p[row]), wanted, atol=1e-5, rtol=1e-3)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.3, 4.0]), st.integers(1, 9), st.integers(1, 3))
def test_the_penalty_for_repetition_equals_its_formula(seed, penalty, window, n):
    """After each of the last n symbols, what stands among the last W: of a short text, and of control symbols, none."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, n, VOCABULARY)).astype(np.float32)
    texts = [rng.choice([5, 6, 7, 8, EOS, BOS], size).tolist() for size in (12, 2)]
    tokens = rng.choice([5, 6, 7, 8], (2, n + 1))
    sampling = Sampling(repetition_penalty=penalty, repetition_window=window)
    recent = np.array([sampling.recent(text, BYTES) for text in texts], int)
    assert recent.shape == (2, window)
    together = torch_penalised(*map(torch.from_numpy, (logits, recent, tokens)), sampling).numpy()
    for row, text in enumerate(texts):
        one = numpy_penalised(logits[row].copy(), recent[row].tolist(), tokens[row].tolist(), sampling)
        for i in range(n):
            ids = [*text, *tokens[row, : i + 2].tolist()]
            wanted = penalised(torch.from_numpy(logits[row, i]), ids, penalty, window).numpy()
            np.testing.assert_allclose(one[i], wanted, rtol=1e-6)
            np.testing.assert_allclose(together[row, i], wanted, rtol=1e-6)


def test_temperature_divides_and_vanishes_into_greedy():
    logits = torch.full((1, VOCABULARY), -1e9)
    logits[0, 65], logits[0, 66] = 1.0, 0.0
    banned = Sampling().banned(BYTES)
    for temperature in (0.5, 1.0, 3.0):
        p = numpy_distribution(logits.numpy().copy(), Sampling(temperature=temperature), banned)
        assert math.log(p[0, 65] / p[0, 66]) == pytest.approx(1 / temperature, rel=1e-4)
    for temperature in (0, 1e-6, 1e-45):
        assert numpy_distribution(logits.numpy().copy(), Sampling(temperature=temperature), banned)[0, 65] == 1
