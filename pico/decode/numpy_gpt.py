"""Reading and continuing a single text with `GPT` on a CPU, in numpy: what numpy_reader.py is for `Pico`."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pico.base.config import PREFILL
from pico.base.threads import pick_blas_threads
from pico.decode.numpy_reader import EPS, LARGEST, NumpyReader, ReaderStack, TextState, columns, rms_norm, swiglu
from pico.model.attention import distances
from pico.model.ngrams import keys


def factor(gain: nn.Parameter | None, width: int) -> torch.Tensor:
    """(width,) RMSNorm is x / |x| times this."""
    return width**0.5 * (torch.ones(width) if gain is None else gain.detach())


@dataclass(frozen=True)
class GPTWeights:
    """Those of a block, each (inputs, outputs), with the constant factors of its forward folded in."""

    qkv: np.ndarray  # (D, (H + 2K) E)
    bias: np.ndarray | None  # ((H + 2K) E,)
    qk_factor: np.ndarray | None  # (H + K, E) what queries and keys of length 1 are multiplied by, with QK-norm
    gate: np.ndarray | None  # (E, E) of a query, or (D, H E) of what the block reads
    out: np.ndarray  # (H E, D)
    up: np.ndarray  # (D, F), or (D, 2F) gate and value
    down: np.ndarray  # (F, D)
    outer: list[np.ndarray] | None  # two of (D,), in a sandwich

    @classmethod
    def of(cls, block, config) -> "GPTWeights":
        heads, kv_heads, width, attention = config.att_q_heads, config.att_kv_heads, config.head_dim, block.attention
        before, between = (factor(each.gain, config.dim) for each in block.norms)
        scale, qk_factor, gate = torch.ones((heads + 2 * kv_heads) * width, 1), None, None
        if config.qk_norm == "none":
            scale[: heads * width] = width**-0.5  # of the scores, q k / sqrt(E)
        else:
            q, k = factor(attention.q_gain, width) * width**-0.5, factor(attention.k_gain, width)
            qk_factor = torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)]).numpy()
        if config.gate != "none":  # a query comes without the sqrt(E) that its scores are divided by
            gate = columns(attention.gate, width**0.5 if config.gate == "query" else before)
        return cls(
            columns(attention.qkv, scale * before),
            (attention.qkv.bias.detach() * scale[:, 0]).numpy() if config.qkv_bias else None,
            qk_factor,
            gate,
            columns(attention.out),
            columns(block.mlp.up, -between if config.mlp == "swiglu" else between),  # the sign: see `swiglu`
            columns(block.mlp.down),
            [factor(n.gain, config.dim).numpy() for n in block.outer_norms] if config.sandwich_norm else None,
        )


class GPTStack(ReaderStack):
    """All blocks, and the keys and values they have seen."""

    def __init__(self, blocks, config):
        self.config, self.window, self.length, self.shift = config, config.reach, 0, 0
        self.heads, self.kv_heads, self.width = config.att_q_heads, config.att_kv_heads, config.head_dim
        self.blocks = [GPTWeights.of(block, config) for block in blocks]
        self.bounded = config.qk_norm != "none" and all(self.most(w.qk_factor) < LARGEST for w in self.blocks)
        self.memory = np.zeros((len(blocks), 2, self.kv_heads, self.window + PREFILL, self.width), np.float32)
        self.biases: dict[int, np.ndarray] = {}
        half = round(self.width * config.rope_fraction / 2)
        frequency = config.rope_theta ** (-np.arange(half) / max(half, 1))
        self.frequency = np.pad(frequency, (0, self.width // 2 - half))  # radians a position

    def most(self, qk_factor: np.ndarray) -> float:
        """A bound of the scores."""
        return float(np.abs(qk_factor[0]).max() * np.abs(qk_factor[-1]).max())

    def run(self, x: np.ndarray, layers: slice = slice(None)) -> np.ndarray:
        """x (n, D) at the next n positions through some of the blocks. The caller moves `length` afterwards."""
        pieces, new = self.open(len(x))
        angle = self.positions(len(x))[:, None, None] * self.frequency
        turn = np.exp(1j * angle).astype(np.complex64)  # (n, 1, E/2)
        for weights, memory in zip(self.blocks[layers], self.memory[layers]):
            y = np.dot(self.attention(rms_norm(x), weights, memory, new, pieces, turn), weights.out)
            x = x + (y if weights.outer is None else rms_norm(y) * weights.outer[0])
            y = self.mlp(rms_norm(x), weights)
            x += y if weights.outer is None else rms_norm(y) * weights.outer[1]
        return x

    def attention(self, x, weights, memory, new, pieces, turn) -> np.ndarray:
        """x (n, D) -> (n, H E); writes the keys and values into memory (2, K, positions, E)."""
        qkv = np.dot(x, weights.qkv)
        if weights.bias is not None:
            qkv += weights.bias
        qkv = qkv.reshape(len(x), -1, self.width)  # (n, H + 2K, E)
        qk = qkv[:, : self.heads + self.kv_heads]
        if self.config.qk_norm == "before":
            self.normalise(qk, weights)
        if self.config.rope_fraction:
            qk.view(np.complex64)[:] *= turn
        if self.config.qk_norm == "after":
            self.normalise(qk, weights)
        y = self.mixed(qkv, memory, new, pieces)
        if weights.gate is not None:
            gate = (qkv[:, : self.heads] if self.config.gate == "query" else x) @ weights.gate
            y /= 1 + np.exp(-gate.reshape(y.shape))
        return y

    def normalise(self, qk: np.ndarray, weights: GPTWeights) -> None:
        squares = np.vecdot(qk, qk)[..., None]
        squares += self.width * EPS
        qk *= weights.qk_factor / np.sqrt(squares, out=squares)

    def mlp(self, x: np.ndarray, weights: GPTWeights) -> np.ndarray:
        if self.config.mlp == "swiglu":
            return swiglu(x, weights)
        up = np.maximum(np.dot(x, weights.up), 0)
        return np.dot(np.square(up, out=up), weights.down)

    def bias(self, n: int) -> np.ndarray:
        """(K, H/K n, W + n): n queries against the keys from the first one's window to the last one."""
        if n not in self.biases:
            positions = torch.arange(self.window + n)
            seen = distances(positions[self.window :], positions, self.window)[1].numpy()  # (n, W + n)
            bias = np.where(seen, np.float32(0), np.float32(-np.inf))
            self.biases[n] = np.tile(bias, (self.kv_heads, self.heads // self.kv_heads, 1))
        return self.biases[n]


class NumpyGPT(NumpyReader):
    """A `Reader` of one text on the CPU, in fp32, of a model that routes nothing and drafts nothing."""

    def __init__(self, model, disable_latent: bool = False):
        config, self.alphabet = model.config, model.alphabet
        self.config, self.scale = config, config.dim**0.5 if config.embedding_scale == "sqrt" else 1.0
        self.embedding = model.embedding.weight.detach().float().numpy()
        if model.ngrams:
            self.table, self.project = model.ngrams.table.weight.detach().numpy(), columns(model.ngrams.project)
        self.head = columns(model.head or model.embedding, factor(model.norm.gain, config.dim))
        self.local = GPTStack(model.blocks, config)
        self.history = [self.alphabet.bos] * config.history  # the newest last
        row = np.ones((1, config.dim), np.float32)
        self.threads = pick_blas_threads(lambda: self.local.run(row, slice(1)))

    tail = 0

    def read(self, tokens: np.ndarray, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        self.stream, self._tokens = rms_norm(self.local.run(self._embed(tokens[0].tolist()))), tokens
        self._before = self.local.length, 0, self.history
        return np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)

    def logits(self) -> np.ndarray:
        """(n, V) after each symbol read."""
        logits, cap = self.stream @ self.head, self.config.logit_softcap
        return cap * np.tanh(logits / cap) if cap else logits

    def keep(self, count: np.ndarray) -> None:
        kept, (length, _, history) = int(count[0]), self._before
        self.local.length = length + kept
        self.history = [*history, *self._tokens[0, :kept].tolist()][kept:]

    def state(self) -> TextState:
        return TextState(self.local.state(), None, self.history)

    def _embed(self, ids: list[int]) -> np.ndarray:
        """(n, D) of ids that continue the history."""
        c, x = self.config, self.embedding.take(ids, 0) * np.float32(self.scale)
        if c.ngram_max:
            text, reach = [*self.history, *ids], c.history
            rows = [
                keys(id, text[at : at + reach][::-1], c.ngram_max, *c.ngram_tables, self.alphabet.bos)
                for at, id in enumerate(ids)
            ]
            x += self.table.take(rows, 0).reshape(len(ids), -1) @ self.project
        return rms_norm(x) * np.float32(c.dim**0.5) if c.embedding_scale == "norm" else x
