"""Documents: byte strings lying in one file or in memory, whatever they were read from.

A text file is read where it lies. Rows of .jsonl, .json, .csv and .parquet files, and folders of many files, are
copied once: into memory up to 64 MB, else into a file under ~/.cache/pico (or $PICO_CACHE) that is found again.
Only index arrays are ever held in memory: 16 bytes a document.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from pico.base.symbols import BYTES
from pico.data import storage
from pico.data.storage import File


class Packed(bytes):
    """A conversation as bytes, see pico/data/chat.py, and what of it is scored."""

    loss_on: str

    def __new__(cls, data: bytes, loss_on: str):
        packed = super().__new__(cls, data)
        packed.loss_on = loss_on
        return packed


class Documents:
    """A sequence of documents, each a slice of `buffer` (bytes, or a file). Empty ones are dropped.

    starts, lengths: (n,) int64. place: where a block of a stream starts, else None. floor_bits: exact entropy of all of
    them, only known for stories. stories: the Story each was made from, or None. loss_on: what is scored of
    conversations, see pico/data/chat.py; None for text. Whatever reads the buffer raises PicoError if its file has
    changed.
    """

    alphabet = BYTES
    repeats = True  # every epoch reads the same documents again
    place: dict | None = None
    loss_on: str | None = None
    whole: bool | np.ndarray = True  # whether what stands around each document, BOS and EOS, is scored, too
    plain = True  # its buffer holds the bytes that a model of bytes reads
    floor_bits: float | None = None
    stories: list | None = None

    def __init__(self, buffer: bytes | File, starts: np.ndarray, lengths: np.ndarray):
        kept = np.asarray(lengths) > 0
        self.empty = int((~kept).sum())  # how many were dropped
        self.buffer = buffer
        self.starts = np.asarray(starts, np.int64)[kept]
        self.lengths = np.asarray(lengths, np.int64)[kept]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.starts[index])
        data = self.buffer[start : start + int(self.lengths[index])]
        return Packed(data, self.loss_on) if self.loss_on else data

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return int(self.lengths.sum())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the boundaries and of the text: all of it up to 64 MB, else 256 samples of 4 kB."""
        if self.size <= storage.SMALL:
            return self.digest()
        digest, ends = self._hash(), np.cumsum(self.lengths)
        for position in np.linspace(0, self.size - 1, 256).astype(np.int64):
            i = int(np.searchsorted(ends, position, side="right"))
            end = int(self.starts[i] + self.lengths[i])
            start = end - int(ends[i] - position)
            digest.update(self.buffer[start : min(end, start + 4096)])
        return digest.hexdigest()

    def digest(self) -> str:
        """A hash of the boundaries and of all the text."""
        digest = self._hash()
        for _, _, piece in self._pieces():
            digest.update(piece)
        return digest.hexdigest()

    def _hash(self):
        """Of the boundaries, and of what is scored of conversations."""
        return hashlib.blake2b(self.lengths.tobytes(), digest_size=16, person=(self.loss_on or "").encode())

    def take(self, places: np.ndarray) -> np.ndarray:
        """The bytes at these places of the buffer, (n,) -> (n,) uint8."""
        return (
            self.buffer.take(places) if isinstance(self.buffer, File) else np.frombuffer(self.buffer, np.uint8)[places]
        )

    def prefetch(self, places: np.ndarray) -> None:
        """Has the system read these places of the buffer, which will be taken soon."""
        if isinstance(self.buffer, File) and len(self.buffer) > storage.SMALL:
            self.buffer.prefetch(np.clip(places, 0, len(self.buffer) - 1))

    def block(self, number: int, place: dict | None = None) -> "Documents":
        """What is read in epoch `number`: always the same here, new documents for stories and streams."""
        return self

    def select(self, index: np.ndarray) -> "Documents":
        """The documents at these positions (or where a mask of (n,) bool is true), in this order."""
        return self._alike(self.starts[index], self.lengths[index])

    def _alike(self, starts: np.ndarray, lengths: np.ndarray) -> "Documents":
        """Other documents in the same buffer, of the same kind."""
        documents = Documents(self.buffer, starts, lengths)
        documents.loss_on = self.loss_on
        return documents

    def first(self, size: int) -> "Documents":
        """The documents that fit whole into the first `size` bytes, at least one; of stories the floor is theirs."""
        part = self.select(np.arange(max(1, np.searchsorted(np.cumsum(self.lengths), size, side="right"))))
        if self.stories:
            part.stories = self.stories[: len(part)]
            part.floor_bits = sum(story.bits for story in part.stories)
        return part

    def split(self, separator: str | None) -> "Documents":
        r"""Cuts every document at each separator, which belongs to neither side. \n, \r and \t may be spelled out."""
        if not separator:
            return self
        for letter, mark in ("n", "\n"), ("r", "\r"), ("t", "\t"):
            separator = separator.replace(f"\\{letter}", mark)
        cut = separator.encode()
        starts, lengths, start = array("q"), array("q"), 0
        for document, place, piece in self._pieces(overlap=len(cut) - 1):
            first, end = self.starts[document], self.starts[document] + self.lengths[document]
            here = first + place
            if place == 0:
                start = first  # of what is being cut off
            while (found := piece.find(cut, max(0, start - here))) >= 0:
                starts.append(start)
                lengths.append(here + found - start)
                start = here + found + len(cut)
            if here + storage.PIECE >= end:
                starts.append(start)
                lengths.append(max(0, end - start))
        return Documents(self.buffer, np.frombuffer(starts, np.int64), np.frombuffer(lengths, np.int64))

    def _pieces(self, overlap: int = 0) -> Iterator[tuple[int, int, bytes]]:
        """(number of the document, place in it, a piece of it) of all text, in few reads however short documents are.

        A piece goes on for `overlap` bytes into the next of its document.
        """
        ahead, first = b"", 0
        for document, (start, length) in enumerate(zip(map(int, self.starts), map(int, self.lengths), strict=True)):
            for place in range(0, length, storage.PIECE):
                begin, end = start + place, start + min(length, place + storage.PIECE + overlap)
                if not first <= begin <= end <= first + len(ahead):
                    first, ahead = begin, self.buffer[begin : begin + storage.PIECE + overlap]
                yield document, place, ahead[begin - first : end - first]


def open_file(path: Path) -> Documents:
    """The whole file as one document, read where it lies."""
    buffer = storage.opened(path)
    return Documents(buffer, np.zeros(1), np.full(1, len(buffer)))


def collect(documents: Iterable[bytes | Path | Iterator[bytes]], key: str | None = None) -> Documents:
    """Copies documents into one buffer, on disk when it exceeds 64 MB; see `storage.store`."""
    buffer, lengths = storage.store(documents, key)
    return Documents(buffer, np.cumsum(lengths) - lengths, lengths)
