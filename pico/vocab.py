"""The vocabulary: 256 bytes and a few control symbols, and text that arrives byte by byte.

Ids 0-255 are the bytes themselves, so any byte string is valid input and text can never forge a control symbol.
"""

import codecs

BOS, EOS, SYSTEM, USER, ASSISTANT, END_OF_TURN = range(256, 262)
CONTROL_NAMES = ("bos", "eos", "system", "user", "assistant", "end-of-turn")
VOCABULARY = 264  # 256 bytes + 6 control symbols, padded to a multiple of 8


class Utf8Stream:
    """Turns bytes into characters as soon as each is complete; invalid bytes become U+FFFD, never an error."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD, or ''."""
        return self._decoder.decode(b"", final=True)
