"""How sure a figure is: names over scipy.stats for what Pico's reports need, and Holm's correction, which it lacks.

from pico.evaluate.statistics import bootstrap, holm, paired_test
low, high = bootstrap(document_bits, document_bytes)
paired_test([1.21, 1.22, 1.20], [1.25, 1.27, 1.24])["p"]
holm([0.01, 0.04, 0.03])
"""

import numpy as np
from scipy import stats

DRAWS = 1000
BATCH = 10**6  # numbers that the bootstrap gathers at once


def bootstrap(bits, lengths, seed: int = 0, draws: int = DRAWS, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of sum(bits) / sum(lengths), over units (documents) drawn anew with replacement.

    None for fewer than two units.
    """
    if len(bits) < 2:
        return None
    found = stats.bootstrap(
        (np.asarray(bits, float), np.asarray(lengths, float)),
        lambda bits, lengths, axis: bits.sum(axis) / lengths.sum(axis),
        paired=True,  # a document's bits stay with its bytes
        n_resamples=draws,
        batch=max(1, BATCH // len(bits)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def summary(values: list[float]) -> dict:
    """mean, sd (of a sample) and the 95 % t interval of the mean; sd and interval None for a single value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": mean, "sd": None, "interval": None, "n": n}
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"mean": mean, "sd": sd, "interval": (mean - half, mean + half), "n": n}


def paired_test(ours: list[float], theirs: list[float]) -> dict:
    """Paired t test of ours - theirs, pair by pair: summary of the differences, t and two-sided p.

    t and p are None for a single pair, and where all pairs differ by exactly the same.
    """
    found = summary([a - b for a, b in zip(ours, theirs, strict=True)])
    if not found["sd"]:
        return found | {"t": None, "p": None}
    tested = stats.ttest_rel(ours, theirs)
    return found | {"t": float(tested.statistic), "p": float(tested.pvalue)}


def holm(ps: list[float]) -> list[float]:
    """p values adjusted for their number: below x, the chance of even one false finding among them is below x.

    The smallest is multiplied by how many there are, the next by one less, and so on; none comes out below one that was
    smaller, or above 1 (S. Holm, A simple sequentially rejective multiple test procedure, 1979).
    """
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty(len(ps))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(ps), 0, -1) * np.asarray(ps)[order]))
    return adjusted.tolist()
