"""Questions with one right answer: put to a model in batches, judged by exact match.

A chat model is asked as a user asks. Another model continues a text of the form

    Question: Spell the word moon.
    Answer:

up to the end of the line. Either may see examples first, in this form.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pico.decode.generation import Prompt, generate
from pico.decode.sampling import Sampling

BATCH = 64  # texts that are written at a time


class Question(NamedTuple):
    part: str  # of the task that it is of
    text: str
    answer: str
    guess: float = 0.0  # chance of a guess among the answers that the question lists


def answer_all(
    model, questions: Sequence[Question], chat: bool, examples: dict[str, list[Question]], status: Callable = print
) -> list[str]:
    """The model's answers, greedily, each without the space around it.

    chat: as a user's turn. examples: of each part, questions that are shown with their answers before every one of it.
    An answer is read until it is longer than the right one, for by then it is wrong; questions whose answers are about
    as long are put together, so that a batch ends when its texts do.
    """
    ends: dict[str, Any] = {}
    if chat:
        ends = {"stop_symbols": frozenset({model.alphabet.control["end-of-turn"], model.alphabet.eos})}
    prompts = [_prompt(question, chat, examples.get(question.part, [])) for question in questions]
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].answer.encode()), len(prompts[i])))
    answers = [""] * len(questions)
    for first in range(0, len(order), BATCH):
        status(f"{first:,} of {len(order):,} questions")
        batch = order[first : first + BATCH]
        longest = max(len(questions[i].answer.encode()) for i in batch)
        sampling = Sampling.build(temperature=0, max_bytes=longest + 2, stop=() if chat else b"\n", **ends)
        ids: list[Prompt] = [user_turn(prompts[i], model.alphabet) if chat else prompts[i].encode() for i in batch]
        texts = [bytearray() for _ in batch]
        for step in generate(model, ids, sampling):
            texts[step.row] += step.bytes
        for i, text in zip(batch, texts):
            answers[i] = text.decode(errors="replace").strip()
    return answers


def _prompt(question: Question, chat: bool, examples: list[Question]) -> str:
    if chat and not examples:
        return question.text
    shown = "".join(f"Question: {each.text}\nAnswer: {each.answer}\n\n" for each in examples)
    return f"{shown}Question: {question.text}\nAnswer:"


def user_turn(text: str, alphabet) -> list[int]:
    """The ids of a conversation in which the user has said this, and the assistant is to answer."""
    role, said = alphabet.control, alphabet.encode(text.encode()).tolist()
    return [alphabet.bos, role["user"], *said, role["end-of-turn"], role["assistant"]]


def exact_match(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, dict]:
    """{part: share of answers that are exactly right, share by chance, how many}, of all questions as `all`."""
    parts = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        parts[question.part].append((question, answer == question.answer))
    rows, chances = {}, 0.0
    for part, asked in parts.items():
        chance = by_chance([question for question, _ in asked])
        chances += chance * len(asked)
        right = sum(correct for _, correct in asked)
        rows[part] = {"exact_match": right / len(asked), "chance": chance, "questions": len(asked)}
    right = sum(row["exact_match"] * row["questions"] for row in rows.values())
    total = {"exact_match": right / len(answers), "chance": chances / len(answers), "questions": len(answers)}
    return {"all": total, **rows}


def by_chance(questions: Sequence[Question]) -> float:
    """What one gets who knows no letters: by guessing among what is listed, or with the commonest answer of the others.

    The commonest answer, given k times among n questions, is right k - 1 times in n - 1: a single one is nobody's.
    """
    n = len(questions)
    common = Counter(question.answer for question in questions).most_common(1)[0][1]
    return max(sum(question.guess for question in questions) / n, (common - 1) / max(1, n - 1))


def evenly(items: Sequence, count: int | None) -> list:
    """So many of them, evenly spaced, or all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def by_part(questions: Sequence[Question]) -> Iterator[tuple[str, list[Question]]]:
    """Each part with its questions, in order."""
    for part in dict.fromkeys(question.part for question in questions):
        yield part, [question for question in questions if question.part == part]
