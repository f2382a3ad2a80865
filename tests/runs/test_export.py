"""An exported model: small, honest about where it came from, and read like any other run."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from checkpointed import told
from helpers import first_fast

from pico import DataConfig, PicoError, TrainConfig, load, preset
from pico.base import files
from pico.runs import checkpoint, folder
from pico.runs.export import export_run, folder_size
from pico.runs.folder import create, is_chat
from pico.train import loop as training
from pico.train.loop import train

SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=64, ngram_dim=4,
)  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setattr("pico.train.intervals.SAMPLE_BYTES", 4)
    monkeypatch.setattr(training, "plot_losses", lambda *_: None)
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{i} cats purr."}}\n' for i in range(200)))
    path = create(tmp_path / "m", preset("tiny", **SMALL))
    config = TrainConfig(context_len=32, batch_size=4, max_steps=6, validation_interval=2, precision="fp32")
    train(path, "r", DataConfig(dataset=str(tmp_path / "texts.jsonl")), config, quiet=True, device="cpu")
    return path


def test_an_exported_model_is_the_same_in_half_precision(trained, tmp_path):
    made = export_run(trained, "r", tmp_path / "out", -1)
    one, two = load(trained, "r"), load(tmp_path / "out", "r")
    tokens = torch.randint(256, (1, 40))
    torch.testing.assert_close(one(tokens).logits, two(tokens).logits, atol=0.02, rtol=0.02)
    assert {p.dtype for p in two.parameters()} == {torch.float32}
    assert sorted(file.name for file in made.iterdir()) == ["model.safetensors", "state.json"]
    assert folder_size(tmp_path / "out") < folder_size(trained) / 3


def test_a_run_says_whether_it_was_trained_on_conversations(trained, tmp_path):
    rows = "".join(f'{{"question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(99))
    (tmp_path / "talk.jsonl").write_text(rows)
    data = DataConfig(dataset=str(tmp_path / "talk.jsonl"), format="chat")
    train(trained, "talk", data, TrainConfig(context_len=32, batch_size=4, max_steps=1), quiet=True, device="cpu")
    export_run(trained, "talk", tmp_path / "out", -1)
    runs = trained / "r", trained / "talk", tmp_path / "out" / "talk", tmp_path
    assert [is_chat(run) for run in runs] == [False, True, True, False]


def test_an_exported_model_tells_no_paths(trained, tmp_path):
    export_run(trained, "r", tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.json*"):
        assert str(tmp_path) not in file.read_text(), file
    lines = [json.loads(line) for line in (tmp_path / "out/r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and all("validation_bpb" in line for line in lines)


def test_nothing_of_the_maker_s_machine_is_told(trained, tmp_path):
    """Whatever train.json holds: keys of a later version, paths of both systems, accounts, devices."""
    file = trained / "r" / "train.json"
    record = json.loads(file.read_text())
    record["data"] |= {"train_file": "/home/jane/a.txt", "validation_file": "C:\\Users\\jane\\b.txt"}
    record["data"]["dataset"] = "\\\\server\\jane\\texts"
    record["train"] |= {"tracker": "wandb", "tracker_project_name": "jane-secret"}
    record |= {"base_weights": {"run": "/home/jane/models/m/old", "step": 3, "sha256": "0" * 64, "more": "/home"}}
    record |= {"device": "cuda:3", "hostname": "jane-laptop", "versions": {"python": "3.12", "path": "/home/jane"}}
    file.write_text(json.dumps(record))
    with open(trained / "r" / "metrics.jsonl", "a") as lines:
        lines.write(json.dumps({"step": 7, "validation_bpb": 2.0, "file": "/home/jane"}) + "\n")
    export_run(trained, "r", tmp_path / "out", -1)
    assert told(tmp_path / "out", ["jane", str(tmp_path)]) == []
    kept = json.loads((tmp_path / "out" / "r" / "train.json").read_text())
    assert [kept["data"][key] for key in ("dataset", "train_file", "validation_file")] == ["texts", "a.txt", "b.txt"]
    assert kept["base_weights"] == {"run": "old", "step": 3, "sha256": "0" * 64} and kept["device"] == "cuda"


def test_the_shipped_model_tells_no_paths():
    assert told(Path(__file__).parents[2] / "models" / "tinystories") == []


@pytest.mark.parametrize("place", first_fast("save_file", "write_state", "write_json", "create", "interrupt"))
@pytest.mark.parametrize("there", [False, True])
def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, place, there):
    def fail(*_, **__):
        raise KeyboardInterrupt if place == "interrupt" else OSError(28, "No space left on device")

    module = importlib.import_module("pico.runs.export")
    out = tmp_path / "a" / "out"
    if there:
        out.mkdir(parents=True)
        (out / "README.md").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    owner, name = {
        "write_state": (checkpoint, "write_state"), "write_json": (files.os, "fsync"), "create": (folder.Path, "mkdir"),
        "interrupt": (module, "create"),
    }.get(place, (module, "save_file"))  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(KeyboardInterrupt if place == "interrupt" else PicoError, match=r"full|^$") as error:
            export_run(trained, "r", out)
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before
    export_run(trained, "r", out)
    assert load(out).config == load(trained).config


@pytest.mark.parametrize(
    "content", first_fast("[", "[]", '{"train": 1}', '{"data": {"dataset": 3}}', '{"train": {"more": 1}}')
)
def test_an_odd_train_json_is_one_line(trained, tmp_path, content):
    (trained / "r" / "train.json").write_text(content)
    with pytest.raises(PicoError, match=r"train.json|DataConfig|TrainConfig") as error:
        export_run(trained, "r", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert load(trained, "r") is not None


def test_an_exported_model_starts_a_new_run_but_continues_none(trained, tmp_path):
    made = export_run(trained, "r", tmp_path / "out", -1)
    config = TrainConfig(context_len=32, batch_size=4, max_steps=8, precision="fp32")
    data = DataConfig(dataset=str(tmp_path / "texts.jsonl"))
    assert train(tmp_path / "out", "more", data, config, base_weights="r", quiet=True, device="cpu").steps == 8
    with pytest.raises(PicoError, match="--base-weights"):
        train(tmp_path / "out", "r", data, config, resume=True, quiet=True, device="cpu")
    assert checkpoint.verify_checkpoint(made) is None


def test_exporting_over_a_model_is_refused(trained):
    with pytest.raises(PicoError, match="already exists"):
        export_run(trained, "r", trained)
