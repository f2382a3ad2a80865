"""Sentences with alternatives: "[Please |]spell {word}" is one of two."""

import re
from random import Random

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


def lines(text: str) -> list[str]:
    """The lines of a text, those that are empty left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def worded(line: str, random: Random, **words) -> str:
    """One of the sentences that a line stands for, its words in place, with a capital letter at its start."""
    while found := ALTERNATIVES.search(line):
        line = line[: found.start()] + random.choice(found[1].split("|")) + line[found.end() :]
    line = line.format(**words)
    return line[0].upper() + line[1:]
