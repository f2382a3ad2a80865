"""The command `tokenizer`, and models that have one: made, kept, checked and passed on."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import refused

from pico import load
from pico.base.errors import PicoError
from pico.data import bpe
from pico.evaluate.score import score
from pico.runs.folder import create, read_alphabet, read_config

TEXT = "the cat sat on the mat and the dog sat on the cat; " * 40
GPT = "--preset gpt-tiny --dim 16 --num-blocks 1 --att-q-heads 2 --att-kv-heads 1 --head-dim 8"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def tokenizer(cli):
    result = cli("tokenizer text.txt t.json --vocab-size 280")
    assert result.code == 0, result.err
    return result


@pytest.mark.slow
def test_it_is_made_and_judged_by_the_validation_part(cli, tokenizer, tmp_path):
    assert [line.split()[0] for line in tokenizer.out.splitlines()] == ["vocabulary", "bytes", "bytes"]
    assert "280" in tokenizer.out and "validation" in tokenizer.err and "--tokenizer t.json" in tokenizer.err
    assert bpe.read_tokenizer("t.json").size == 280
    refused(cli("tokenizer text.txt t.json"), "t.json already exists")
    refused(cli("tokenizer none.txt u.json"), "none.txt")
    refused(cli("tokenizer text.txt folder/u.json"), "there is no folder")
    refused(cli("tokenizer text.txt u.json --vocab-size 100"), "--vocab-size 100: expected 262")
    assert not (tmp_path / "u.json").exists()
    assert "the text gives no more than" in cli("tokenizer text.txt large.json").err
    stories = cli("tokenizer stories stories.json --vocab-size 300")
    assert stories.code == 0 and bpe.read_tokenizer("stories.json").size == 300


def test_a_model_gets_a_copy_and_its_size(cli, tokenizer):
    assert cli(f"init m {GPT} --tokenizer t.json").code == 0
    config = read_config("m")
    assert config.vocab_size == 280 and config.tokenizer_sha256 == bpe.checksum("t.json") == bpe.checksum(
        "m/tokenizer.json"
    )
    alphabet = read_alphabet("m", config)
    assert alphabet.unit == "token" and alphabet.decode(alphabet.encode(b"the cat \xff")) == b"the cat \xff"
    assert cli(f"init n {GPT} --tokenizer t.json --vocab-size 280").code == 0
    assert cli(f"init o {GPT} --tokenizer m").code == 0  # the folder of a model that has one
    refused(cli(f"init p {GPT} --tokenizer t.json --vocab-size 300"), "--vocab-size 300", "280 ids")
    refused(cli(f"init p {GPT} --tokenizer text.txt"), "text.txt", "JSON")
    refused(cli(f"init p {GPT} --tokenizer none.json"), "no tokenizer at none.json")
    refused(cli("init p --tokenizer t.json"), "reads bytes")
    refused(cli("init p --preset gpt-bytes-tiny --tokenizer t.json"), "reads bytes")
    refused(cli("init p --from m --tokenizer t.json"), "--from takes shape and tokenizer")
    refused(cli(f"init m {GPT} --tokenizer t.json"), "already exists")


def test_a_refused_model_leaves_nothing(cli, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("pico.runs.folder.write_json", lambda *_: (_ for _ in ()).throw(PicoError("full")))
    refused(cli(f"init new/m {GPT} --tokenizer t.json"), "full")
    assert not (tmp_path / "new").exists()
    (tmp_path / "here").mkdir()
    shutil.copy("t.json", "here/tokenizer.json")
    refused(cli(f"init here {GPT} --tokenizer here/tokenizer.json"), "full")
    assert bpe.checksum("here/tokenizer.json") == bpe.checksum("t.json")  # which lay there before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli(f"init here {GPT} --tokenizer t.json").code == 0  # the same one
    (tmp_path / "there").mkdir()
    (tmp_path / "there/tokenizer.json").write_text("another")
    refused(cli(f"init there {GPT} --tokenizer t.json"), "there/tokenizer.json already exists")


def test_without_a_tokenizer_there_is_a_shape_but_no_training(cli):
    result = cli(f"init m {GPT}")
    assert result.code == 0 and "tokenizer stories tokenizer.json --vocab-size 4096" in result.err
    refused(cli("train m a text.txt --device cpu"), "m has no tokenizer", "tokenizer stories tokenizer.json")


def test_a_tokenizer_that_changed_is_noticed(cli, tokenizer, tmp_path):
    cli(f"init m {GPT} --tokenizer t.json")
    file = tmp_path / "m" / "tokenizer.json"
    content = file.read_text()
    file.write_text(content.replace("<|system|>", "<|sistem|>"))
    refused(cli("train m a text.txt --device cpu"), "checksum differs")
    file.write_text("{")
    refused(cli("train m a text.txt --device cpu"), "tokenizer.json", "JSON")
    file.unlink()
    refused(cli("train m a text.txt --device cpu"), "no tokenizer at m/tokenizer.json")
    assert not (tmp_path / "m" / "a").exists()


def test_a_changed_tokenizer_is_not_handed_on(cli, tokenizer, tmp_path):
    cli(f"init m {GPT} --tokenizer t.json")
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|system|>", "<|sistem|>"))
    with pytest.raises(PicoError, match=r"m/tokenizer.json is another one"):
        create("n", read_config("m"), file)
    assert not (tmp_path / "n").exists()
    shutil.copy("t.json", file)
    assert bpe.checksum(create("n", read_config("m"), file) / "tokenizer.json") == bpe.checksum("t.json")


def test_a_name_on_the_hub_is_downloaded(cli, tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    hub, asked = tmp_path / "hub" / "tokenizer.json", []
    hub.parent.mkdir()
    shutil.copy("t.json", hub)

    def hf_hub_download(name, file, local_files_only):
        asked.append((name, file, local_files_only))
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    assert cli(f"init m {GPT} --tokenizer owner/name").code == 0 and read_config("m").vocab_size == 280
    assert asked == [("owner/name", "tokenizer.json", False)]
    (tmp_path / "owner" / "name").mkdir(parents=True)  # a path that exists wins
    refused(cli(f"init n {GPT} --tokenizer owner/name"), "no tokenizer at owner/name/tokenizer.json")
    assert len(asked) == 1

    def offline(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert cli(f"init n {GPT} --tokenizer owner/other").code == 0 and asked[1] == (
        "owner/other",
        "tokenizer.json",
        True,
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    refused(cli(f"init o {GPT} --tokenizer owner/other"), "owner/other", "cannot be reached")
    refused(cli(f"init o {GPT} --tokenizer a//b"), "no tokenizer at 'a//b'")

    def unknown(*_, **__):
        raise huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    refused(cli(f"init o {GPT} --tokenizer owner/othr"), "no model 'owner/othr'", "check the spelling")


def test_old_model_files_know_no_tokenizer(cli):
    """model.json of a byte model says nothing of one, and reads as it did."""
    cli("init m --preset gpt-bytes-tiny")
    file = Path("m/model.json")
    content = json.loads(file.read_text())
    assert content.pop("tokenizer_sha256") is None
    file.write_text(json.dumps(content))
    assert read_alphabet("m", read_config("m")).unit == "byte"


# --- from the text to the text ----------------------------------------------------------------------------------------

TRAIN = "--device cpu --context-len 16 --batch-size 4 --warmup-steps 1 --precision fp32 --checkpoint-interval 2"


@pytest.fixture
def trained(cli, tokenizer):
    assert cli(f"init m {GPT} --tokenizer t.json").code == 0
    result = cli(f"train m a text.txt --max-steps 4 {TRAIN}")
    assert result.code == 0, result.err
    return result


def test_it_trains_and_says_how_many_tokens(trained):
    assert re.search(r"^tokens      \d+ of 280 kinds; \d+\.\d\d bytes each$", trained.err, re.MULTILINE)
    assert "4 steps of 64 tokens" in trained.err and "slots" not in trained.err  # of a router, which it has not


def test_it_writes_reports_and_is_handed_on(cli, trained, tmp_path):
    result = cli("run m a --max-bytes 20 --seed 3", "--prompt", "the cat")
    assert result.code == 0 and result.out.startswith("the cat"), result.err
    found = json.loads(cli("eval m a text.txt --device cpu --json").out)
    assert found["unit"] == "token" and found["bytes"] == len(TEXT) and "upper bound" in found["rule"]
    assert found["bits_per_byte"] == pytest.approx(score(load("m", "a"), [TEXT.encode()], 16).bits_per_byte)
    table = cli("eval m a text.txt --device cpu --report page.html").out
    assert "next token" in table and re.search(r"context 16 tokens, \d+ bytes", table)
    assert "the mat" in re.sub("<[^>]*>", "", Path("page.html").read_text(encoding="utf-8"))
    assert cli("info m").code == 0
    for line in ("export m a shared", "init mine --from m"):
        assert cli(line).code == 0
        assert bpe.checksum(f"{line.split()[-3 if '--from' in line else -1]}/tokenizer.json") == bpe.checksum("t.json")
    assert cli("run shared --seed 3 --max-bytes 9").code == 0
    assert cli(f"train mine b text.txt --max-steps 1 {TRAIN}").code == 0


def test_a_run_of_tokens_resumes_exactly(cli, trained):
    whole = load("m", "a").state_dict()
    shutil.rmtree("m/a/00000004")
    result = cli(f"train m a text.txt --resume --max-steps 4 {TRAIN}")
    assert result.code == 0 and "at step 2" in result.err
    again = load("m", "a").state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
