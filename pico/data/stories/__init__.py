"""The built-in corpus: endless small stories from a grammar of our own, with an entropy we can compute.

The words are in story_words.py, the grammar in story_frame.py, story_home.py, story_outdoors.py and story_animals.py.
A rule is a name at the margin and its beats, separated by blank lines; the lines of a beat are its alternatives, all
equally likely, and a line that ends in a backslash goes on. "name: a, b, c" is a rule of short alternatives.

    [a|b|c]            a choice, all equally likely             <rule>     the beats of another rule
    {hero=girls}       draws a word that no one has drawn yet from a table, remembers it as hero, says it
    {hero}             says it again: a recall                  {animal=food.thieves}   draws from a word's own table
    {hero.his}         a property of the word; {his} alone is short for {hero.his}; a rule hat.sad: is one, too
    {frame:pet}        remembers a word without saying it       ~          alone on a line: a new paragraph

**Entropy.** The alternatives of every choice are a prefix code: whatever begins one neither is nor begins another. So
a reader who knows the grammar can name each choice once its text has passed. A text therefore has one derivation, its
probability is the product of 1 / (number of alternatives), and no story is the beginning of another: the end of a
document costs no further bits. test_stories.py proves it on the tables. Story.bits counts the bits of the text,
so `entropy_floor`, bits over bytes, is what a perfect model reaches, control symbols included.

    from pico.data.stories import stories
    first = next(stories(seed=0))
    print(first.text, first.bits / len(first.text))
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from math import log2
from random import Random
from typing import NamedTuple

from pico.data.stories import animals as story_animals
from pico.data.stories import frame as story_frame
from pico.data.stories import home as story_home
from pico.data.stories import outdoors as story_outdoors
from pico.data.stories.words import PRONOUNS, WORDS


class Recall(NamedTuple):
    """A word that the text before it determines completely, because it was said before.

    position: byte index of the word; length: its bytes; distance: bytes back to where it was last said;
    kind: what it is: hero, friend, helper, colour, thing, place ...
    """

    position: int
    length: int
    distance: int
    kind: str


class Story(NamedTuple):
    """text: ASCII; bits: -log2 of its probability; recalls: in order of position."""

    text: str
    bits: float
    recalls: list[Recall]


class Choice(tuple):
    """Alternatives, each a list of pieces (str, Choice, Expand, Say, Draw, Remember)."""


class Expand(NamedTuple):
    """Expands the pieces of a rule, or of a property of a remembered word when `word` is set."""

    word: str
    name: str


class Say(NamedTuple):
    """Says a remembered word again."""

    word: str


class Draw(NamedTuple):
    """Draws a word not yet in the story from a table, or from a remembered word's own table when `owner` is set."""

    word: str
    owner: str
    table: str


class Remember(NamedTuple):
    """Remembers a word without saying it."""

    word: str
    value: str


def _parse(text: str) -> list:
    """A line of the grammar -> pieces."""
    branches, stack = [[]], []
    for token in re.findall(r"[\[\]|]|\{[^}]*\}|<[^>]*>|[^\[\]|{<]+", text):
        if token == "[":
            stack.append(branches)
            branches = [[]]
        elif token == "|":
            branches.append([])
        elif token == "]":
            closed, branches = Choice(branches), stack.pop()
            branches[-1].append(closed)
        else:
            branches[-1].append(_piece(token))
    assert not stack and len(branches) == 1, f"unbalanced brackets in: {text}"
    return branches[0]


def _piece(token: str):
    body = token[1:-1]
    if token[0] == "<":
        return Expand("", body)
    if token[0] != "{":
        return token
    if "=" in body:
        word, _, table = body.partition("=")
        owner, _, table = table.rpartition(".")
        return Draw(word, owner, table)
    if ":" in body:
        return Remember(*body.split(":"))
    if "." in body:
        return Expand(*body.split("."))
    return Expand("hero", body) if body in PRONOUNS else Say(body)


def _rules(*grammars: str) -> dict[str, list]:
    """Grammar texts -> pieces of each rule. A rule opens with 'name:' at the margin."""
    rules: dict[str, list] = {}
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(grammars))
    for name, words, body in re.findall(r"^(\S+):(.*)\n((?:\n| .*\n)*)", text, re.MULTILINE):
        assert name not in rules, f"two rules named {name}"
        pieces: list = [Choice(_parse(word.strip()) for word in words.split(","))] if words else []
        for beat in re.split(r"\n\s*\n", body.strip()) if body.strip() else []:
            lines = [_parse(line.strip()) for line in beat.splitlines()]
            if lines == [["~"]]:
                pieces.append("\n\n")
                continue
            if pieces and pieces[-1] != "\n\n":
                pieces.append(" ")
            pieces += lines[0] if len(lines) == 1 else [Choice(lines)]
        rules[name] = pieces
    return rules


GRAMMARS = story_frame, story_home, story_outdoors, story_animals
RULES = _rules(*(file.GRAMMAR for file in GRAMMARS))
PROPERTIES: dict[tuple[str, str], list] = {}  # (word, property) -> pieces
TABLES: dict[tuple[str, str], tuple[str, ...]] = {("", table): tuple(words) for table, words in WORDS.items()}


def _properties() -> None:
    """Fills PROPERTIES and TABLES from the word tables and from the rules named word.property."""
    for words in WORDS.values():
        for word, properties in words.items():
            for name, value in properties.items():
                if isinstance(value, tuple):
                    TABLES[word, name] = value
                else:
                    PROPERTIES[word, name] = _parse(value)
    for name, pieces in RULES.items():
        if "." in name:
            word, _, key = name.partition(".")
            PROPERTIES[word, key] = pieces


_properties()


def tell(choose: Callable[[int], int], out: list[str] | None = None) -> Story:
    """One story. choose(n) is asked at every choice, in the order of the text, for a number in range(n).

    The text grows in `out`, so that whoever chooses can look at it.
    """
    out = [] if out is None else out
    recalls: list[Recall] = []
    told: dict[str, str] = {}  # what each variable stands for
    said: dict[str, int] = {}  # where each variable was last said
    position = fixed = 0  # bytes so far; bytes at the latest choice, which the text cannot yet have shown
    bits = 0.0

    def expand(pieces):
        nonlocal position, fixed, bits
        for piece in pieces:
            kind = type(piece)
            if kind is str:
                out.append(piece)
                position += len(piece)
            elif kind is Choice:
                n = len(piece)
                bits += log2(n)
                fixed = position
                expand(piece[choose(n)])
            elif kind is Expand:
                word, name = piece
                expand(PROPERTIES[told[word], name] if word else RULES[name])
            elif kind is Remember:
                told[piece.word] = piece.value
            else:
                name = piece.word
                if kind is Say:
                    word = told[name]
                    if position > fixed:
                        recalls.append(Recall(position, len(word), position - said[name], name.rstrip("0123456789")))
                else:
                    table = TABLES[told[piece.owner] if piece.owner else "", piece.table]
                    taken = told.values()
                    table = [word for word in table if word not in taken]
                    bits += log2(len(table))
                    word = told[name] = table[choose(len(table))]
                said[name] = position
                out.append(word)
                position += len(word)
                if kind is Draw:
                    fixed = position

    expand(RULES["story"])
    return Story("".join(out), bits, recalls)


def story(seed: int, index: int) -> Story:
    """Story number `index` of the endless corpus `seed`; depends on nothing else."""
    uniform = Random((seed << 64) | index).random
    return tell(lambda n: int(uniform() * n))


def stories(seed: int, start: int = 0) -> Iterator[Story]:
    """The stories of a corpus from number `start` on, without end."""
    return (story(seed, index) for index in count(start))


class Parse(NamedTuple):
    """What the grammar says of a text.

    length: how many bytes of it some story begins with; derivations: every list of choices that tells all of it;
    forks: the positions where some story that began alike goes on with another byte. All other bytes are certain.
    """

    length: int
    derivations: list[list[int]]
    forks: set[int]


def parse(text: str) -> Parse:
    """The inverse of tell. A text of the corpus is read to its end and has one derivation.

    The text of a model is coherent up to `length`: a wrong name, colour or place is where no story goes on.
    """
    parsed = Parse(0, [], set())

    def visit(choices: list[int]) -> int:
        """Reads on from some choices; returns how far the text agrees."""
        out: list[str] = []
        given, asked = iter(choices), []

        def choose(n: int) -> int:
            for choice in given:
                return choice
            asked.append(n)
            raise InterruptedError

        with suppress(InterruptedError):
            tell(choose, out)
        begun = "".join(out)
        agreed = next((i for i, pair in enumerate(zip(begun, text)) if pair[0] != pair[1]), min(len(begun), len(text)))
        if agreed < len(begun):
            parsed.forks.add(agreed)
        elif asked:
            return max(visit([*choices, choice]) for choice in range(asked[0]))
        elif begun == text:
            parsed.derivations.append(choices)
        return agreed

    return parsed._replace(length=visit([]))


def entropy_floor(some: Iterable[Story]) -> float:
    """Bits per byte that no model can beat on these stories: their exact entropy, -log2 p, over their bytes."""
    total, length = 0.0, 0
    for each in some:
        total += each.bits
        length += len(each.text)
    return total / length
