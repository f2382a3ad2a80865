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

    @property
    def pending(self) -> int:
        """Bytes of an unfinished character."""
        return len(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD, or ''."""
        return self._decoder.decode(b"", final=True)


def characters(steps):
    """Generation steps of one text as (character, routed, weight), each as soon as its last byte is there.

    A character is routed if one of its bytes is; its weight is their largest. Invalid bytes give U+FFFD.
    """
    stream, held = Utf8Stream(), []
    for step in steps:
        text = stream.push(bytes([step.byte]))
        if len(text) == 2:  # this byte ended an invalid sequence and is a character of its own
            yield text[0], any(s.routed for s in held), max(s.weight for s in held)
            text, held = text[1], []
        held.append(step)
        if text:
            done = held[: len(held) - stream.pending]
            yield text, any(s.routed for s in done), max(s.weight for s in done)
            held = held[len(done) :]
    if text := stream.flush():
        yield text, any(s.routed for s in held), max(s.weight for s in held)
