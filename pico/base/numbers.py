"""Numbers as a person reads them."""

import math


def count(value: float, unit: str = "") -> str:
    """1234567 -> '1.23 M'; three figures and a thousands' letter."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def perplexity(nats: float) -> float:
    """e^nats: among so many equally likely symbols the model was to choose. Where a float ends it stays."""
    return math.exp(min(nats, 700.0))
