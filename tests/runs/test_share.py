"""An exported folder on its way: written whole or not at all, to the Hub and back, here one of our own."""

import fnmatch
import json
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from checkpointed import told, write_run
from helpers import random_tokens, tiny, tiny_gpt

import picolm
from pico import PicoError, load
from pico.runs.export import folder_size
from pico.runs.folder import local_folder, model_name
from pico.runs.share import export_for_transformers

PICO = {"config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
        "model.safetensors.index.json", "modeling_pico.py", "tokenization_pico.py", "model.json", "r"}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "m", tiny())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """In place of the Hub a folder; returns it."""
    place = tmp_path / "hub"

    def upload_folder(self, *, repo_id, folder_path, **_):
        assert (place / repo_id).is_dir(), "it was not made"
        shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
        return f"address of {repo_id}"

    def repo_info(self, name, **_):
        if not (place / name).is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError)

    def snapshot_download(name, allow_patterns, local_files_only):
        assert not local_files_only
        folder = tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abcd"
        folder.mkdir(parents=True)
        for file in (place / name).rglob("*"):
            inside = file.relative_to(place / name)
            if file.is_file() and any(fnmatch.fnmatch(inside.as_posix(), pattern) for pattern in allow_patterns):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (folder / inside).symlink_to(file)
        return str(folder)

    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda self, name, exist_ok: (place / name).mkdir(parents=True))
    monkeypatch.setattr(api, "upload_folder", upload_folder)
    monkeypatch.setattr(api, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return place


def test_a_folder_is_a_model_of_pico_too(path, tmp_path):
    out = export_for_transformers(path, "r", tmp_path / "out", -1)
    assert {file.name for file in out.iterdir()} == PICO and told(out / "r") == []
    assert not [file for file in out.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    ids = random_tokens(1, 30)
    assert torch.equal(load(out)(ids).logits, load(path)(ids).logits)
    with pytest.raises(PicoError, match="already exists"):
        export_for_transformers(path, "r", tmp_path / "out", -1)


def test_weights_are_halved_where_nothing_is_lost(tmp_path):
    model = tiny()
    whole = export_for_transformers(write_run(tmp_path / "m", model), "r", tmp_path / "whole", -1)
    for p in model.parameters():
        p.data = p.half().float()
    halves = export_for_transformers(write_run(tmp_path / "n", model), "r", tmp_path / "halves", -1)
    assert folder_size(halves / "r") < 0.6 * folder_size(whole / "r")
    assert torch.equal(load(halves).heads.weight, model.heads.weight)
    assert json.loads((halves / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("score, bits", [(None, 1.25), ("[", 1.25), ('{"bits_per_byte": 1.5}', 1.5)])
def test_the_card_says_what_the_run_recorded(path, tmp_path, score, bits):
    if score:
        (path / "r" / "score.json").write_text(score)
    card = (export_for_transformers(path, "r", tmp_path / "out", -1) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == bits and result["dataset"]["name"] == "stories"
    assert f"| **{bits:.3f}** |" in card and "`stories`, 1,000 bytes" in card and "None" not in card


def test_an_answer_ends_at_its_end(path, tmp_path):
    settings = []
    for name, chat in (("a", False), ("b", True)):
        record = json.loads((path / "r" / "train.json").read_text())
        (path / "r" / "train.json").write_text(json.dumps({**record, "chat": chat}))
        out = export_for_transformers(path, "r", tmp_path / name, -1)
        assert ("conversational" in (out / "README.md").read_text()) == chat
        settings.append(json.loads((out / "generation_config.json").read_text()))
    assert settings[0]["eos_token_id"] == [257] and settings[1]["eos_token_id"] == [257, 261]
    assert 261 in settings[0]["suppress_tokens"] and 261 not in settings[1]["suppress_tokens"]


@pytest.mark.parametrize("place", ["write_json", "save_file", "model_card"])
def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, place):
    import pico.runs.share as module

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    llama = tiny_gpt(qk_norm="none")
    path = write_run(tmp_path / "m", llama)
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(module, place, fail)
        with pytest.raises(PicoError, match="full") as error:
            export_for_transformers(path, "r", tmp_path / "out", -1)
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before
    assert export_for_transformers(path, "r", tmp_path / "out", -1).is_dir()


def test_to_the_hub_and_back(path, hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert picolm.main(["export", "m", "r", "out", "--format", "hf", "--push", "me/toy", "--checkpoint", "-1"]) == 0
    said = capfd.readouterr().err
    assert "uploaded: address of me/toy" in said and "run hf://me/toy r" in said
    assert {file.name for file in (hub / "me/toy").iterdir()} == PICO
    card = (hub / "me/toy" / "README.md").read_text()
    assert 'from_pretrained("me/toy"' in card and "run hf://me/toy r" in card and "nothing can be forged" in card
    ids = random_tokens(1, 30)
    assert torch.equal(load("hf://me/toy")(ids).logits, load(path)(ids).logits)
    assert not list((tmp_path / "cache").rglob("*.py"))
    shutil.rmtree(tmp_path / "cache")
    assert picolm.main(["run", "hf://me/toy", "r", "--prompt", "Hi", "--max-bytes", "5", "--device", "cpu"]) == 0
    assert capfd.readouterr().out.startswith("Hi")
    shutil.rmtree(tmp_path / "cache")
    assert picolm.main(["init", "mine", "--from", "hf://me/toy"]) == 0
    assert load("mine").config == load(path).config


def test_pico_s_own_form_goes_there_too(path, hub, tmp_path):
    assert picolm.main(["export", str(path), "r", str(tmp_path / "out"), "--checkpoint", "-1", "--push", "me/own"]) == 0
    assert sorted(file.name for file in (hub / "me/own").iterdir()) == ["model.json", "r"]
    folder = local_folder("hf://me/own")
    assert load(folder).config == load(path).config and model_name(folder) == "own" and model_name(path) == "m"


def test_what_the_hub_does_not_have(hub, tmp_path):
    with pytest.raises(PicoError, match=r"no model 'me/none' on the Hugging Face Hub"):
        load("hf://me/none")
    (hub / "me/other").mkdir(parents=True)
    (hub / "me/other/config.json").write_text("{}")
    with pytest.raises(PicoError, match=r"holds no Pico model: expected a model.json"):
        load("hf://me/other")
    for name in "toy", "me/toy/r", "../toy", "me/..":
        with pytest.raises(PicoError, match="expected hf://OWNER/NAME"):
            load(f"hf://{name}")


def test_without_a_network(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PicoError, match="cannot be reached, and it was never downloaded; give the folder of a model"):
        load("hf://me/toy")


def test_an_upload_that_is_refused(path, hub, tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise PermissionError("401:\nyou are nobody")

    line = ["export", str(path), "r", str(tmp_path / "out"), "--checkpoint", "-1", "--format", "hf", "--push"]
    assert picolm.main([*line, "toy"]) == 2 and "expected OWNER/NAME" in capfd.readouterr().err
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert picolm.main([*line, "me/toy"]) == 2
    said = capfd.readouterr().err
    assert "401: you are nobody" in said and f"hf upload me/toy {tmp_path / 'out'}" in said
    assert load(tmp_path / "out") is not None


@pytest.mark.parametrize("line", ["train hf://me/toy r stories", "init hf://me/toy", "export m r hf://me/toy"])
def test_only_what_is_read_may_be_on_the_hub(line, hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert picolm.main(line.split()) == 2
    assert "hf://me/toy is on the Hugging Face Hub: expected a path on this disk" in capfd.readouterr().err
