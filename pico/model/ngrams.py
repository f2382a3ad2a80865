"""Hashed byte n-gram embeddings: what the last few bytes are, looked up instead of computed.

BLT (arXiv 2412.09871, section 3.2.1) adds to every byte's embedding those of the n-grams that end there. There are too
many n-grams for a table of all, so each is hashed to a row, and n-grams that share a row share its vector. A lookup
costs no matmul however large the tables are, which suits a small model: it spells by memory and thinks about the rest.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.base.shapes import Shape
from pico.base.symbols import BOS
from pico.model import kernels
from pico.model.blocks import Linear

MASK, MULTIPLIER, FINISHER = (1 << 48) - 1, 0x2C1B3C6D, 0x85EBCA6B
SIGNS = 12  # the highest bits of a hash, which pick a vector of signs; the others pick the row


def keys(tokens, before, longest: int, rows: int, bos: int = BOS) -> list:
    """The row in the stacked tables of each n-gram of 2 to `longest` symbols that ends with `tokens`; see `hashes`."""
    return [hashed % rows + order * rows for order, hashed in enumerate(hashes(tokens, before, longest, bos))]


def hashes(tokens, before, longest: int, bos: int = BOS) -> list:
    """48 bits for each n-gram of 2 to `longest` symbols that ends with `tokens`.

    before: what stood 1, 2, ... longest - 1 symbols earlier. Tensors or arrays of one shape, or plain integers: where
    one text is generated, a byte at a time is hashed. An n-gram does not reach over the start of its document: whatever
    is before `bos` counts as `bos`.
    """
    hashed, found = tokens, []
    newest = tokens
    for byte in before[: longest - 1]:
        if isinstance(byte, Tensor):
            newest = byte.where(newest != bos, bos)
        elif isinstance(byte, np.ndarray):
            newest = np.where(newest != bos, byte, bos)
        else:
            newest = byte if newest != bos else bos
        hashed = (hashed * MULTIPLIER + newest + 1) & MASK
        mixed = ((hashed ^ (hashed >> 15)) * FINISHER) & MASK
        found.append(mixed ^ (mixed >> 17))
    return found


def sign_vectors(width: int) -> Tensor:
    """(4096, width) of +1 and -1 in no order: of number n in the table, a bit of its hash. Never stored."""
    hashed = (torch.arange(1, (width << SIGNS) + 1) * MULTIPLIER) & MASK
    hashed = ((hashed ^ (hashed >> 15)) * FINISHER) & MASK
    return (1 - 2 * ((hashed >> 31) & 1)).view(-1, width).float()


class NGrams(nn.Module):
    """Embeddings of the n-grams that end with a symbol, from hashed tables."""

    signs: Tensor | None

    def __init__(self, config: Shape, signed: bool = False):
        """signed: n-grams that share a row have it with other signs, so that they are nearly orthogonal."""
        super().__init__()
        self.longest, self.rows = config.ngram_max, config.ngram_rows
        self.register_buffer("signs", sign_vectors(config.ngram_dim) if signed else None, persistent=False)
        self.dropout = 0.0  # share of the lookups that training leaves out
        self.table = nn.Embedding(config.ngram_orders * config.ngram_rows, config.ngram_dim)
        self.project = Linear(config.ngram_orders * config.ngram_dim, config.dim)

    def forward(self, text: Tensor, dtype: torch.dtype, bos: int = BOS) -> Tensor:
        """text (B, longest - 1 + T): the symbols, after those before them -> (B, T, D)."""
        rows = self.row_numbers(text, bos)
        found = self.table(rows)  # (B, T, orders, width)
        if self.signs is not None:
            found = found * F.embedding(self.hashed(text, bos) >> (48 - SIGNS), self.signs)
        if self.training and self.dropout:
            found = found * F.dropout(found.new_ones(rows.shape), self.dropout)[..., None]
        return self.project(found.flatten(2).to(dtype))

    def row_numbers(self, text: Tensor, bos: int = BOS) -> Tensor:
        """(B, T, orders): where the table holds each n-gram."""
        if text.is_cuda and kernels.available():
            from pico.model.kernels.ngrams import ngram_rows

            return ngram_rows(text, self.longest, self.rows, bos)
        return self.hashed(text, bos) % self.rows + self.rows * torch.arange(self.longest - 1, device=text.device)

    def hashed(self, text: Tensor, bos: int) -> Tensor:
        """(B, T, orders): `hashes` of each n-gram."""
        reach, length = self.longest - 1, text.shape[1] - self.longest + 1
        before = [text[:, reach - n : reach - n + length] for n in range(1, reach + 1)]
        return torch.stack(hashes(text[:, reach:], before, self.longest, bos), dim=-1)
