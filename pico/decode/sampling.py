"""How a text is drawn from a model: the settings, and the three steps of speculative sampling.

In numpy, for texts on a CPU and for those of a server, a symbol is drawn with noise of its own, whatever drafted it: so
it is the same however many symbols were drafted (`Noise`). In torch, for a batch where the model is, drafts are drawn
and checked with uniform numbers (`torch_accept_drafts`), of which a symbol needs two in place of V.
"""

from math import log
from typing import Annotated

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from pico.base.config import Config
from pico.base.errors import PicoError
from pico.base.symbols import Alphabet
from pico.model import kernels

LARGEST = 4096  # vocabulary of which a GPU's kernel holds a row
BITS = 1 / log(2)  # in a nat
NOISE = 32  # symbols whose noise is drawn at once
GREEDY = 1e-5  # temperatures below are one-hot to fp32's last digit, and smaller ones would overflow

StopText = Annotated[bytes, Field(min_length=1, max_length=256)]


class Sampling(Config):
    """How a text is drawn, and where it ends."""

    temperature: float = Field(0.8, ge=0, le=1000, allow_inf_nan=False)  # 0 is greedy; at 1000 all bytes are alike
    top_k: int = Field(0, ge=0, le=10**6)  # only the k likeliest; 0 is off
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)  # the likeliest that have this mass together; 1 is off
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)  # at least this share of the likeliest's; 0 is off
    # what stands among the last symbols of the text is less likely, see `numpy_penalised`; 1 is off
    repetition_penalty: float = Field(1.0, ge=1, le=1000, allow_inf_nan=False)
    repetition_window: int = Field(64, ge=1, le=2**16)  # how many those are: of bytes a line, of tokens a paragraph
    seed: int | None = Field(0, ge=0, le=2**64 - 1)  # None draws a new one
    num_samples: int = Field(1, ge=1, le=2**16)  # continuations of each prompt
    max_bytes: int = Field(512, ge=1, le=10**9)  # exactly: the last token of a text may be cut
    # a text ends before the first of these that it comes to write
    stop: Annotated[tuple[StopText, ...], BeforeValidator(lambda x: (x,) if isinstance(x, bytes | str) else x)] = Field(
        (), max_length=64
    )
    # or with one of these, None is the end of its document; no other control symbol is ever drawn
    stop_symbols: frozenset[int] | None = None

    @property
    def heat(self) -> float:
        """The temperature, exactly 0 where it is greedy."""
        return self.temperature if self.temperature >= GREEDY else 0.0

    def ends(self, alphabet: Alphabet) -> frozenset[int]:
        """The symbols that end a text. Raises PicoError for those that are no control symbols."""
        ends = frozenset([alphabet.eos]) if self.stop_symbols is None else self.stop_symbols
        if wrong := ends.difference(alphabet.control.values()):
            raise PicoError(f"stop_symbols: {min(wrong)} is none, expected some of {alphabet.control}")
        return ends

    def banned(self, alphabet: Alphabet) -> np.ndarray:
        """(V,) bool, True for what is never drawn: control symbols, except those that end a text."""
        banned = alphabet.lengths == 0
        banned[list(self.ends(alphabet))] = False
        return banned

    def recent(self, ids: list[int], alphabet: Alphabet) -> list[int]:
        """The last W symbols of a text, which the penalty for repetition counts; V where it counts none.

        That is before the text, and for control symbols: a turn may end as the one before it did.
        """
        none, window = alphabet.size, self.repetition_window
        return [i if i < none and alphabet.table[i] else none for i in ([none] * window + ids[-window:])[-window:]]


# A penalty for repetition (CTRL, arXiv 1909.05858, section 4.1). The logit of a symbol that stands among the last W is
# divided by it if positive and multiplied if negative, however often the symbol stands there.


def numpy_penalised(logits: np.ndarray, recent: list[int], tokens: list[int], sampling: Sampling) -> np.ndarray:
    """Logits (n, V) after each of the last n tokens, which follow the W recent ones; V among these stands for none."""
    if sampling.repetition_penalty == 1:
        return logits
    windows = np.lib.stride_tricks.sliding_window_view([*recent, *tokens], len(recent))[-len(logits) :]  # (n, W)
    seen = np.zeros((len(logits), logits.shape[1] + 1), bool)
    np.put_along_axis(seen, windows, True, -1)
    penalty = np.float32(sampling.repetition_penalty)
    return np.where(seen[:, :-1], np.where(logits > 0, logits / penalty, logits * penalty), logits)


def torch_penalised(logits: Tensor, recent: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """The same of a batch: logits (B, n, V), recent (B, W), tokens (B, n or more)."""
    if sampling.repetition_penalty == 1:
        return logits
    windows = torch.cat([recent, tokens], dim=1).unfold(1, recent.shape[1], 1)[:, -logits.shape[1] :]  # (B, n, W)
    nothing = logits.new_zeros(*logits.shape[:2], logits.shape[2] + 1, dtype=torch.bool)
    seen = nothing.scatter(-1, windows, True)[..., :-1]
    logits, penalty = logits.float(), sampling.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


# How much a symbol surprises: -log2 of the probability that the model itself gives it, whatever is sampled from


def numpy_surprise(logits: np.ndarray) -> np.ndarray:
    """Logits (..., V) to bits (..., V)."""
    bits = np.maximum.reduce(logits, -1, keepdims=True) - logits
    bits += np.log(np.add.reduce(np.exp(-bits), -1, keepdims=True))
    bits *= BITS
    return bits


def torch_surprise(logits: Tensor) -> Tensor:
    """The same of a batch."""
    return logits.float().log_softmax(-1) * -BITS


# From logits to the distribution that is sampled from


def numpy_distribution(logits: np.ndarray, sampling: Sampling, banned: np.ndarray) -> np.ndarray:
    """Logits (..., V), which are overwritten, to probabilities; banned (V,) gets none."""
    np.copyto(logits, -np.inf, where=banned)
    if not sampling.heat:
        p = np.zeros_like(logits)
        rows = p.reshape(-1, p.shape[-1])
        rows[np.arange(len(rows)), logits.argmax(-1).ravel()] = 1
        return p
    logits -= np.maximum.reduce(logits, -1, keepdims=True)
    logits /= np.float32(sampling.temperature)
    p = np.exp(logits, out=logits)
    if sampling.top_k:
        p *= p >= -np.sort(-p)[..., min(sampling.top_k, p.shape[-1]) - 1, None]
    if sampling.top_p < 1:
        index = np.argsort(-p, kind="stable")
        ordered = np.take_along_axis(p, index, -1)
        before = ordered.cumsum(-1) - ordered  # of what top-k left
        inside = before < sampling.top_p * ordered.sum(-1, keepdims=True)
        np.put_along_axis(p, index, ordered * inside, -1)
    if sampling.min_p:
        p *= p >= sampling.min_p  # the likeliest is 1 until here
    p /= np.add.reduce(p, -1, keepdims=True)
    return p


def torch_distribution(logits: Tensor, sampling: Sampling, banned: Tensor) -> Tensor:
    """Logits (..., V) to probabilities; banned (V,) gets none."""
    logits = logits.float().masked_fill(banned, float("-inf"))
    if not sampling.heat:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    p = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).exp()
    if sampling.top_k:
        p = p * (p >= p.topk(min(sampling.top_k, p.shape[-1])).values[..., -1:])
    if sampling.top_p < 1:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        inside = before < sampling.top_p * ordered.sum(-1, keepdim=True)
        p = torch.zeros_like(p).scatter(-1, index, ordered * inside)
    if sampling.min_p:
        p = p * (p >= sampling.min_p)
    return p / p.sum(-1, keepdim=True)


# One symbol of a text


class Noise:
    """Gumbel noise of one text: symbol number t is argmax(logits + temperature g_t), a draw from the softmax.

    g_t comes of the text's seed and t alone. A draft of that symbol is drawn from its head with the same noise, so both
    mostly agree, and it is kept where they do: drafts change no text, and any number of them may be tried.
    """

    def __init__(self, sampling: Sampling, symbols: int):
        self._rng, self._heat = np.random.default_rng(sampling.seed), np.float32(sampling.heat)
        self._drawn, self._first = np.zeros((0, symbols), np.float32), 0

    def __call__(self, first: int, count: int) -> np.ndarray:
        """(count, V) temperature g_t of the symbols from number `first` on, which never falls; 0 where it is greedy."""
        if not self._heat:
            return np.zeros((count, self._drawn.shape[1]), np.float32)
        missing = first + count - self._first - len(self._drawn)
        if missing > 0:
            shape = -(-missing // NOISE) * NOISE, self._drawn.shape[1]
            drawn = np.maximum(self._rng.standard_exponential(shape, np.float32), np.finfo(np.float32).tiny)
            drawn = -self._heat * np.log(drawn)
            self._drawn, self._first = np.concatenate([self._drawn[first - self._first :], drawn]), first
        return self._drawn[first - self._first :][:count]


def numpy_filtered(logits: np.ndarray, sampling: Sampling, banned: np.ndarray) -> np.ndarray:
    """Logits (n, V), in place -inf for what top-k, top-p and min-p leave out."""
    if sampling.heat and (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
        logits[numpy_distribution(logits.copy(), sampling, banned) == 0] = -np.inf
    return logits


def numpy_draw(logits: np.ndarray, noise: np.ndarray, banned: np.ndarray) -> np.ndarray:
    """The symbols (...) drawn from logits (..., V), which are overwritten, with their noise (..., V)."""
    np.copyto(logits, -np.inf, where=banned)
    logits += noise
    return logits.argmax(-1)


def torch_draw(p: Tensor, u: Tensor) -> Tensor:
    """One byte of a distribution p (..., V), which need not sum to one, by a uniform number u (...) -> ids (...).

    Summed in u's dtype. In fp32 a u may be rounded up to 1, and would then draw what comes after all that is possible.
    """
    cumulative, u = p.cumsum(-1, dtype=u.dtype), u.clamp(max=1 - torch.finfo(u.dtype).eps)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1)


# Speculative sampling (arXiv 2211.17192, algorithm 1): how many of the drafts hold, and the byte that follows those. A
# draft holds with probability p / q; at the first that does not, a byte is drawn from what p has more than q. So every
# byte is distributed exactly as p, whatever q drafted.


def torch_accept_drafts(p: Tensor, drafts: Tensor, q: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """p (B, n, V), drafts (B, n - 1) drawn from q (B, n - 1, V), u (B, n): accepted (B,), following (B, 1)."""
    if not drafts.shape[1]:
        return torch.zeros_like(u[:, 0], dtype=torch.long), torch_draw(p, u)
    chosen = drafts[..., None]
    ratio = (p[:, :-1].gather(-1, chosen) / q.gather(-1, chosen))[..., 0]
    accepted = (u[:, :-1] < ratio).cumprod(1).sum(1)
    at = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    p = p.gather(1, at)  # (B, 1, V)
    q = torch.cat([q, torch.zeros_like(p)], dim=1).gather(1, at)  # behind the last draft nothing is corrected
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # q = p but for rounding, and still rejected
    return accepted, torch_draw(rest, u[:, -1:])


# The two steps of a decoder where the model is, as one kernel each where there is one for what is asked


def torch_draft(logits: Tensor, u: Tensor, sampling: Sampling, banned: Tensor, q: Tensor, drawn: Tensor) -> None:
    """logits (B, V), u (B,): the distribution goes into q (B, V), one byte drawn from it into drawn (B,)."""
    if in_one_kernel(logits, sampling):
        from pico.model.kernels.sampling import draft

        return draft(logits, u, sampling.heat, sampling.min_p, banned, q, drawn)
    q.copy_(torch_distribution(logits, sampling, banned))
    drawn.copy_(torch_draw(q, u))


def torch_verify(
    logits: Tensor, drafts: Tensor, q: Tensor, u: Tensor, sampling: Sampling, banned: Tensor
) -> tuple[Tensor, Tensor]:
    """`torch_accept_drafts` of what the model says after each byte, logits (B, n, V)."""
    if in_one_kernel(logits, sampling):
        from pico.model.kernels.sampling import verify

        return verify(logits, drafts, q, u, sampling.heat, sampling.min_p, banned)
    return torch_accept_drafts(torch_distribution(logits, sampling, banned), drafts, q, u)


def in_one_kernel(logits: Tensor, sampling: Sampling) -> bool:
    """Top-k and top-p need a sort, which the kernels do not have; they hold a row of logits at once."""
    plain = not sampling.top_k and sampling.top_p == 1 and logits.shape[-1] <= LARGEST
    return plain and logits.is_cuda and kernels.available()
