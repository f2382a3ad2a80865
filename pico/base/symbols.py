"""The vocabulary of bytes: 256 of them and a few control symbols; and text that arrives byte by byte.

Ids 0-255 are the bytes themselves, so any byte string is valid input and text can never forge a control symbol. The
vocabulary of tokens, pico/data/bpe.py, is an `Alphabet` too.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # which the command line can do without until a command runs

BOS, EOS, SYSTEM, USER, ASSISTANT, END_OF_TURN = range(256, 262)
CONTROL_NAMES = ("bos", "eos", "system", "user", "assistant", "end-of-turn")
VOCABULARY = 264  # 256 bytes + 6 control symbols, padded to a multiple of 8


class Alphabet:
    """What ids stand for: `table[id]` is the bytes of a symbol, b"" of control symbols and of ids that are never used.

    control: {name: id}, of CONTROL_NAMES at least bos and eos, which may be one. `decode(encode(data)) == data` for all
    bytes, and `encode` gives no control symbol, whatever the text says.
    """

    unit = "byte"  # what a symbol is called

    def __init__(self, table: list[bytes], control: Mapping[str, int]):
        self.table, self.control = table, control
        self.size, self.bos, self.eos = len(table), control["bos"], control["eos"]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(V,) int64, raw bytes of each id."""
        import numpy as np

        return np.array([len(symbol) for symbol in self.table])

    def encode(self, data: bytes) -> np.ndarray:
        """The ids of a text, (n,), without bos and eos."""
        import numpy as np

        return np.frombuffer(data, np.uint8)

    def decode(self, ids: Iterable[int]) -> bytes:
        """The text of ids; control symbols are none of it."""
        return b"".join(map(self.table.__getitem__, ids))


BYTES = Alphabet(
    [bytes([value]) for value in range(256)] + [b""] * (VOCABULARY - 256), dict(zip(CONTROL_NAMES, range(256, 262)))
)


# what a terminal would obey instead of showing it: control characters, and those that turn the direction of writing
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0x2426)


def visible(text: str) -> str:
    """Text as a terminal may get it: control characters other than newline and tab become their pictures (U+2400 ...).

    C1 controls and bidirectional overrides, which have none, become the picture of a substitute (U+2426).
    """
    return text.translate(PICTURES)


class Utf8Stream:
    """Turns bytes into characters as soon as each is complete; invalid bytes become U+FFFD, never an error."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    @property
    def pending(self) -> int:
        """Bytes of an unfinished character."""
        return len(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD, or ''."""
        return self._decoder.decode(b"", final=True)


def characters(steps):
    """Steps of one text (anything with `bytes`) as (text, its steps), each as soon as its last byte is there.

    The text is a character, or several that share a step. Invalid bytes give U+FFFD.
    """
    text, own = "", []
    for character, ended in _each_character(steps):
        text += character
        own += [step for step in ended if step is not None]
        if ended[-1] is not None:
            yield text, own
            text, own = "", []


def _each_character(steps):
    """(character, of each of its bytes the step that ends there, else None)."""
    stream, ended = Utf8Stream(), []
    for step in steps:
        for i, byte in enumerate(step.bytes, start=1):
            ended.append(step if i == len(step.bytes) else None)
            if text := stream.push(bytes([byte])):
                done = len(ended) - stream.pending
                yield from _shared_out(text, ended[:done])
                ended = ended[done:]
    if text := stream.flush():
        yield from _shared_out(text, ended)


def _shared_out(text: str, ended: list):
    """One character has all bytes; more come of an invalid sequence, and then all but the first have one."""
    first = len(ended) - len(text) + 1
    yield text[0], ended[:first]
    yield from zip(text[1:], ([each] for each in ended[first:]))
