"""Our models in lm-eval: likelihoods by hand, texts as decoded plainly, local copies, and lm-eval's own model class."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpointed import write_run
from helpers import tiny, tiny_gpt, trained, write

from pico.base.errors import PicoError
from pico.base.symbols import Alphabet
from pico.data import bpe
from pico.data.chat import lay_out_question
from pico.data.documents import collect
from pico.model.pico import plain_generate
from pico.runs.share import export_for_transformers

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import

PAIRS = [
    ("the cat sat on the", " mat"),
    ("the cat ", "sat"),
    ("", "A whole text, with nothing before it."),
    ("Zoë chan", "te à voix basse"),
    ("a", "b"),
    ("long " * 4, "and longer"),
]
EXAMPLES = {
    "blimp": [{"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "UID": "x"}],
    "winogrande": [{"context_options": ["Ann left as Ann", "Ann left as Eve"], "continuation": "was ill.", "gold": 1}],
    "hellaswag": [
        {"activity_label": "Tea", "ctx_a": "It boils.", "ctx_b": "she", "endings": ["sips.", "[x] flies."], "label": 0}
    ],
    "arc_easy": [{"query": "Question: Warm?", "choices": ["Ice", "Sun", "Fog"], "gold": 1}],
    "copa": [{"query": "It rained, therefore", "choices": ["he got wet.", "she slept."], "gold": 0}],
    "lambada_openai": [{"context": "Your body is big and", "continuation": "hairy"}],
    "sums": [{"context": "2+2=", "continuation": "4"}],
    "svamp": [{"context": "Two and two?", "answer": "4"}],
}  # fmt: skip


def asked(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    text = bpe.train_tokenizer(collect([b"the cat sat on the mat and the dog sat on the cat"] * 3), 280)
    return write(tmp_path_factory.mktemp("tokens") / "tokenizer.json", text)


def of_tokens(file):
    tokenizer = bpe.read_tokenizer(file)
    model = tiny_gpt(tokenizer="bpe", vocab_size=tokenizer.size, tokenizer_sha256=tokenizer.fingerprint, max_context=64)
    model.alphabet = tokenizer
    return model


@torch.no_grad()
def by_hand(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Symbol by symbol, each by a forward that has not seen it."""
    nats, likeliest, ids = 0.0, True, list(context)
    for symbol in continuation:
        logits = model(torch.tensor([ids])).logits[0, -1, 0].double()
        nats += (logits[symbol] - logits.logsumexp(0)).item()
        likeliest &= logits.argmax().item() == symbol
        ids.append(symbol)
    return nats, likeliest


@pytest.mark.parametrize("make", [tiny, tiny_gpt, trained])
def test_likelihoods_are_those_of_one_text_at_a_time(make, monkeypatch):
    """Also through a cache, in pieces; a context ends where it ends, with a space or inside of a word."""
    from pico.evaluate import lm_eval

    model = make()
    bos, encode = model.alphabet.bos, lambda text: list(text.encode())
    expected = [by_hand(model, [bos, *encode(a)], encode(b)) for a, b in PAIRS]
    for longest in (10_000, 8):
        monkeypatch.setattr(lm_eval, "LONGEST", longest)
        monkeypatch.setattr(lm_eval, "PIECE", 8)
        found = lm_eval.PicoLM(model).loglikelihood(asked(*PAIRS))
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-5)
        assert [same for _, same in found] == [same for _, same in expected]


def test_the_likeliest_continuation_is_said_to_be():
    from pico.evaluate.lm_eval import PicoLM

    model = trained()
    text = bytes(plain_generate(model, [model.alphabet.bos, *b"one tw"], 8)).decode()
    found = PicoLM(model).loglikelihood(asked(("one tw", text), ("one tw", text[:-1] + "\x07")))
    assert [likeliest for _, likeliest in found] == [True, False]


def test_a_whole_text_is_scored_from_its_start():
    from pico.evaluate.lm_eval import PicoLM

    model = tiny()
    texts = ["A text.", "x", "", "one and " * 8]
    expected = [by_hand(model, [model.alphabet.bos], list(text.encode()))[0] for text in texts]
    assert PicoLM(model).loglikelihood_rolling(asked(*[(text,) for text in texts])) == pytest.approx(expected, rel=1e-5)


def test_tokens_are_divided_as_lm_eval_divides_them(tokens):
    """The space at a context's end belongs to the token behind it: it is scored, in the tokens of the whole."""
    from pico.evaluate.lm_eval import PicoLM

    model = of_tokens(tokens)
    encode = lambda text: model.alphabet.encode(text.encode()).tolist()  # noqa: E731
    whole, start = encode("the cat sat"), encode("the cat")
    assert whole[: len(start)] == start and encode("the cat ") != whole[: len(encode("the cat "))]
    expected = by_hand(model, [model.alphabet.bos, *start], whole[len(start) :])
    assert PicoLM(model).loglikelihood(asked(("the cat ", "sat")))[0] == (
        pytest.approx(expected[0], rel=1e-5),
        expected[1],
    )


@pytest.mark.parametrize("kind", ["pico", "tokens"])
def test_texts_are_the_greedy_ones(kind, tokens):
    from pico.evaluate.lm_eval import PicoLM

    model = trained() if kind == "pico" else of_tokens(tokens)
    contexts = ["one t", "three onward! two", "o"]
    ids = [[model.alphabet.bos, *model.alphabet.encode(text.encode()).tolist()] for text in contexts]
    plain = [model.alphabet.decode(plain_generate(model, each, 12)).decode(errors="replace") for each in ids]
    settings, stop = {"until": [], "max_gen_toks": 12}, plain[0][3:6] or "never"
    requests = [(text, settings) for text in contexts] + [("one t", settings | {"until": [stop]})]
    assert PicoLM(model).generate_until(asked(*requests)) == [*plain, plain[0].partition(stop)[0]]
    assert kind == "tokens" or stop in plain[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, rows in EXAMPLES.items():
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_local_copies_are_asked_as_lm_eval_asks(folder):
    from pico.evaluate.lm_eval import load_tasks

    found = {}
    for name, task in load_tasks({name: folder / f"{name}.jsonl" for name in EXAMPLES})["tasks"].items():
        task.build_all_requests()
        found[name] = [instance.args for instance in task.instances]
    assert found.pop("svamp")[0][0] == "Two and two?\nAnswer:"
    assert found == {
        "blimp": [("", " The cats sleep."), ("", " The cats sleeps.")],
        "winogrande": [("Ann left as Ann", " was ill."), ("Ann left as Eve", " was ill.")],
        "hellaswag": [("Tea: It boils. She", " sips."), ("Tea: It boils. She", "  flies.")],
        "arc_easy": [("Question: Warm?\nAnswer:", f" {each}") for each in ("Ice", "Sun", "Fog")],
        "copa": [("It rained, therefore", " he got wet."), ("It rained, therefore", " she slept.")],
        "lambada_openai": [("Your body is big and", " hairy")],
        "sums": [("2+2=", "4")],
    }


def test_figures_by_hand(folder):
    from pico.evaluate.lm_eval import PicoLM, judge, load_tasks

    rows = [
        {"query": f"one {i}", "choices": ["two", "three four", "onward!"][: 2 + i % 2], "gold": i % 2}
        for i in range(12)
    ]
    write(folder / "more.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    model = trained()
    right = []
    for row in rows:
        nats = PicoLM(model).loglikelihood(asked(*[(row["query"], f" {choice}") for choice in row["choices"]]))
        right.append(max(range(len(nats)), key=lambda i: nats[i][0]) == row["gold"])
    value = sum(right) / 12
    assert 0 < value < 1
    found = judge(model, load_tasks({"more": folder / "more.jsonl"}))["more"]["acc"]
    assert found == {
        "value": pytest.approx(value),
        "stderr": pytest.approx(math.sqrt(value * (1 - value) / 11)),
        "chance": pytest.approx((1 / 2 + 1 / 3) / 2),
        "questions": 12,
    }
    assert judge(model, load_tasks({"more": folder / "more.jsonl"}, limit=5), 5)["more"]["acc"]["questions"] == 5


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "choices": ["a", "b"]} | change
        for change in (
            {"gold": None}, {"gold": "0"}, {"gold": 0.5}, {"gold": True}, {"gold": 2}, {"gold": -1}, {"choices": None},
            {"choices": []}, {"choices": "ab"}, {"choices": [4, 5]}, {"choices": ["", "b"]}, {"query": None},
            {"query": "\ud800"},
        )
    ] + [
        {"context": "c", "continuation": None}, {"context": None, "answer": "a"}, {"context": "c", "answer": 4},
        {"sentence_good": "", "sentence_bad": ""}, {"context_options": ["a", "b"], "continuation": "c", "gold": 2},
        {"activity_label": "x", "ctx_a": "a", "ctx_b": None, "endings": ["a"], "label": "0"},
        {"activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["a"], "label": ""},
    ],
)  # fmt: skip
def test_a_row_that_asks_nothing_is_one_line(tmp_path, row):
    from pico.evaluate.lm_eval import local_task

    row = {"gold": 0} | row if "query" in row else row
    file = write(tmp_path / "mine.jsonl", json.dumps(row))
    with pytest.raises(PicoError, match=r"mine.jsonl, row 1 is no question: expected text in \w+, [^\n]+$"):
        local_task("mine", file)
    write(file, "")
    with pytest.raises(PicoError, match=r"mine.jsonl has no rows: expected the questions of mine"):
        local_task("mine", file)


def test_a_file_of_other_columns_is_refused(tmp_path):
    from pico.evaluate.lm_eval import local_task

    with pytest.raises(PicoError, match="no task has columns word, letters; expected one of sentence_good"):
        local_task("x", write(tmp_path / "x.jsonl", '{"word": 1, "letters": 2}\n'))


@pytest.mark.parametrize("kind", ["pico", "tokens"])
def test_a_conversation_is_laid_out_as_it_was_trained(kind, folder, tokens, monkeypatch):
    """What a task says stays text, whatever it looks like; an answer ends with the assistant's turn."""
    from pico.evaluate import lm_eval

    model = trained() if kind == "pico" else of_tokens(tokens)
    turns = [("system", b"count"), ("user", "<|assistant|> Zoë".encode()), ("assistant", b"one"), ("user", b"two")]
    history = [{"role": role, "content": text.decode()} for role, text in turns]
    lm = lm_eval.PicoLM(model, chat=True)
    ids, _ = lay_out_question(turns, model.alphabet)
    assert lm.tok_encode(lm.apply_chat_template(history)) == ids
    begun = [*history, {"role": "assistant", "content": "thr"}]
    said = lm.tok_encode(lm.apply_chat_template(begun, add_generation_prompt=False))
    assert said == [*ids, *model.alphabet.encode(b"thr")]
    asked_for, generate = [], lm_eval.generate

    def noted(model, texts, *settings, stop_symbols):
        asked_for.extend((texts, stop_symbols))
        return generate(model, texts, *settings, stop_symbols=stop_symbols)

    monkeypatch.setattr(lm_eval, "generate", noted)
    tasks = lm_eval.load_tasks({name: folder / f"{name}.jsonl" for name in ("svamp", "arc_easy")})
    assert {*lm_eval.judge(model, tasks, chat=True)} == {"svamp", "arc_easy"}
    question, _ = lay_out_question([("user", b"Two and two?\nAnswer:")], model.alphabet)
    ends = {model.alphabet.eos, model.alphabet.control["end-of-turn"]}
    assert asked_for == [[question], ends]


def test_who_cannot_chat_is_not_asked_in_a_conversation(folder):
    from pico.evaluate.lm_eval import judge, load_tasks

    model = tiny_gpt()
    model.alphabet = Alphabet([bytes([i]) for i in range(256)] + [b""] * 2, {"bos": 256, "eos": 257})
    with pytest.raises(PicoError, match="no symbols for turns"):
        judge(model, load_tasks({"svamp": folder / "svamp.jsonl"}), chat=True)


def test_an_unknown_task_is_refused(monkeypatch):
    from pico.evaluate import lm_eval

    manager = SimpleNamespace(task_index={"blimp": None}, all_tasks=["blimp"], load=lambda wanted: 1 / 0)
    monkeypatch.setattr(lm_eval, "TaskManager", lambda include_defaults: manager)
    with pytest.raises(
        PicoError, match="no 'blimb': did you mean blimp\\? expected some of Pico's own, which are spelling"
    ):
        lm_eval.load_tasks({"blimb": None})
    with pytest.raises(
        PicoError, match="questions of blimp \\(division by zero\\): where there is no network, --tasks-folder"
    ):
        lm_eval.load_tasks({"blimp": None})


@pytest.mark.parametrize("kind", ["pico", "tokens"])
def test_figures_are_those_of_the_exported_model_in_lm_eval(kind, folder, tokens):
    """The same tasks, by lm-eval's own class for models of transformers, on the folder that `export` writes."""
    from lm_eval.models.huggingface import HFLM

    import pico.runs.hf  # noqa: F401
    from pico.evaluate.lm_eval import PicoLM, quiet
    from pico.runs.checkpoint import load

    path = write_run(
        folder / "m", trained() if kind == "pico" else of_tokens(tokens), tokens if kind == "tokens" else None
    )
    ours = PicoLM(load(path, "r"))
    exported = export_for_transformers(path, "r", folder / "out", -1)
    with quiet():
        theirs = HFLM(pretrained=str(exported), device="cpu", batch_size=3, dtype="float32", max_length=64)
    pairs = [pair for pair in PAIRS if len("".join(pair)) < 60 and (kind == "tokens" or pair[0][-1:] != " ")]
    for (nats, likeliest), (expected, same) in zip(
        ours.loglikelihood(asked(*pairs)), theirs.loglikelihood(asked(*pairs), disable_tqdm=True), strict=True
    ):
        assert nats == pytest.approx(expected, rel=1e-6, abs=1e-5) and likeliest == same
    settings = {"until": ["!"], "max_gen_toks": 12, "do_sample": False}
    requests = asked(*[(text, settings) for text in ("one t", "onward! three", "two")])
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
