"""Intervals and tests, against printed tables and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.evaluate.statistics import bootstrap, holm, paired_test, summary


def test_the_interval_of_a_mean_is_that_of_printed_tables():
    for values, quantile in (([1, 3], 12.706), ([1, 2, 3], 4.303), ([1, 2, 2, 3], 3.182)):
        found = summary(values)
        assert found["mean"] == 2 and found["sd"] == pytest.approx(math.sqrt(2 / (len(values) - 1)))
        half = quantile * found["sd"] / math.sqrt(len(values))
        assert found["interval"] == pytest.approx((2 - half, 2 + half), abs=1e-3)


def test_a_paired_test_sees_a_small_difference_that_seeds_hide():
    base = [1.30, 1.20, 1.25]
    found = paired_test([x - 0.010 + e for x, e in zip(base, (0.001, -0.001, 0.0))], base)
    assert found["mean"] == pytest.approx(-0.01)
    assert found["t"] == pytest.approx(-0.01 / (0.001 / math.sqrt(3)))
    assert 0.002 < found["p"] < 0.005
    assert found["interval"][1] < 0


def test_one_pair_or_identical_differences_give_no_p():
    assert paired_test([1.0], [2.0]) == {
        "mean": -1.0, "sd": None, "interval": None, "n": 1, "t": None, "p": None
    }  # fmt: skip
    assert paired_test([1.0, 3.0], [1.0, 3.0])["p"] is None
    assert summary([2.0])["sd"] is None


def test_bootstrap_covers_about_as_often_as_it_says():
    random, inside = np.random.default_rng(1), 0
    for trial in range(100):
        lengths = random.integers(50, 500, size=60)
        bits = lengths * random.normal(1.5, 0.3, size=60)
        low, high = bootstrap(bits, lengths, seed=trial, draws=200)
        inside += low <= 1.5 <= high
    assert 86 <= inside <= 99


def test_bootstrap_weighs_by_bytes_repeats_itself_and_needs_two_units():
    bits, lengths = [10.0, 4000.0] * 10, [10, 1000] * 10
    assert bootstrap(bits, lengths) == bootstrap(bits, lengths)
    assert bootstrap(bits, lengths) != bootstrap(bits, lengths, seed=1)
    low, high = bootstrap(bits, lengths)
    assert low <= 4010 / 1010 <= high and low > 3.5
    assert bootstrap([1.0], [1]) is None


def test_bootstrap_draws_documents_as_numpy_does():
    lengths = np.arange(10, 400)
    bits = lengths * np.cos(lengths) ** 2
    random = np.random.default_rng(3)
    drawn = [random.integers(len(bits), size=len(bits)) for _ in range(50)]
    ratios = [bits[i].sum() / lengths[i].sum() for i in drawn]
    assert bootstrap(bits, lengths, seed=3, draws=50) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=1e-12)


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04 0.5: 5 x 0.01, 4 x 0.02, 3 x 0.03, then 2 x 0.04 = 0.08 is raised to the 0.09 before it
    assert holm([0.04, 0.01, 0.5, 0.02, 0.03]) == pytest.approx([0.09, 0.05, 0.5, 0.08, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps, level):
    rejected = set()
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if (len(ps) - rank) * ps[i] > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected
