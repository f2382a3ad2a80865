"""Speculative sampling by two Triton kernels: written in torch it is thirty small ones a draft.

    from pico.model.kernels.sampling import draft, verify
    draft(logits, u, temperature, min_p, banned, q, drawn)
    accepted, following = verify(logits, drafts, q, u, temperature, min_p, banned)

The formulas of decode/sampling.py without top-k and top-p, which need a sort; the same sums in fp64. A byte without a
chance is never drawn, whatever the rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _distribution(logits, banned, temperature, min_p, GREEDY: tl.constexpr, V: tl.constexpr, BV: tl.constexpr):
    """Rows of logits (N, BV) to probabilities; banned and padding get none."""
    column = tl.arange(0, BV)
    logits = tl.where(banned[None, :] | (column >= V)[None, :], float("-inf"), logits)
    if GREEDY:
        p = (column[None, :] == tl.argmax(logits, 1)[:, None]).to(tl.float32)
    else:
        p = tl.exp((logits - tl.max(logits, 1)[:, None]) / temperature)
        p = tl.where(p >= min_p, p, 0.0)  # the likeliest is 1
        p = p / tl.sum(p, 1)[:, None]
    return p


@triton.jit
def _draw(p, u, BV: tl.constexpr):
    """The first byte with a chance whose cumulative sum exceeds u of the whole: p (BV), u fp64 scalar."""
    column = tl.arange(0, BV)
    cumulative = tl.cumsum(p.to(tl.float64), 0)
    possible = p > 0
    last = tl.max(tl.where(possible, column, 0), 0)
    beyond = possible & (cumulative > u * tl.max(cumulative, 0))
    return tl.minimum(tl.min(tl.where(beyond, column, BV), 0), last)


@triton.jit
def _draft(
    logits, u, banned, q, drawn, l_b, u_b, q_b, d_b, temperature, min_p,
    GREEDY: tl.constexpr, V: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One text: its distribution q, and the byte drawn from it."""
    b = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BV)
    inside = column < V
    row = tl.load(logits + b * l_b + column, mask=inside, other=0.0).to(tl.float32)
    never = tl.load(banned + column, mask=inside, other=1) != 0
    p = _distribution(row[None, :], never, temperature, min_p, GREEDY, V, BV)
    p = tl.sum(p, 0)  # (BV): of one row
    tl.store(q + b * q_b + column, p, mask=inside)
    tl.store(drawn + b * d_b, _draw(p, tl.load(u + b * u_b), BV).to(tl.int64))


@triton.jit
def _verify(
    logits, drafts, q, u, banned, accepted, following,
    l_b, l_n, d_b, d_n, q_b, q_n, u_b, u_n, temperature, min_p, N,
    GREEDY: tl.constexpr, V: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One text: how many of its N - 1 drafts hold, and the byte that follows those."""
    b = tl.program_id(0).to(tl.int64)
    n, column = tl.arange(0, BN), tl.arange(0, BV)
    inside, drafted = column < V, n < N - 1
    mask = (n < N)[:, None] & inside[None, :]
    rows = tl.load(logits + b * l_b + n[:, None] * l_n + column[None, :], mask=mask, other=0.0).to(tl.float32)
    never = tl.load(banned + column, mask=inside, other=1) != 0
    p = _distribution(rows, never, temperature, min_p, GREEDY, V, BV)  # (BN, BV)
    draft = tl.load(drafts + b * d_b + n * d_n, mask=drafted, other=0)
    q_chosen = tl.load(q + b * q_b + n * q_n + draft, mask=drafted, other=1.0)
    p_chosen = tl.sum(tl.where(column[None, :] == draft[:, None], p, 0.0), 1)
    chance = tl.load(u + b * u_b + n * u_n, mask=n < N, other=0.0)
    holds = drafted & (chance < p_chosen / q_chosen)
    kept = tl.min(tl.where(holds, BN, n), 0)  # the first that does not hold: behind the last draft none does
    p = tl.sum(tl.where((n == kept)[:, None], p, 0.0), 0)  # (BV)
    q = tl.load(q + b * q_b + kept * q_n + column, mask=column < tl.where(kept < N - 1, V, 0), other=0.0)
    rest = tl.maximum(p - q, 0.0)
    rest = tl.where(tl.max(rest, 0) > 0, rest, p)  # q = p but for rounding, and still rejected
    tl.store(accepted + b, kept.to(tl.int64))
    tl.store(following + b, _draw(rest, tl.load(u + b * u_b + (N - 1) * u_n), BV).to(tl.int64))


@torch.library.custom_op("pico::draft", mutates_args=("q", "drawn"))
def _run_draft(
    logits: Tensor, u: Tensor, temperature: float, min_p: float, banned: Tensor, q: Tensor, drawn: Tensor, greedy: bool
) -> None:
    batch, vocabulary = logits.shape
    shape = dict(GREEDY=greedy, V=vocabulary, BV=triton.next_power_of_2(vocabulary))
    strides = logits.stride(0), u.stride(0), q.stride(0), drawn.stride(0)
    with torch.cuda.device_of(logits):
        _draft[(batch,)](logits, u, banned.view(torch.uint8), q, drawn, *strides, temperature, min_p, **shape)


@_run_draft.register_fake
def _(logits, u, temperature, min_p, banned, q, drawn, greedy):
    pass


@torch.library.custom_op("pico::verify", mutates_args=())
def _run_verify(
    logits: Tensor, drafts: Tensor, q: Tensor, u: Tensor, temperature: float, min_p: float, banned: Tensor, greedy: bool
) -> tuple[Tensor, Tensor]:
    batch, n, vocabulary = logits.shape
    accepted, following = drafts.new_empty(batch), drafts.new_empty(batch, 1)
    shape = dict(GREEDY=greedy, V=vocabulary, BN=triton.next_power_of_2(n), BV=triton.next_power_of_2(vocabulary))
    tensors = logits, drafts, q, u, banned.view(torch.uint8), accepted, following
    strides = *logits.stride()[:2], *drafts.stride(), *q.stride()[:2], *u.stride()
    with torch.cuda.device_of(logits):
        _verify[(batch,)](*tensors, *strides, temperature, min_p, n, **shape)
    return accepted, following


@_run_verify.register_fake
def _(logits, drafts, q, u, temperature, min_p, banned, greedy):
    return drafts.new_empty(len(logits)), drafts.new_empty(len(logits), 1)


def draft(logits: Tensor, u: Tensor, temperature: float, min_p: float, banned: Tensor, q: Tensor, drawn: Tensor):
    """logits (B, V), u (B,) fp64 -> into q (B, V) fp32 and drawn (B,) int64. Temperature 0 is greedy."""
    _run_draft(logits, u, temperature or 1.0, min_p, banned, q, drawn, temperature == 0)


def verify(logits: Tensor, drafts: Tensor, q: Tensor, u: Tensor, temperature: float, min_p: float, banned: Tensor):
    """logits (B, n, V), drafts (B, n - 1) drawn from q (B, n - 1, V), u (B, n): accepted (B,), following (B, 1)."""
    return _run_verify(logits, drafts, q, u, temperature or 1.0, min_p, banned, temperature == 0)
