"""The built-in corpus: every text has one derivation, its bits are exact, its words agree, and it is reproducible."""

import itertools
import re
from collections import Counter
from math import isclose, log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pico.data.stories import (
    PROPERTIES,
    RULES,
    TABLES,
    Choice,
    Draw,
    Expand,
    Remember,
    Say,
    Story,
    entropy_floor,
    parse,
    stories,
    story,
    tell,
)

# ---- the proof on the tables: every choice is a prefix code --------------------------------------------------


def all_pieces(pieces):
    for piece in pieces:
        yield piece
        if type(piece) is Choice:
            for alternative in piece:
                yield from all_pieces(alternative)


def grammar_pieces():
    for pieces in itertools.chain(RULES.values(), PROPERTIES.values()):
        yield from all_pieces(pieces)


def words_of(draw: Draw) -> set[str]:
    """Every word a draw can give, in any story."""
    if not draw.owner:
        return set(TABLES["", draw.table])
    return {word for (owner, table), words in TABLES.items() if owner and table == draw.table for word in words}


def spoken(piece) -> set[str]:
    """Every text that a piece of text, a Draw or a Say can be."""
    return {piece} if type(piece) is str else words_of(piece) if type(piece) is Draw else VALUES[piece.word]


VALUES: dict[str, set[str]] = {}  # variable -> every word it can stand for
for piece in grammar_pieces():
    if type(piece) is Draw:
        VALUES.setdefault(piece.word, set()).update(words_of(piece))


def opened(pieces: list) -> list[list]:
    """The ways to go on from pieces that open with a choice, a rule or a silent piece; none for text and words."""
    head, rest = pieces[0], pieces[1:]
    if type(head) is Choice:
        return [[*alternative, *rest] for alternative in head]
    if type(head) is Remember:
        return [rest]
    if type(head) is Expand:
        if not head.word:
            return [[*RULES[head.name], *rest]]
        return [[*line, *rest] for (_, name), line in PROPERTIES.items() if name == head.name]
    return []


def clash(a: list, b: list, seen: str = "") -> str | None:
    """A text that begins one and is, or begins, the other; None if their first difference always tells them apart.

    Where both go on with the very same piece they stay together: a different choice there tells them apart, since
    that choice is a prefix code too. Different variables never stand for the same word.
    """
    if not a or not b:
        return seen
    x, y = a[0], b[0]
    if x is y or (x == y and type(x) in (Say, Expand, Draw)):
        return clash(a[1:], b[1:], seen + "~")
    for here, there in ((a, b), (b, a)):
        ways = opened(here)
        if ways:
            return next((text for way in ways if (text := clash(way, there, seen))), None)
    if type(x) is str and type(y) is str:
        n = min(len(x), len(y))
        if x[:n] != y[:n]:
            return None
        return clash([x[n:], *a[1:]] if x[n:] else a[1:], [y[n:], *b[1:]] if y[n:] else b[1:], seen + x[:n])
    for v, w in itertools.product(spoken(x), spoken(y)):
        if v == w and Say in (type(x), type(y)) and str not in (type(x), type(y)):
            continue
        if text := clash([v, *a[1:]], [w, *b[1:]], seen):
            return text
    return None


def test_every_choice_is_a_prefix_code():
    """No alternative of a choice can begin like another one and end there: the derivation of a text is unique."""
    found = []
    for piece in grammar_pieces():
        if type(piece) is Choice:
            for a, b in itertools.combinations(piece, 2):
                if text := clash(a, b):
                    found.append((text, a, b))
    assert not found, found[:5]


def test_tables_are_prefix_codes_of_distinct_words():
    for words in TABLES.values():
        ordered = sorted(words)
        assert not [(a, b) for a, b in itertools.pairwise(ordered) if b.startswith(a)]


def test_no_rule_table_or_property_is_dead():
    pieces = list(grammar_pieces())
    used = {piece.name for piece in pieces if type(piece) is Expand} | {"story"}
    assert {name for name in RULES if "." not in name} <= used
    assert {name for _, name in PROPERTIES} <= used
    undrawn = {table for _, table in TABLES} - {piece.table for piece in pieces if type(piece) is Draw}
    assert undrawn == {"animals"}  # it only says what the animals of other tables do


# ---- the same on texts, through the inverse of the generator -------------------------------------------------


def told(seed: int) -> tuple[list[tuple[int, int]], Story]:
    """A random story and its choices as (choice, number of alternatives)."""
    random, choices = Random(seed), []

    def choose(n: int) -> int:
        choices.append((random.randrange(n), n))
        return choices[-1][0]

    return choices, tell(choose)


@pytest.mark.parametrize("seed", range(25))
def test_reading_a_story_finds_its_choices_and_no_others(seed):
    choices, one = told(seed)
    parsed = parse(one.text)
    assert parsed.length == len(one.text)
    assert parsed.derivations == [[choice for choice, _ in choices]]
    assert isclose(one.bits, sum(log2(n) for _, n in choices))
    # each choice shows in the text as a place where it could have gone on otherwise
    assert len(choices) / 2 < len(parsed.forks) < len(one.text) / 4
    # a recalled word is certain, and stands where it is said to stand
    assert len(one.recalls) > 3
    for position, length, distance, kind in one.recalls:
        assert not parsed.forks & set(range(position, position + length))
        word = one.text[position : position + length]
        assert one.text[position - distance :].startswith(word)
        assert kind != "hero" or word not in one.text[position - distance + length : position]


def test_the_end_of_a_story_is_certain():
    text = story(1, 1).text
    longer, shorter = parse(text + " "), parse(text[:-1])
    assert longer.length == len(text) and not longer.derivations
    assert shorter.length == len(text) - 1 and not shorter.derivations


def test_a_story_that_forgets_is_not_read_past_the_mistake():
    colours = set(TABLES["", "colours"])
    one = next(one for one in stories(2) if any(recall.kind == "colour" for recall in one.recalls))
    position, length, _, _ = next(recall for recall in one.recalls if recall.kind == "colour")
    other = min(colours - {one.text[position : position + length]})
    wrong = one.text[:position] + other + one.text[position + length :]
    assert position <= parse(wrong).length < position + len(other)


def test_choices_are_uniform():
    """The first choice of many stories has the frequencies its probability says (chi-square, p > 1e-4)."""
    count = Counter()
    for index in range(3000):
        random = Random(index)
        first = []
        tell(lambda n, random=random, first=first: first.append(random.randrange(n)) or first[-1])
        count[first[0]] += 1
    expected = 3000 / len(RULES["story"][0])
    assert sum((n - expected) ** 2 / expected for n in count.values()) < 28
    begins = Counter(one.text[:9] for one in itertools.islice(stories(3), 3000))
    assert abs(begins["Once upon"] - expected) < 5 * expected**0.5


# ---- the corpus ----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**64), index=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_a_story_depends_only_on_seed_and_index(seed, index):
    one = story(seed, index)
    assert next(stories(seed, index)) == one
    assert list(itertools.islice(stories(seed, index), 3))[2] == story(seed, index + 2)
    assert len({one.text, story(seed, index + 1).text, story(seed + 1, index).text}) == 3


def test_floor_is_bits_over_bytes():
    some = list(itertools.islice(stories(4), 50))
    assert isclose(entropy_floor(some), sum(one.bits for one in some) / sum(len(one.text.encode()) for one in some))


def test_the_corpus_reads_like_text():
    some = list(itertools.islice(stories(5), 2000))
    assert len({one.text for one in some}) == len(some)
    for one in some:
        assert one.text.isascii() and one.text == one.text.strip()
        assert not set("[]{}<>|~\\=_") & set(one.text)
        for flaw in ("  ", " .", " ,", "..", ",,", " a a", " a e", " a i", " a o", " a u", ".,", "?.", "!.", "\n\n\n"):
            assert flaw not in one.text, (flaw, one.text)
        assert one.text.count('"') % 2 == 0
        assert one.text[-1] in '.!?"'
    lengths = sorted(len(one.text) for one in some)
    assert lengths[0] > 600 and 900 < lengths[1000] < 1250 and lengths[-1] < 1700
    assert 0.1 < entropy_floor(some) < 0.5
    assert min(one.bits for one in some) > 60
    # most stories ask for something said 400 bytes before, and for much that was said 100 bytes before
    far = [max(recall.distance for recall in one.recalls) for one in some]
    assert sum(distance > 400 for distance in far) > 0.9 * len(far)
    near = [sum(60 < recall.distance < 250 for recall in one.recalls) for one in some]
    assert sum(near) > 2 * len(near)


def test_two_people_never_share_a_name():
    for seed in range(300):
        random = Random(seed)
        one = tell(lambda n, random=random: 0 if n > 9 else random.randrange(n))  # mostly the first name of a table
        said = {}
        for position, length, _, kind in one.recalls:
            said.setdefault(one.text[position : position + length], set()).add(kind)
        assert not [kinds for kinds in said.values() if len(kinds & {"hero", "friend", "helper", "elder"}) > 1]


def test_pronouns_agree_with_the_hero():
    """In the story of a lost animal, nobody else is a he, and only its mother can be a she."""
    girls, boys = set(TABLES["", "crittergirls"]), set(TABLES["", "critterboys"])
    seen = Counter()
    for one in itertools.islice(stories(6), 400):
        words = set(re.findall("[A-Za-z]+", one.text))
        if "mother" in words and words & girls:
            seen["girl"] += 1
            assert not words & {"he", "He", "his", "His", "him"}, one.text
        if "mother" in words and words & boys:
            seen["boy"] += 1
            assert not words & {"she", "She", "her", "Her"}, one.text
    assert seen["girl"] > 3 and seen["boy"] > 3
