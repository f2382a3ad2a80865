"""Hashed byte n-gram embeddings: what the last few bytes are, looked up instead of computed.

BLT (arXiv 2412.09871, section 3.2.1) adds to every byte's embedding those of the n-grams that end there. There are too
many n-grams for a table of all, so each is hashed to a row, and n-grams that share a row share its vector. A lookup
costs no matmul however large the tables are, which suits a small model: it spells by memory and thinks about the rest.
"""

from torch import Tensor

from pico.vocab import BOS

MASK, MULTIPLIER, FINISHER = (1 << 48) - 1, 0x2C1B3C6D, 0x85EBCA6B


def keys(tokens, before, longest: int, rows: int) -> list:
    """The row in the stacked tables of each n-gram of 2 to `longest` bytes that ends with `tokens`.

    before: what stood 1, 2, ... longest - 1 bytes earlier. Tensors of one shape, or plain integers: generation hashes a
    byte at a time. An n-gram does not reach over the start of its document: whatever is before a BOS counts as BOS.
    """
    hashed, found = tokens, []
    newest = tokens
    for byte in before[: longest - 1]:
        if isinstance(byte, Tensor):
            newest = byte.where(newest != BOS, BOS)
        else:
            newest = byte if newest != BOS else BOS
        hashed = (hashed * MULTIPLIER + newest + 1) & MASK
        mixed = ((hashed ^ (hashed >> 15)) * FINISHER) & MASK
        found.append((mixed ^ (mixed >> 17)) % rows + len(found) * rows)
    return found
