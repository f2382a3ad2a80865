"""Hints can be typed: started as the user started the command, quoted, with a prompt that is text."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.base import hints

UV = {"UV_RUN_RECURSION_DEPTH": "1"}


@pytest.mark.parametrize(
    "typed, script, environment, words",
    [
        (["/home/me/.venv/bin/python", "picolm.py", "info"], "picolm.py", UV, "uv run python picolm.py"),
        (["python3", "picolm.py"], "picolm.py", {}, "python3 picolm.py"),
        (["/opt/python", "../my pico/picolm.py"], "../my pico/picolm.py", {}, "/opt/python '../my pico/picolm.py'"),
        (["/venv/bin/python", "/venv/bin/picolm", "info"], "/venv/bin/picolm", {}, "picolm"),
        (["/venv/bin/python", "/venv/bin/picolm", "info"], "/venv/bin/picolm", UV, "uv run picolm"),
        (["python", "-m", "pico"], "/lib/pico/__main__.py", {}, "python -m pico"),
        (["python", "-m", "pytest"], "/lib/pytest/__main__.py", {}, "python picolm.py"),
        (["python", "notebook.py"], "notebook.py", {}, "python picolm.py"),
    ],
)
def test_commands_begin_as_they_were_started(typed, script, environment, words):
    assert shlex.join(hints.started(typed, script, environment)) == words


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_a_shell_takes_the_words_apart_again(words):
    assert shlex.split(hints.quoted(*words)) == words


@pytest.mark.parametrize(
    "document, text",
    [
        (b"Once upon a time, there was a little girl named Lily.", "Once upon a time, there was a"),
        (b"First Citizen:\nBefore we proceed", "First Citizen:"),
        (b"short", "short"),
        ("Ήταν κάποτε ένα μικρό κορίτσι".encode(), "Ήταν κάποτε ένα"),
        ("很久很久以前有一个小女孩名字叫莉莉她住在村子里".encode(), "很久很久以前有一个小"),
        (b"ACGT" * 20, "ACGT" * 8),
        (b"it's $HOME & `ls`", "it's $HOME & `ls`"),
        (b"", None),
        (b"-", None),
        (b"\n\ntext", None),
        (b"a\tb", None),
        (b"\x89PNG\r\n", None),
        (b"caf\xe9 au lait", None),
        (b"\x1b[2J gone", None),
    ],
)
def test_a_prompt_is_the_first_words(document, text):
    assert hints.prompt(document) == (["--prompt", text] if text else [])


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_a_prompt_begins_the_document_and_is_printable(document):
    for text in hints.prompt(document)[1:]:
        assert text.isprintable() and document.strip().startswith(text.encode())
