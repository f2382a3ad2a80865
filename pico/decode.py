"""Reading a single text on a CPU, byte by byte, in numpy.

A small model's decoding step is some 150 tiny operations, and torch spends more time dispatching each than computing
it. This is the forward of `Pico` with a cache (model.py is the reference, the tests hold the two together) for one
text in fp32: weights laid out once, and keys and values in plain arrays that are shifted back when full, so that the
keys of a window are one contiguous slice and the only mask is a precomputed bias.
"""

import numpy as np
import torch

from pico.cache import MAX_FEED
from pico.ngrams import keys
from pico.vocab import BOS, VOCABULARY

Reading = tuple[np.ndarray, np.ndarray, np.ndarray]
ROOM = 1024  # positions written before the last window of keys is moved back to the start


def _columns(weight) -> np.ndarray:
    return np.ascontiguousarray(weight.detach().float().numpy().T)  # (inputs, outputs)


def _norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.einsum("nd,nd->n", x, x)[:, None] / x.shape[1] + np.finfo(np.float32).eps)


class _Stack:
    """Blocks that share a window and a position count, and the keys and values they have seen."""

    def __init__(self, blocks, config, window: int):
        self.window, self.length, self.shift = window, 0, 0  # index in the buffers = position - shift
        self.heads, self.kv_heads, self.width = config.att_q_heads, config.att_kv_heads, config.head_dim
        self.blocks = [
            [_columns(w.weight) for w in (b.attention.qkv, b.attention.out, b.mlp.up, b.mlp.down)] for b in blocks
        ]
        shape = (len(blocks), 2, self.kv_heads, window + MAX_FEED + ROOM, self.width)
        self.memory = np.zeros(shape, np.float32)
        self.slopes = 2.0 ** (-8.0 * np.arange(1, self.heads + 1) / self.heads)
        self.biases: dict[int, np.ndarray] = {}

    def bias(self, n: int) -> np.ndarray:
        """(K, H/K n, W + n): n queries against the keys from the first one's window to the last one."""
        if n not in self.biases:
            distance = self.window + np.arange(n)[:, None] - np.arange(self.window + n)
            seen = (distance >= 0) & (distance <= self.window)
            bias = np.where(seen, -self.slopes[:, None, None] * distance, -np.inf)  # (H, n, W + n)
            self.biases[n] = bias.reshape(self.kv_heads, -1, self.window + n).astype(np.float32)
        return self.biases[n]

    def run(self, x: np.ndarray, layers: range) -> np.ndarray:
        """x (n, D) at the next n positions through some of the blocks. The caller moves `length` afterwards."""
        n = len(x)
        if self.length + n - self.shift > self.memory.shape[3]:
            kept = self.length - self.window - self.shift
            self.memory[..., : self.window, :] = self.memory[..., kept : kept + self.window, :].copy()
            self.shift += kept
        new = self.length - self.shift
        first, end = max(0, new - self.window), new + n
        bias = self.bias(n)[:, :, first - end :]
        queries, keys = self.heads * self.width, self.kv_heads * self.width
        for layer in layers:
            qkv, out, up, down = self.blocks[layer]
            y = _norm(x) @ qkv
            q = y[:, :queries].reshape(n, self.kv_heads, -1, self.width).transpose(1, 2, 0, 3)
            q = q.reshape(self.kv_heads, -1, self.width) * np.float32(self.width**-0.5)
            kv = self.memory[layer]
            kv[0, :, new:end] = y[:, queries : queries + keys].reshape(n, self.kv_heads, -1).transpose(1, 0, 2)
            kv[1, :, new:end] = y[:, queries + keys :].reshape(n, self.kv_heads, -1).transpose(1, 0, 2)
            scores = q @ kv[0, :, first:end].transpose(0, 2, 1) + bias  # (K, H/K n, S)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            y = scores @ kv[1, :, first:end] / scores.sum(-1, keepdims=True)
            y = y.reshape(self.heads, n, self.width).transpose(1, 0, 2).reshape(n, -1)
            x = x + y @ out
            y = _norm(x) @ up
            gate = y[:, : y.shape[1] // 2]
            x = x + (gate / (1 + np.exp(-gate)) * y[:, y.shape[1] // 2 :]) @ down
        return x


class TextReader:
    """One text being read on the CPU: `read` some bytes, then `keep` the first few of them."""

    def __init__(self, model):
        config = self.config = model.config
        self.router = model.router
        self.embedding = model.embedding.weight.detach().float().numpy()
        if model.ngrams:
            self.table, self.project = model.ngrams.table.weight.detach().numpy(), _columns(model.ngrams.project.weight)
        self.heads = _columns(model.heads.weight)
        self.score_weight, self.score_bias = _columns(model.router.weight)[:, 0], model.router.bias.item()
        self.local = _Stack([*model.local_in, *model.local_out], config, config.fb_att_window_size)
        self.latent = _Stack(model.latent, config, config.latent_att_window_size)
        self.history = [BOS] * config.history  # the newest last

    def read(self, tokens: np.ndarray, disable_latent: bool = False) -> Reading:
        """tokens (1, n), n <= MAX_FEED -> logits (1, n, N, V), router weight (1, n), routed (1, n)."""
        depth = self.config.fb_num_blocks
        x = self.local.run(self._embed(tokens[0]), range(depth))
        score = _norm(x) @ self.score_weight + self.score_bias
        routed = self._wanted(score, tokens) & (not disable_latent)
        weight = 1 / (1 + np.exp(-score))
        if self.latent.blocks and routed.any():
            chosen = x[routed]
            y = self.latent.run(chosen, range(len(self.latent.blocks)))
            x[routed] = chosen + (y - chosen) * weight[routed, None]
        x = self.local.run(x, range(depth, 2 * depth))
        self._tokens, self._routed = tokens, routed
        logits = (_norm(x) @ self.heads).reshape(1, len(x), -1, VOCABULARY)
        return logits, weight[None], routed[None]

    def keep(self, count: np.ndarray) -> None:
        """The first `count` (1,) bytes of the last read are part of the text; the others never were."""
        count = int(count[0])
        self.local.length += count
        self.latent.length += int(self._routed[:count].sum())
        self.history = [*self.history, *self._tokens[0, :count].tolist()][count:]

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        x = self.embedding[tokens]
        if not self.config.ngram_max:
            return x
        reach, text = len(self.history), [*self.history, *tokens.tolist()]
        rows = [
            keys(byte, text[i : i + reach][::-1], self.config.ngram_max, self.config.ngram_rows)
            for i, byte in enumerate(text[reach:])
        ]
        return x + self.table[rows].reshape(len(x), -1) @ self.project

    def _wanted(self, score: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        if self.router.rule in ("topk", "threshold"):
            return score > (self.router.threshold.item() if self.router.rule == "threshold" else 0.0)
        before = np.append([self.history[-1:]], tokens[:, :-1], axis=1)
        positions = self.local.length + np.arange(tokens.shape[1])[None]
        return self.router.wanted(*map(torch.from_numpy, (score[None], tokens, before, positions)))[0].numpy()
