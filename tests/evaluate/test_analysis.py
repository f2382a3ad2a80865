"""The report: every figure against the plain way to compute it, and chance levels against a real coin."""

import io
import json
import math
from datetime import date

import numpy as np
import pytest
import torch
from helpers import tiny
from rich.console import Console

from pico import PicoError
from pico.base.config import DataConfig, TrainConfig
from pico.base.files import write_json
from pico.base.presets import preset
from pico.base.routers import ROUTERS, BestScored, Nothing, Random, RouterInput, Space, Stride
from pico.base.symbols import BOS, EOS, VOCABULARY
from pico.data import bpe
from pico.data.corpus import story_documents
from pico.data.documents import Documents
from pico.data.stories import Recall
from pico.decode.generation import generate
from pico.evaluate import analysis
from pico.evaluate.analysis import KINDS, Routed, Tally, analyse, bins, edges, evaluate_run, kinds
from pico.evaluate.score import Trace, score, traces
from pico.evaluate.tables import _routing_rows, conclusion, report_table, write_page
from pico.model.gpt import GPT
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import create

TEXT = b"The cat sat, quietly, on 2 mats. It didn't mind the na\xc3\xafve rain -- or the dog."


def documents(*texts: bytes) -> Documents:
    lengths = np.array([len(text) for text in texts])
    return Documents(b"".join(texts), np.cumsum(lengths) - lengths, lengths)


def trace(data: bytes, routed, bits=None) -> Trace:
    n = len(data) + 1
    bits = np.ones(n) if bits is None else np.array(bits, float)
    flags = np.array(routed, bool)
    lengths = np.append(np.ones(len(data), int), 0)
    return Trace(data, np.array([*data, EOS]), lengths, bits, np.zeros(n), flags, np.zeros(n, bool), *np.ones((3, 1)))


@pytest.fixture(scope="module")
def model():
    model = tiny(next_tokens=3)
    with torch.no_grad():  # never a control symbol: generation does not draw them, but the likeliest id might be one
        model.heads.weight.view(3, VOCABULARY, -1)[:, BOS:] = 0
    return model


@pytest.fixture(scope="module")
def texts():
    return story_documents(0, 0, 3)


def test_bins_double_and_edges_name_what_they_hold():
    assert bins([0, 15, 16, 31, 32, 64, 1000], 16).tolist() == [0, 0, 1, 1, 2, 3, 6]
    for value in range(500):
        low, high = edges(bins(value, 16), 16)
        assert low <= value < high


def test_kinds_of_bytes():
    start, end, after, space = kinds(TEXT)
    marked = "".join(("^" if s else "") + chr(b) for s, b in zip(start, TEXT))
    assert marked.startswith("^The ^cat ^sat, ^quietly, ^on ^2 ^mats. ^It ^didn'^t ^mind ^the ^na")
    marked = "".join(chr(b) + ("$" if e else "") for e, b in zip(end, TEXT))
    assert marked.startswith("The$ cat$ sat$, quietly$, on$ 2$ mats$. It$ didn$'t$ mind$ the$ na")
    assert start.sum() == end.sum() == len(TEXT.replace(b"'", b" ").replace(b"--", b"").split())
    assert [i for i in np.flatnonzero(space) if TEXT[i : i + 1].isalnum()] == []
    tokens = np.array(list(TEXT))
    previous = np.append(BOS, tokens[:-1])
    assert Space(0.5).choose(RouterInput(None, tokens, previous, None, None)).tolist() == after.tolist()


def test_gaps_kinds_and_surprisal_of_a_trace_made_by_hand():
    #        BOS  a  b  _  c  d
    routed = [1, 0, 1, 1, 0, 1]
    bits = [9, 1, 2, 4, 8, 100]  # of a b _ c d EOS
    seen = Routed()
    seen.add(trace(b"ab cd", routed, bits))
    found = seen.report(0.5)
    assert found["realised_fraction"] == 3 / 5
    assert found["gaps"]["mean"] == 1.5 and found["gaps"]["histogram"][:2] == [0.5, 0.5]
    assert found["gaps"]["cv"] == pytest.approx(0.5 / 1.5)
    assert found["spacelike"]["precision"] == pytest.approx(1 / 3) and found["spacelike"]["recall"] == 1
    assert found["spacelike"]["f1"] == pytest.approx(0.5)
    assert found["word_end"]["recall"] == 1 and found["after_word"]["recall"] == 1
    assert found["word_start"]["recall"] == 0 and found["word_start"]["base_rate"] == pytest.approx(2 / 5)
    mean = (9 + 1 + 2 + 4 + 8) / 5
    assert found["surprisal_enrichment"]["own_byte"] == pytest.approx((1 + 2 + 8) / 3 / mean)
    assert found["surprisal_enrichment"]["next_byte"] == pytest.approx((2 + 4) / 2 / mean)


def test_a_coin_gets_what_chance_promises():
    random, seen, rate = np.random.default_rng(0), Routed(), 0.3
    for _ in range(40):
        data = (TEXT * 20)[: random.integers(500, 1500)]
        seen.add(trace(data, random.random(len(data) + 1) < rate, random.exponential(size=len(data) + 1)))
    found = seen.report(rate)
    for kind in KINDS:
        for measure in ("precision", "recall", "f1"):
            assert found[kind][measure] == pytest.approx(found[kind]["chance"][measure], abs=0.02)
    assert found["gaps"]["cv"] == pytest.approx(found["gaps"]["chance_cv"], abs=0.02)
    assert found["surprisal_enrichment"]["next_byte"] == pytest.approx(1, abs=0.03)
    assert found["surprisal_enrichment"]["own_byte"] == pytest.approx(1, abs=0.03)


def test_a_trace_without_routed_bytes_has_a_report():
    seen = Routed()
    seen.add(trace(b"abc", [0, 0, 0, 0]))
    assert seen.report(None) == {"target_fraction": None, "realised_fraction": 0.0}


def test_tokens_lie_where_their_first_byte_does(monkeypatch):
    """'The', ' cat', ' is', ' a', ' cat', EOS: blocks of 8 bytes, and the second cat, which one token holds."""
    monkeypatch.setattr("pico.evaluate.analysis.BLOCK", 8)
    symbols, right = [b"The", b" cat", b" is", b" a", b" cat", b""], [0, 0, 1, 1, 1, 0]
    data, n = b"".join(symbols), len(symbols)
    lengths, bits = np.array([len(symbol) for symbol in symbols]), np.arange(1.0, n + 1)
    flags = np.zeros(n, bool), np.array(right, bool)
    found = Trace(data, np.array([*data, EOS]), lengths, bits, np.zeros(n), *flags, *np.ones((3, 1)))
    tally = Tally(64, 32)
    tally.add(found, [Recall(13, 3, 9, "animal")])
    assert tally.block_bits == [1 + 2 + 3, 4 + 5 + 6] and tally.block_bytes == [10, 6]
    assert list(tally.by_distance()) == [(0, 16, 15 / 16, 16)]
    assert list(tally.by_recall()) == [
        (0, 32, {"words": 1, "word_accuracy": 1.0, "first_byte_accuracy": 1.0, "bits": 5.0})
    ]


def test_the_report_of_a_model_of_tokens_has_what_there_is(tmp_path):
    """No routing, no latent blocks, one head, and surprise alone to shade."""
    text = TEXT * 9
    tokenizer = bpe.BPE("t.json", json.loads(bpe.train_tokenizer(documents(text), 300)), "")
    torch.manual_seed(0)
    model = GPT(preset("gpt-tiny", dim=16, num_blocks=2, head_dim=8, vocab_size=tokenizer.size)).eval()
    model.alphabet = tokenizer
    report, (example,) = analyse(model, documents(text), 20, full=True)
    tokens = len(tokenizer.encode(text)) + 1
    assert (report["unit"], report["symbols"], report["bytes"]) == ("token", tokens, len(text))
    assert report["perplexity"] == pytest.approx(tokenizer.size) and 0 <= report["accuracy"] <= 1
    assert report["loss"] == pytest.approx(math.log(tokenizer.size))
    assert not [key for key in report if "rout" in key or "latent" in key]

    report |= {"dataset": "here", "run": "m/r"}
    Console(file=(out := io.StringIO()), width=160).print(report_table(report))
    shown = out.getvalue()
    assert "next token" in shown and "of the next token; loss" in shown
    assert not [word for word in ("latent", "rout", "further heads", "none") if word in shown]
    write_page(tmp_path / "page.html", report, [example])
    page = (tmp_path / "page.html").read_text()
    assert '<body class="surprise dense">' in page and "Gaps between" not in page


def test_recalls_and_distances_are_sums_over_bytes(model, texts):
    found = list(traces(model, texts, 64))
    tally = Tally(64, 32)
    for t, story in zip(found, texts.stories):
        tally.add(t, story.recalls)
    bits = sum(t.bits[:-1].sum() for t in found)
    assert sum(x * n for _, _, x, n in tally.by_distance()) == pytest.approx(bits)
    words = [(t, r) for t, story in zip(found, texts.stories) for r in story.recalls if 64 <= r.distance < 128]
    (figures,) = [figures for low, high, figures in tally.by_recall() if (low, high) == (64, 128)]
    assert figures["words"] == len(words) > 0
    assert figures["bits"] == pytest.approx(
        np.mean([t.bits[r.position : r.position + r.length].sum() for t, r in words])
    )
    assert figures["first_byte_accuracy"] == pytest.approx(np.mean([t.correct[r.position] for t, r in words]))
    assert sum(tally.block_bits) == pytest.approx(sum(tally.score.document_bits))
    assert sum(tally.block_bytes) == texts.size


def test_a_recalled_word_is_right_when_all_its_bytes_are():
    found, tally = trace(b"ab abc abd", [0] * 11), Tally(64, 32)
    found.correct[[3, 4, 5, 8]] = True  # abc, and the b of abd
    tally.add(found, [(3, 3, 3, "thing"), (7, 3, 4, "thing"), (9, 5, 4, "cut off")])
    ((_, _, figures),) = tally.by_recall()
    assert figures == {"words": 2, "word_accuracy": 0.5, "first_byte_accuracy": 0.5, "bits": 3.0}


def test_correct_is_the_greedy_byte(model):
    text = b"".join(step.bytes for step in generate(model, b"ab", max_bytes=40, temperature=0, echo=True))
    (found,) = traces(model, [text], 128)
    assert found.correct[2:-1].all()
    wrong = text[:20] + bytes([text[20] ^ 1]) + text[21:]
    (found,) = traces(model, [wrong], 128)
    assert found.correct[2:20].all() and not found.correct[20]


def test_top_k_of_a_short_document_is_of_its_own_bytes():
    report, _ = analyse(tiny(), documents(TEXT[:60], *[TEXT[i : i + 6] for i in range(9)]), 64, full=True)
    chosen = round(0.5 * 61) + 9 * round(0.5 * 7)
    assert report["replaced_routing"]["topk_sees_the_future"]["routed_fraction"] == chosen / (61 + 9 * 7)


def test_a_model_routed_otherwise_keeps_its_own_rule(model):
    tokens = torch.tensor([list(TEXT)])
    plain = model(tokens)
    for rule in (Random(0.2), Stride(0.2), Space(0.2), BestScored(0.2)):
        other = model(tokens, rule=rule)
        assert torch.equal(other.router_weight, plain.router_weight)  # the gates stay the learned ones
        assert not torch.equal(other.routed, plain.routed) and not torch.equal(other.logits, plain.logits)
        assert torch.equal(model(tokens).logits, plain.logits)
    assert torch.equal(model(tokens, rule=Nothing(0.2)).logits, model(tokens, disable_latent=True).logits)
    assert torch.equal(model(tokens, rule=model.config.rule).logits, plain.logits)


def test_each_replacement_routes_at_the_rate_it_states(model):
    text = [TEXT * 30]
    (found,) = traces(model, text, 4096, 4096, rule=Stride(0.24))
    assert np.flatnonzero(found.routed).tolist() == list(range(0, len(text[0]) + 1, 4))
    (found,) = traces(model, [np.random.default_rng(0).bytes(4000)], 64, rule=Random(0.3))
    assert found.routed.mean() == pytest.approx(0.3, abs=0.03)
    (found,) = traces(model, [TEXT], 128, batch_size=1, rule=BestScored(0.25))
    best = np.argsort(-found.weight)[: round(0.25 * len(found.weight))]
    assert sorted(best) == np.flatnonzero(found.routed).tolist()


def test_the_report_agrees_with_plain_scoring_and_is_json(model, texts):
    report, examples = analyse(model, texts, 64, full=True)
    on, off = score(model, texts, 64), score(model, texts, 64, disable_latent=True)
    assert report["bits_per_byte"] == on.bits_per_byte
    assert report["bits_per_byte_disable_latent"] == off.bits_per_byte
    assert report["disable_latent"]["difference"] == pytest.approx(off.bits_per_byte - on.bits_per_byte)
    assert report["bytes"] == texts.size and report["documents"] == 3
    assert report["entropy_floor"] == pytest.approx(texts.floor_bits / texts.size)
    low, high = report["bits_per_byte_interval"]
    assert low < report["bits_per_byte"] < high
    assert set(report["replaced_routing"]) >= {"random", "stride", "space", "topk_sees_the_future"}
    assert len(report["heads"]) == 3 and report["heads"][0]["targets"] == texts.size + 3
    assert 0 <= report["routing"]["topk_agreement"]["fraction"] <= 1
    assert [e.data for e in examples] == list(texts)
    assert json.loads(json.dumps(report))["stride"] == 32


def test_a_cut_text_takes_the_floor_of_its_whole_stories(model, texts):
    report, _ = analyse(model, texts, 64, max_bytes=len(texts[0]) + 10)
    first = texts.stories[0]
    assert report["bytes"] == len(texts[0]) + 10 and report["documents"] == 2
    assert report["entropy_floor"] == pytest.approx(first.bits / len(first.text))
    assert analyse(model, texts, 64, max_bytes=10)[0]["entropy_floor"] is None


@pytest.mark.parametrize("router", ["topk", "space", "all", "none"])
def test_every_router_has_a_report(router):
    report, examples = analyse(tiny(router), documents(TEXT, TEXT), 32, full=True)
    others = set(report["replaced_routing"])
    if 0 < report["routed_fraction"] < 1:
        fixed = {name for name, rule in ROUTERS.items() if not (rule.learned or rule.steered)} - {"all", "none", router}
        assert others == fixed | ({"topk_sees_the_future"} if router == "topk" else set())
    else:
        assert not others
    assert report["entropy_floor"] is None and "recalls" not in report
    assert len(examples) == 2
    report_table(report | {"dataset": "here", "run": "m/r"})


def test_a_text_with_one_routed_byte_has_no_gaps(model):
    seen = Routed()
    seen.add(trace(b"ab", [1, 0, 1], [1, 2, 3]))
    assert "gaps" not in seen.report(0.5) and seen.report(0.5)["word_end"]["recall"] == 1
    report, _ = analyse(model, documents(TEXT), 32, max_bytes=20)
    report["routing"] = seen.report(0.5)
    report_table(report | {"dataset": "here", "run": "m/r"})
    assert "CV of the gaps (chance)" not in _routing_rows(report["routing"])


def test_one_long_document_is_resampled_by_blocks(model):
    report, _ = analyse(model, documents(TEXT * 200), 64, max_bytes=9000)
    assert report["interval"].endswith("3 blocks of 4096 bytes")
    assert report["bits_per_byte_interval"][0] < report["bits_per_byte"]


def test_a_run_is_evaluated_with_yardsticks_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "training_text", lambda record, seed: b"Once upon a time " * 20)
    model = tiny()
    path = create(tmp_path / "m", model.config)
    checkpoint.save(path / "r", 3, model, [], {"seconds": 1.0})
    write_json(path / "r" / "train.json", {"train": TrainConfig(context_len=48).model_dump()})
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"<b>{i} & {i * i}</b> cats"}) + "\n" for i in range(40)))
    data = DataConfig(dataset=str(texts))
    said = []
    report, examples = evaluate_run(path, "r", data, device="cpu", full=True, status=said.append)
    assert report["context_len"] == 48 and report["documents"] == 40
    assert report["yardsticks"]["xz"]["after_training_text"] > 0 and report["yardstick_history_bytes"] == 340
    assert len(said) >= 6
    write_page(tmp_path / "page.html", report, examples, "picolm eval m r")
    page = (tmp_path / "page.html").read_text()
    assert conclusion(report) in page and f"{date.today()}" in page and "picolm eval m r" in page
    assert "http" not in page.replace("http://www.w3.org", "") and "&lt;" in page and "<b>0 " not in page
    plain, _ = evaluate_run(path, "r", data, context_len=16, max_bytes=100, device="cpu")
    assert plain["context_len"] == 16 and plain["bytes"] == 100 and "yardsticks" not in plain
    for wrong in ({"context_len": 0}, {"max_bytes": 0}):
        with pytest.raises(PicoError, match="0: "):
            evaluate_run(path, "r", data, device="cpu", **wrong)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"train": 7}', "\x00"])
def test_evaluating_needs_the_context_alone(tmp_path, capfd, content):
    path = create(tmp_path / "m", tiny().config)
    checkpoint.save(path / "r", 3, tiny(), [], {"seconds": 1.0})
    (path / "r" / "train.json").write_text(content)
    texts = tmp_path / "texts.txt"
    texts.write_text("cats purr. " * 20)
    with pytest.raises(PicoError, match=r"train.json.*: mend it from another run's, or give --context-len"):
        evaluate_run(path, "r", DataConfig(dataset=str(texts)), device="cpu")
    report, _ = evaluate_run(path, "r", DataConfig(dataset=str(texts)), context_len=32, device="cpu")
    assert report["context_len"] == 32 and "may be other text than in training" in capfd.readouterr().err
    odd = {"train": {"context_len": 48, "seed": 1, "batch_size": "many", "of a later version": True}}
    write_json(path / "r" / "train.json", odd)
    assert evaluate_run(path, "r", DataConfig(dataset=str(texts)), device="cpu")[0]["context_len"] == 48


def test_evaluating_on_a_cpu_takes_as_many_threads_as_are_fastest(tmp_path, monkeypatch):
    """Measured by forwards of the model, as long as those to come."""
    path = create(tmp_path / "m", tiny().config)
    checkpoint.save(path / "r", 3, tiny(), [], {"seconds": 1.0})
    text = tmp_path / "text.txt"
    text.write_text("cats purr. " * 20)
    lengths, forwards, original = [], [], Pico.forward
    monkeypatch.setattr(Pico, "forward", lambda *a, **k: lengths.append(a[1].shape[1]) or original(*a, **k))
    monkeypatch.setattr("pico.evaluate.opened.pick_threads", lambda work, log: forwards.append(work() and lengths[:]))
    evaluate_run(path, "r", DataConfig(dataset=str(text)), context_len=32, device="cpu")
    assert forwards == [[32]]  # once, and before anything was scored


def test_training_text_is_the_end_of_what_the_run_read(tmp_path):
    file = tmp_path / "train.txt"
    file.write_bytes(TEXT * 100)
    record = {"data": DataConfig(dataset=str(file)).model_dump()}
    found = analysis.training_text(record, 0)
    assert 0.98 < len(found) / (100 * len(TEXT)) < 1 and (found + TEXT * 2)[: len(TEXT) * 100] == TEXT * 100
    file.unlink()
    assert analysis.training_text(record, 0) is None
    assert analysis.training_text({}, 0) is None


@pytest.mark.parametrize(
    "latent, others, said",
    [
        ((0.1009, 0.2001), {}, "; its latent blocks save 0.100 to 0.201."),
        ((0.0009, 0.2), {}, "; whether its latent blocks help, this text cannot tell (+0.000 to +0.200)."),
        ((-0.2, -0.1), {}, "; without its latent blocks it would need 0.100 to 0.200 less."),
        (
            (0.1, 0.2),
            {"space": (0.03, 0.2), "stride": (0.02, 0.1), "topk_sees_the_future": (-0.1, 0.1)},
            "; routed by space or stride instead, without retraining, it would need at least 0.020 more.",
        ),
        (
            (0.1, 0.2),
            {"space": (0.03, 0.2), "stride": (-0.02, 0.1)},
            "; whether its own routing is better than by stride, this text cannot tell.",
        ),
        (
            (0.1, 0.2),
            {"space": (-0.3, -0.2), "stride": (-0.02, 0.1)},
            "; routed by space instead, without retraining, it would need less.",
        ),
    ],
)
def test_the_conclusion_says_no_more_than_the_intervals(latent, others, said):
    report = {
        "bits_per_byte": 1.25,
        "bits_per_byte_interval": (1.2009, 1.3001),
        "routing": {"realised_fraction": 0.25},
        "disable_latent": {"difference_interval": latent},
        "replaced_routing": {name: {"difference_interval": pair} for name, pair in others.items()},
    }
    assert conclusion(report).startswith("The model needs 1.250 bits per byte (1.200 to 1.301); ")
    assert conclusion(report).endswith(said)
    assert conclusion(report | {"routing": {"realised_fraction": 0.0}}).endswith(" and routed no byte.")
    report["bits_per_byte_interval"] = report["disable_latent"]["difference_interval"] = None
    assert conclusion(report) == "The model needs 1.250 bits per byte (too little text for an interval)."
