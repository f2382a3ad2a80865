"""Exported models in transformers: the same logits, texts and ids as here, and what people do with a model there."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from checkpointed import write_run
from helpers import random_tokens, tiny, tiny_config, tiny_gpt, trained, write

from pico.base.errors import PicoError
from pico.base.routers import ROUTERS
from pico.base.symbols import BOS, BYTES, EOS
from pico.data import bpe
from pico.data.chat import Turn, lay_out, pack_turns, unpack_turns
from pico.data.documents import collect
from pico.data.stories import stories
from pico.model.pico import plain_generate
from pico.runs.checkpoint import load
from pico.runs.share import export_for_transformers, transformers_config

pytestmark = pytest.mark.slow  # transformers takes seconds to import
LLAMA = dict(qk_norm="none", norm_gain=True, mlp_ratio=1.5)
ROOT = Path(__file__).parents[2]
TEXTS = ["Once upon a time", "A tea pot", "nöt <|eos|> ✓\n\0"]
CHAT = [("system", "Be <|eos|> kind."), ("user", "Hi<|user|>"), ("assistant", "Good day ✓"), ("user", "Bye")]
MESSAGES = [{"role": role, "content": text} for role, text in CHAT]


class Exported(NamedTuple):
    model: torch.nn.Module  # ours
    folder: Path


def exported(model, folder: Path, tokenizer: Path | None = None) -> Exported:
    path = write_run(folder / "m", model, tokenizer)
    return Exported(load(path, "r"), export_for_transformers(path, "r", folder / "out", -1))


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return exported(trained(), tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A file with a small tokenizer."""
    text = bpe.train_tokenizer(collect(story.text.encode() for _, story in zip(range(60), stories(0))), 320)
    return write(tmp_path_factory.mktemp("tokens") / "tokenizer.json", text)


def of_tokens(tokens, **changes):
    tokenizer = bpe.read_tokenizer(tokens)
    found = dict(tokenizer="bpe", vocab_size=tokenizer.size, tokenizer_sha256=tokenizer.fingerprint, max_context=64)
    model = tiny_gpt(**found, **changes)
    model.alphabet = tokenizer
    return model


@pytest.fixture(scope="module")
def twin(tmp_path_factory, tokens):
    return exported(of_tokens(tokens, ngram_max=3, ngram_rows=64, ngram_dim=8), tmp_path_factory.mktemp("gpt"), tokens)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokens):
    return exported(of_tokens(tokens, **LLAMA), tmp_path_factory.mktemp("llama"), tokens)


def theirs(folder):
    """The model and the tokenizer, by Pico's own classes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import pico.runs.hf  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def converted(model):
    """Their model of one of ours, without a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import pico.runs.hf  # noqa: F401

    values = transformers_config(model.config, model.alphabet)
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    other.load_state_dict(model.state_dict(), strict=not getattr(model.config, "tied", False))
    return other.tie_weights() or other.eval()


def same(one, other, tolerance=1e-5):
    """Within `tolerance` of the largest."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, other.abs().max().item()))


WITHOUT_PICO = """
import sys
sys.modules["pico"] = None  # any import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    text = tokenizer.batch_decode(model.generate(ids, do_sample=False, max_new_tokens=8))
    out[folder] = {"ids": ids, "logits": model(ids).logits, "text": text, "class": type(model).__name__}
torch.save(out, sys.argv[1])
"""


def test_a_folder_loads_without_pico(pico, twin, llama, tmp_path):
    script = write(tmp_path / "without.py", WITHOUT_PICO)
    folders = [each.folder for each in (pico, twin, llama)]
    line = [sys.executable, "-I", str(script), str(tmp_path / "out.pt"), *map(str, folders)]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt")
    for each, name in zip((pico, twin, llama), ("PicoForCausalLM", "PicoGPTForCausalLM", "LlamaForCausalLM")):
        found, alphabet = out[str(each.folder)], each.model.alphabet
        assert found["class"] == name
        assert found["ids"].tolist() == [[alphabet.bos, *alphabet.encode(b"Once upon a time").tolist()]]
        same(found["logits"].detach(), each.model(found["ids"]).logits[:, :, 0].detach())


def test_a_router_of_others_is_not_exported():
    for router in ("hnet", "entropy"):
        with pytest.raises(PicoError, match=f"router = '{router}'"):
            transformers_config(tiny_config(router), BYTES)


@pytest.mark.parametrize("router", [router for router, rule in ROUTERS.items() if rule.scorer == "linear"])
def test_logits_are_ours_whole_and_in_pieces(router):
    ours = tiny(router)
    ours.router.threshold.fill_(0.5 * (router == "threshold"))
    model, ids = converted(ours), random_tokens(3, 60, high=262)
    ids[0, 30] = BOS  # where another document begins
    wanted = ours(ids)
    found = model(ids)
    same(found.logits, wanted.logits[:, :, 0])
    assert torch.equal(found.routed, wanted.routed)
    cache, pieces = None, []
    for start in range(0, 60, 7):
        out = model(ids[:, start : start + 7], cache=cache)
        cache = out.cache
        pieces.append(out.logits)
    same(torch.cat(pieces, dim=1), wanted.logits[:, :, 0])
    assert all(stack.tensors["positions"].shape[1] <= stack.window for stack in cache.stacks if stack.tensors)
    same(model(ids, disable_latent=True).logits, ours(ids, disable_latent=True).logits[:, :, 0])


def test_other_shapes_of_pico():
    for changes in (
        dict(ngram_max=0, qk_norm=False, embedding_skip=False, chained_heads=False, next_tokens=2),
        dict(latent_num_blocks=0),
        dict(next_tokens=1, att_kv_heads=4),
    ):
        ours, ids = tiny(**changes), random_tokens(2, 40)
        same(converted(ours)(ids).logits, ours(ids).logits[:, :, 0])


GPTS = [
    {},
    dict(rope_fraction=0.5, qk_norm="before", sandwich_norm=True, norm_gain=True, mlp_ratio_last=3.0, gate="query",
         qkv_bias=True, embedding_scale="sqrt"),
    dict(mlp="relu2", embedding_scale="norm", logit_softcap=15.0, gate="input", rope_fraction=0.0),
    dict(tied=True, window=5, ngram_max=4, ngram_rows=64, ngram_dim=8),
]  # fmt: skip


@pytest.mark.parametrize("changes", GPTS)
def test_twins_of_all_shapes(changes):
    ours = tiny_gpt(**changes)
    model, ids = converted(ours), random_tokens(2, 50)
    wanted = ours(ids).logits[:, :, 0]
    same(model(ids).logits, wanted)
    cache, pieces = None, []
    for start in range(0, 50, 9):
        out = model(ids[:, start : start + 9], cache=cache)
        cache = out.cache
        pieces.append(out.logits)
    same(torch.cat(pieces, dim=1), wanted)


@pytest.mark.parametrize("changes", [{}, dict(qkv_bias=True, tied=True, norm_gain=False)])
def test_a_twin_that_is_a_llama(changes, tmp_path):
    from transformers import AutoModelForCausalLM

    made = exported(tiny_gpt(max_context=64, **{**LLAMA, **changes}), tmp_path)
    model, ids = AutoModelForCausalLM.from_pretrained(made.folder), random_tokens(2, 64)
    assert type(model).__module__.startswith("transformers.")
    same(model(ids).logits, made.model(ids).logits[:, :, 0])
    assert not list(made.folder.glob("modeling*"))


def test_texts_are_ours_with_a_cache_and_without(pico):
    model, _ = theirs(pico.folder)
    ids = [BOS, *b"one two "]
    wanted = plain_generate(pico.model, ids, 60)
    assert len(set(wanted)) > 3
    settings = dict(max_new_tokens=60, do_sample=False)
    for use_cache in (True, False):
        found = model.generate(torch.tensor([ids]), use_cache=use_cache, **settings)[0].tolist()
        assert [i for i in found[len(ids) :] if i != EOS] == wanted
    assert model.draft(torch.tensor([ids])).shape == (1, 4)


def test_drafts_are_those_of_our_heads(pico):
    model, _ = theirs(pico.folder)
    ids = random_tokens(3, 30)
    out = pico.model(ids)
    drawn = out.logits[:, -1, :1].argmax(-1)
    for _ in range(3):
        following = pico.model.draft_logits(out.stream[:, -1], drawn, ids[:, -3:]).argmax(-1, keepdim=True)
        drawn = torch.cat([drawn, following], dim=1)
    assert torch.equal(model.draft(ids), drawn)


@pytest.mark.parametrize("name", ["pico", "twin", "llama"])
def test_padding_on_the_left_changes_nothing(name, request):
    made = request.getfixturevalue(name)
    model, tokenizer = theirs(made.folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch.attention_mask[:, 0].sum() < len(TEXTS)
    for use_cache in (True, False):
        found = model.generate(**batch, max_new_tokens=30, do_sample=False, use_cache=use_cache)
        for text, row in zip(TEXTS, found):
            alone = tokenizer(text, return_tensors="pt")
            wanted = model.generate(**alone, max_new_tokens=30, do_sample=False)[0]
            row = row[batch.input_ids.shape[1] - alone.input_ids.shape[1] :].tolist()
            assert row[: len(wanted)] == wanted.tolist()
            assert set(row[len(wanted) :]) <= {tokenizer.pad_token_id}


def test_beams_take_their_memory_along(pico):
    model, tokenizer = theirs(pico.folder)
    batch = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    settings = dict(max_new_tokens=20, num_beams=3, do_sample=False)
    found = [model.generate(**batch, use_cache=use_cache, **settings) for use_cache in (True, False)]
    assert torch.equal(*found)


def test_a_text_goes_on_from_its_cache(pico):
    model, tokenizer = theirs(pico.folder)
    settings = dict(do_sample=False, eos_token_id=None)
    text = tokenizer(TEXTS[0], return_tensors="pt")
    whole = model.generate(**text, max_new_tokens=25, **settings)
    part = model.generate(**text, max_new_tokens=15, return_dict_in_generate=True, **settings)
    for options in (
        {"inputs": part.sequences, "cache": part.cache, "max_new_tokens": 10},
        {**text, "cache": model.new_cache(), "prefill_chunk_size": 5, "max_new_tokens": 25},
    ):
        assert torch.equal(model.generate(**options, **settings), whole)


def test_padding_elsewhere_is_refused_or_right(pico):
    model, _ = theirs(pico.folder)
    ids = torch.tensor([[BOS, *b"one two"], [BOS, *b"one\0\0\0\0"]])
    mask = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
    found = model(ids, attention_mask=mask, use_cache=False).logits[1, :4]
    same(found, model(ids[1:, :4]).logits[0])
    text = torch.tensor([[262, 262, *b"one two"]])  # which does not begin with BOS
    same(model(text, attention_mask=(text != 262).long()).logits[:, 2:], model(text[:, 2:]).logits)
    with pytest.raises(ValueError, match="padding_side = 'left'"):
        model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="hole"):
        model(ids, attention_mask=torch.tensor([[1] * 8, [1, 1, 0, 0, 1, 1, 1, 1]]), use_cache=False)
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))


@pytest.mark.parametrize("name", ["pico", "twin", "llama"])
def test_ids_and_conversations_are_ours(name, request):
    made = request.getfixturevalue(name)
    _, tokenizer = theirs(made.folder)
    alphabet = made.model.alphabet
    plain, clean = ({"split_special_tokens": True}, {"sanitize_control_tokens": True}) if name == "llama" else ({}, {})
    for text in [*TEXTS, "  It's 1,234 \r\n\n\tcafé 日本語 <|bos|>"]:
        ids = tokenizer(text, **plain).input_ids
        assert ids == [alphabet.bos, *alphabet.encode(text.encode()).tolist()]
        assert tokenizer.decode(ids[1:]) == text and tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer(text, add_special_tokens=False, **plain).input_ids == ids[1:]
    turns = [Turn(role, text) for role, text in CHAT]
    (wanted,) = lay_out(unpack_turns(pack_turns(turns[:3])), alphabet, loss_on="all")
    assert tokenizer.apply_chat_template(MESSAGES[:3], **clean)["input_ids"] == wanted.tolist()
    asked = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, **clean)["input_ids"]
    control = alphabet.control
    end = [control["user"], *alphabet.encode(b"Bye"), control["end-of-turn"], control["assistant"]]
    assert asked == [*wanted[:-1], *end]
    assert "<|user|>Hi<|user|><|end-of-turn|>" in tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi<|user|>"}]}]
    assert (
        tokenizer.apply_chat_template(parts)["input_ids"]
        == tokenizer.apply_chat_template([{"role": "user", "content": "Hi<|user|>"}])["input_ids"]
    )
    with pytest.raises(Exception, match="expected a system message first"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_what_no_text_says_forges_nothing(pico):
    _, tokenizer = theirs(pico.folder)
    forged = [{"role": "user", "content": "\ud801\ud803<|eos|>"}]
    ids = tokenizer.apply_chat_template(forged)["input_ids"]
    assert [i for i in ids if i > 255] == [256, 259, 261]
    assert max(tokenizer("\ud800\ud801").input_ids[1:]) < 256
    assert tokenizer("a<|eos|>", split_special_tokens=False).input_ids == [BOS, ord("a"), EOS]


def test_pipeline(pico, twin):
    from transformers import pipeline

    for made in (pico, twin):
        model, tokenizer = theirs(made.folder)
        write_on = pipeline("text-generation", model=model, tokenizer=tokenizer)
        (found,) = write_on("one two", max_new_tokens=10)
        assert found["generated_text"].startswith("one two")
        (found,) = write_on(MESSAGES, max_new_tokens=10)
        assert found["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize("name", ["pico", "twin"])
def test_trainer_and_lora(name, request, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import Trainer, TrainingArguments

    model, tokenizer = theirs(request.getfixturevalue(name).folder)
    rows = [{**tokenizer("one two three"), "labels": tokenizer("one two three").input_ids}] * 40
    options = TrainingArguments(
        str(tmp_path), max_steps=10, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none",
        logging_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True, activation_checkpointing=name == "pico",
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows[:6])
    trainer.train()
    assert trainer.predict(rows[:6]).predictions.shape == (6, len(rows[0]["labels"]), model.config.vocab_size)
    assert trainer.evaluate()["eval_loss"] > 0
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 10 and losses[-1] < losses[0]

    before = model(random_tokens(1, 20)).logits
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["qkv", "out", "up", "down"], task_type="CAUSAL_LM"))
    Trainer(tuned, options, train_dataset=rows).train()
    after = tuned(input_ids=random_tokens(1, 20)).logits
    assert not torch.allclose(before, after)
    tuned.save_pretrained(tmp_path / "lora")
    model, _ = theirs(request.getfixturevalue(name).folder)
    assert PeftModel.from_pretrained(model, tmp_path / "lora").generate(
        input_ids=random_tokens(1, 5), max_new_tokens=5
    ).shape[1] > 5  # fmt: skip


def test_what_the_guide_shows_runs(pico, tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide.partition("## In transformers")[2], re.DOTALL)
    (tmp_path / "to-share").symlink_to(pico.folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    exec("\n".join(blocks), {})
    assert len(blocks) == 3 and "Once upon a time" in capsys.readouterr().out


def test_a_model_saved_there_loads_again(pico, tmp_path):
    model, tokenizer = theirs(pico.folder)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, reader = theirs(tmp_path / "again")
    ids = torch.tensor([tokenizer(TEXTS[2]).input_ids])
    assert torch.equal(again(ids).logits, model(ids).logits) and reader(TEXTS[2]).input_ids == ids[0].tolist()
    assert reader.apply_chat_template(MESSAGES[:3]) == tokenizer.apply_chat_template(MESSAGES[:3])


def test_half_precision(pico):
    from transformers import AutoModelForCausalLM

    theirs(pico.folder)
    model = AutoModelForCausalLM.from_pretrained(pico.folder, dtype=torch.bfloat16)
    assert model.router.weight.dtype == torch.float32 and model.heads.weight.dtype == torch.bfloat16
    assert model.generate(random_tokens(2, 9), max_new_tokens=9).shape[1] > 9
