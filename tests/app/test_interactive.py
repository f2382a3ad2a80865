"""The loop of `run --interactive`, through a pipe and in a pseudo-terminal."""

import io
import os
import sys

import pytest
from helpers import tiny, tiny_gpt
from pseudo_terminal import Screen

from pico.app.interactive import interact
from pico.decode.generation import generate
from pico.decode.numpy_reader import NumpyDecoder
from pico.decode.sampling import Sampling

SETTINGS = Sampling(temperature=0.7, max_bytes=20, seed=3)


@pytest.fixture(params=[tiny, tiny_gpt])
def model(request):
    return request.param()


@pytest.fixture
def typed(model, monkeypatch, capsysbinary):
    """typed(line, ...) -> stdout and stderr of the loop that reads these lines."""

    def run(*lines: str, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        interact(model, SETTINGS, **options)
        out, err = capsysbinary.readouterr()
        return out, err.decode()

    return run


def text(model, prompt, **settings) -> bytes:
    steps = generate(model, prompt, Sampling(**{**dict(SETTINGS), **settings}), echo=True)
    return b"".join(step.bytes for step in steps)


def test_every_line_is_continued_as_run_would(typed, model):
    """The next seed for the next text; Enter alone goes on with the last one."""
    out, err = typed("one", "//two", "")
    second = text(model, b"/two", seed=4)
    third = text(model, second, seed=5)
    assert out == text(model, b"one") + b"\n" + second + b"\n" + third.removeprefix(second) + b"\n"
    assert err == ""


def test_settings_change_and_come_back(typed, model):
    lines = [
        "/temp 0",
        "/max  7",
        "ab",
        "/topk 2",
        "/topp .9",
        "/minp .1",
        "/penalty 1.5",
        "/seed 9",
        "cd",
        "/reset",
        "ef",
    ]
    out, err = typed(*lines, "/seed", "/quit", "never read")
    some = dict(top_k=2, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=9)
    wanted = [text(model, b"ab", temperature=0, max_bytes=7), text(model, b"cd", temperature=0, max_bytes=7, **some)]
    assert out == b"".join(each + b"\n" for each in [*wanted, text(model, b"ef")])
    assert err.splitlines()[:4] == ["temperature = 0.0", "max_bytes = 7", "top_k = 2", "top_p = 0.9"]
    assert err.splitlines()[-2:] == ["settings are those of the start", "seed = 4"]


@pytest.mark.parametrize(
    "wrong", ["/temp hot", "/temp -1", "/topp 2", "/max 0", "/seed 1.5", "/tmp 1", "/", "/help me"]
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_lost(typed, model, wrong):
    out, err = typed("/temp 0", wrong, "ab")
    assert out == text(model, b"ab", temperature=0) + b"\n"
    if wrong != "/help me":
        (_, line) = err.splitlines()
        assert line.startswith((f"error: {wrong}: ", f"error: unknown command {wrong.split()[0]}: ")), line


def test_help_names_every_command(typed):
    _, err = typed("/help")
    for name in ["temp", "topk", "topp", "minp", "penalty", "max", "seed", "reset", "help", "quit"]:
        assert f"/{name} " in err


def test_an_answer_can_be_interrupted(typed, model, monkeypatch):
    """Ctrl-C ends it, and what was written is what goes on."""
    calls = []

    def read(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return made(*args)

    made = NumpyDecoder.__call__
    monkeypatch.setattr(NumpyDecoder, "__call__", read)
    out, err = typed("ab", "/temp", "")
    whole, first = text(model, b"ab"), out
    while not whole.startswith(first):
        first = first[:-1]
    assert err == "temperature = 0.7\n"
    assert len(calls) > 9 and out[len(first) :].startswith(b"\n") and 2 < len(first) < len(whole)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_in_a_terminal():
    """A prompt, Ctrl-C at it and within an answer, a setting, Ctrl-D."""
    line = "run models/tinystories best --interactive --device cpu --temperature 0 --max-bytes 100000000"
    with Screen(line) as screen:
        screen.until(b"> ")
        screen.press(b"half a li")
        screen.until(b"half a li")
        screen.press(b"\x03")
        screen.until(b"> ")
        screen.press(b"Once upon a time\r")
        screen.until(b"Once upon a time\r\n")
        screen.until(b"Once upon a time")
        screen.until(b" a")
        screen.press(b"\x03")
        screen.until(b"\n> ")
        screen.press(b"/max 12\r")
        screen.until(b"max_bytes = 12\r\n> ")
        screen.press(b"The cat\r")
        screen.until(b"The cat\r\nThe cat")
        screen.until(b"\n> ")
        screen.press(b"\x04")
