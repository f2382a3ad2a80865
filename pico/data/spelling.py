"""Built-in conversations on the letters of words, without end: exact questions, exact answers.

    from pico.data.spelling import spelling_conversation
    spelling_conversation(seed=0, index=0)      # [Turn("user", "Spell the word moon."), Turn("assistant", "m-o-o-n")]

The words are those of the story grammar, made-up ones of seeded syllables, and some of random letters. A hash of the
word decides whether it is trained on or tested with (one in ten), so no word is ever both.
"""

import re
from collections.abc import Callable, Collection
from functools import cache
from hashlib import blake2b
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

from pico.data import stories
from pico.data.chat import Turn
from pico.data.stories.words import WORDS
from pico.data.wordings import lines, worded

LONGEST = 18  # letters
STORY_WORDS, RANDOM_LETTERS = 0.3, 0.1  # of the words; the others are of syllables
HELD_OUT = 26 / 256  # of all words
EXCHANGES = (1, 1, 1, 2, 3)  # questions in a conversation, equally likely
ENDING = re.compile(r"[aeiouy]+[^aeiouy]*e?$")  # what a rhyme repeats: oon of moon, ake of cake

FIRST, BEGIN, MIDDLE, CLOSE, LAST, PLACES = map(
    str.split,
    (
        "un re in dis over under out semi pre anti non co de ex sub super inter trans photo hydro mis fore up",
        "b c d f g h j k l m n p qu r s t v w x z bl br ch cl cr dr fl fr gl gr ph pl pr sc sh sk sl sm sn sp st str "
        "sw th tr tw wh wr",
        "a a a e e e e i i i o o o u u y ai ea ee ei ia ie io oa oi oo ou ue au eu",
        "b c d f g k l m n p r s t v w x z ch ck ct dd ff gg ll lt mm mp nd ng nk nn nt pp pt rb rd rk rm rn rt sh ss "
        "st th tt",
        "s ed er ing ly ness able ation tion ize al ous ism ist ment ful less ity ic ical ive en age ant ence hood",
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
    ),
)

# {w} is a word, {l} a letter, {n} a number, {list} some words
SPELL = """
    Spell the word {w} letter by letter.
    Spell [the word |]{w}[| for me|, please| letter by letter].
    [Can|Could|Would] you spell [the word |]{w}[ for me| letter by letter|]?
    How do you spell [the word |]{w}?
    How is [the word |]{w} spelled?
    How is [the word |]{w} written, letter by letter?
    [What|Which] letters [are in|make up] [the word |]{w}, in order?
    [Please |]spell out [the word |]{w}.
    [Please |]write [the word |]{w} one letter at a time.
    Give me [the letters|the spelling] of [the word |]{w}.
    I [want to know|would like to know|need to know|forgot] how [to spell|one spells] {w}.
"""
COUNT = """
    How many times does the letter {l} occur in {w}?
    How many times does [the letter |]{l} [occur|appear] in [the word |]{w}?
    How often does [the letter |]{l} [occur|appear|come up] in [the word |]{w}?
    How often is [the letter |]{l} in [the word |]{w}?
    How many {l}'s are [there |]in [the word |]{w}?
    How many times is [the letter |]{l} in [the word |]{w}?
    [Please |]count the letter {l} in [the word |]{w}.
    Count how many times [the letter |]{l} [occurs|appears] in [the word |]{w}.
    [Tell me|Can you tell me] how many times {w} has the letter {l}.
"""
REVERSE = """
    Write the word {w} backwards.
    [Please |]write [the word |]{w} [backwards|backward|in reverse|from back to front].
    [Please |]spell [the word |]{w} [backwards|backward|in reverse], as one word.
    Reverse [the word |the letters of |the letters of the word |]{w}.
    What is [the word |]{w} [backwards|backward|in reverse|written backwards|spelled backwards]?
    [Can|Could] you [reverse|turn around] [the word |]{w}[| for me]?
    How does [the word |]{w} read [backwards|from right to left|from the end]?
    Turn [the word |]{w} around.
"""
INDEX = """
    Which letter stands at place {n} of the word {w}?
    [Which|What] letter [stands|is] at [place|position] {n} [of|in] [the word |]{w}?
    What is letter [number |]{n} of [the word |]{w}?
    [Please |]give me letter [number |]{n} of [the word |]{w}.
    [Tell me|Say|Name] the letter at [place|position] {n} of [the word |]{w}.
"""
ORDINAL = """
    What is the {n} letter [of|in] [the word |]{w}?
    Which letter is the {n} [one |]in [the word |]{w}?
    [Please |]give me the {n} letter of [the word |]{w}.
    [Tell me|Say|Name] the {n} letter of [the word |]{w}.
    What letter comes {n} in [the word |]{w}?
"""
LENGTH = """
    How many letters has the word {w}?
    How many letters [has|are in|are there in|make up] [the word |]{w}?
    How many letters does [the word |]{w} have?
    How long is the word {w}, in letters?
    What is the [length|number of letters] of [the word |]{w}?
    [Please |]count the letters [of|in] [the word |]{w}.
"""
DELETE = """
    Write the word {w} without the letter {l}.
    [Please |]write [the word |]{w} without [the letter |any ]{l}.
    [Please |]remove [the letter |every ]{l} from [the word |]{w}.
    [Delete|Take] [the letter |every ]{l} from [the word |]{w}.
    What is left of [the word |]{w} without [the letter |]{l}?
    What [is|remains of] [the word |]{w} when [the letter |every ]{l} is [removed|left out|taken away]?
    Leave [the letter |every ]{l} out of [the word |]{w}.
"""
RHYME = """
    Which [word |]rhymes with [the word |]{w}: {list}?
    Which of these [words |]rhymes with [the word |]{w}: {list}?
    Which [of these words|of these] ends like [the word |]{w}: {list}?
    Which word has the same ending as {w}: {list}?
    Find a rhyme [for|to] [the word |]{w}: {list}?
    One of these words rhymes with {w}: {list}. Which[ one|]?
"""
LONGER = """
    Which [word |]is longer, {list}?
    Which [word |of these ][has more letters|is the longer one]: {list}?
    What is longer, [the word |]{list}?
    Which [of these |]is the longer word: {list}?
    Which of the words has more letters, {list}?
"""


class WordSource(NamedTuple):
    """Draws words of one part, 'train' or 'test'."""

    random: Random
    test: bool
    excluded: Collection[str]

    def allows(self, word: str) -> bool:
        return is_test_word(word) == self.test and word not in self.excluded

    def word(self, least: int = 3) -> str:
        """A word of at least so many letters."""
        while True:
            kind = self.random.random()
            if kind < STORY_WORDS:
                word = self.random.choice(story_words())
            elif kind < STORY_WORDS + RANDOM_LETTERS:
                word = "".join(self.random.choices(ascii_lowercase, k=self.random.randint(3, 12)))
            else:
                word = self.syllables()
            if least <= len(word) <= LONGEST and self.allows(word):
                return word

    def syllables(self) -> str:
        pick, chance = self.random.choice, self.random.random
        word = pick(FIRST) if chance() < 0.25 else ""
        for _ in range(pick((1, 1, 2, 2, 3))):
            word += pick(BEGIN) + pick(MIDDLE) + (pick(CLOSE) if chance() < 0.6 else "")
        return word + (pick(LAST) if chance() < 0.5 else "")

    def rhyme(self, word: str, tries: int = 50) -> str | None:
        """Another word with the same ending, a story's where there is one; None if none was found."""
        ending = ending_of(word)
        known = [other for other in endings().get(ending, ()) if other != word and self.allows(other)]
        made = (self.random.choice(BEGIN) + ending for _ in range(tries))
        fits = (other for other in made if other != word and ending_of(other) == ending and self.allows(other))
        return self.random.choice(known) if known and self.random.random() < 0.5 else next(fits, None)

    def said(self, wordings: str, **words) -> str:
        return worded(self.random.choice(lines(wordings)), self.random, **words)


def is_test_word(word: str) -> bool:
    """Whether a word is tested with, and never trained on."""
    return blake2b(word.encode(), digest_size=1).digest()[0] < 256 * HELD_OUT


@cache
def story_words() -> list[str]:
    """The words of small letters in the story grammar, in order."""
    texts: list[str] = [file.GRAMMAR for file in stories.GRAMMARS]
    for table in WORDS.values():
        for word, properties in table.items():
            texts += [word, *(value if isinstance(value, str) else " ".join(value) for value in properties.values())]
    text = re.sub(r"<[^>]*>|\{[^}]*\}|^\S+:", " ", "\n".join(texts), flags=re.MULTILINE)
    return sorted(set(re.findall(r"(?<![A-Za-z'])[a-z]{3,}(?![A-Za-z'])", text)))


def ending_of(word: str) -> str:
    found = ENDING.search(word)
    return found[0] if found else ""


@cache
def endings() -> dict[str, list[str]]:
    """The story words with each ending of two letters or more."""
    found: dict[str, list[str]] = {}
    for word in story_words():
        if (ending := ENDING.search(word)) and len(ending[0]) > 1:
            found.setdefault(ending[0], []).append(word)
    return found


# --- the tasks: a question and its answer ----------------------------------------------------------------------------


def spell(draw: WordSource) -> tuple[str, str]:
    word = draw.word()
    return draw.said(SPELL, w=word), "-".join(word)


def count_letters(draw: WordSource) -> tuple[str, str]:
    """Each letter is written down, and each time it is the one its number; now and then it is not there at all."""
    word = draw.word()
    letter = draw.random.choice(ascii_lowercase if draw.random.random() < 0.1 else word)
    steps, number = [], 0
    for each in word:
        number += each == letter
        steps.append(f"{each} ({number})" if each == letter else each)
    times = "1 time" if number == 1 else f"{number} times"
    return draw.said(COUNT, w=word, l=letter), f"{word}: {' '.join(steps)}. The letter {letter} occurs {times}."


def reverse(draw: WordSource) -> tuple[str, str]:
    word = draw.word()
    return draw.said(REVERSE, w=word), word[::-1]


def index(draw: WordSource) -> tuple[str, str]:
    word = draw.word()
    place = draw.random.randrange(len(word))
    if draw.random.random() < 0.5:
        return draw.said(INDEX, w=word, n=place + 1), word[place]
    if draw.random.random() < 0.1:
        return draw.said(ORDINAL, w=word, n="last"), word[-1]
    place %= len(PLACES)
    return draw.said(ORDINAL, w=word, n=PLACES[place]), word[place]


def length(draw: WordSource) -> tuple[str, str]:
    word = draw.word()
    return draw.said(LENGTH, w=word), str(len(word))


def delete(draw: WordSource) -> tuple[str, str]:
    while True:
        word = draw.word()
        letter = draw.random.choice(word)
        if rest := word.replace(letter, ""):
            return draw.said(DELETE, w=word, l=letter), rest


def rhyme(draw: WordSource) -> tuple[str, str]:
    """The answer is the only word of the list with the ending of the one that is asked for."""
    while True:
        word = draw.word()
        ending = ENDING.search(word)
        if ending and 2 <= len(ending[0]) < len(word) and (answer := draw.rhyme(word)):
            break
    others = [answer]
    while len(others) < 3:
        if not (other := draw.word()).endswith(ending[0]) and other not in others:
            others.append(other)
    draw.random.shuffle(others)
    return draw.said(RHYME, w=word, list=f"{others[0]}, {others[1]} or {others[2]}"), answer


def longer(draw: WordSource) -> tuple[str, str]:
    one, other = draw.word(), draw.word()
    while len(one) == len(other):
        other = draw.word()
    return draw.said(LONGER, list=f"{one} or {other}"), max(one, other, key=len)


TASKS: tuple[Callable[[WordSource], tuple[str, str]], ...] = (
    spell,
    count_letters,
    reverse,
    index,
    length,
    delete,
    rhyme,
    longer,
)


def spelling_conversation(seed: int, index: int, test: bool = False, excluded: Collection[str] = ()) -> list[Turn]:
    """Conversation number `index` of a seed: one to three questions with their answers; depends on nothing else.

    test: on words that no other conversation is on. excluded: words that it is not on either, in small letters.
    """
    draw, turns = WordSource(Random((seed << 64) | index), test, excluded), []
    for _ in range(draw.random.choice(EXCHANGES)):
        question, answer = draw.random.choice(TASKS)(draw)
        turns += [Turn("user", question), Turn("assistant", answer)]
    return turns
