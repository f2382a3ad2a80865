"""Documents as tokens: made once, kept in the cache, and read from there as bytes are.

tokens = tokenized(documents, tokenizer)      # what Batches takes in place of documents
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from pico.data import storage
from pico.data.bpe import BPE, RULES
from pico.data.documents import Documents
from pico.data.hub import Stream
from pico.data.reading import byte_size

SMALL = 1 << 20  # bytes of tokens that are made anew each time rather than kept
QUICK = 4_000_000  # bytes of text whose tokens come without a word


class Symbols:
    """Documents as ids, each a slice of a buffer of integers: all that `Batches` reads of Documents.

    starts, lengths: (n,) int64, in ids. whole: whether BOS and EOS of each are scored. key: as in `storage.store`.
    Raises PicoError if the ids change while they are read.
    """

    repeats = True
    place = None
    plain = False

    def __init__(
        self,
        documents: Iterable[Iterable[np.ndarray]],
        dtype: type,
        key: str | None = None,
        small: int = storage.SMALL,
        whole: bool = True,
    ):
        self.dtype, self.whole = np.dtype(dtype), whole
        pieces = ((ids.astype(dtype).tobytes() for ids in document) for document in documents)
        self.buffer, sizes = storage.store(pieces, key, small)
        self.lengths = sizes // self.dtype.itemsize
        self.starts = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The ids at these places, (n,) -> (n,)."""
        if isinstance(self.buffer, bytes):
            return np.frombuffer(self.buffer, self.dtype)[places]
        width = self.dtype.itemsize
        return self.buffer.take((places[:, None] * width + np.arange(width)).ravel()).view(self.dtype)

    def prefetch(self, places: np.ndarray) -> None:
        """Has the system read what will be taken soon."""
        if not isinstance(self.buffer, bytes) and len(self.buffer) > storage.SMALL:
            self.buffer.prefetch(np.clip(places * self.dtype.itemsize, 0, len(self.buffer) - 1))


class Tokens(Symbols):
    """Documents as tokens. size: bytes of the text. Raises PicoError if the text changes while it is tokenized.

    log: is told of work that takes a while.
    """

    def __init__(self, documents: Documents, alphabet: BPE, log: Callable = lambda text: None, key: str | None = None):
        self.alphabet, self.size = alphabet, documents.size
        self.fingerprint = fingerprint(documents, alphabet)

        def pieces() -> Iterator[Iterator[np.ndarray]]:
            if documents.size > QUICK:
                log(f"tokenizing {byte_size(documents.size)}, once: the tokens are kept in the cache")
            yield from alphabet.encode_documents(documents)

        dtype = np.uint16 if alphabet.size <= 1 << 16 else np.uint32
        super().__init__(pieces(), dtype, key, SMALL if key else storage.SMALL)

    def notes(self) -> list[str]:
        """How many there are, in words."""
        count = int(self.lengths.sum())
        return [f"{count:,} of {self.alphabet.size:,} kinds", f"{self.size / count:.2f} bytes each"]

    def block(self, number: int, place: dict | None = None) -> "Tokens":
        """What is read in epoch `number`: always the same."""
        return self


class EndlessTokens:
    """Stories or a stream as tokens: each block as it comes."""

    repeats = False

    def __init__(self, documents: Documents | Stream, alphabet: BPE):
        self.documents, self.alphabet, self.fingerprint = documents, alphabet, fingerprint(documents, alphabet)

    def notes(self) -> list[str]:
        return [f"of {self.alphabet.size:,} kinds, made as the text comes"]

    @property
    def place(self) -> dict | None:
        """Where the block starts that was opened last, as documents tell it."""
        return self.documents.place

    def block(self, number: int, place: dict | None = None) -> Tokens:
        return Tokens(self.documents.block(number, place), self.alphabet)


def tokenized(
    documents: Documents | Stream, alphabet: BPE, log: Callable = lambda text: None
) -> Tokens | EndlessTokens:
    """The documents as tokens, which are looked for in the cache by the whole text and the tokenizer."""
    if isinstance(documents, Stream) or not documents.repeats:
        return EndlessTokens(documents, alphabet)
    key = f"tokens {RULES} {documents.digest()} {alphabet.fingerprint}"
    return Tokens(documents, alphabet, log, key)


def fingerprint(documents: Documents | Stream, alphabet: BPE) -> str:
    """A hash of the text's own and the tokenizer's."""
    return hashlib.blake2b(f"{documents.fingerprint} {alphabet.fingerprint}".encode(), digest_size=16).hexdigest()
