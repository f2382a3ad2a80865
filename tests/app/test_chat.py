"""A conversation in the terminal, through a pipe and in a pseudo-terminal."""

import io
import json
import os
import sys
from collections import Counter

import pytest
from helpers import tiny, tiny_gpt
from pseudo_terminal import Screen

from pico.app.chat import Chat, converse
from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, END_OF_TURN, EOS, SYSTEM, USER
from pico.data.chat import read_chat, unpack_turns
from pico.decode.generation import generate
from pico.decode.numpy_gpt import NumpyGPT
from pico.decode.numpy_reader import NumpyDecoder, NumpyReader
from pico.decode.sampling import Sampling

SETTINGS = Sampling(temperature=0.7, max_bytes=20, seed=3)


@pytest.fixture(params=["pico", "gpt"])
def model(request):
    """One that sees all that is said in most of these tests."""
    return tiny(latent_att_window_size=500) if request.param == "pico" else tiny_gpt(max_context=1000)


@pytest.fixture
def typed(model, monkeypatch, capsysbinary, tmp_path):
    """typed(line, ...) -> stdout and stderr of the conversation that reads these lines, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, model=model, sampling=SETTINGS, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        converse(model, sampling, **options)
        out, err = capsysbinary.readouterr()
        return out, err.decode()

    return run


def answer(model, *turns: bytes, system: bytes = b"", **settings) -> bytes:
    """What a model answers to the last of the turns, the user's and its own, spelled out."""
    ids = [BOS, *([SYSTEM, *system, END_OF_TURN] if system else [])]
    for i, turn in enumerate(turns):
        ids += [ASSISTANT if i % 2 else USER, *turn, END_OF_TURN]
    ends = frozenset([END_OF_TURN, EOS])
    sampling = Sampling(**{**dict(SETTINGS), **settings, "stop_symbols": ends})
    return b"".join(step.bytes for step in generate(model, [*ids, ASSISTANT], sampling))


def test_every_answer_knows_the_turns_before(typed, model):
    out, err = typed("one", "", "//two", system=b"Be kind.")
    first = answer(model, b"one", system=b"Be kind.")
    second = answer(model, b"one", first, b"/two", system=b"Be kind.", seed=4)
    assert out == first + b"\n" + second + b"\n" and first != second
    cut = [each for each in (first, second) if len(each) == 20]
    assert err == "cut after 20 bytes; /max allows more\n" * len(cut)


def test_an_answer_is_tried_again_and_taken_back(typed, model):
    """Another seed for another try; after /undo, /system and /reset the model sees what a new chat would show it."""
    out, err = typed("one", "/retry", "/undo", "two", "/system Be kind.", "/temp 0", "three", "/reset", "one")
    first, again, two = answer(model, b"one"), answer(model, b"one", seed=4), answer(model, b"two", seed=5)
    three = answer(model, b"two", two, b"three", system=b"Be kind.", temperature=0)
    assert out == b"".join(each + b"\n" for each in [first, again, two, three, first])
    assert [line for line in err.splitlines() if not line.startswith("cut")] == [
        "taken back: one",
        "system: Be kind.",
        "temperature = 0.0",
        "a new chat, with the settings of the start",
    ]


def test_a_saved_chat_goes_on_and_can_be_trained_on(typed, model, tmp_path):
    out, err = typed("/system Be kind.", "one", "/save my chat.jsonl", "two", "/save")
    first = answer(model, b"one", system=b"Be kind.")
    second = answer(model, b"one", first, b"two", system=b"Be kind.", seed=4)
    assert err.count("wrote my chat.jsonl\n") == 2 and out == first + b"\n" + second + b"\n"
    out, err = typed("/load my chat.jsonl", "three", "/system", "/save other.jsonl")
    assert out == answer(model, b"one", first, b"two", second, b"three", system=b"Be kind.") + b"\n"
    assert "my chat.jsonl has 4 turns; the last ones:\n> two\n" in err and "system: Be kind.\n" in err
    saved = json.loads((tmp_path / "my chat.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in saved] == ["system", *["user", "assistant"] * 2]
    file, left_out = tmp_path / "my chat.jsonl", Counter()
    (document,) = read_chat(file, None, None, lambda _: None, left_out)
    assert [role for role, _ in unpack_turns(document)] == [turn["role"] for turn in saved] and not left_out


@pytest.mark.parametrize(
    "line, problem",
    [
        ("/undo", "nobody has said anything"),
        ("/retry", "nobody has said anything"),
        ("/save", "nobody has said anything"),
        ("/load nowhere.jsonl", "there is no nowhere.jsonl"),
        ("/load .", ". cannot be read"),
        ("/load text.txt", "text.txt cannot be read as JSON"),
        ("/load rows.json", "no conversations in rows.json"),
        ("/load roles.json", "roles.json is among conversations with other roles"),
        ("/load empty.json", "empty.json is among conversations without an answer"),
        ("/lod x", "unknown command /lod: did you mean /load?"),
        ("/temp hot", "/temp hot: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_lost(typed, model, tmp_path, line, problem):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "rows.json").write_text('{"a": 1}')
    (tmp_path / "roles.json").write_text('{"messages": [{"role": "cat", "content": "meow"}]}')
    (tmp_path / "empty.json").write_text('{"messages": []}')
    out, err = typed(line, "one")
    assert out == answer(model, b"one") + b"\n"
    assert err.startswith(f"error: {problem}") and err.count("\n") == 2, err


def test_a_file_of_another_is_left_alone(typed, tmp_path):
    (tmp_path / "notes").write_text("mine")
    _, err = typed("one", "/save notes")
    assert "error: notes already exists: choose another file" in err and (tmp_path / "notes").read_text() == "mine"


def test_a_turn_reads_only_what_is_new(model, monkeypatch):
    """What the model reads is counted."""
    read = []
    for reader in (NumpyReader, NumpyGPT):
        before = reader.read
        monkeypatch.setattr(reader, "read", lambda self, tokens, f=before: read.append(tokens.size) or f(self, tokens))
    chat = Chat(model)
    sampling = Sampling(max_bytes=1, seed=0)
    list(chat.answer(b"x" * 300, sampling))
    assert sum(read) >= 303
    read.clear()
    list(chat.answer(b"yy", sampling))
    assert len([END_OF_TURN, USER, *b"yy", END_OF_TURN, ASSISTANT]) <= sum(read) < 20 and len(chat.turns) == 4


def test_a_full_context_drops_the_oldest_turns_and_says_so_once(typed):
    model = tiny_gpt(max_context=64)
    lines = ["a" * 20, "b" * 5, "c" * 5, "d" * 5]
    out, err = typed(*lines, model=model, sampling=Sampling(max_bytes=16, temperature=0))
    said = [line for line in err.splitlines() if not line.startswith("cut")]
    assert said == ["the 64 bytes of this model are full: it no longer reads the oldest turns"]
    one = answer(model, b"a" * 20, max_bytes=16, temperature=0)
    two = answer(model, b"b" * 5, max_bytes=16, temperature=0)  # 20 + 5 + 3 + 16 + ... and room for 16 are more than 64
    three = answer(model, b"b" * 5, two, b"c" * 5, max_bytes=16, temperature=0)
    assert out.startswith(one + b"\n" + two + b"\n" + three + b"\n")


def test_pico_drops_nothing_and_says_once_that_it_forgets(typed):
    model = tiny()  # 7 latent positions, half of the bytes: 14
    out, err = typed("a" * 30, "b", model=model, sampling=Sampling(max_bytes=5, temperature=0))
    first = answer(model, b"a" * 30, max_bytes=5, temperature=0)
    assert out == first + b"\n" + answer(model, b"a" * 30, first, b"b", max_bytes=5, temperature=0) + b"\n"
    assert err.count("nothing is dropped, but the model sees some 14 bytes: what was said before them fades\n") == 1


@pytest.fixture
def interrupted(monkeypatch):
    """[at, count] of forwards: Ctrl-C comes at the end of number `at`."""
    forward, at = NumpyDecoder.__call__, [0, 0]

    def read(*args):
        at[1] += 1
        made = forward(*args)
        if at[1] == at[0]:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(NumpyDecoder, "__call__", read)
    return at


def test_an_answer_can_be_stopped_and_the_chat_goes_on(typed, model, interrupted):
    """What was written is the answer."""
    interrupted[0] = 9
    out, _ = typed("one", "two", sampling=Sampling(**{**dict(SETTINGS), "max_bytes": 60}))
    whole, first = answer(model, b"one", max_bytes=60), out
    while not whole.startswith(first):
        first = first[:-1]
    assert 0 < len(first) < len(whole)
    assert out == first + b"\n" + answer(model, b"one", first, b"two", seed=4, max_bytes=60) + b"\n"


def test_nothing_answered_is_nothing_said(typed, model, interrupted):
    """The message is taken back, and where it had an answer, that stays."""
    interrupted[0] = 1
    out, err = typed("one", "/undo")
    assert (out, err) == (b"\n", "no answer: the message is taken back\nerror: nobody has said anything yet\n")

    interrupted[:] = 0, 0
    typed("one")
    interrupted[:] = interrupted[1] + 1, 0
    out, err = typed("one", "/retry", "two")
    first = answer(model, b"one")
    assert out == first + b"\n\n" + answer(model, b"one", first, b"two", seed=5) + b"\n"
    assert "no answer: the old one stays\n" in err


def test_a_tokenizer_without_turns_is_refused(model):
    model.alphabet = type(model.alphabet)(model.alphabet.table, {"bos": BOS, "eos": EOS})
    with pytest.raises(PicoError, match="no symbols for turns"):
        Chat(model)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_in_a_terminal():
    """Routed characters are underlined; Ctrl-C ends an answer, and it is the answer."""
    line = "chat models/tinystories best --device cpu --temperature 0 --max-bytes 100000000 --show-router-decisions"
    with Screen(line) as screen:
        screen.until(b"\r\n> ")
        screen.press(b"The cat sat.\r")
        screen.until(b"The cat sat.\r\n")
        screen.until(b"\x1b[4m")
        screen.until(b"\x1b[24m")
        screen.press(b"\x03")
        screen.until(b"\n> ")
        screen.press(b"/undo\r")
        screen.until(b"taken back: The cat sat.\r\n> ")
        screen.press(b"\x04")
