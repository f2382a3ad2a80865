"""Documents packed into batches of equal chunks: exact, disjoint over processes, resumable anywhere.

Documents become BOS symbols EOS, the symbols bytes or tokens, one after the other in an order drawn anew each epoch.
This string is cut into chunks of context_len, which are read in an order of their own: even a single huge document
gives varied batches.

A symbol of the string that is read and not scored, as most of a conversation is, is ~s in place of s; what follows the
string's end is ~0.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from pico.base.errors import PicoError
from pico.base.symbols import BOS, EOS
from pico.data.documents import Documents
from pico.data.encoding import Conversations
from pico.data.hub import Stream
from pico.data.storage import PIECE, File
from pico.data.tokens import EndlessTokens, Tokens


class Batches:
    """Endless batches (inputs, targets) of packed chunks, int64: inputs (B, T), targets (B, T + N - 1).

    B = batch_size / world, T = context_len, N = next_tokens. Targets are one ahead: head k at input t predicts target
    t + k. Where a target is -100 nothing is scored; inputs past the end of the epoch, which only such targets follow,
    are symbol 0.

    Chunk j of an epoch holds symbols jT .. jT + T + N of the epoch's string, so every one is the next target of exactly
    one position. Batch g takes the chunks g * batch_size .. of the epoch's order (on across the end of the
    epoch), process `rank` a block of its rows: how many processes share the work changes nothing but who does it.
    Raises PicoError if the batch does not divide over the processes, or the data does not fill one chunk.
    """

    def __init__(
        self,
        documents: Documents | Stream | Tokens | EndlessTokens | Conversations,
        context_len: int,
        next_tokens: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size % world:
            raise PicoError(
                f"--batch-size {batch_size} does not divide over {world} processes: use a multiple of {world}"
            )
        self.documents, self.context_len, self.batch_size, self.seed = documents, context_len, batch_size, seed
        self.alphabet = documents.alphabet
        self.rows = batch_size // world
        self.first = rank * self.rows
        self.epochs = np.zeros(self.rows, np.int64)  # of each row of the last batch
        self._offsets = np.arange(context_len + next_tokens)
        self._open(0)
        if self.length <= context_len:
            raise PicoError(
                f"--context-len {context_len} is longer than all of the training data ({self.length} "
                f"{self.alphabet.unit}s with document ends): use {max(1, self.length // 2)} or less, or more data"
            )

    @property
    def epoch(self) -> float:
        """Passes over the data so far; of a stream, whose length is unknown, only whole ones."""
        if place := self.documents.place:
            return float(place["pass"])
        return self.number + self.chunk / self.chunks

    @property
    def chunks_per_epoch(self) -> int | None:
        """None for a stream."""
        return None if self.documents.place else self.chunks

    def state_dict(self) -> dict:
        """The position, as JSON. It does not depend on how the batch is split over processes."""
        return {"epoch": self.number, "chunk": self.chunk, "place": self.documents.place}

    def load_state_dict(self, state: dict) -> None:
        self._open(state["epoch"], state["place"])
        self.chunk = state["chunk"]

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = np.empty((self.rows, len(self._offsets)), np.int64)  # (B, T + N)
        for ours, chunks in self.turns():
            tokens[ours] = self._read(chunks)
        return self.cut(torch.from_numpy(tokens))

    def cut(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T + N) -> inputs (B, T) and targets (B, T + N - 1)."""
        inputs, targets = tokens[:, : self.context_len], tokens[:, 1:]
        return inputs.where(inputs >= 0, ~inputs), targets.where(targets >= 0, -100)

    def turns(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The next batch, epoch by epoch while that one is open: (which of our rows, their chunks)."""
        row = -self.first  # where the batch's next chunk goes, if that is one of our rows
        while row < self.batch_size - self.first:
            if self.chunk == self.chunks:
                self._open(self.number + 1)
            taken = min(self.batch_size - self.first - row, self.chunks - self.chunk)
            ours = np.arange(max(row, 0), min(row + taken, self.rows))
            self.epochs[ours] = self.number
            if len(ours):
                yield ours, self._order(self.chunk + ours - row)
            row += taken
            self.chunk += taken

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
        self._whole = np.broadcast_to(self._block.whole, len(order))[order]
        self.length = int(self._ends[-1])
        self.chunks = -(-(self.length - 1) // self.context_len)  # the last token has no target: it starts no chunk

    def _order(self, turns: np.ndarray) -> np.ndarray:
        """Which chunks are read at these consecutive turns of the epoch. Some thousand turns are drawn at once."""
        first, last = turns[0] - self._drawn_from, turns[-1] - self._drawn_from
        if first < 0 or last >= len(self._drawn):
            ahead = np.arange(turns[0], min(turns[-1] + 4096, self.chunks))
            self._drawn, self._drawn_from = shuffled(ahead, self.chunks, self.seed, self.number, 1), turns[0]
            first, last = 0, len(turns) - 1
            self._block.prefetch(self._place(self._drawn[:, None] * self.context_len + self._offsets[::512])[0])
        return self._drawn[first : last + 1]

    def _place(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the epoch's string -> (places in the buffer, which document of the order)."""
        document = np.minimum(np.searchsorted(self._ends, position, side="right"), len(self._ends) - 1)
        return position + self._shifts[document], document

    def _read(self, chunks: np.ndarray) -> np.ndarray:
        """chunks (R,) -> tokens (R, T + N), ~s where a symbol s is not scored, ~0 past the end of the epoch."""
        position = chunks[:, None] * self.context_len + self._offsets  # in the epoch's string
        place, document = self._place(position)
        begin, end = self._begins[document], self._ends[document] - 1  # where its BOS and EOS are
        tokens = np.full(position.shape, ~0, np.int64)
        for edge, symbol in (begin, self.alphabet.bos), (end, self.alphabet.eos):
            here = position == edge
            tokens[here] = np.where(self._whole[document[here]], symbol, ~symbol)
        inside = (position > begin) & (position < end)
        tokens[inside] = self._block.take(place[inside])
        return tokens

    def counted(self, targets: np.ndarray) -> int:
        """How many raw bytes the next symbols stand for, those of head 0, among targets (R, T or more)."""
        following = targets[:, : self.context_len]
        return int(self.alphabet.lengths[following[following >= 0]].sum())

    def raw_bytes(self, chunks: np.ndarray) -> int:
        """The same for chunks of bytes, from where documents lie: no text is read."""
        first = chunks * self.context_len + 1  # in the epoch's string
        end = np.minimum(first + self.context_len, self.length)
        starts = np.searchsorted(self._begins, end) - np.searchsorted(self._begins, first)
        stops = np.searchsorted(self._ends, end + 1) - np.searchsorted(self._ends, first + 1)
        return int((end - first - starts - stops).sum())


class OnDevice:
    """The batches of a `Batches`, gathered on a device from the text that lies there: one byte a byte.

    The host says which chunks and waits for nothing. What is opened next, in an epoch of stories or a block of a
    stream, replaces what was there. A text over `limit` bytes stays where it is, and its chunks are sent; so do tokens
    and conversations, which the host reads in any case: to count the bytes they stand for.
    """

    def __init__(self, batches: Batches, device: torch.device, limit: int):
        self.batches, self.device, self.limit = batches, device, limit
        self.buffer: bytes | File | None = None  # what lies on the device, or is sent in parts, and how it is laid out
        self.ends: np.ndarray | None = None
        self.text: torch.Tensor | None = None  # the buffer on the device, uint8
        self.offsets = torch.from_numpy(batches._offsets).to(device)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Inputs (B, T) and targets (B, T + N - 1) on the device, and how many raw bytes head 0 is to predict."""
        parts, count = [], 0
        for _, chunks in self.batches.turns():
            self._open()
            if self.text is None:
                tokens = self.batches._read(chunks)
                parts.append(self._send(tokens))
                count += self.batches.counted(tokens[:, 1:])
            else:
                parts.append(self._read(chunks, self.text))
                count += self.batches.raw_bytes(chunks)
        return *self.batches.cut(torch.cat(parts)), count

    def _open(self) -> None:
        """Brings the epoch that is open to the device: its text if that is new, and where its documents are."""
        batches, buffer = self.batches, self.batches._block.buffer
        if self.ends is batches._ends:
            return
        self.ends = batches._ends
        if buffer is not self.buffer:
            self.buffer, self.text = buffer, None  # gives the memory of the old one back first
            if batches._block.plain and len(buffer) <= self.limit:
                self.text = torch.empty(len(buffer), dtype=torch.uint8, device=self.device)
                for start in range(0, len(buffer), PIECE):
                    piece = np.frombuffer(bytearray(buffer[start : start + PIECE]), np.uint8)
                    self.text[start : start + len(piece)] = self._send(piece)
        if self.text is not None:
            self.layout = self._send(np.stack([batches._ends, batches._begins, batches._shifts]))  # (3, documents)

    def _read(self, chunks: np.ndarray, text: torch.Tensor) -> torch.Tensor:
        """`Batches._read` on the device."""
        position = self._send(chunks)[:, None] * self.batches.context_len + self.offsets  # (R, T + N)
        document = torch.searchsorted(self.layout[0], position, right=True).clamp(max=self.layout.shape[1] - 1)
        end, begin, shift = self.layout[:, document].unbind()
        tokens = text[(position + shift).clamp(0, len(text) - 1)].long()
        tokens.masked_fill_(position == begin, BOS).masked_fill_(position == end - 1, EOS)
        return tokens.masked_fill_(position >= end, ~0)

    def _send(self, array: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(array)
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x


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
