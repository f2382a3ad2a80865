"""What `Batches` reads: documents as they are, as tokens, or as conversations with their control symbols."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from pico.base.symbols import BYTES, Alphabet
from pico.data.bpe import BPE
from pico.data.chat import lay_out, unpack_turns
from pico.data.documents import Documents
from pico.data.hub import Stream
from pico.data.tokens import EndlessTokens, Symbols, Tokens, tokenized

RULES = 1  # by which conversations become symbols: to be raised whenever the same ones give others


class Conversations:
    """Conversations as symbols, each block as it comes; those that are longer than context_len are cut.

    In a block a symbol s that is read and not scored is ~s, which is negative.
    """

    def __init__(self, documents: Documents | Stream, alphabet: Alphabet, context_len: int):
        self.documents, self.alphabet, self.context_len = documents, alphabet, context_len
        self.repeats, self.fingerprint, self._source = documents.repeats, documents.fingerprint, None
        if alphabet is not BYTES:
            said = f"{documents.fingerprint} {getattr(alphabet, 'fingerprint', 'bytes')}"
            self.fingerprint = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    def notes(self) -> list[str]:
        """What they are, in words."""
        return [f"of {self.alphabet.size:,} kinds, in conversations"]

    @property
    def size(self) -> int:
        """Bytes of the text, with a mark before each turn."""
        assert not isinstance(self.documents, Stream), "which nobody knows"
        return self.documents.size

    @property
    def place(self) -> dict | None:
        """Where the block starts that was opened last, as documents tell it."""
        return self.documents.place

    def block(self, number: int, place: dict | None = None) -> Symbols:
        source = self.documents.block(number, place)
        if source is not self._source:
            self._source, self._block = source, self._encode(source)
        return self._block

    def _encode(self, documents: Documents) -> Symbols:
        assert documents.loss_on is not None, "they are conversations"
        loss_on, name = documents.loss_on, getattr(self.alphabet, "fingerprint", "bytes")
        key = f"conversations {RULES} {documents.digest()} {name} {self.context_len}" if self.repeats else None

        def pieces() -> Iterator[list[np.ndarray]]:
            for document in documents:
                for piece in lay_out(unpack_turns(document), self.alphabet, self.context_len, loss_on):
                    yield [piece[1:-1]]  # `Batches` puts BOS and EOS around it

        return Symbols(pieces(), np.int32, key, whole=loss_on == "all")


def encoded(
    documents, alphabet: Alphabet, context_len: int, log: Callable = lambda text: None
) -> Documents | Stream | Tokens | EndlessTokens | Conversations:
    """Documents, a Stream or a Mixture as a model of this alphabet reads them in training. log: told of slow work."""
    if mixed := getattr(documents, "encoded", None):
        return mixed(alphabet, context_len, log)
    if documents.loss_on:
        return Conversations(documents, alphabet, context_len)
    return tokenized(documents, alphabet, log) if isinstance(alphabet, BPE) else documents
