"""Conversations: rows of a table as turns, turns as a document, and a document as symbols.

A row is read by the first of these forms whose columns its table has:

    messages: [{role, content}]                      SmolTalk, OpenAI
    conversations: [{from, value}]                   ShareGPT
    question, choices: {text, label}, answerKey      ARC
    question, answer                                 GSM8K
    instruction, input, output                       Alpaca
    prompt, completion

Other columns are named: `talk` for a list of messages, `ask,reply` for a question and its answer, `ask,context,reply`
for one with something to read between them.

As symbols a conversation is BOS [SYSTEM text END] (USER text END ASSISTANT text END)+ EOS. The roles and END are
control symbols, which no text can forge: see `pack_turns`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pico.base.errors import PicoError
from pico.data.tables import read_rows

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
MARKS = {"system": b"\xf8", "user": b"\xf9", "assistant": b"\xfa"}  # bytes that no text in UTF-8 has
MARKED = re.compile(rb"[\xf8-\xfa]")


class Turn(NamedTuple):
    role: str  # 'system', 'user' or 'assistant'
    text: str


class Unfit(ValueError):
    """A row that is no conversation; says which kind of rows it is among."""


# --- rows to turns ---------------------------------------------------------------------------------------------------


def _messages(messages) -> list[tuple]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unfit("rows whose messages are no list of objects")
    return [(m.get("role", m.get("from")), m.get("content", m.get("value"))) for m in messages]


def _answered(question, answer) -> list[tuple]:
    return [("user", question), ("assistant", answer)]


def _instructed(instruction, given, answer) -> list[tuple]:
    return _answered(f"{_text(instruction)}\n\n{_text(given)}" if given else instruction, answer)


def _chosen(question, choices, key) -> list[tuple]:
    """ARC: the choices a line each under the question; the answer is the label and the text of the right one."""
    try:
        lines = {_text(label): f"{label}. {_text(text)}" for label, text in zip(choices["label"], choices["text"])}
        return _answered("\n".join([_text(question), *lines.values()]), lines[key])
    except (KeyError, TypeError):
        raise Unfit("rows whose answer is none of their choices") from None


class Form(NamedTuple):
    """A way of writing conversations: its columns, and the function that makes turns of their values."""

    columns: tuple[str, ...]
    read: Callable[..., list[tuple]]


FORMS = [
    Form(("messages",), _messages),
    Form(("conversations",), _messages),
    Form(("question", "choices", "answerKey"), _chosen),
    Form(("question", "answer"), _answered),
    Form(("instruction", "input", "output"), _instructed),
    Form(("instruction", "output"), _answered),
    Form(("prompt", "completion"), _answered),
]
NAMED = {1: _messages, 2: _answered, 3: _instructed}  # by how many columns were named


def choose_form(columns: Iterable[str], wanted: str | None, source) -> Form:
    """How to read a table with these columns. wanted: names of columns, as 'ask,reply'.

    Raises PicoError if no form fits, or the named columns are not there.
    """
    columns = list(columns)
    listed = ", ".join(columns[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
    has = f"it has {listed}" if columns else "it has no columns"
    if wanted is not None:
        names = (wanted,) if wanted in columns else tuple(name.strip() for name in wanted.split(","))
        if missing := [name for name in names if name not in columns]:
            raise PicoError(f"no column '{missing[0]}' in {source}, {has}: choose with --dataset-column-name")
        if len(names) not in NAMED:
            raise PicoError(
                f"--dataset-column-name {wanted}: {len(names)} columns, expected one (a list of messages), two "
                "(question,answer) or three (instruction,input,output)"
            )
        return Form(names, NAMED[len(names)])
    for form in FORMS:
        if set(form.columns) <= set(columns):
            return form
    known = "; ".join(",".join(form.columns) for form in FORMS)
    raise PicoError(
        f"no conversations in {source}, {has}; expected one of {known}: name the columns of a question and its answer "
        "with --dataset-column-name QUESTION,ANSWER, or leave out --dataset-format chat"
    )


def pack_row(row: dict, form: Form, left_out: Counter) -> bytes:
    """The conversation of a row, packed; b'' if it is none, which is counted in left_out by what is wrong."""
    try:
        return pack_turns(checked(form.read(*(row.get(name) for name in form.columns))))
    except Unfit as unfit:
        left_out[str(unfit)] += 1
        return b""


def read_chat(
    file: Path, wanted: str | None, separator: str | None, log: Callable, left_out: Counter
) -> Iterator[bytes]:
    """The conversations of a table, one a row (b'' where a row is none); arguments as of `read_table`."""
    names, rows = read_rows(file, separator)
    if names:
        form = choose_form(names, wanted, file)
        log(form_name(form))
        yield from (pack_row(row, form, left_out) for row in rows(list(form.columns)))


def conversation(messages) -> list[Turn]:
    """The turns of a list of messages. Raises Unfit, which says what is wrong, if it is none."""
    return checked(_messages(messages))


def form_name(form: Form) -> str:
    """'conversations of columns question, answer'."""
    return f"conversations of column{'s' * (len(form.columns) > 1)} {', '.join(form.columns)}"


def checked(turns: Iterable[tuple]) -> list[Turn]:
    """Turns of (role, text) in the layout's order: an empty system turn, and a question left open, are dropped.

    Raises Unfit if there is none, or a role or a text is not what it should be.
    """
    out: list[Turn] = []
    for role, text in turns:
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise Unfit("conversations with other roles than system, user and assistant")
        turn = Turn(ROLES[role.lower()], _text(text))
        if turn.role == "system" and not turn.text.strip() and not out:
            continue
        if not turn.text.strip():
            raise Unfit("conversations with an empty turn")
        before = out[-1].role if out else None
        if turn.role == "system" and out:
            raise Unfit("conversations with a system turn that is not the first")
        if turn.role == "assistant" and before != "user":
            raise Unfit("conversations where the assistant speaks first, or twice")
        if turn.role == "user" and before == "user":
            raise Unfit("conversations where the user speaks twice")
        out.append(turn)
    if out and out[-1].role == "user":
        out.pop()
    if not out or out[-1].role != "assistant":
        raise Unfit("conversations without an answer")
    return out


def _text(value) -> str:
    """A text; of OpenAI's list of parts the texts of all, where they are nothing else."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        value = "".join(_text(part["text"]) for part in value)
    if isinstance(value, bytes):  # of a .csv file
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        raise Unfit("conversations with a turn that is no text")
    return value


# --- turns to a document, and back -----------------------------------------------------------------------------------


def pack_turns(turns: Iterable[Turn]) -> bytes:
    """A conversation as one document: before each turn's text a byte that UTF-8 never has, which says whose it is."""
    return b"".join(MARKS[turn.role] + turn.text.encode(errors="surrogatepass") for turn in turns)


def unpack_turns(document: bytes) -> list[tuple[str, bytes]]:
    """The turns (role, text) of a packed conversation."""
    roles = {mark: role for role, mark in MARKS.items()}
    texts = MARKED.split(document)[1:]
    return [(roles[mark], text) for mark, text in zip(MARKED.findall(document), texts, strict=True)]


# --- turns to symbols ------------------------------------------------------------------------------------------------


def check_turns(alphabet) -> None:
    """Raises PicoError if the alphabet has no symbols for turns."""
    if missing := {"system", "user", "assistant", "end-of-turn"} - set(alphabet.control):
        raise PicoError(
            f"this tokenizer has no symbols for turns ({', '.join(sorted(missing))}): train one of Pico's own"
        )


def lay_out(
    turns: Iterable[tuple[str, bytes]], alphabet, context_len: int | None = None, loss_on: str = "assistant"
) -> list[np.ndarray]:
    """A conversation in the module's layout: (n,) int32, ~s in place of a symbol s that is read and not scored.

    Scored are what the assistant says and the END behind it (loss_on='assistant'), or all symbols ('all'). One that is
    longer than context_len is cut where the user's turns begin, into pieces that each have the system's turn again; a
    turn and its answer that are longer stay whole. Raises PicoError if the alphabet has no symbols for turns.
    """
    check_turns(alphabet)
    everything = loss_on == "all"

    def edge(symbol: int) -> np.ndarray:
        return np.array([symbol if everything else ~symbol], np.int32)

    def said(role: str, text: bytes) -> np.ndarray:
        ids = np.concatenate([alphabet.encode(text), [alphabet.control["end-of-turn"]]]).astype(np.int32)
        return np.concatenate([edge(alphabet.control[role]), ids if everything or role == "assistant" else ~ids])

    head, pairs = [edge(alphabet.bos)], []
    for role, text in turns:
        if role == "system":
            head.append(said(role, text))
        elif role == "user":
            pairs.append([said(role, text)])
        else:
            pairs[-1].append(said(role, text))
    pieces, size = [], 0
    start = sum(map(len, head)) + 1  # and EOS
    for pair in pairs:
        length = sum(map(len, pair))
        if not pieces or (context_len is not None and start + size + length > context_len):
            pieces.append([*head])
            size = 0
        pieces[-1] += pair
        size += length
    return [np.concatenate([*piece, edge(alphabet.eos)]) for piece in pieces]


def lay_out_question(
    turns: list[tuple[str, bytes]], alphabet, context: int | None = None, room: int = 0
) -> tuple[list[int], int]:
    """What a model reads before it answers the last turn, a user's: ids, and how many turns are left out of them.

    In a context the oldest turns are left out, until there is room for so many symbols of the answer, or for a quarter
    of the context. The system's turn and the last one stay, whatever their length.
    """
    system = [turn for turn in turns[:1] if turn[0] == "system"]
    turns, left_out = turns[len(system) :], 0
    while True:
        layout = lay_out([*system, *turns[left_out:], ("assistant", b"")], alphabet, loss_on="all")
        ids = layout[0][:-2].tolist()  # without END and EOS
        if context is None or len(ids) + min(room, context // 4) <= context or left_out + 2 >= len(turns):
            return ids, left_out
        left_out += 2
