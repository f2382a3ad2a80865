"""PicoChat's recipe: at full shape without memory, on torch's meta device; in little for real."""

import json
from pathlib import Path

import pytest
import torch

from pico.base.recipes import RECIPES
from pico.lab.compare import run_experiment
from pico.lab.experiment import read_experiment
from pico.model.build import build_model
from pico.model.cost import model_facts
from pico.train.optimizers import build_optimizers

FILE = Path(__file__).parents[2] / "experiments/picochat/experiment.json"


def test_its_settings_are_those_that_init_writes():
    plan = read_experiment(FILE)
    for configuration in plan.configurations:
        recipe = RECIPES["picochat"](plan.shape(configuration))
        settings = plan.settings(configuration, 0).model_dump()
        assert {key: settings[key] for key in recipe} == pytest.approx(recipe)


@pytest.mark.slow
def test_two_steps_at_full_shape_hold_the_memory_that_init_tells():
    plan = read_experiment(FILE)
    config, settings = plan.shape(plan.configurations[1]), plan.settings(plan.configurations[1], 0)
    told = model_facts(config)["memory_bytes"]
    with torch.device("meta"):
        model = build_model(config).train()
        model.gradient_checkpointing = settings.gradient_checkpointing
        optimizers = build_optimizers(model, settings)
        for _ in range(2):
            tokens = torch.zeros(1, config.max_context + 1, dtype=torch.long)
            model(tokens[:, :-1], targets=tokens[:, 1:]).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    assert sum(p.numel() for p in model.parameters()) == 335_544_320
    assert sum(p.nbytes for p in model.parameters()) == told["weights"]
    assert sum(p.grad.nbytes for p in model.parameters()) == told["gradients"]
    state = [x for each in optimizers for own in each.state.values() for x in own.values() if x.ndim]
    assert sum(x.nbytes for x in state) == told["optimizer"]["muon"]


@pytest.mark.slow
def test_the_recipe_in_little_trains(tmp_path):
    values = json.loads(FILE.read_text())
    (tmp_path / "text.txt").write_text("One day a little cat sat on a mat. It was happy to sit there. " * 400)
    small = values["configurations"][0]
    small["model"] |= dict(dim=64, num_blocks=2, att_q_heads=2, att_kv_heads=2, head_dim=32, vocab_size=280)
    small["train"]["context_len"] = 64
    values |= {"data": {"dataset": str(tmp_path / "text.txt")}, "configurations": [small], "budget": {"steps": 10}}
    (tmp_path / "experiment.json").write_text(json.dumps(values))
    plan = read_experiment(tmp_path)
    results, stopped = run_experiment(plan, tmp_path / "out", device="cpu", quiet=True, log=lambda text: None)
    assert stopped == "finished" and not results["failed"]
    assert results["configurations"][0]["bits_per_byte"]["mean"] < 4
