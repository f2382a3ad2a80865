"""Documents packed into batches of equal chunks: exact, disjoint over processes, resumable anywhere.

Documents become BOS bytes EOS, one after the other in an order drawn anew each epoch, and this string is cut into
chunks of context_len, which are read in an order of their own: even a single huge document gives varied batches.
"""

import hashlib

import numpy as np
import torch

from pico.config import PicoError
from pico.documents import Documents
from pico.hub import Stream
from pico.vocab import BOS, EOS


class Batches:
    """Endless batches (inputs, targets) of packed chunks, int64: inputs (B, T), targets (B, T + N - 1).

    B = batch_size / world, T = context_len, N = next_tokens. Targets are one ahead: head k at input t predicts target
    t + k. Where a target is -100 nothing is scored; inputs past the end of the epoch, which only such targets follow,
    are byte 0.

    Chunk j of an epoch holds tokens jT .. jT + T + N of the epoch's string, so every byte is the next-byte target of
    exactly one position. Batch g takes the chunks g * batch_size .. of the epoch's order (on across the end of the
    epoch), process `rank` a block of its rows: how many processes share the work changes nothing but who does it.
    Raises PicoError if the batch does not divide over the processes, or the data does not fill one chunk.
    """

    def __init__(
        self,
        documents: Documents | Stream,
        context_len: int,
        next_tokens: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size % world:
            raise PicoError(
                f"batch size {batch_size} does not divide over {world} processes: use a multiple of {world}"
            )
        self.documents, self.context_len, self.batch_size, self.seed = documents, context_len, batch_size, seed
        self.rows = batch_size // world
        self.first = rank * self.rows
        self._offsets = np.arange(context_len + next_tokens)
        self._open(0)
        if self.length <= context_len:
            raise PicoError(
                f"context length {context_len} is longer than all of the training data ({self.length} bytes with "
                f"document ends): use --context-len {max(1, self.length // 2)} or less, or more data"
            )

    @property
    def epoch(self) -> float:
        """Passes over the data so far; of a stream, whose length is unknown, only whole ones."""
        if isinstance(self.documents, Stream):
            return float(self.documents.place["pass"])
        return self.number + self.chunk / self.chunks

    @property
    def chunks_per_epoch(self) -> int | None:
        """None for a stream."""
        return None if isinstance(self.documents, Stream) else self.chunks

    def state_dict(self) -> dict:
        """The position, as JSON. It does not depend on how the batch is split over processes."""
        place = self.documents.place if isinstance(self.documents, Stream) else None
        return {"epoch": self.number, "chunk": self.chunk, "place": place}

    def load_state_dict(self, state: dict) -> None:
        self._open(state["epoch"], state["place"])
        self.chunk = state["chunk"]

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = np.empty((self.rows, len(self._offsets)), np.int64)  # (B, T + N)
        row = -self.first  # of `tokens`: where the batch's next chunk goes, if that is one of our rows
        while row < self.batch_size - self.first:
            if self.chunk == self.chunks:
                self._open(self.number + 1)
            taken = min(self.batch_size - self.first - row, self.chunks - self.chunk)
            ours = np.arange(max(row, 0), min(row + taken, self.rows))
            if len(ours):
                tokens[ours] = self._read(self._order(self.chunk + ours - row))
            row += taken
            self.chunk += taken
        inputs, targets = tokens[:, : self.context_len], tokens[:, 1:]
        return torch.from_numpy(np.where(inputs >= 0, inputs, 0)), torch.from_numpy(targets)

    def _open(self, number: int, place: dict | None = None) -> None:
        """Lays out epoch `number`: the order of its documents and where each ends in the string of all."""
        self._block = self.documents.block(number, place)
        self.number, self.chunk = number, 0
        self._drawn, self._drawn_from = np.zeros(0, np.int64), 0
        order = shuffled(np.arange(len(self._block)), len(self._block), self.seed, number, 0)
        sizes = self._block.lengths[order] + 2  # with BOS and EOS
        self._ends = np.cumsum(sizes)
        self._begins = self._ends - sizes
        self._shifts = self._block.starts[order] - self._begins - 1  # from a place in the string to one in the buffer
        self.length = int(self._ends[-1])
        self.chunks = -(-(self.length - 1) // self.context_len)  # the last token has no target: it starts no chunk

    def _order(self, turns: np.ndarray) -> np.ndarray:
        """Which chunks are read at these consecutive turns of the epoch. Some thousand turns are drawn at once."""
        first, last = turns[0] - self._drawn_from, turns[-1] - self._drawn_from
        if first < 0 or last >= len(self._drawn):
            ahead = np.arange(turns[0], min(turns[-1] + 4096, self.chunks))
            self._drawn, self._drawn_from = shuffled(ahead, self.chunks, self.seed, self.number, 1), turns[0]
            first, last = 0, len(turns) - 1
            self._block.expect(self._place(self._drawn[:, None] * self.context_len + self._offsets[::512])[0])
        return self._drawn[first : last + 1]

    def _place(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the epoch's string -> (places in the buffer, which document of the order)."""
        document = np.minimum(np.searchsorted(self._ends, position, side="right"), len(self._ends) - 1)
        return position + self._shifts[document], document

    def _read(self, chunks: np.ndarray) -> np.ndarray:
        """chunks (R,) -> tokens (R, T + N), -100 past the end of the epoch."""
        position = chunks[:, None] * self.context_len + self._offsets  # in the epoch's string
        place, document = self._place(position)
        begin, end = self._begins[document], self._ends[document] - 1  # where its BOS and EOS are
        tokens = np.full(position.shape, -100, np.int64)
        tokens[position == begin] = BOS
        tokens[position == end] = EOS
        inside = (position > begin) & (position < end)
        tokens[inside] = self._block.take(place[inside])
        return tokens


def mix(x: np.ndarray, *key: int) -> np.ndarray:
    """uint64 -> uint64, a well-mixed function that the key chooses (the finisher of SplitMix64)."""
    x = x + np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Where each index goes in the permutation of range(size) that the key chooses, without ever holding it.

    A Feistel network on the smallest even number of bits, applied again to what falls outside the range.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    out = index.astype(np.uint64)
    outside = np.ones(len(out), bool)
    while outside.any():
        left, right = out[outside] >> shift, out[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (mix(right, *key, turn) & mask)
        out[outside] = left << shift | right
        outside = out >= size
    return out.astype(np.int64)
