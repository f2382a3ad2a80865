"""A text that goes on is what its whole text gives, read once; and what a symbol's surprise is."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import texts, tiny_gpt, trained

import pico.decode.generation
from pico.base.symbols import BOS, END_OF_TURN, USER
from pico.decode.generation import generate
from pico.decode.numpy_gpt import NumpyGPT
from pico.decode.numpy_reader import NumpyReader
from pico.decode.session import Session
from pico.decode.torch_reader import TorchReader

PROMPT = [BOS, USER, *b"Once upon a time, " * 5]


@pytest.fixture(params=["numpy", "torch", "twin", "twin in torch"])
def model(request, monkeypatch):
    if "torch" in request.param:
        monkeypatch.setattr(
            pico.decode.generation,
            "reader",
            lambda model, batch, feed, **options: TorchReader(model, batch, feed, **options),
        )
        monkeypatch.setattr("pico.decode.session.reader", pico.decode.generation.reader)
    return trained("topk") if "twin" not in request.param else tiny_gpt(max_context=400)


@pytest.fixture
def sizes(monkeypatch):
    """How many symbols each forward reads."""
    made = []

    def count(kind, name):
        read = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, tokens: (made.append(tokens.shape[1]), read(self, tokens))[1])

    count(NumpyReader, "read")
    count(NumpyGPT, "read")
    count(TorchReader, "forward")
    return made


def test_a_turn_reads_only_what_is_new_and_says_what_the_whole_text_gives(model, sizes):
    session, ids = Session(model), PROMPT
    for turn in range(4):
        sizes.clear()
        settings = dict(max_bytes=20, temperature=0.7, seed=turn, stop_symbols=frozenset())
        going_on = session.generate(ids, **settings)
        written = texts(going_on)
        read, forwards = sum(sizes), going_on.stats["forwards"]
        assert written == texts(generate(model, ids, **settings))
        assert going_on.ended == ["length"]
        new = len(ids) if not turn else 18  # and what was drawn last, which is not read yet
        assert read <= new + forwards * (1 + model.config.drafts), turn
        ids = [*ids, *written[0], END_OF_TURN, USER, *f"and then {turn}?".encode()]
    assert len(ids) > 200


def test_a_text_that_is_another_is_read_anew(model, sizes):
    session = Session(model)
    for ids in (PROMPT, [BOS, *b"Something else"], [BOS, *b"Something"], PROMPT[:-9], [BOS]):
        for _ in range(2):  # again the same, as to try once more
            got = texts(session.generate(ids, max_bytes=12, temperature=0))
            assert got == texts(generate(model, ids, max_bytes=12, temperature=0))


def test_a_turn_that_is_left_in_the_middle_goes_on_from_what_was_shown(model):
    session = Session(model)
    for shown in (1, 2, 7, 11):
        steps = iter(session.generate(PROMPT, max_bytes=40, temperature=0))
        ids = PROMPT + [step.id for step in islice(steps, shown)]
        steps.close()
        ids += [END_OF_TURN, USER, *b"why?"]
        got = texts(session.generate(ids, max_bytes=12, temperature=0))
        assert got == texts(generate(model, ids, max_bytes=12, temperature=0))


def test_the_twin_says_how_far_it_looks_back():
    assert Session(tiny_gpt(max_context=12)).context == 12 and Session(trained("topk")).context is None


@torch.no_grad()
def test_surprise_is_what_head_0_says_before_all_settings(model):
    settings = dict(max_bytes=40, temperature=0.6, top_p=0.8, repetition_penalty=1.3, stop_symbols=frozenset())
    generation = generate(model, PROMPT, echo=True, **settings)
    steps = list(generation)
    new = [step for step in steps if not step.prompt]
    assert len(new) > 5 and all(math.isnan(step.surprise) for step in steps if step.prompt)
    logits = model(torch.tensor([PROMPT + [step.id for step in new]])).logits[0, len(PROMPT) - 1 : -1, 0]
    bits = -logits.double().log_softmax(-1)[range(len(new)), [step.id for step in new]] / math.log(2)
    np.testing.assert_allclose([step.surprise for step in new], bits, atol=2e-4)
    assert max(step.surprise for step in new) > 0.5
