"""Models and batches that cannot fit are refused by arithmetic, before anything is built."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from helpers import tiny, tiny_config, tiny_gpt_config

import pico.model.gpt
import picolm
from pico.base import memory
from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.memory import forget_peak, free_bytes, peak_memory, training_bytes
from pico.base.presets import preset
from pico.base.routers import ROUTERS
from pico.base.shapes import ModelConfig
from pico.decode.generation import generate
from pico.model.build import build_model, sparse_tables
from pico.model.cost import activation_bytes, model_facts
from pico.model.pico import Pico
from pico.runs.folder import create
from pico.train.optimizers import build_optimizers


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("router", [*ROUTERS, None])
def test_the_bytes_of_training_are_those_it_comes_to_hold(optimizer, router):
    """Never more, or a model that fits would be refused; and nearly all of them. None: of a gpt."""
    gpt = dict(ngram_max=3, ngram_rows=500, gate="input", qkv_bias=True, norm_gain=True)
    config = tiny_config(router, ngram_rows=500) if router else tiny_gpt_config(**gpt)
    model = build_model(config).train()
    sparse_tables(model, True)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    for _ in range(2):
        tokens = torch.randint(256, (2, 40))
        out = model(tokens[:, :36], targets=tokens[:, 1 : 36 + config.next_tokens])
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
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
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
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
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


SIMPLE = dict(
    qk_norm="before", rope_fraction=0.5, sandwich_norm=True, norm_gain=True, mlp_ratio_last=3, gate="query",
    qkv_bias=True, embedding_scale="sqrt", init="depth",
)  # fmt: skip
PICOCHAT = dict(mlp="relu2", embedding_scale="norm", logit_softcap=15.0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("changes", [{}, dict(qk_norm="none", gate="input", num_blocks=3), SIMPLE, PICOCHAT])
def test_the_activations_of_a_gpt_are_those_that_its_backward_pass_finds(changes, checkpointing):
    """Storages that autograd holds when the forward is done; with checkpointing also those of one block run again."""
    config = tiny_gpt_config(**(dict(dim=64, head_dim=16, max_context=128) | changes))
    model, tokens = build_model(config).train(), torch.randint(256, (4, 129))
    model.gradient_checkpointing = checkpointing
    weights, held = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def hold(x):
        if x.untyped_storage().data_ptr() not in weights and x.dtype != torch.long:
            held[x.untyped_storage().data_ptr()] = x  # alive, so that no other takes its place
        return x

    for block in model.blocks if checkpointing else ():
        block.register_forward_pre_hook(lambda _, inputs: held.update({inputs[0].data_ptr(): inputs[0]}))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        model(tokens[:, :128], targets=tokens[:, 1:])
        if checkpointing:
            block, x = model.blocks[-1], torch.randn(4, 128, 64)  # the widest
            block.forward(x.requires_grad_(), pico.model.gpt.rotation(torch.arange(128)[None], config))
    found = sum(x.untyped_storage().nbytes() for x in held.values())
    assert activation_bytes(config, 4, 128, checkpointing) == pytest.approx(found, rel=0.03)


def test_init_tells_the_memory_of_training_before_it_starts(tmp_path, capsys):
    """PicoChat's 335,544,320 weights: 4 bytes each, as much for gradients; Muon keeps one number for each of a matrix
    and two of embedding and head."""
    assert picolm.main(["init", str(tmp_path / "m"), "--preset", "picochat"]) == 0
    facts = model_facts(preset("picochat"))["memory_bytes"]
    assert facts["weights"] == facts["gradients"] == 4 * 335_544_320
    assert facts["optimizer"]["muon"] == 4 * (16 * 12 * 1024**2 + 2 * 2 * 65536 * 1024)
    assert facts["activations_checkpointed"]["cpu"] < facts["activations"]["cpu"] < facts["activations"]["mps"]
    out = capsys.readouterr().out
    assert "4.56 GB  training with muon" in out and "gradient_checkpointing=true" in out and "in generation" in out


def test_the_most_that_was_held_here_and_on_windows(monkeypatch):
    held = np.ones(2**23)
    before = peak_memory("cpu")
    assert held.nbytes < before < 2**40
    held = None
    forget_peak("cpu")
    if sys.platform == "linux":
        assert peak_memory("cpu") <= before - 2**25
    monkeypatch.setattr(Path, "read_text", lambda _: "")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(peak_wset=12345))
    assert peak_memory("cpu") == 12345
