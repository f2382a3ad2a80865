"""What `train` takes for a preset where flags say nothing."""

from pico.base.config import TrainConfig
from pico.base.presets import PRESETS, preset
from pico.base.recipes import RECIPES

MUON = dict(optimizer="muon", muon_step="original")


def test_every_recipe_is_of_a_preset_and_holds_settings():
    assert RECIPES.keys() <= PRESETS.keys()
    for name, recipe in RECIPES.items():
        TrainConfig.build(**recipe(preset(name)))


def test_the_rates_are_those_that_are_written_out():
    """PicoChat's fall with the root of the width; they are nanochat's at 768."""
    rest = dict(embedding_rate=2e-3, head_rate=2e-3, vector_rate=2e-3)
    assert RECIPES["simple-picolm"](preset("simple-picolm")) == MUON | rest | dict(learning_rate=1e-2, schedule="steps")
    rest = dict(learning_rate=0.02, schedule="warmdown", warmup_steps=0, weight_decay=0.0)
    for dim, embedding, head in ((768, 0.2, 0.004), (192, 0.4, 0.008)):
        found = RECIPES["picochat"](preset("picochat", dim=dim))
        assert found == MUON | rest | dict(embedding_rate=embedding, head_rate=head)
