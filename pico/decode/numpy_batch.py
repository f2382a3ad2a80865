"""Several texts read at once in numpy, each at its own place: one matmul for the new symbols of all of them.

The weights are those of a reader of one text, and so is the forward. Here the keys and values of every row lie in a
ring, slot = position % (W + feed), so that one matmul scores the queries of all rows against all slots; what a query
may see, and how near it is, is a bias that is worked out once a forward for all layers (see pico/model/cache.py).
Rows are always the first ones: where a text leaves, the last one takes its place.
"""

from typing import Any

import numpy as np

from pico.base.routers import RouterInput
from pico.decode.numpy_gpt import GPTStack
from pico.decode.numpy_reader import NumpyReader, ReaderStack, StackState, TextState, attend, rms_norm
from pico.model.ngrams import keys


class Rings(ReaderStack):
    """The blocks of a stack, and a ring of keys and values for each of so many texts, which read `feed` at a time."""

    def __init__(self, stack: ReaderStack, texts: int, feed: int):
        vars(self).update(vars(stack))
        self.slots, self.feed, self.group = self.window + feed, feed, self.heads // self.kv_heads
        self.memory = np.zeros((len(self.blocks), texts, 2, self.kv_heads, self.slots, self.width), np.float32)
        self.lengths = np.zeros(texts, int)
        # (K, H/K, ...) by distance + feed; a query sees nothing before its window, nor what comes after it
        self.near = np.full((self.kv_heads, self.group, self.slots + 2 * feed), -np.inf, np.float32)
        self.near[..., feed : feed + self.window + 1] = stack.bias(1)[..., ::-1]

    def lay(self, row: np.ndarray, at: np.ndarray, texts: int, n: int) -> None:
        """The next symbols (R,) are each the `at`-th new one of a row; of `texts` rows none has more than n."""
        self.row, self.at, self.texts, self.n = row, at, texts, n
        length = self.lengths[:texts, None]  # (B, 1)
        self.places = self.lengths[row] + at
        newest = length + n - 1
        self.filled = min(self.slots, int(newest.max()) + 1)
        held = newest - (newest - np.arange(self.filled)) % self.slots  # (B, S) positions
        distance = (length + np.arange(n))[:, :, None] - held[:, None] + self.feed  # (B, n, S)
        distance *= held[:, None] >= 0
        bias = self.near.take(distance, -1)  # (K, H/K, B, n, S)
        self.seen = bias.transpose(2, 0, 1, 3, 4).reshape(texts, self.kv_heads, -1, self.filled)

    def open(self, count: int) -> Any:
        return None, None  # all was laid out

    def positions(self, count: int) -> np.ndarray:
        return self.places

    def mixed(self, qkv: np.ndarray, memory: np.ndarray, new, pieces) -> np.ndarray:
        """What attention adds up, (R, H E), of qkv (R, H + 2K, E) and of what is in memory (texts, 2, K, slots, E)."""
        texts, n, ragged = self.texts, self.n, len(qkv) < self.texts * self.n
        memory[self.row, :, :, self.places % self.slots] = qkv[:, self.heads :].reshape(len(qkv), 2, self.kv_heads, -1)
        q = qkv[:, : self.heads]
        if ragged:
            q = np.zeros((texts, n, self.heads, self.width), np.float32)
            q[self.row, self.at] = qkv[:, : self.heads]
        q = q.reshape(texts, n, self.kv_heads, self.group, self.width).transpose(0, 2, 3, 1, 4)
        q = q.reshape(texts, self.kv_heads, -1, self.width)  # (B, K, H/K n, E)
        y = attend(q, memory[:texts, 0, :, : self.filled], memory[:texts, 1, :, : self.filled], self.seen, self.bounded)
        y = y.reshape(texts, self.heads, n, self.width).swapaxes(1, 2)  # (B, n, H, E)
        return (y[self.row, self.at] if ragged else y).reshape(len(qkv), -1)

    def admit(self, row: int, state: StackState) -> None:
        kept = state.memory.shape[3]
        slots = np.arange(state.length - kept, state.length) % self.slots
        self.memory[:, row, :, :, slots] = np.moveaxis(state.memory, 3, 0)
        self.lengths[row] = state.length

    def of(self, row: int) -> StackState:
        length = int(self.lengths[row])
        slots = np.arange(max(0, length - self.window), length) % self.slots
        return StackState(length, self.memory[:, row].take(slots, 3))

    def move(self, source: int, target: int) -> None:
        self.memory[:, target], self.lengths[target] = self.memory[:, source], self.lengths[source]


class GPTRings(Rings, GPTStack):
    """The same of the token twin's blocks."""


class NumpyBatch(NumpyReader):
    """Texts of one model on a CPU, in fp32; `reader` lends the weights."""

    def __init__(self, reader: NumpyReader, texts: int, feed: int):
        vars(self).update(vars(reader))
        kind = GPTRings if isinstance(reader.local, GPTStack) else Rings
        self.stacks: list[Any] = [
            kind(stack, texts, feed) for stack in [reader.local, *([reader.latent] if self.config.routes else [])]
        ]
        self.local, self.latent = self.stacks[0], self.stacks[-1]
        self.lender, self.normed = reader, getattr(self.config, "embedding_scale", None) == "norm"
        self.histories = np.full((texts, len(reader.history)), self.alphabet.bos)
        self.latent_off = np.zeros(texts, bool)
        self.texts = 0

    def join(self, state: TextState, latent_off: bool) -> None:
        """One more row, the last one."""
        for stack, kept in zip(self.stacks, (state.local, state.latent)):
            assert kept
            stack.admit(self.texts, kept)
        self.histories[self.texts], self.latent_off[self.texts] = state.history, latent_off
        self.texts += 1

    def leave(self, row: int) -> None:
        """The last row has this number from now on."""
        self.texts -= 1
        for stack in self.stacks:
            stack.move(self.texts, row)
        for each in self.histories, self.latent_off:
            each[row] = each[self.texts]

    def of(self, row: int) -> TextState:
        kept = [stack.of(row) for stack in self.stacks]
        return TextState(kept[0], kept[1] if len(kept) > 1 else None, self.histories[row].tolist())

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts, n = tokens.shape
        rows = np.arange(texts).repeat(n)
        self.text = np.concatenate([self.histories[:texts], tokens], axis=1)
        self.local.lay(rows, np.tile(np.arange(n), texts), texts, n)
        x = self.embed(self.text).reshape(texts * n, -1)
        if not self.config.routes:
            self.stream = rms_norm(self.local.run(x))
            weight, routed = np.zeros((texts, n), np.float32), np.zeros((texts, n), bool)
        else:
            weight, routed = self.forward(x, lambda score: self.wanted(score, rows))
        self._routed = routed.reshape(texts, n)
        return weight.reshape(texts, n), self._routed

    def logits(self) -> np.ndarray:
        """(B, n, V) of head 0 after each symbol read."""
        logits = type(self.lender).logits(self)
        return logits.reshape(*self._routed.shape, -1)

    def draft_logits(self, row: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """(B, V) of what follows `drawn` (B, k), after the `row`-th (B,) of the symbols read of each text, its last."""
        texts, head = len(drawn), min(drawn.shape[1], len(self.heads) - 1)
        x = self.stream.reshape(texts, -1, self.config.dim)[np.arange(texts), row]
        if not self.chain:
            return x @ self.heads[head]
        text = np.concatenate([self.histories[:texts], drawn], axis=1)[:, -self.histories.shape[1] - 1 :]
        embedding = self.embed(text)[:, 0]
        x = x + embedding @ self.chain[head - 1] * (np.vecdot(embedding, embedding)[:, None] + self.eps) ** -0.5
        logits = x @ self.heads[head]
        logits *= (np.vecdot(x, x)[:, None] + self.eps) ** -0.5
        return logits

    def wanted(self, score: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which symbols are routed, (B n,): the latent stack is told where they stand in their rows."""
        ids, previous = self.text[:, self.histories.shape[1] :], self.text[:, self.histories.shape[1] - 1 : -1]
        at = RouterInput(score, ids.ravel(), previous.ravel(), self.local.places, self.threshold)
        routed = self.rule.choose(at) & ~self.latent_off[rows]
        inside = routed.reshape(ids.shape).cumsum(1)
        if routed.any():
            self.stacks[1].lay(rows[routed], inside.ravel()[routed] - 1, len(ids), int(inside[:, -1].max()))
        return routed

    def keep(self, count: np.ndarray) -> None:
        """count (B,)"""
        texts, width = len(count), self.histories.shape[1]
        self.local.lengths[:texts] += count
        if len(self.stacks) > 1:
            self.stacks[1].lengths[:texts] += (self._routed & (np.arange(self._routed.shape[1]) < count[:, None])).sum(
                1
            )
        self.histories[:texts] = np.take_along_axis(self.text, count[:, None] + np.arange(width), 1)

    def embed(self, text: np.ndarray) -> np.ndarray:
        """(B, n, D) of texts (B, history + n)."""
        c, reach = self.config, self.histories.shape[1]
        ids = text[:, reach:]
        x = self.embedding.take(ids, 0) * np.float32(getattr(self, "scale", 1))
        if c.ngram_max:
            before = [text[:, reach - k : text.shape[1] - k] for k in range(1, c.ngram_max)]
            rows = np.stack(keys(ids, before, c.ngram_max, *c.ngram_tables, self.alphabet.bos), -1)
            x += self.table.take(rows, 0).reshape(*ids.shape, -1) @ self.project
        return rms_norm(x.reshape(-1, c.dim)).reshape(x.shape) * np.float32(c.dim**0.5) if self.normed else x
