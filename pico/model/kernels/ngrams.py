"""The hash of every n-gram, by one Triton kernel: written in torch it is a hundred small ones.

from pico.model.kernels.ngrams import ngram_hashes
hashed = ngram_hashes(text, longest=12)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pico.base.symbols import BOS
from pico.model.ngrams import FINISHER, MASK, MULTIPLIER

_MASK, _MULTIPLIER, _FINISHER = (tl.constexpr(x) for x in (MASK, MULTIPLIER, FINISHER))
BLOCK = 256  # positions that one program hashes


@triton.jit
def _hash(text, out, T, t_b, t_t, bos, REACH: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK positions of one text: out (B, T, REACH). The same arithmetic as `ngrams.hashes`, modulo 2^64."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = t < T
    newest = tl.load(text + b * t_b + (t + REACH) * t_t, mask=mask, other=bos)
    hashed = newest
    for n in tl.static_range(REACH):
        byte = tl.load(text + b * t_b + (t + REACH - 1 - n) * t_t, mask=mask, other=bos)
        newest = tl.where(newest != bos, byte, bos)
        hashed = (hashed * _MULTIPLIER + newest + 1) & _MASK
        mixed = ((hashed ^ (hashed >> 15)) * _FINISHER) & _MASK
        tl.store(out + (b * T + t) * REACH + n, mixed ^ (mixed >> 17), mask=mask)


@torch.library.custom_op("pico::ngram_hashes", mutates_args=())
def _ngram_hashes(text: Tensor, reach: int, bos: int) -> Tensor:
    batch, length = text.shape[0], text.shape[1] - reach
    out = text.new_empty(batch, length, reach)
    with torch.cuda.device_of(text):
        grid = batch, triton.cdiv(length, BLOCK)
        _hash[grid](text, out, length, *text.stride(), bos, REACH=reach, BLOCK=BLOCK)
    return out


@_ngram_hashes.register_fake
def _(text, reach, bos):
    return text.new_empty(text.shape[0], text.shape[1] - reach, reach)


def ngram_hashes(text: Tensor, longest: int, bos: int = BOS) -> Tensor:
    """48 bits for each n-gram of 2 to `longest` symbols that ends at each of the last T; see `ngrams.hashes`.

    text (B, longest - 1 + T) int64 -> (B, T, longest - 1).
    """
    return _ngram_hashes(text, longest - 1, bos)
