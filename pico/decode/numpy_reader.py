"""Reading and continuing a single text on a CPU, byte by byte, in numpy.

A small model's decoding step is some 150 tiny operations, and torch spends more time dispatching each than computing
it. This is the forward of `Pico` with a cache (pico/model/pico.py is the reference, the tests hold the two together)
for one text in fp32: weights laid out once, and keys and values in plain arrays that are shifted back when full, so
that the keys of a window are one contiguous slice and the only mask is a precomputed bias.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import numpy as np
import torch

from pico.base.config import MAX_FEED, PREFILL
from pico.base.routers import RouterInput
from pico.base.symbols import BOS
from pico.base.threads import blas_threads, pick_blas_threads
from pico.decode.sampling import Noise, Sampling, numpy_draw, numpy_filtered, numpy_penalised, numpy_surprise
from pico.model.attention import alibi_bias
from pico.model.ngrams import keys

LARGEST = 60.0  # exponent with which a thousand terms still sum to a finite fp32
EPS = float(np.finfo(np.float32).eps)


def rms_norm(x: np.ndarray) -> np.ndarray:
    """x / |x| of x (n, D). RMSNorm is sqrt(D) times that: the factor is folded into the weight behind it."""
    squares = np.vecdot(x, x)[:, None]
    squares += x.shape[1] * EPS
    return x / np.sqrt(squares, out=squares)


def columns(linear, scale: float | torch.Tensor = 1.0) -> np.ndarray:
    """A Linear's weight as (inputs, outputs), its outputs scaled."""
    return (linear.weight.detach().float() * scale).T.contiguous().numpy()


@dataclass(frozen=True)
class Weights:
    """Those of a block, each (inputs, outputs), with the constant factors of its forward folded in."""

    qkv: np.ndarray  # (D, (H + 2K) E)
    out: np.ndarray  # (H E, D)
    up: np.ndarray  # (D, 2F) gate and value
    down: np.ndarray  # (F, D)
    sharpness: np.ndarray | None  # (H + K, 1) what queries and keys of length 1 are multiplied by, with QK-norm
    mix: list[float] | None  # of the stream and the embedding

    @classmethod
    def of(cls, block, config) -> "Weights":
        heads, kv_heads, width = config.att_q_heads, config.att_kv_heads, config.head_dim
        qkv = torch.full(((heads + 2 * kv_heads) * width, 1), config.dim**0.5)  # sqrt(D) of the norm before
        sharpness = None
        if config.qk_norm:  # RMSNorm of a query or key of width E is sqrt(E) x / |x|, a score q k / sqrt(E): of the
            sharpness = np.full((heads + kv_heads, 1), width**0.5, np.float32)  # three factors one is left, the key's,
            sharpness[:heads] = block.attention.sharpness.item()  # and queries get what the layer has learned
        else:
            qkv[: heads * width] *= width**-0.5  # of the scores, q k / sqrt(E)
        return cls(
            columns(block.attention.qkv, qkv),
            columns(block.attention.out),
            columns(block.mlp.up, -(config.dim**0.5)),  # of the norm; and the sign of silu's exponent: see `swiglu`
            columns(block.mlp.down),
            sharpness,
            None if block.mix is None else block.mix.tolist(),
        )


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray, bounded: bool) -> np.ndarray:
    """softmax(q k^T + bias) v of q (..., K, H/K n, E), k and v (..., K, S, E), scaled before; bounded: exp has room."""
    scores = q @ k.swapaxes(-1, -2)  # (..., K, H/K n, S)
    scores += bias
    if not bounded:
        scores -= np.maximum.reduce(scores, -1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = scores @ v
    mixed /= np.add.reduce(scores, -1, keepdims=True)
    return mixed


def swiglu(x: np.ndarray, weights) -> np.ndarray:
    """silu(gate) value = gate value / (1 + exp(-gate)), where x (n, D) gives -gate and -value."""
    up = np.dot(x, weights.up)
    gate, value = up[:, : up.shape[1] // 2], up[:, up.shape[1] // 2 :]
    value *= gate
    np.exp(gate, out=gate)
    gate += 1
    value /= gate
    return np.dot(value, weights.down)


class Piece(NamedTuple):
    """Some of the new positions, few enough to score against all keys of their windows."""

    rows: slice  # among the new positions
    keys: slice  # in the memory
    bias: np.ndarray  # (K, H/K n, S)


class StackState(NamedTuple):
    """What a stack remembers of a text."""

    length: int
    memory: Any  # keys and values of the last S <= W positions: (layers, 2, K, S, E), of torch (layers, S, 2, K, E)


class TextState(NamedTuple):
    """All that a reader remembers of a text, however long it is."""

    local: StackState
    latent: StackState | None
    history: list[int]
    carry: torch.Tensor | None = None  # (C,) of a router that keeps something

    def memory_bytes(self) -> int:
        return sum(stack.memory.nbytes for stack in (self.local, self.latent) if stack)


class ReaderStack:
    """Blocks that share a window and a position count, and the keys and values they have seen."""

    def __init__(self, blocks, config, window: int):
        self.window, self.length, self.shift = window, 0, 0  # index in the memory = position - shift
        self.heads, self.kv_heads, self.width = config.att_q_heads, config.att_kv_heads, config.head_dim
        self.blocks: list[Any] = [Weights.of(block, config) for block in blocks]
        # a normalised query and key of width E score at most sharpness sqrt(E), which exp may then be able to take
        most = [abs(w.sharpness[0, 0]) * self.width**0.5 for w in self.blocks if w.sharpness is not None]
        self.bounded = config.qk_norm and all(score < LARGEST for score in most)
        self.memory = np.zeros((len(blocks), 2, self.kv_heads, window + PREFILL, self.width), np.float32)
        self.biases: dict[int, np.ndarray] = {}

    def run(self, x: np.ndarray, layers: slice, embedding: np.ndarray | None = None) -> np.ndarray:
        """x (n, D) at the next n positions through some of the blocks. The caller moves `length` afterwards."""
        pieces, new = self.open(len(x))
        for weights, memory in zip(self.blocks[layers], self.memory[layers]):
            if weights.mix is not None:
                assert embedding is not None, "blocks that mix it in are local"
                x = weights.mix[0] * x + weights.mix[1] * embedding
            x = x + np.dot(self.attention(rms_norm(x), weights, memory, new, pieces), weights.out)
            x += swiglu(rms_norm(x), weights)
        return x

    def attention(self, x, weights: Weights, memory: np.ndarray, new: slice, pieces: list[Piece]) -> np.ndarray:
        """x (n, D) -> (n, H E); writes the keys and values into memory (2, K, positions, E)."""
        qkv = np.dot(x, weights.qkv).reshape(len(x), -1, self.width)  # (n, H + 2K, E)
        if weights.sharpness is not None:
            qk = qkv[:, : self.heads + self.kv_heads]
            squares = np.vecdot(qk, qk)[..., None]
            squares += self.width * EPS
            qk *= weights.sharpness / np.sqrt(squares, out=squares)
        return self.mixed(qkv, memory, new, pieces)

    def mixed(self, qkv: np.ndarray, memory: np.ndarray, new: slice, pieces: list[Piece]) -> np.ndarray:
        """What attention adds up, (n, H E), of qkv (n, H + 2K, E) and of what is in the memory."""
        memory[:, :, new] = qkv[:, self.heads :].reshape(len(qkv), 2, self.kv_heads, -1).transpose(1, 2, 0, 3)
        mixed = []
        for rows, seen, bias in pieces:
            q = qkv[rows, : self.heads].swapaxes(0, 1).reshape(self.kv_heads, -1, self.width)  # (K, H/K n, E)
            y = attend(q, *memory[:, :, seen], bias, self.bounded)
            mixed.append(y.reshape(self.heads, -1, self.width).swapaxes(0, 1).reshape(-1, self.heads * self.width))
        return mixed[0] if len(mixed) == 1 else np.concatenate(mixed)

    def open(self, count: int) -> tuple[list[Piece], slice]:
        """Makes room for `count` positions: what they see, in pieces, and where they go in the memory."""
        if self.length + count - self.shift > self.memory.shape[3]:  # the last window moves back to the start
            kept = self.length - self.window - self.shift
            self.memory[..., : self.window, :] = self.memory[..., kept : kept + self.window, :].copy()
            self.shift += kept
        new, pieces = self.length - self.shift, []
        for start in range(0, count, MAX_FEED):
            end = min(start + MAX_FEED, count)
            seen = slice(max(0, new + start - self.window), new + end)
            bias = self.bias(end - start)[:, :, seen.start - seen.stop :]
            pieces.append(Piece(slice(start, end), seen, bias))
        return pieces, slice(new, new + count)

    def positions(self, count: int) -> np.ndarray:
        return self.length + np.arange(count)

    def state(self) -> StackState:
        end = self.length - self.shift
        return StackState(self.length, self.memory[..., max(0, end - self.window) : end, :].copy())

    def restore(self, state: StackState) -> None:
        kept = state.memory.shape[3]
        self.memory[..., :kept, :] = state.memory
        self.length, self.shift = state.length, state.length - kept

    def bias(self, n: int) -> np.ndarray:
        """(K, H/K n, W + n): n queries against the keys from the first one's window to the last one."""
        if n not in self.biases:
            keys = torch.arange(self.window + n)
            bias = alibi_bias(keys[self.window :], keys, self.heads, self.window, torch.float32)  # (H, n, W + n)
            self.biases[n] = bias.numpy().reshape(self.kv_heads, -1, self.window + n)
        return self.biases[n]


class NumpyReader:
    """A `Reader` of one text on the CPU, in fp32."""

    def __init__(self, model, disable_latent: bool = False):
        config, self.disable_latent = model.config, disable_latent
        self.config, self.alphabet = config, model.alphabet
        unit, self.eps = config.dim**0.5, config.dim * EPS  # see `_norm`
        self.rule, self.threshold = model.router.rule, model.router.threshold.item()
        self.embedding = model.embedding.weight.detach().float().numpy()
        if model.ngrams:
            self.table, self.project = model.ngrams.table.weight.detach().numpy(), columns(model.ngrams.project)
        heads = columns(model.heads, unit)
        self.heads = [np.ascontiguousarray(part) for part in np.split(heads, config.next_tokens, axis=1)]
        self.chain = [columns(link) for link in model.chain]  # gives as much of a stream that _norm left short
        self.score_weight, self.score_bias = columns(model.router, unit)[:, 0], model.router.bias.item()
        self.local: Any = ReaderStack([*model.local_in, *model.local_out], config, config.fb_att_window_size)
        self.latent = ReaderStack(model.latent, config, config.latent_att_window_size)
        self.history = [BOS] * config.history  # the newest last
        self.ahead: tuple[list, list] = [], []  # bytes drafted behind the history, and their embeddings
        # some hundred matmuls of a few rows, each too small to share with threads that others keep busy
        stack = self.local if self.local.blocks else self.latent
        embedding = np.ones((1 + config.drafts, config.dim), np.float32)
        self.threads = pick_blas_threads(lambda: stack.run(embedding, slice(1), embedding))

    @property
    def tail(self) -> int:
        """How many symbols before the next one have a part in it by the last local blocks: see `skim`."""
        return self.config.fb_num_blocks * self.config.fb_att_window_size

    def skim(self, tokens: np.ndarray) -> None:
        """`read` of what at least `tail` symbols of the same text follow, before anything is drawn from it.

        The last local blocks are left out, of whose memory no more than their windows together is ever seen.
        """
        self.read(tokens, whole=False)

    def read(self, tokens: np.ndarray, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        ids = tokens[0].tolist()
        weight, routed = self.forward(np.array(self._embed(ids)), lambda score: self._wanted(score, ids), whole)
        self._before = self.local.length, self.latent.length, self.history
        self._tokens, self._routed = tokens, routed
        return weight[None], routed[None]

    def forward(
        self, x: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray], whole: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings x (n, D) -> router weight (n,), routed (n,), which are `wanted` of the scores.

        whole: also sets the stream.
        """
        depth, embedding = self.config.fb_num_blocks, x
        x = self.local.run(x, slice(depth), embedding)
        score = rms_norm(x) @ self.score_weight + self.score_bias
        weight = 1 / (1 + np.exp(-score))
        routed = wanted(score)
        if self.latent.blocks and routed.any():
            chosen = x[routed]
            y = self.latent.run(chosen, slice(None))
            x[routed] = chosen + (y - chosen) * weight[routed, None]
        if whole:
            self.stream = rms_norm(self.local.run(x, slice(depth, None), embedding))
        return weight, routed

    def logits(self) -> np.ndarray:
        """(n, V) of head 0 after each byte read."""
        return self.stream @ self.heads[0]

    def draft_logits(self, row: int, drawn: list[int]) -> np.ndarray:
        """(V,) of what follows `drawn`, bytes after byte `row` of the last read, which was kept; model.draft_logits."""
        head, x = min(len(drawn), len(self.heads) - 1), self.stream[row]
        if not self.chain:
            return x @ self.heads[head]
        embedding = self._embed(drawn)[-1]  # both norms are folded into a factor: one row needs no more
        x = x + embedding @ self.chain[head - 1] * (embedding @ embedding + self.eps) ** -0.5
        logits = x @ self.heads[head]
        logits *= (x @ x + self.eps) ** -0.5
        return logits

    def keep(self, count: np.ndarray) -> None:
        kept, (local, latent, history) = int(count[0]), self._before
        self.local.length = local + kept
        self.latent.length = latent + int(self._routed[:kept].sum())
        self.history = [*history, *self._tokens[0, :kept].tolist()][kept:]
        self.ahead = [], []

    def state(self) -> TextState:
        """What it takes to go on from here, also in another reader of the same model."""
        return TextState(self.local.state(), self.latent.state(), self.history)

    def restore(self, state: TextState) -> None:
        """Go on from there."""
        self.local.restore(state.local)
        if state.latent:
            self.latent.restore(state.latent)
        self.history, self.ahead = state.history, ([], [])

    @contextmanager
    def decoder(self, ids: list[list[int]], drafts: int, sampling: Sampling):
        with blas_threads(self.threads):
            yield NumpyDecoder(self, ids, drafts, sampling)

    def _embed(self, text: list[int]) -> list[np.ndarray]:
        """The embeddings (D,) of bytes that continue the history. What was drafted is not looked up again."""
        known, found = self.ahead
        if text[: len(known)] != known:
            known, found = [], []
        new = text[len(known) :]
        if not new:
            return found[: len(text)]
        x = self.embedding.take(new, 0)
        if self.config.ngram_max:
            before, rows = [*self.history, *known][: -len(self.history) - 1 : -1], []  # the newest first
            for byte in new:
                rows.append(keys(byte, before, self.config.ngram_max, *self.config.ngram_tables))
                before = [byte, *before[:-1]]
            x += self.table.take(rows, 0).reshape(len(new), -1) @ self.project
        self.ahead = text, [*found, *x]
        return self.ahead[1]

    def _wanted(self, score: np.ndarray, ids: list[int]) -> np.ndarray:
        """Which of the ids (n,) that continue the history the rule routes, by their scores (n,): (n,) bool."""
        if self.disable_latent:
            return np.zeros(len(ids), bool)
        previous = np.array([self.history[-1], *ids[:-1]])
        positions = self.local.length + np.arange(len(ids))
        return self.rule.choose(RouterInput(score, np.array(ids), previous, positions, self.threshold))


class NumpyDecoder:
    """A `Decoder` of the text of a reader; the last of its ids is yet to be read."""

    def __init__(self, reader: NumpyReader, ids: list[list[int]], drafts: int, sampling: Sampling):
        self.reader, self.tokens, self.drafts, self.sampling = reader, ids[0][-1:], drafts, sampling
        self.banned, self.noise = sampling.banned(reader.alphabet), Noise(sampling, reader.alphabet.size)
        self.decided = 0  # symbols that were drawn
        self.surprise = nan  # of the token that is read next
        self.recent = sampling.recent(ids[0][:-1], reader.alphabet)

    def __call__(self) -> tuple[list, list, list, list, list]:
        reader, tokens = self.reader, self.tokens
        weight, routed = reader.read(np.array([tokens]))
        logits = reader.logits()  # (n, V)
        bits = numpy_surprise(logits)
        noise = self.noise(self.decided, len(tokens) + self.drafts)
        wanted = self._draw(logits, tokens, noise[: len(tokens)])
        accepted = 0
        while accepted < len(tokens) - 1 and tokens[accepted + 1] == wanted[accepted]:
            accepted += 1
        kept, following = accepted + 1, wanted[accepted]
        surprise = [self.surprise, *bits[range(len(tokens) - 1), tokens[1:]].tolist()]
        self.surprise = bits[accepted, following].item()
        reader.keep(np.array([kept]))
        self.decided += kept
        self.recent = [*self.recent, *tokens][kept:][: len(self.recent)]
        self.tokens = [following]
        for chances in noise[kept : kept + self.drafts]:
            logits = reader.draft_logits(accepted, self.tokens)
            self.tokens = [*self.tokens, *self._draw(logits[None], self.tokens, chances)]
        return [tokens], [kept], routed.tolist(), weight.tolist(), [surprise]

    def _draw(self, logits: np.ndarray, tokens: list[int], noise: np.ndarray) -> list[int]:
        """The symbol after each of the last n tokens: logits and noise (n, V)."""
        logits = numpy_penalised(logits, self.recent, tokens, self.sampling)
        return numpy_draw(numpy_filtered(logits, self.sampling, self.banned), noise, self.banned).tolist()
