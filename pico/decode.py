"""Reading and continuing a single text on a CPU, byte by byte, in numpy.

A small model's decoding step is some 150 tiny operations, and torch spends more time dispatching each than computing
it. This is the forward of `Pico` with a cache (model.py is the reference, the tests hold the two together) for one
text in fp32: weights laid out once, and keys and values in plain arrays that are shifted back when full, so that the
keys of a window are one contiguous slice and the only mask is a precomputed bias.
"""

from contextlib import contextmanager

import numpy as np
import torch

from pico.attention import alibi_bias
from pico.cache import MAX_FEED
from pico.machine import blas_threads, pick_blas_threads
from pico.ngrams import keys
from pico.routers import RouterInput
from pico.sampling import Sampling, numpy_accept_drafts, numpy_distribution, numpy_draw
from pico.vocab import BOS

ROOM = 1024  # positions written before the last window of keys is moved back to the start
LARGEST = 60.0  # exponent with which a thousand terms still sum to a finite fp32
EPS = float(np.finfo(np.float32).eps)


def _columns(linear, scale: float | torch.Tensor = 1.0) -> np.ndarray:
    """A Linear's weight as (inputs, outputs), its outputs scaled."""
    return (linear.weight.detach().float() * scale).T.contiguous().numpy()


def _norm(x: np.ndarray) -> np.ndarray:
    """RMSNorm but for the factor sqrt(D), which the weights behind it contain."""
    squares = np.vecdot(x, x)[:, None]
    squares += x.shape[1] * EPS
    return x / np.sqrt(squares, out=squares)


class _Rows:
    """Arrays for the n rows of one forward, each with the views of it that a block reads or writes."""

    def __init__(self, n: int, heads: int, kv_heads: int, width: int, hidden: int):
        queries = heads * width
        self.qkv = np.empty((n, queries + 2 * kv_heads * width), np.float32)
        self.new_q = self.qkv[:, :queries].reshape(n, kv_heads, -1, width).transpose(1, 2, 0, 3)  # (K, H/K, n, E)
        self.new_kv = self.qkv[:, queries:].reshape(n, 2, kv_heads, width).transpose(1, 2, 0, 3)  # (2, K, n, E)
        self.new_qk = self.qkv.reshape(n, -1, width)[:, : heads + kv_heads]
        self.q = np.empty(self.new_q.shape, np.float32)
        self.rows = self.q.reshape(kv_heads, -1, width)  # (K, H/K n, E)
        self.mixed = np.empty(self.rows.shape, np.float32)
        self.by_head = self.mixed.reshape(heads, n, width).transpose(1, 0, 2)
        self.out = np.empty((n, queries), np.float32)
        self.out_by_head = self.out.reshape(n, heads, width)
        self.up = np.empty((n, 2 * hidden), np.float32)
        self.gate, self.value = self.up[:, :hidden], self.up[:, hidden:]


class _Stack:
    """Blocks that share a window and a position count, and the keys and values they have seen."""

    def __init__(self, blocks, config, window: int):
        self.window, self.length, self.shift = window, 0, 0  # index in the buffers = position - shift
        self.heads, self.kv_heads, self.width = config.att_q_heads, config.att_kv_heads, config.head_dim
        self.hidden, unit = config.mlp_dim, config.dim**0.5
        # constant factors are moved into the weights: norm's, attention's, and the sign that silu gives its exponent
        qkv = torch.full(((self.heads + 2 * self.kv_heads) * self.width, 1), unit)
        if not config.qk_norm:
            qkv[: self.heads * self.width] *= self.width**-0.5
        self.blocks = [
            (_columns(b.attention.qkv, qkv), _columns(b.attention.out), _columns(b.mlp.up, -unit), _columns(b.mlp.down))
            for b in blocks
        ]
        # what a head's query, of length 1 once normalised, and its key are multiplied by; None without QK-norm
        learned = [b.attention.sharpness for b in blocks]
        self.sharpness = [s if s is None else self._sharpness(s.item()) for s in learned]
        # a normalised query and key of width E score at most sharpness sqrt(E), which exp may then be able to take
        self.bounded = config.qk_norm and all(abs(s[0, 0]) * self.width**0.5 < LARGEST for s in self.sharpness)
        self.mixes = [b.mix if b.mix is None else b.mix.tolist() for b in blocks]
        shape = (len(blocks), 2, self.kv_heads, window + MAX_FEED + ROOM, self.width)
        self.memory = np.zeros(shape, np.float32)
        self.biases: dict[int, np.ndarray] = {}
        self.rows: dict[int, _Rows] = {}

    def _sharpness(self, learned: float) -> np.ndarray:
        scale = np.full((self.heads + self.kv_heads, 1), self.width**0.5, np.float32)
        scale[: self.heads] = learned
        return scale

    def bias(self, n: int) -> np.ndarray:
        """(K, H/K n, W + n): n queries against the keys from the first one's window to the last one."""
        if n not in self.biases:
            keys = torch.arange(self.window + n)
            bias = alibi_bias(keys[self.window :], keys, self.heads, self.window, torch.float32)  # (H, n, W + n)
            self.biases[n] = bias.numpy().reshape(self.kv_heads, -1, self.window + n)
            self.rows[n] = _Rows(n, self.heads, self.kv_heads, self.width, self.hidden)
        return self.biases[n]

    def run(self, x: np.ndarray, layers: slice, embedding: np.ndarray | None = None) -> np.ndarray:
        """x (n, D) at the next n positions through some of the blocks. The caller moves `length` afterwards."""
        n = len(x)
        if self.length + n - self.shift > self.memory.shape[3]:
            kept = self.length - self.window - self.shift
            self.memory[..., : self.window, :] = self.memory[..., kept : kept + self.window, :].copy()
            self.shift += kept
        new = self.length - self.shift
        first, end = max(0, new - self.window), new + n
        bias = self.bias(n)[:, :, first - end :]
        rows, memory = self.rows[n], self.memory[layers]
        keys, values = memory[:, 0, :, first:end].swapaxes(2, 3), memory[:, 1, :, first:end]
        of_block = self.blocks, self.mixes, self.sharpness
        of_block = zip(*(part[layers] for part in of_block), keys, values, memory[:, :, :, new:end])
        for (qkv, out, up, down), mix, sharpness, k, v, kv in of_block:
            if mix:
                x = mix[0] * x + mix[1] * embedding
            np.dot(_norm(x), qkv, out=rows.qkv)
            if sharpness is not None:
                squares = np.vecdot(rows.new_qk, rows.new_qk)[..., None]
                squares += self.width * EPS
                rows.new_qk *= sharpness / np.sqrt(squares, out=squares)
            np.copyto(rows.q, rows.new_q)
            np.copyto(kv, rows.new_kv)
            scores = rows.rows @ k  # (K, H/K n, S)
            scores += bias
            if not self.bounded:
                scores -= np.maximum.reduce(scores, -1, keepdims=True)
            np.exp(scores, out=scores)
            np.matmul(scores, v, out=rows.mixed)
            rows.mixed /= np.add.reduce(scores, -1, keepdims=True)
            np.copyto(rows.out_by_head, rows.by_head)
            x = x + np.dot(rows.out, out)
            np.dot(_norm(x), up, out=rows.up)  # -gate and -value
            rows.value *= rows.gate
            np.exp(rows.gate, out=rows.gate)
            rows.gate += 1
            x += np.dot(rows.value / rows.gate, down)
        return x


class NumpyReader:
    """A `Reader` of one text on the CPU, in fp32."""

    def __init__(self, model, disable_latent: bool = False):
        config, self.disable_latent = model.config, disable_latent
        self.config, self.vocabulary = config, config.vocabulary
        unit, self.eps = config.dim**0.5, config.dim * EPS  # see `_norm`
        self.rule, self.threshold = model.router.rule, model.router.threshold.item()
        self.embedding = model.embedding.weight.detach().float().numpy()
        if model.ngrams:
            self.table, self.project = model.ngrams.table.weight.detach().numpy(), _columns(model.ngrams.project)
        heads = _columns(model.heads, unit)
        self.heads = [np.ascontiguousarray(part) for part in np.split(heads, config.next_tokens, axis=1)]
        self.chain = [_columns(link) for link in model.chain]  # gives as much of a stream that _norm left short
        self.score_weight, self.score_bias = _columns(model.router, unit)[:, 0], model.router.bias.item()
        self.local = _Stack([*model.local_in, *model.local_out], config, config.fb_att_window_size)
        self.latent = _Stack(model.latent, config, config.latent_att_window_size)
        self.history = [BOS] * config.history  # the newest last
        self.ahead: tuple[list, list] = [], []  # bytes drafted behind the history, and their embeddings
        # some hundred matmuls of a few rows, each too small to share with threads that others keep busy
        stack = self.local if self.local.blocks else self.latent
        embedding = np.ones((1 + config.drafts, config.dim), np.float32)
        self.threads = pick_blas_threads(lambda: stack.run(embedding, slice(1), embedding))

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth, ids = self.config.fb_num_blocks, tokens[0].tolist()
        embedding = x = np.array(self._embed(ids))
        x = self.local.run(x, slice(depth), embedding)
        score = _norm(x) @ self.score_weight + self.score_bias
        weight = 1 / (1 + np.exp(-score))
        routed = np.zeros(len(x), bool) if self.disable_latent else self._wanted(score, ids)
        if self.latent.blocks and routed.any():
            chosen = x[routed]
            y = self.latent.run(chosen, slice(None))
            x[routed] = chosen + (y - chosen) * weight[routed, None]
        self.stream = _norm(self.local.run(x, slice(depth, None), embedding))
        self._tokens, self._routed = tokens, routed
        return weight[None], routed[None]

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
        count = int(count[0])
        self.local.length += count
        self.latent.length += int(self._routed[:count].sum())
        self.history = [*self.history, *self._tokens[0, :count].tolist()][count:]
        self.ahead = [], []

    @contextmanager
    def decoder(self, last: np.ndarray, drafts: int, sampling: Sampling):
        with blas_threads(self.threads):
            yield NumpyDecoder(self, last, drafts, sampling)

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
                rows.append(keys(byte, before, self.config.ngram_max, self.config.ngram_rows))
                before = [byte, *before[:-1]]
            x += self.table.take(rows, 0).reshape(len(new), -1) @ self.project
        self.ahead = text, [*found, *x]
        return self.ahead[1]

    def _wanted(self, score: np.ndarray, ids: list[int]) -> np.ndarray:
        """Which of the ids (n,) that continue the history the rule routes, by their scores (n,): (n,) bool."""
        previous = np.array([self.history[-1], *ids[:-1]])
        positions = self.local.length + np.arange(len(ids))
        return self.rule.choose(RouterInput(score, np.array(ids), previous, positions, self.threshold))


class NumpyDecoder:
    """A `Decoder` of the text of a reader; `last` (1, 1) is the byte yet to be read."""

    def __init__(self, reader: NumpyReader, last: np.ndarray, drafts: int, sampling: Sampling):
        self.reader, self.tokens, self.drafts, self.sampling = reader, last, drafts, sampling
        self.banned, self.q = sampling.banned(reader.vocabulary), None  # what the drafts were drawn from

    def __call__(self, u: np.ndarray) -> tuple[list, list, list, list]:
        reader, tokens, u, n = self.reader, self.tokens.tolist(), u[0], self.tokens.shape[1]
        weight, routed = reader.read(self.tokens)
        p = numpy_distribution(reader.logits(), self.sampling, self.banned)
        accepted, following = numpy_accept_drafts(p, tokens[0][1:], self.q, u[:n])
        reader.keep([accepted + 1])
        drawn, self.q = [following], []
        for chance in u[n:].tolist():
            logits = reader.draft_logits(accepted, drawn)
            self.q.append(numpy_distribution(logits, self.sampling, self.banned))
            drawn = [*drawn, numpy_draw(self.q[-1], chance)]
        self.tokens = np.array([drawn])
        return tokens, [accepted + 1], routed.tolist(), weight.tolist()
