"""An exported model: small, honest about where it came from, and read like any other run."""

import json

import pytest
import torch

from pico import DataConfig, PicoError, TrainConfig, checkpoint, load, preset
from pico import train as training
from pico.export import export, size
from pico.folder import create
from pico.train import train

SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=64, ngram_dim=4,
)  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAMPLE_BYTES", 4)
    monkeypatch.setattr(training, "plot_losses", lambda *_: None)
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{i} cats purr."}}\n' for i in range(200)))
    path = create(tmp_path / "m", preset("tiny", **SMALL))
    config = TrainConfig(context_len=32, batch_size=4, max_steps=6, validation_interval=2, precision="fp32")
    train(path, "r", DataConfig(dataset=str(tmp_path / "texts.jsonl")), config, quiet=True, device="cpu")
    return path


def test_an_exported_model_is_the_same_in_half_precision(trained, tmp_path):
    made = export(trained, "r", tmp_path / "out", -1)
    one, two = load(trained, "r"), load(tmp_path / "out", "r")
    tokens = torch.randint(256, (1, 40))
    torch.testing.assert_close(one(tokens).logits, two(tokens).logits, atol=0.02, rtol=0.02)
    assert {p.dtype for p in two.parameters()} == {torch.float32}
    assert sorted(file.name for file in made.iterdir()) == ["model.safetensors", "state.json"]
    assert size(tmp_path / "out") < size(trained) / 3


def test_an_exported_model_tells_no_paths(trained, tmp_path):
    export(trained, "r", tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.json*"):
        assert str(tmp_path) not in file.read_text(), file
    lines = [json.loads(line) for line in (tmp_path / "out/r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and all("validation_bpb" in line for line in lines)


def test_an_exported_model_starts_a_new_run_but_continues_none(trained, tmp_path):
    made = export(trained, "r", tmp_path / "out", -1)
    config = TrainConfig(context_len=32, batch_size=4, max_steps=8, precision="fp32")
    data = DataConfig(dataset=str(tmp_path / "texts.jsonl"))
    assert train(tmp_path / "out", "more", data, config, base_weights="r", quiet=True, device="cpu").steps == 8
    with pytest.raises(PicoError, match="--base-weights"):
        train(tmp_path / "out", "r", data, config, resume=True, quiet=True, device="cpu")
    assert checkpoint.verify(made) is None


def test_exporting_over_a_model_is_refused(trained):
    with pytest.raises(PicoError, match="already exists"):
        export(trained, "r", trained)
