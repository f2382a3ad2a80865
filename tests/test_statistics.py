"""Intervals and tests, against printed tables and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.statistics import bootstrap, holm, paired_test, summary, t_quantile, t_two_sided


@pytest.mark.parametrize(
    "freedom, level, quantile",
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.99, 4.604), (9, 0.9, 1.833), (30, 0.95, 2.042)],
)
def test_t_quantiles_are_those_of_printed_tables(freedom, level, quantile):
    assert t_quantile(freedom, level) == pytest.approx(quantile, abs=6e-4)
    assert t_two_sided(quantile, freedom) == pytest.approx(1 - level, abs=1e-4)


@pytest.mark.parametrize("freedom", [1, 2, 5, 8])
def test_t_probability_is_the_integral_of_its_density(freedom):
    c = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    x = np.linspace(-1.7, 1.7, 20_001)
    inside = np.trapezoid(c * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    assert t_two_sided(1.7, freedom) == pytest.approx(1 - inside, abs=1e-6)


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
