"""How sure a figure is: bootstrap intervals over documents; over seeds t intervals, paired t tests, Holm's correction.

from pico.statistics import bootstrap, holm, paired_test
low, high = bootstrap(document_bits, document_bytes)
paired_test([1.21, 1.22, 1.20], [1.25, 1.27, 1.24])["p"]
holm([0.01, 0.04, 0.03])
"""

import math

import numpy as np

DRAWS = 1000


def bootstrap(bits, lengths, seed: int = 0, draws: int = DRAWS, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of sum(bits) / sum(lengths), over units (documents) drawn anew with replacement.

    None for fewer than two units.
    """
    bits, lengths = np.asarray(bits, float), np.asarray(lengths, float)
    n = len(bits)
    if n < 2:
        return None
    random = np.random.default_rng(seed)
    ratios = np.empty(draws)
    for i in range(draws):
        drawn = random.integers(n, size=n)
        ratios[i] = bits[drawn].sum() / lengths[drawn].sum()
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cosine if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1.0 - inside)


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t that |T| exceeds with probability 1 - level."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > 1 - level else (low, middle)
    return high


def summary(values: list[float]) -> dict:
    """mean, sd (of a sample) and the 95 % t interval of the mean; sd and interval None for a single value."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return {"mean": mean, "sd": None, "interval": None, "n": n}
    sd = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "interval": (mean - half, mean + half), "n": n}


def paired_test(ours: list[float], theirs: list[float]) -> dict:
    """Paired t test of ours - theirs, pair by pair: summary of the differences, t and two-sided p.

    t and p are None for a single pair, and where all pairs differ by exactly the same.
    """
    found = summary([a - b for a, b in zip(ours, theirs, strict=True)])
    if not found["sd"]:
        return found | {"t": None, "p": None}
    t = found["mean"] / (found["sd"] / math.sqrt(found["n"]))
    return found | {"t": t, "p": t_two_sided(t, found["n"] - 1)}


def holm(ps: list[float]) -> list[float]:
    """p values adjusted for their number: below x, the chance of even one false finding among them is below x.

    The smallest is multiplied by how many there are, the next by one less, and so on; none comes out below one that was
    smaller, or above 1 (S. Holm, A simple sequentially rejective multiple test procedure, 1979).
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted
