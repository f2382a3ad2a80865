"""Hashed byte n-gram embeddings: what the last few bytes are, looked up instead of computed.

BLT (arXiv 2412.09871, section 3.2.1) adds to every byte's embedding those of the n-grams that end there. There are too
many n-grams for a table of all, so each is hashed to a row, and n-grams that share a row share its vector. A lookup
costs no matmul however large the table is, which suits a small model: it spells by memory and thinks about the rest.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.base.shapes import Shape
from pico.base.symbols import BOS
from pico.model import kernels
from pico.model.blocks import Linear

MASK, MULTIPLIER, FINISHER = (1 << 48) - 1, 0x2C1B3C6D, 0x85EBCA6B
LEFT_OUT = 10  # places of an n-gram in a text that is read again, in which it is new; by hand, docs/LOG.md
MOST_CELLS = 26  # a power of two: n-grams of a text that are counted apart, a byte each


def keys(tokens, before, longest: int, rows: int, apart: int = 0, bos: int = BOS) -> list:
    """The row of each n-gram of 2 to `longest` symbols that ends with `tokens`; see `hashes`.

    rows: of a table; apart: how many rows further the table of the next length begins, 0 where all lengths share one.
    """
    return [hashed % rows + order * apart for order, hashed in enumerate(hashes(tokens, before, longest, bos))]


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


class NGrams(nn.Module):
    """Embeddings of the n-grams that end with a symbol, from a hashed table."""

    counts: Tensor | None

    def __init__(self, config: Shape):
        super().__init__()
        self.longest, (self.rows, self.apart) = config.ngram_max, config.ngram_tables
        self.table = nn.Embedding(config.ngram_orders * config.ngram_rows, config.ngram_dim)
        self.project = Linear(config.ngram_orders * config.ngram_dim, config.dim)
        self.register_buffer("counts", None, persistent=False)  # of the n-grams of a text that is read again
        self.times: Tensor | None = None  # (B,) how often training has read a row before; None: all are new

    def forward(self, text: Tensor, dtype: torch.dtype, bos: int = BOS) -> Tensor:
        """text (B, longest - 1 + T): the symbols, after those before them -> (B, T, D)."""
        hashed = self.hashed(text, bos)
        rows, known = hashed % self.rows, None
        if self.training and self.times is not None and self.counts is not None:
            known = self.known(hashed, self.counts, self.times)
            rows = rows.where(known, (hashed >> 20) % self.rows)
        rows = rows + self.apart * torch.arange(self.longest - 1, device=text.device)
        found = self.table(rows)  # (B, T, orders, width)
        if known is not None:
            found = found.where(known[..., None], found.detach())
        return self.project(found.flatten(2).to(dtype))

    def hashed(self, text: Tensor, bos: int = BOS) -> Tensor:
        """(B, T, orders): `hashes` of each n-gram."""
        if text.is_cuda and kernels.available():
            from pico.model.kernels.ngrams import ngram_hashes

            return ngram_hashes(text, self.longest, bos)
        reach, length = self.longest - 1, text.shape[1] - self.longest + 1
        before = [text[:, reach - n : reach - n + length] for n in range(1, reach + 1)]
        return torch.stack(hashes(text[:, reach:], before, self.longest, bos), dim=-1)

    # --- a text that is read again -----------------------------------------------------------------------------------

    def count(self, texts: Iterable[Tensor], symbols: int, bos: int = BOS) -> None:
        """Counts the n-grams of a training text before it is read again: (B, T) each, so many symbols in all."""
        cells = 2 ** min(MOST_CELLS, (symbols * (self.longest - 1)).bit_length())
        counts = torch.zeros(cells, dtype=torch.int32, device=self.table.weight.device)
        for text in texts:
            text = F.pad(text.to(counts.device), (self.longest - 1, 0), value=bos)
            places = self.cells(self.hashed(text, bos), cells).flatten()
            counts.index_add_(0, places, torch.ones_like(places, dtype=torch.int32))
        self.counts = counts.clamp_(max=255).byte()

    def known(self, hashed: Tensor, counts: Tensor, times: Tensor) -> Tensor:
        """(B, T, orders) bool: which n-grams training looks up, where it has read a row of text so many times (B,).

        The row of an n-gram that stands in c places has learned from all of them, the c-th part from this very one:
        what follows it here. A model that trusts what it finds so trusts too much. So with a chance of LEFT_OUT / c it
        is as if it were new, and finds the row of some other, which learns nothing. One draw decides for all n-grams
        that end at a symbol, so that where one is new, the longer ones are. It is a hash of the longest and of the
        epoch: the same however the text is cut over processes.
        """
        times = times.view(-1, 1, 1)
        places = counts[self.cells(hashed, len(counts))]
        draw = ((hashed[..., -1:] + times * MULTIPLIER) * FINISHER & MASK) >> 32  # of 2^16
        return (draw * places >= LEFT_OUT << 16) | (times == 0)

    @staticmethod
    def cells(hashed: Tensor, cells: int) -> Tensor:
        """Where each n-gram is counted, by other bits of its hash than those that tell its row."""
        return (hashed >> 16) & (cells - 1)
