"""Schedules: the learning rate over the run, as a share of its peak. A function of progress each, and one table.

Progress is the fraction of the run that is done, by steps, clock or FLOPs, 0 to 1. To add a schedule write its function
here and name it in SCHEDULES.
"""

import math
from collections.abc import Callable


def linear(progress: float) -> float:
    """On a line from the peak to zero."""
    return 1 - progress


def wsd(progress: float) -> float:
    """Warm-up, stable, decay (arXiv 2404.06395), with a long decay: the peak to 60 %, then on a line to zero."""
    return min(1.0, (1 - progress) / 0.4)


def steps(progress: float) -> float:
    """A warm-up of 6 %, the peak to 80 %, then .316 of it to 90 %, and .1 to the end (Simple-PicoLM's)."""
    if progress < 0.8:
        return min(1.0, progress / 0.06)
    return 0.316 if progress < 0.9 else 0.1


def warmdown(progress: float) -> float:
    """The peak, and in the last 20 % a line to zero."""
    return min(1.0, (1 - progress) / 0.2)


def cosine(progress: float) -> float:
    """Half a cosine wave from the peak to zero (arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": linear,
    "wsd": wsd,
    "steps": steps,
    "warmdown": warmdown,
    "cosine": cosine,
}
WARMED = ("steps",)  # those with a warm-up of their own
