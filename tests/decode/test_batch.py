"""Texts that are decoded together: each says what it would say alone, whoever joins and leaves."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import chi_square, joint, texts, tiny_gpt, trained

import pico.decode.batch
from pico.base.config import PREFILL
from pico.base.errors import PicoError
from pico.base.symbols import BOS
from pico.decode.batch import Engine
from pico.decode.generation import generate, to_ids
from pico.decode.sampling import Sampling
from pico.decode.torch_batch import TorchBatch

PROMPTS = [b"", b"A", b"Once upon a time", bytes(range(256)), b"one two " * 90, b"\xff\x00\xfe" * 40, b"three "]


class Heard:
    """What a text told."""

    def __init__(self):
        self.steps, self.told, self.ended = [], [], None

    def __call__(self, steps, ended, told):
        self.steps += steps
        self.told += told
        self.ended = ended

    @property
    def text(self):
        return b"".join(step.bytes for step in self.steps)


def add(engine, prompt, most=10**9, disable_latent=False, top=0, **settings) -> Heard:
    heard = Heard()
    ids = to_ids(prompt, engine.alphabet)
    heard.asked = engine.add(ids, Sampling(**settings), heard, most, disable_latent, top)
    return heard


def finish(engine):
    for _ in range(3000):
        if not (engine.texts or engine.waiting):
            return
        engine.step()
    raise AssertionError("it never ends")


def in_torch(model, rows: int, feed: int):
    return TorchBatch(model, 1, PREFILL), TorchBatch(model, rows, feed)


@pytest.mark.parametrize(
    "router, how", [("topk", None), ("stride", None), ("none", None), ("hnet", None), ("topk", in_torch)]
)
def test_greedy_texts_that_join_and_leave_are_those_of_each_alone(router, how, monkeypatch):
    monkeypatch.setattr(pico.decode.batch, "PIECE", 50)
    if how:
        monkeypatch.setattr(pico.decode.batch, "readers", how)
    model = trained(router)
    engine, all_heard = Engine(model, rows=3), []
    for number, prompt in enumerate(PROMPTS):
        latent_off = number % 3 == 1
        heard = add(engine, prompt, disable_latent=latent_off, temperature=0, max_bytes=10 + 9 * (number % 4))
        all_heard.append((heard, generate(model, prompt, heard.asked.sampling, disable_latent=latent_off)))
        for _ in range(number % 3):
            engine.step()
    finish(engine)
    for heard, alone in all_heard:
        assert [heard.text] == texts(alone)
        assert [heard.ended] == alone.ended
    assert engine.batch.texts == 0


@pytest.mark.parametrize(
    "change",
    [
        dict(max_context=12),
        dict(max_context=300, qk_norm="after", gate="input", logit_softcap=5.0),
        dict(ngram_max=3, ngram_rows=64, ngram_dim=8, embedding_scale="norm"),
    ],
)
@pytest.mark.parametrize("how", [None, in_torch], ids=["numpy", "torch"])
def test_greedy_texts_of_the_twin_are_those_of_each_alone(change, how, monkeypatch):
    if how:
        monkeypatch.setattr(pico.decode.batch, "readers", how)
    model = tiny_gpt(**change)
    engine = Engine(model, rows=4)
    heard = [add(engine, prompt, temperature=0, max_bytes=40) for prompt in PROMPTS]
    finish(engine)
    for each, prompt in zip(heard, PROMPTS):
        assert [each.text] == texts(generate(model, prompt, each.asked.sampling))


SETTINGS = dict(temperature=0.9, top_p=0.9, max_bytes=60, seed=5)


@pytest.mark.parametrize("make", [lambda: trained("topk"), tiny_gpt], ids=["pico", "twin"])
def test_a_seed_gives_one_text_whoever_else_is_there_and_however_much_is_drafted(make, monkeypatch):
    model = make()

    def text(others: int, drafts: int, after: int = 0) -> bytes:
        engine = Engine(model, rows=8)
        engine._drafts = lambda: drafts
        for number in range(others):
            add(engine, PROMPTS[number], temperature=1.3, seed=number, max_bytes=7 + 9 * number)
        for _ in range(after):
            engine.step()
        heard = add(engine, b"one two", **SETTINGS, repetition_penalty=1.1)
        finish(engine)
        return heard.text

    most = model.config.drafts
    first = text(0, most)
    assert len(first) > 20
    assert [first] == texts(generate(model, b"one two", **SETTINGS, repetition_penalty=1.1))  # alone on a CPU
    for others, drafts, after in (0, 0, 0), (2, most, 0), (6, min(2, most), 0), (6, min(1, most), 3):
        assert text(others, drafts, after) == first


def test_drafts_are_kept_as_often_as_noise_that_is_shared_allows():
    """Noise of another symbol would give the same text, in nearly as many forwards as it has symbols."""
    engine = Engine(trained("topk"), rows=1)
    for seed in range(16):
        add(engine, b"one", temperature=1.5, seed=seed, max_bytes=40)
    finish(engine)
    assert engine.stats["symbols"] / engine.stats["forwards"] > 2.2


def test_other_seeds_give_other_texts():
    engine = Engine(trained("topk"))
    heard = [add(engine, b"one", **{**SETTINGS, "seed": seed}) for seed in (1, 2, None, None)]
    finish(engine)
    assert len({each.text for each in heard}) == 4


def test_texts_are_distributed_as_the_model_says():
    """Every continuation as often as plain full forwards say it should be, drafts and all."""
    model = trained("topk")
    options = dict(temperature=0.7, top_k=3)
    expected = joint(model, b"one ", 3, **options)
    engine, counts, total = Engine(model, rows=32), Counter(), 1200
    heard = [add(engine, b"one ", seed=seed, max_bytes=3, **options) for seed in range(total)]
    finish(engine)
    for each in heard:
        counts[each.text] += 1
    statistic, limit = chi_square(counts, expected, total)
    assert statistic < limit and len(expected) > 4


def test_limits_and_stops_end_a_text_and_only_it():
    model = trained("topk")
    engine = Engine(model)
    whole = texts(generate(model, b"one ", temperature=0, max_bytes=60))[0]
    stop = whole[20:24]
    heard = [
        add(engine, b"one ", temperature=0, max_bytes=60),
        add(engine, b"one ", temperature=0, max_bytes=60, stop=[stop]),
        add(engine, b"one ", temperature=0, most=11),
        add(engine, b"one ", temperature=0, most=11, stop=[whole[:12]]),
    ]
    finish(engine)
    assert [each.ended for each in heard] == ["length", "stop", "length", "length"]
    assert [each.text for each in heard] == [whole, whole[: whole.index(stop)], whole[:11], whole[:11]]


def test_who_leaves_frees_the_row():
    engine = Engine(trained("topk"), rows=2)
    heard = [add(engine, b"one ", temperature=0, max_bytes=10**6) for _ in range(3)]
    for _ in range(4):
        engine.step()
    assert len(engine.texts) == 2 and len(engine.waiting) == 1
    heard[0].asked.cancelled = True
    engine.step()
    assert [text.heard for text in engine.texts] == heard[1:]
    for each in heard:
        each.asked.cancelled = True
    engine.step()
    assert not engine.texts and not engine.waiting and heard[0].ended is None


@pytest.mark.parametrize("how", [None, in_torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("make", [lambda: trained("topk"), lambda: tiny_gpt(max_context=200)], ids=["pico", "twin"])
def test_what_was_read_is_not_read_again(make, how, monkeypatch):
    """A prompt asked twice, and a text that goes on: only what is new, and the same answer."""
    model = make()
    if how:
        monkeypatch.setattr(pico.decode.batch, "readers", how)
    engine, ids = Engine(model), [BOS, *b"one two three " * 4]
    for turn in range(3):
        before = engine.stats["prompt_symbols"]
        first = add(engine, ids, temperature=0, most=12)
        finish(engine)
        again = add(engine, ids, temperature=0, most=12)
        off = add(engine, ids, temperature=0, most=12, disable_latent=True)
        finish(engine)
        assert first.text == again.text == texts(generate(model, ids, temperature=0, max_bytes=12))[0]
        plain = list(generate(model, ids, temperature=0, max_bytes=12, disable_latent=True))
        np.testing.assert_allclose([s.surprise for s in off.steps], [s.surprise for s in plain], atol=1e-3)
        new = engine.stats["prompt_symbols"] - before
        assert new <= (2 * len(ids) if turn == 0 else 2 * 20), (turn, new)
        assert again.asked.reused == len(ids) - 1
        ids = [*ids, *(step.id for step in first.steps), *b" and "]


def test_what_is_remembered_is_bounded(monkeypatch):
    engine = Engine(trained("topk"))
    monkeypatch.setattr(pico.decode.batch, "REMEMBERED", 10_000)
    for number in range(12):
        add(engine, bytes([65 + number]) * 40, temperature=0, most=2)
        finish(engine)
    assert 2 <= len(engine.remembered) < 10
    assert sum(state.memory_bytes() for state in engine.remembered.values()) <= 10_000


@torch.no_grad()
def test_surprise_and_the_likeliest_symbols_are_the_models():
    model = trained("topk")
    engine = Engine(model)
    heard = add(engine, b"one ", temperature=0.9, top_k=5, most=40, top=3)
    add(engine, b"two ", temperature=0.9, most=30)
    finish(engine)
    ids = [BOS, *b"one ", *(step.id for step in heard.steps)]
    bits = -model(torch.tensor([ids])).logits[0, 4:-1, 0].double().log_softmax(-1) / math.log(2)
    new = [step.id for step in heard.steps]
    np.testing.assert_allclose([step.surprise for step in heard.steps], bits[range(len(new)), new], atol=2e-4)
    assert len(heard.told) == len(new)
    for row, told in zip(bits, heard.told):
        assert [i for i, _ in told] == row.topk(3, largest=False).indices.tolist()
        np.testing.assert_allclose([value for _, value in told], row.topk(3, largest=False).values, atol=2e-4)


def test_a_forward_that_fails_ends_its_texts_and_no_more(monkeypatch):
    import threading

    engine = Engine(trained("topk"))
    grow, broken = Engine._grow, [True]
    monkeypatch.setattr(Engine, "_grow", lambda self: 1 / 0 if broken.pop() else grow(self))
    broken[:] = [False] * 50 + [True]
    thread = threading.Thread(target=engine.run)
    thread.start()
    done = threading.Event()
    heard = []
    engine.add(to_ids(b"x", engine.alphabet), Sampling(), lambda *news: (heard.append(news), done.set()))
    assert done.wait(60) and heard[0][1] == "failed"
    done.clear()
    engine.add(to_ids(b"x", engine.alphabet), Sampling(max_bytes=1), lambda *news: (heard.append(news), done.set()))
    assert done.wait(60) and heard[1][1] == "length"
    engine.close()
    thread.join(60)
    assert not thread.is_alive()


def test_a_prompt_that_cannot_be_read_ends_its_text(monkeypatch):
    import threading

    engine, heard = Engine(trained("topk")), []
    monkeypatch.setattr(engine.reader, "read", lambda *_: 1 / 0)
    monkeypatch.setattr(engine.reader, "skim", lambda *_: 1 / 0)
    thread, done = threading.Thread(target=engine.run), threading.Event()
    thread.start()
    engine.add(to_ids(b"some text", engine.alphabet), Sampling(), lambda *news: (heard.append(news[1]), done.set()))
    assert done.wait(60) and heard == ["failed"]
    engine.close()
    thread.join(60)
    assert not thread.is_alive()


def test_rows_that_do_not_fit_into_memory_are_refused():
    with pytest.raises(PicoError, match="do not fit"):
        Engine(trained("topk"), rows=10**12)
