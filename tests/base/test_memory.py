"""Models and batches that cannot fit are refused by arithmetic, before anything is built."""

import json

import pytest
import torch
from helpers import tiny, tiny_config

import picolm
from pico.base import memory
from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.memory import free_bytes, training_bytes
from pico.base.routers import ROUTERS
from pico.base.shapes import ModelConfig, preset
from pico.decode.generation import generate
from pico.model.pico import Pico
from pico.runs.folder import create
from pico.train.optimizers import build_optimizers


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("router", ROUTERS)
def test_the_bytes_of_training_are_those_it_comes_to_hold(optimizer, router):
    """Never more, or a model that fits would be refused; and nearly all of them."""
    config = tiny_config(router, ngram_rows=500)
    model = Pico(config).train()
    model.ngrams.table.sparse = True
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    for _ in range(2):
        tokens = torch.randint(256, (2, 40))
        out = model(tokens[:, :36], targets=tokens[:, 1:40])
        (out.loss + 0.1 * out.router_loss).backward()
        for each in optimizers:
            each.step()
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.nbytes for p in model.dense_parameters())
    state = [each.state.values() for each in optimizers]
    held = weights + gradients + sum(x.nbytes for states in state for s in states for x in s.values())
    assert 0.75 * held < training_bytes(config, optimizer) <= 1.02 * held


def test_what_cannot_fit_is_refused_before_it_is_built(tmp_path, monkeypatch, capsys):
    file = tmp_path / "text.txt"
    file.write_text("a text " * 500)
    path = create(tmp_path / "m", preset("tiny"))
    line = ["train", str(path), "r", str(file), "--device", "cpu", "--max-steps", "1", "--optimizer", "adamw"]
    needed = training_bytes(preset("tiny"), "adamw")
    monkeypatch.setattr(memory, "available", lambda device: needed - 1)
    monkeypatch.setattr(Pico, "__init__", lambda *_: pytest.fail("it was built"))
    assert picolm.main(line) == 2
    err = capsys.readouterr().err
    assert f"{needed / 1e9:.1f} GB needed on cpu" in err and "smaller model" in err and "Traceback" not in err


@pytest.mark.parametrize("shape", [dict(dim=2**16, fb_num_blocks=1000), dict(ngram_rows=2**28, ngram_dim=2**16)])
def test_the_largest_models_are_a_line_at_once(tmp_path, shape, capsys):
    largest = ModelConfig.build(**shape)
    path = create(tmp_path / "m", largest)
    (tmp_path / "text.txt").write_text("a text " * 500)
    assert picolm.main(["info", str(path)]) == 0
    assert picolm.main(["train", str(path), "r", str(tmp_path / "text.txt"), "--device", "cpu"]) == 2
    assert "GB needed on cpu" in capsys.readouterr().err


@pytest.mark.parametrize("change", [dict(fb_num_blocks=10**9), dict(dim=10**9), dict(latent_num_blocks=10**9)])
def test_sizes_past_every_bound_are_a_line_wherever_they_stand(tmp_path, change, capsys):
    path = create(tmp_path / "m", preset("tiny"))
    (path / "model.json").write_text(json.dumps(preset("tiny").model_dump() | change))
    for line in (["info", str(path)], ["run", str(path)], ["train", str(path), "r", "stories"]):
        assert picolm.main(line) == 2
        assert next(iter(change)) in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10**6)
    with pytest.raises(PicoError, match="keys and values of 60000 texts"):
        list(generate(tiny(), num_samples=60000))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
    whole = free_bytes("cpu")
    assert whole > 10**8
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes("cpu") == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 10**8
