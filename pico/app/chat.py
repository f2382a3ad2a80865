"""`chat`: a conversation in the terminal.

    > Who are you?
    I am Pico, a small language model.
    > /retry
    My name is Pico.

Answers go to stdout, all else to stderr, so a pipe may drive it: a message or a command a line.
"""

import json
import sys
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path

from pico.app.interactive import ask, edit, heard, names, next_seed, obey
from pico.app.samples import argument_bytes, write_steps
from pico.base.errors import PicoError
from pico.base.files import read_json, write_whole
from pico.base.log import log
from pico.base.symbols import visible
from pico.data.chat import Unfit, checked, choose_form, lay_out_question
from pico.decode.generation import Step
from pico.decode.sampling import Sampling
from pico.decode.session import Session

OTHERS = {
    "/system TEXT": "what the model is told first; - is nothing",
    "/retry": "another answer to the last message",
    "/undo": "take back the last message and its answer",
    "/save FILE": "write the chat, as a row that `train` reads",
    "/load FILE": "go on with a saved chat",
    "/reset": "a new chat, with the settings of the start",
    "/help": "these lines",
    "/quit": "leave, as Ctrl-D does",
}
WAYS = "Type a message. Ctrl-C ends an answer early, /help lists the commands, Ctrl-D leaves."
UNDERLINE = ("\x1b[4m", "\x1b[24m")


class Chat:
    """A conversation with a model: its turns, (role, text) without the system's, and the session that has read them."""

    def __init__(self, model, system: bytes = b"", **options):
        self.model, self.system, self.turns, self.options = model, system, [], options
        self.session, self.ended = Session(model, **options), None  # how the last answer did
        self.said, self.file = set(), None
        self.ids([("user", b"")], 0)  # a model whose tokenizer has no symbols for turns says so now

    def answer(self, message: bytes, sampling: Sampling) -> Generator[Step]:
        """The answer to a message. Both join the turns when it ends or is broken off; not if nothing was answered."""
        alphabet, written = self.model.alphabet, []
        stops = frozenset([alphabet.control["end-of-turn"], alphabet.eos])
        sampling = sampling.model_copy(update={"stop_symbols": stops})
        generation = self.session.generate(self.ids([*self.turns, ("user", message)], sampling.max_bytes), sampling)
        try:
            yield from heard(generation, written)
        except KeyboardInterrupt:  # amid a forward, perhaps: who knows what is read
            self.session = Session(self.model, **self.options)
            raise
        finally:
            self.ended = generation.ended[0]
            if text := b"".join(written):
                self.turns += [("user", message), ("assistant", text)]

    def ids(self, turns: list[tuple[str, bytes]], room: int) -> list[int]:
        """What the model reads before it answers, with room for so many symbols in a context. Says what it forgets."""
        config, context = self.model.config, self.model.config.max_context
        ids, left_out = lay_out_question(self.first() + turns, self.model.alphabet, context, room)
        if left_out:
            self.say(f"the {context:,} {config.unit}s of this model are full: it no longer reads the oldest turns")
        if config.routes and len(ids) > (sight := round(config.latent_att_window_size / config.latent_capacity_factor)):
            self.say(f"nothing is dropped, but the model sees some {sight:,} bytes: what was said before them fades")
        return ids

    def first(self) -> list[tuple[str, bytes]]:
        return [("system", self.system)] if self.system else []

    def say(self, line: str) -> None:
        """Says it, if it is said for the first time."""
        if line not in self.said:
            log(line)
        self.said.add(line)

    def undo(self) -> bytes:
        """Takes the last message and its answer back: the message. Raises PicoError where there is none."""
        if not self.turns:
            raise PicoError("nobody has said anything yet")
        (_, message), _ = self.turns[-2:]
        del self.turns[-2:]
        return message

    def save(self, name: str) -> Path:
        """Raises PicoError where there is nothing to save, or no way to write it; a file of another is left alone."""
        file = Path(name or self.file or "chat.jsonl")
        if not self.turns:
            raise PicoError("nobody has said anything yet")
        if file.exists() and file != self.file:
            raise PicoError(f"{file} already exists: choose another file, or remove it first")
        messages = [{"role": role, "content": text_of(data)} for role, data in self.first() + self.turns]
        write_whole(file, (json.dumps({"messages": messages}) + "\n").encode())
        self.file = file
        return file

    def load(self, name: str) -> Path:
        """Raises PicoError for what is no chat; this one then stays as it is."""
        file = Path(name or self.file or "chat.jsonl")
        try:
            row = read_json(file)
            form = choose_form(row, None, file)
            turns = [(turn.role, argument_bytes(turn.text)) for turn in checked(form.read(*map(row.get, form.columns)))]
        except FileNotFoundError:
            raise PicoError(f"there is no {file}") from None
        except Unfit as unfit:
            raise PicoError(f"{file} is among {unfit}: expected one that /save wrote") from None
        self.system = turns.pop(0)[1] if turns[0][0] == "system" else b""
        self.turns, self.file = turns, file
        return file


def text_of(data: bytes) -> str:
    """The text whose `argument_bytes` these are."""
    return data.decode("utf-8", "surrogateescape")


def shown(data: bytes) -> str:
    return visible(data.decode(errors="replace"))


def converse(model, sampling: Sampling, system: bytes = b"", show_routed: bool = False, **options) -> None:
    """The loop, until its input ends. options: those of `Session`."""
    chat, start, terminal = Chat(model, system, **options), sampling, sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        log(WAYS)
        edit(names(OTHERS))

    def reply(message: bytes, otherwise: tuple = ()) -> Sampling:
        """otherwise: the turns that stand where this gets no answer."""
        before = len(chat.turns)
        with closing(chat.answer(message, sampling)) as steps, suppress(KeyboardInterrupt):
            write_steps(steps, show_routed, UNDERLINE if underlines() else ("_", ""))
        print(flush=True)
        if len(chat.turns) == before:
            chat.turns += otherwise
            log(f"no answer: the {'old one stays' if otherwise else 'message is taken back'}")
        elif chat.ended == "length":
            log(f"cut after {sampling.max_bytes:,} bytes; /max allows more")
        return next_seed(sampling)

    while (line := ask(terminal)) not in (None, "/quit"):
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        try:
            if name == "/system":
                chat.system = argument_bytes(value.removeprefix("-")) if value else chat.system
                log(f"system: {shown(chat.system) or 'nothing'}")
            elif name == "/retry":
                last = tuple(chat.turns[-2:])
                sampling = reply(chat.undo(), last)
            elif name == "/undo":
                log(f"taken back: {shown(chat.undo())}")
            elif name == "/save":
                log(f"wrote {chat.save(value)}")
            elif name == "/load":
                file = chat.load(value)
                log(f"{file} has {len(chat.turns)} turns; the last ones:")
                log(f"> {shown(chat.turns[-2][1])}\n{shown(chat.turns[-1][1])}")
            elif name == "/reset":
                chat.turns, chat.system, sampling = [], system, start
                log("a new chat, with the settings of the start")
            elif name.startswith("/") and not name.startswith("//"):
                sampling = obey(line, sampling, start, OTHERS)
            elif name:
                sampling = reply(argument_bytes(line.strip().removeprefix("/")))
        except PicoError as error:
            log(f"error: {error}")


def underlines() -> bool:
    """Whether the terminal knows how."""
    from rich.console import Console

    console = Console()
    return not (console.is_dumb_terminal or console.legacy_windows)
