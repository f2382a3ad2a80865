"""What a run may spend and what a step costs: the limits of a training, and its FLOPs.

FLOPs are counted twice. Charged: every byte through the local blocks, and those that were routed through the latent
ones; this is what a budget limits and what compared runs share. Executed: the latent blocks run on a buffer that
also holds slots without a routed byte. Both count the positions of the chunks, forward and backward, over all
processes; the optimizer's own work is left out.
"""

import math

from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.shapes import Shape
from pico.model.cost import flops_per_symbol


def step_flops(model: Shape, config: TrainConfig, routed: float | None = None, heads: int | None = None) -> int:
    """FLOPs of an optimizer step whose latent blocks ran on that fraction of the positions (None: the nominal one), and
    in which so many heads learned (None: all)."""
    return round(config.step_symbols * flops_per_symbol(model, config.context_len, routed, heads)[1])


def step_limit(config: TrainConfig, chunks: int | None) -> int | None:
    """Optimizer steps of a whole run, None if they do not limit it. chunks: in an epoch, None for a stream."""
    other = config.max_steps or config.max_minutes or config.max_flops
    limits, epochs = [], config.epochs or (None if other else 1)
    if config.max_steps:
        limits.append(config.max_steps)
    if epochs and chunks is None:
        raise PicoError(
            "the length of a stream is unknown: limit it by --max-steps, --max-minutes or --max-flops, not --epochs"
        )
    if epochs and chunks:
        limits.append(max(1, math.ceil(epochs * chunks / config.step_chunks)))
    return min(limits, default=None)


def progress(config: TrainConfig, steps: int | None, spent: dict) -> float:
    """Fraction of a run that is done, by the limit that is furthest; 0 if there is none.

    steps: limit on spent["step"], None if there is none. spent, as a checkpoint keeps it: step, seconds, flops.
    """
    limits = {"step": steps, "seconds": config.max_minutes and 60 * config.max_minutes, "flops": config.max_flops}
    return min(1.0, max((spent[name] / limit for name, limit in limits.items() if limit), default=0.0))
