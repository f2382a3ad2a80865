"""The command line, called in this process: what it answers, and what is asserted of an answer."""

from pathlib import Path
from typing import NamedTuple

import typer.main

import picolm

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(picolm.app).commands
SMALL = "--dim 32 --next-tokens 3 --att-q-heads 2 --att-kv-heads 1 --fb-num-blocks 1 --fb-att-window-size 6 "
SMALL += "--latent-num-blocks 1 --latent-att-window-size 8 --router stride --ngram-max 3 --ngram-rows 64 --ngram-dim 4"
TRAIN = "--context-len 32 --batch-size 4 --max-steps 4 --checkpoint-interval 2 --warmup-steps 1 --precision fp32"


class Answer(NamedTuple):
    code: int
    out: str  # stdout, read as text
    err: str
    raw: bytes  # stdout as it is


def options_of(command: str):
    return [p for p in COMMANDS[command].params if p.param_type_name == "option"]


def refused(answer: Answer, *words: str) -> None:
    """One line on stderr that says these words, exit code 2, nothing on stdout."""
    assert answer.code == 2 and answer.out == "", answer
    assert answer.err.count("\n") == 1 and answer.err.startswith("error: "), answer.err
    assert "Traceback" not in answer.err
    assert all(word in answer.err for word in words), answer.err
