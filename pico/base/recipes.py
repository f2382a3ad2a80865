"""Recipes: the settings of training that go with a preset. `init` writes them beside the shape, for `train` to take.

To add one write its function here, from a shape to fields of TrainConfig, and name it in RECIPES.
"""

from collections.abc import Callable

from pico.base.shapes import Shape


def simple_picolm(config: Shape) -> dict:
    """Simple-PicoLM's: Muon for the matrices, AdamW at a fifth of its rate for the rest, and steps down at the end.

    There the head is Muon's too.
    """
    rates = dict(learning_rate=1e-2, embedding_rate=2e-3, head_rate=2e-3, vector_rate=2e-3)
    return dict(optimizer="muon", muon_step="original", **rates, schedule="steps")


def picochat(config: Shape) -> dict:
    """nanochat's: Muon for the matrices, and AdamW at rates that fall with the width for embedding and head."""
    scale = (config.dim / 768) ** -0.5
    rates = dict(learning_rate=0.02, embedding_rate=0.2 * scale, head_rate=0.004 * scale)
    end = dict(schedule="warmdown", warmup_steps=0, weight_decay=0.0)
    return dict(optimizer="muon", muon_step="original", **rates, **end)


def gpt_tiny(config: Shape) -> dict:
    """2,048 symbols a step in many short contexts: from few long ones the twins learn less at equal FLOPs."""
    return dict(batch_size=32)


RECIPES: dict[str, Callable[[Shape], dict]] = {
    "simple-picolm": simple_picolm,
    "simple-picolm-xl": simple_picolm,
    "picochat": picochat,
    "gpt-tiny": gpt_tiny,
    "gpt-bytes-tiny": gpt_tiny,
}
