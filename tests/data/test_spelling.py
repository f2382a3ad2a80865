"""The built-in conversations: every answer is checked by another way of finding it, and no word is on both sides."""

import re
from random import Random

import pytest

from pico.data import identity, spelling
from pico.data.chat import checked
from pico.data.wordings import lines, worded

COUNT = 400
WORD = re.compile(r"[a-z]{3,}")
WORDINGS = [text for name, text in vars(spelling).items() if name.isupper() and isinstance(text, str)]
# words of the questions themselves
PHRASES = {word.lower() for text in WORDINGS for word in re.findall("[A-Za-z]+", text)} | {*spelling.PLACES, "last"}


def asked(task, random: Random) -> tuple[str, str, dict]:
    """A question, its answer, and the words that the question was made of."""
    made = {}

    class Recorder(spelling.WordSource):
        def said(self, wordings, **words):
            made.update(words)
            return super().said(wordings, **words)

    return *task(Recorder(random, False, ())), made


def is_right(task: str, answer: str, w: str = "", l: str = "", n=0, list: str = "") -> bool:  # noqa: E741
    """Whether the answer is right, told by other means than those that made it."""
    if task == "spell":
        return answer[::2] == w and set(answer[1::2]) <= {"-"}
    if task == "reverse":
        return len(answer) == len(w) and all(a == w[-1 - i] for i, a in enumerate(answer))
    if task == "index":
        at = {"last": len(w)} | {name: i for i, name in enumerate(spelling.PLACES, 1)}
        return re.fullmatch(f".{{{at.get(n, n) - 1}}}{answer}.*", w) is not None
    if task == "length":
        return re.fullmatch(f".{{{answer}}}", w) is not None
    if task == "delete":
        return l not in answer and len(answer) + w.count(l) == len(w) and re.sub(l, "", w) == answer
    if task == "count_letters":
        shown, said = re.fullmatch(f"{w}: (.*)\\. The letter {l} occurs (.*)\\.", answer).groups()
        numbers = re.findall(r"(\S) \((\d+)\)", shown)
        wanted = [(l, str(number)) for number in range(1, w.count(l) + 1)]
        number = f"{w.count(l)} time" + "s" * (w.count(l) != 1)
        return re.sub(r" \(\d+\)", "", shown) == " ".join(w) and numbers == wanted and said == number
    words = WORD.findall(list.replace(" or ", ", "))
    if task == "longer":
        return [word for word in words if len(word) == max(map(len, words))] == [answer]
    last = max(i for i in range(len(w)) if w[i] in "aeiouy" and not (w[i:] == "e" and w[i - 1] not in "aeiouy"))
    while last and w[last - 1] in "aeiouy":
        last -= 1
    return [word for word in words if word.endswith(w[last:])] == [answer] and answer != w


@pytest.mark.parametrize("task", spelling.TASKS, ids=lambda task: task.__name__)
def test_answers_are_exact(task):
    random = Random(task.__name__)
    for _ in range(COUNT):
        question, answer, made = asked(task, random)
        assert is_right(task.__name__, answer, **made), (question, answer)
        assert all(str(value) in question for value in made.values())


@pytest.mark.parametrize("text", WORDINGS)
def test_wordings_are_sentences(text):
    for line in lines(text):
        for number in range(100):
            said = worded(line, Random(number), w="moon", l="o", n=2, list="moon or sun")
            assert said[-1] in ".?" and said[0].isupper() and not re.search(r"[\[\]{}|]|  | \?", said), line


@pytest.mark.parametrize("test", [False, True])
def test_no_word_is_on_both_sides(test):
    for number in range(COUNT):
        for turn in spelling.spelling_conversation(3, number, test)[::2]:
            for word in set(WORD.findall(turn.text.lower())) - PHRASES:
                assert spelling.is_test_word(word) == test, turn.text
    share = sum(map(spelling.is_test_word, spelling.story_words())) / len(spelling.story_words())
    assert 0.07 < share < 0.13


def test_no_question_is_on_an_excluded_word():
    excluded = set(spelling.story_words()) - PHRASES
    for number in range(COUNT):
        text = " ".join(turn.text for turn in spelling.spelling_conversation(0, number, excluded=excluded)[::2])
        assert not excluded & set(WORD.findall(text.lower()))


@pytest.mark.parametrize("talk", [spelling.spelling_conversation, identity.identity_conversation])
def test_a_conversation_depends_on_its_number_alone(talk):
    some = [talk(1, number) for number in range(50)]
    assert some == [talk(1, number) for number in range(50)]
    assert some != [talk(2, number) for number in range(50)]
    assert all(checked(turns) == turns for turns in some)
    assert max(map(len, some)) > 2


def test_identity_is_honest():
    text = "\n".join(answers for _, answers in identity.TOPICS.values())
    for word in "Pico", "open-source", "this machine", "mistakes", "no network", "between chats", "I do not know":
        assert word in text


def test_identity_questions_are_trained_on_or_held_out():
    def questions(test):
        return {turn.text for number in range(1000) for turn in identity.identity_conversation(0, number, test)[::2]}

    train, held = questions(False), questions(True)
    assert not {identity.casual(each) for each in train} & {identity.casual(each) for each in held}
    assert len(train) > 300 and len(held) > 40
    assert {"Hi", "hi"} <= train, "as people type it, and as they write it"


def test_wordings_of_a_topic_are_told_apart_from_others():
    """No question has two kinds of answers."""
    seen: dict[str, str] = {}
    for topic, (questions, _) in identity.TOPICS.items():
        for line in lines(questions):
            for number in range(100):
                question = worded(line, Random(number))
                assert seen.setdefault(question, topic) == topic, question
