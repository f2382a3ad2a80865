"""What bits per byte do not say of a model: `eval --tasks`. A task is a function in the table TASKS.

    from pico.evaluate.tasks import TASKS, Subject
    TASKS["utf8"].run(Subject(load("models/my-model", "my-run")))    # {row: {figure: value}}

Names that are not in the table are those of lm-eval: pico/evaluate/lm_eval.py.
"""

import codecs
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.base.log import log
from pico.base.symbols import visible
from pico.data import spelling as spellings
from pico.data.chat import Unfit, conversation
from pico.data.documents import Packed
from pico.data.open import open_evaluation
from pico.data.spelling import WordSource
from pico.data.tables import read_rows
from pico.decode.generation import generate
from pico.evaluate.noise import NOISES, RATES, noisy_documents
from pico.evaluate.opened import OpenedRun
from pico.evaluate.questions import Question, answer_all, by_part, evenly, exact_match
from pico.evaluate.score import score
from pico.runs.folder import is_chat

KNOWN = "which are spelling, cute, utf8 and noise; lm-eval has others: `lm_eval ls tasks`"
QUESTIONS = 1000  # of a task that can make as many as one likes
SPELLINGS: dict[str, Callable] = {getattr(kind, "__name__", ""): kind for kind in spellings.TASKS}
SHOTS = 4  # questions with answers before the one that is asked, as in CUTE
SAMPLES, SAMPLE_BYTES = 64, 512
NOISY_BYTES = 50_000


@dataclass
class Subject:
    """A model, and what a task may read and must keep to."""

    model: Any
    chat: bool = False  # whether it was trained on conversations
    file: Path | None = None  # the task's own questions
    texts: Iterable[bytes] | None = None  # of the dataset that is scored
    context_len: int = 512
    max_bytes: int | None = None
    limit: int | None = None  # questions of each part of a task, texts that are written
    status: Callable[[str], None] = lambda text: None


class Task(NamedTuple):
    run: Callable[[Subject], dict[str, dict]]  # {row: {figure: value}}
    figures: dict[str, str]  # how each is written
    about: str


# --- questions --------------------------------------------------------------------------------------------------------


def spelling(subject: Subject) -> dict[str, dict]:
    """Questions on the letters of words that are never trained on, or those of a file of conversations.

    A chat model gets the question alone, another one sees four that are answered.
    """
    if subject.file:
        groups = dict(by_part(read_conversations(subject.file)))
        examples = {part: group[:SHOTS] for part, group in groups.items()}
        groups = {part: group if subject.chat else group[SHOTS:] for part, group in groups.items()}
        limit = subject.limit
    else:
        limit = subject.limit or QUESTIONS // len(SPELLINGS)
        groups = {name: [made(name, i, test=True) for i in range(limit)] for name in SPELLINGS}
        examples = {name: [made(name, i, test=False) for i in range(SHOTS)] for name in SPELLINGS}
    return _asked(subject, groups, limit, {} if subject.chat else examples)


def made(kind: str, index: int, test: bool) -> Question:
    """A question of one kind of pico/data/spelling.py; `test`: on a word that is never trained on."""
    text, answer = SPELLINGS[kind](WordSource(Random(f"{kind} {index}"), test, ()))
    return Question(kind, text, answer, {"rhyme": 1 / 3, "longer": 1 / 2}.get(kind, 0))


def read_conversations(file: Path) -> list[Question]:
    """Each question of a user in a table of `messages`, with the assistant's answer; its part is the row's `task`.

    Raises PicoError for a row that is no conversation.
    """
    columns, rows = read_rows(file)
    if "messages" not in columns:
        raise PicoError(f"{file}: no column 'messages'; expected conversations, it has {', '.join(columns)}")
    found = []
    for number, row in enumerate(rows(columns), 1):
        try:
            turns = conversation(row.get("messages"))
        except Unfit as unfit:
            raise PicoError(f"{file}, row {number}: expected conversations, it is one of the {unfit}") from None
        for asked, answered in itertools.pairwise(turns):
            if (asked.role, answered.role) == ("user", "assistant"):
                question, answer = (encodable(turn.text) for turn in (asked, answered))
                found.append(Question(str(row.get("task", "questions")), question, answer.strip()))
    return found


def encodable(text: str) -> str:
    """The text with ? for what no UTF-8 has: halves of a pair of surrogates, as JSON may spell them."""
    return text.encode(errors="replace").decode()


# a wording for each table; those with random letters, as spell_rand, have the same
CUTE = {
    "spell": 'Spell out "{input1}", with a space between the letters.',
    "spell_inverse": 'Which word is spelled out here: "{input1}"?',
    "contains_char": 'Is there a "{input1}" in "{input2}"?',
    "contains_word": 'Is there the word "{input1}" in "{input2}"?',
    "orth": 'Which is closer in spelling to "{input1}": "{input2}" or "{input3}"?',
    "sem": 'Which is closer in meaning to "{input1}": "{input2}" or "{input3}"?',
    "ins_char": 'Add "{input1}" after every "{input2}" in "{input3}".',
    "ins_word": 'Add "{input1}" after every "{input2}" in "{input3}".',
    "del_char": 'Delete every "{input1}" in "{input2}".',
    "del_word": 'Delete every "{input1}" in "{input2}".',
    "sub_char": 'Replace every "{input1}" by "{input2}" in "{input3}".',
    "sub_word": 'Replace every "{input1}" by "{input2}" in "{input3}".',
    "swap_char": 'Swap "{input1}" and "{input2}" in "{input3}".',
    "swap_word": 'Swap "{input1}" and "{input2}" in "{input3}".',
}


def cute(subject: Subject) -> dict[str, dict]:
    """CUTE (Edman, Schmid, Fraser, arXiv 2409.15452): what a model knows of the letters in its words.

    Its tables in a wording of ours, four answered questions of a table before each of its others. `_rand` tables have
    words of random letters.
    """
    assert subject.file, "run_tasks has seen to it"
    columns, rows = read_rows(subject.file)
    if missing := {"task", "input1", "input2", "label"}.difference(columns):
        raise PicoError(f"{subject.file}: no column {', '.join(sorted(missing))}; expected the tables of CUTE")
    questions = []
    for number, row in enumerate(rows(columns), 1):
        row = {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in row.items()}  # bytes: of a .csv
        wording = CUTE.get(str(row.get("task")).removesuffix("_rand"))
        if wording is None:
            raise PicoError(f"{subject.file}: no table '{row.get('task')}' in CUTE; it has {', '.join(CUTE)}")
        for name in ["label", *re.findall(r"{(\w+)}", wording)]:
            if not isinstance(row.get(name), str):
                raise PicoError(f"{subject.file}, row {number}: {name} is {row.get(name)!r:.40}, expected text")
        guess = 1 / 2 if row["task"] in ("orth", "sem") else 0
        questions.append(
            Question(row["task"], encodable(wording.format(**row)), encodable(row["label"].strip()), guess)
        )
    groups = dict(by_part(questions))
    examples = {part: group[:SHOTS] for part, group in groups.items()}
    return _asked(subject, {part: group[SHOTS:] for part, group in groups.items()}, subject.limit, examples)


def _asked(subject: Subject, groups: dict[str, list[Question]], limit: int | None, examples) -> dict[str, dict]:
    questions = [question for group in groups.values() for question in evenly(group, limit)]
    if not questions:
        raise PicoError(f"no questions in {subject.file}: expected more than {SHOTS} of each kind")
    answers = answer_all(subject.model, questions, subject.chat, examples, subject.status)
    for question, answer in zip(questions, answers):
        if answer != question.answer:
            said = visible(answer[:60])
            log(f"first mistake, {question.part}: {question.text!r} {said!r}, right is {question.answer!r}")
            break
    return exact_match(questions, answers)


# --- texts ------------------------------------------------------------------------------------------------------------


def utf8(subject: Subject) -> dict[str, dict]:
    """Whether what a model of bytes writes is UTF-8, beside as many random bytes."""
    limit, rows = subject.limit or SAMPLES, {}
    for temperature in (0.8, 1.0):
        subject.status(f"at temperature {temperature}")
        generation = generate(subject.model, temperature=temperature, num_samples=limit, max_bytes=SAMPLE_BYTES, seed=0)
        texts = [bytearray() for _ in range(limit)]
        for step in generation:
            texts[step.row] += step.bytes
        cut = [ended == "length" for ended in generation.ended]
        rows[f"temperature {temperature}"] = validity([bytes(text) for text in texts], cut)
    random = Random(0)
    rows["random bytes"] = validity([random.randbytes(SAMPLE_BYTES) for _ in range(limit)], [True] * limit)
    return rows


def validity(texts: list[bytes], cut: list[bool]) -> dict:
    """How much of some texts is UTF-8: of the texts, of their bytes, and of those that are no ASCII (None of none).

    cut: whether a text ended in the middle, so that a last character that has only begun is no mistake.
    """
    whole = total = valid = high = valid_high = 0
    for text, early in zip(texts, cut, strict=True):
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        good = decoder.decode(text, final=not early).encode()
        text = text[: len(text) - len(decoder.getstate()[0])]
        whole += good == text
        total, valid = total + len(text), valid + len(good)
        high, valid_high = (n + sum(byte > 127 for byte in some) for n, some in ((high, text), (valid_high, good)))
    return {
        "valid_texts": whole / len(texts),
        "valid_bytes": valid / max(1, total),
        "valid_non_ascii": valid_high / high if high else None,
        "non_ascii": high,
        "bytes": total,
    }


def noise(subject: Subject) -> dict[str, dict]:
    """Bits per byte of text with mistakes, beside the bits that say where they are: see pico/evaluate/noise.py.

    All bits are per byte of the clean text, so that what mistakes cost and what they say can be compared.
    """
    assert subject.texts is not None, "run_tasks has seen to it"
    clean = list(first_bytes(subject.texts, subject.max_bytes or NOISY_BYTES))
    size = sum(map(len, clean))

    def bits_per_byte(documents) -> float:
        return sum(score(subject.model, documents, subject.context_len).document_bits) / size

    subject.status("clean text")
    base = bits_per_byte(clean)
    rows: dict[str, dict] = {"clean": {"bits_per_byte": base, "more": None, "noise_bits": None, "times": None}}
    for kind in NOISES:
        for rate in RATES:
            subject.status(f"{kind}, {rate:.0%}")
            documents, own = noisy_documents(clean, kind, rate)
            more = bits_per_byte(documents) - base
            times = more * size / own if own else None
            rows[f"{kind} {rate:.0%}"] = {
                "bits_per_byte": base + more, "more": more, "noise_bits": own / size, "times": times
            }  # fmt: skip
    return rows


def first_bytes(documents: Iterable[bytes], size: int) -> Iterable[bytes]:
    """Documents of so many bytes in all; the last is cut."""
    for document in documents:
        if isinstance(document, Packed):
            raise PicoError("noise reads plain text: this dataset holds conversations")
        yield document[:size]
        size -= len(document)
        if size <= 0:
            return


ANSWERS = {"exact_match": "{:.1%}", "chance": "{:.1%}", "questions": "{:,}"}
SHARES = {"valid_texts": "{:.1%}", "valid_bytes": "{:.1%}", "valid_non_ascii": "{:.1%}"}
TASKS = {
    "spelling": Task(spelling, ANSWERS, "questions on the letters of words that are never trained on"),
    "cute": Task(cute, ANSWERS, "CUTE: letters and words to spell, find, add, delete, replace and swap"),
    "utf8": Task(
        utf8,
        SHARES | {"non_ascii": "{:,}", "bytes": "{:,}"},
        "how much of what it writes is UTF-8, beside random bytes",
    ),
    "noise": Task(
        noise,
        {"bits_per_byte": "{:.4f}", "more": "{:+.4f}", "noise_bits": "{:.4f}", "times": "{:.1f}"},
        "what mistakes cost, beside the bits that say where they are; times: one over the other",
    ),
}


# --- running ----------------------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """Tasks that can be run: they are known, and what they read is there."""

    own: dict[str, Path | None]  # of TASKS, with the file of its questions, None where it has its own
    others: dict | None  # lm-eval's, loaded
    data: DataConfig | None
    limit: int | None


def choose_tasks(
    text: str,
    folder: Path | None = None,
    data: DataConfig | None = None,
    limit: int | None = None,
    status: Callable[[str], None] = lambda text: None,
) -> Chosen:
    """The tasks of 'spelling,cute=questions.jsonl,blimp'.

    folder: NAME.jsonl in it has the questions of the task NAME. data: the text of those that read one. limit: questions
    of each part of a task. Raises PicoError for a task that is unknown, or lacks what it reads.
    """
    if folder and not folder.is_dir():
        raise PicoError(f"--tasks-folder {folder}: there is no such folder; expected one with files NAME.jsonl")
    if limit is not None and limit < 1:
        raise PicoError(f"--limit = {limit}: expected 1 or more")
    files: dict[str, Path | None] = {}
    for each in filter(None, map(str.strip, text.split(","))):
        name, named, own = each.partition("=")
        file = Path(own) if named else folder and folder / f"{name}.jsonl"
        if named and not Path(own).is_file():
            raise PicoError(f"--tasks {each}: there is no file '{own}'")
        if named and name in ("utf8", "noise"):
            raise PicoError(f"--tasks {each}: {name} reads no file of questions; expected {name} alone")
        if name in files:
            raise PicoError(f"--tasks '{text}' names {name} twice")
        files[name] = file if file and file.is_file() else None
    if not files:
        raise PicoError(f"--tasks '{text}' names none: expected some of Pico's own, {KNOWN}")
    if "noise" in files and data is None:
        raise PicoError("--tasks noise reads a text: eval PATH RUN DATASET --tasks noise")
    if "cute" in files and files["cute"] is None:
        raise PicoError("--tasks cute reads its questions: cute=FILE, or --tasks-folder with a cute.jsonl")
    others = {name: file for name, file in files.items() if name not in TASKS}
    if others and importlib.util.find_spec("lm_eval") is None:
        raise PicoError(f"--tasks: '{next(iter(others))}' is none of Pico's own, {KNOWN} (pip install lm-eval)")
    loaded = None
    if others:
        from pico.evaluate.lm_eval import load_tasks

        loaded = load_tasks(others, limit, status)
    return Chosen({name: file for name, file in files.items() if name in TASKS}, loaded, data, limit)


def run_tasks(
    opened: OpenedRun,
    chosen: Chosen,
    max_bytes: int | None = None,
    status: Callable[[str], None] = lambda text: None,
    chat: bool = False,
) -> dict[str, dict[str, dict]]:
    """{task: {row: {figure: value}}}, Pico's own first.

    max_bytes: of a text that one reads. chat: lm-eval's are asked in a conversation; Pico's own see by themselves.

    Raises PicoError if it was trained on none.
    """
    if chat and not is_chat(opened.folder):
        raise PicoError("--apply-chat-template: this run was not trained on conversations")
    results = {}
    for name, file in chosen.own.items():
        subject = Subject(
            opened.model,
            is_chat(opened.folder),
            file,
            open_evaluation(chosen.data, opened.training.seed) if chosen.data and name == "noise" else None,
            opened.training.context_len,
            max_bytes,
            chosen.limit,
            lambda text, name=name: status(f"{name}: {text}"),
        )
        results[name] = TASKS[name].run(subject)
    if chosen.others:
        from pico.evaluate.lm_eval import judge

        results |= judge(opened.model, chosen.others, chosen.limit, status, chat)
    return results
