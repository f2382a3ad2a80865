"""Prompts of any bytes, and texts for a person, a pipe or a program: what `run` reads and writes."""

import base64
import io
import json
import sys
from pathlib import Path

from pico.base.config import LONGEST_PROMPT
from pico.base.errors import PicoError
from pico.base.log import log
from pico.base.symbols import characters, visible


def read_prompt(text: str | None, file: Path | None) -> bytes:
    """The prompt's bytes, wherever they come from."""
    if text is not None and file is not None:
        raise PicoError("--prompt and --prompt-file were both given: choose one")
    most = LONGEST_PROMPT + 1  # enough to see that it is too long, even where there is no end
    if file is not None:
        try:
            with open(file, "rb") as stream:
                return stream.read(most)
        except OSError as error:
            raise PicoError(f"cannot read --prompt-file {file}: {error.strerror}") from None
    if text == "-":
        return sys.stdin.buffer.read(most)
    return argument_bytes(text or "")


def argument_bytes(text: str) -> bytes:
    """The bytes that were typed, also where they are no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def write_samples(generation, count: int, show_routed: bool) -> None:
    """Writes the first text while it grows, then the others, an empty line between them."""
    later = [[] for _ in range(count)]

    def first():
        for step in generation:
            if step.row == 0:
                yield step
            else:
                later[step.row].append(step)

    for row in range(count):
        if row:
            write("\n\n", b"\n\n")
            if sys.stderr.isatty():
                log("─" * 40)
        write_steps(later[row] if row else first(), show_routed)
    if sys.stdout.isatty():
        sys.stdout.write("\n")


def write_steps(steps, show_routed: bool, mark: tuple[str, str] = ("_", "")) -> None:
    """Writes one text while it grows. mark: what a person sees before and after a character that was routed."""
    for character, own in characters(steps):
        routed = show_routed and any(step.routed for step in own)
        before, after = mark if routed else ("", "")
        write(before + visible(character) + after, b"_" * routed + b"".join(step.bytes for step in own))


def write(text: str, data: bytes) -> None:
    """One of the two to stdout: the text for a person, the bytes for whatever reads them."""
    if sys.stdout.isatty():
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding != "utf-8":
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(text)
    else:
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


def write_objects(generation, count: int) -> None:
    """A JSON object a line for each text: its prompt and itself, what was routed, how it ended, the stats of them all.

    Where prompt or text is no UTF-8, its bytes are beside it in base64.
    """
    rows = [{"prompt": [], "text": []} for _ in range(count)]
    for step in generation:
        rows[step.row]["prompt" if step.prompt else "text"].append(step)
    for row, ended in zip(rows, generation.ended):
        made: dict = {}
        for name, steps in row.items():
            data = b"".join(step.bytes for step in steps)
            made[name] = data.decode(errors="replace")
            if made[name].encode() != data:
                made[f"{name}_base64"] = base64.b64encode(data).decode()
            made[f"{name}_routed"] = [step.routed for step in steps]
        print(json.dumps(made | {"ended": ended, "stats": generation.stats}))
