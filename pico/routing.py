"""Routers: which bytes go through the latent blocks.

Mixture-of-Depths (arXiv 2404.02258) picks the top-k bytes of a training chunk, which sees the future: `topk` learns
beside it a causal rule, score > 0, for evaluation and generation, and the last part of training uses that rule, so that
the model is used to it. `threshold` uses one causal rule everywhere: score > tau, with tau steered so that the wanted
fraction is routed. The fixed rules are the honest comparisons.
"""

from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.config import ModelConfig

SLACK = 1.25  # room in the training buffer of a causal rule, over the wanted fraction


class Routing(NamedTuple):
    score: Tensor  # (B, T) fp32 logit
    routed: Tensor  # (B, T) bool
    index: Tensor | None  # (B, M) routed positions in order; slots past a row's last routed byte hold other positions
    valid: Tensor | None  # (B, M) bool, False in those slots
    wanted: Tensor  # (B, T) bool, what the rule asked for before the buffer was full

    @property
    def weight(self) -> Tensor:
        return torch.sigmoid(self.score)  # (B, T) in [0, 1]


def spacelike(tokens: Tensor) -> Tensor:
    """SpaceByte's rule (arXiv 2404.14408): not a letter, digit or UTF-8 continuation byte. Control symbols count."""
    letter = ((tokens | 32) >= ord("a")) & ((tokens | 32) <= ord("z"))
    digit = (tokens >= ord("0")) & (tokens <= ord("9"))
    continuation = (tokens >= 0x80) & (tokens < 0xC0)
    return ~(letter | digit | continuation) | (tokens > 255)


def pack(routed: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Positions of the first `slots` routed bytes of each row, in order: index (B, M) and valid (B, M)."""
    index = torch.argsort(~routed, dim=1, stable=True)[:, :slots]
    return index, routed.gather(1, index)


def fullest(routed: Tensor) -> int:
    """Slots that hold the routed bytes of every row. On a GPU all T, for it would wait for the count: evaluation there
    runs the latent blocks over every position, and only training saves what is not routed."""
    return routed.shape[1] if routed.is_cuda else int(routed.sum(1).max())


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B M) rows of x (B, T, D) seen as (B T, D)."""
    return (index + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]).flatten()


def gather(x: Tensor, routing: Routing, backend: str) -> Tensor:
    """The routed positions of x (B, T, D) in order: (B, M, D). Slots that are not valid hold anything finite."""
    if backend == "triton":
        from pico.kernels.gather import latent_gather

        return latent_gather(x, routing.index.where(routing.valid, -1))
    return x.flatten(0, 1).index_select(0, _rows(x, routing.index)).view(len(x), -1, x.shape[2])


def scatter(x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, backend: str) -> Tensor:
    """x (B, T, D) with what was gathered, `chosen` (B, M, D), moved by its gate towards y (B, M, D)."""
    gate = routing.weight.gather(1, routing.index)  # (B, M)
    if backend == "triton":
        from pico.kernels.gather import gated_scatter

        return gated_scatter(x, y, routing.index.where(routing.valid, -1), gate)
    update = (y - chosen) * (gate * routing.valid).to(x.dtype)[..., None]
    return x.flatten(0, 1).index_add(0, _rows(x, routing.index), update.flatten(0, 1)).view_as(x)


class Router(nn.Module):
    """Scores every byte, decides which are routed, and (for `topk`) learns to decide causally."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.rule = config.router
        self.capacity = config.latent_capacity_factor
        self.causal = False  # `topk` trains with the rule of generation; the last part of a run sets it
        self.weight = nn.Parameter(torch.empty(1, config.dim))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("threshold", torch.zeros(()))  # tau, moved by `update`, only for `threshold`
        # since the last update: bytes, bytes over tau, sum and sum of squares of the score
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def score(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T) fp32 logit of the normalised stream."""
        return F.linear(F.rms_norm(x.float(), x.shape[-1:]), self.weight, self.bias).squeeze(-1)

    def forward(self, x: Tensor, tokens: Tensor, previous: Tensor, positions: Tensor, exact: bool) -> Routing:
        """x (B, T, D), tokens and the byte before each (B, T), integer positions (B, T).

        `exact` routes all wanted bytes through as many slots as the fullest row needs; otherwise (training) the
        number of slots is fixed and late bytes may pass by.
        """
        score = self.score(x)
        length = x.shape[1]
        if self.rule == "topk" and self.training and not self.causal:
            routed, index = self.best(score)
            return Routing(score, routed, index, torch.ones_like(index, dtype=torch.bool), routed)
        wanted = self.wanted(score, tokens, previous, positions)
        if self.rule == "none":
            return Routing(score, wanted, None, None, wanted)
        if self.training and self.rule == "threshold":
            with torch.no_grad():
                self.seen += torch.stack([
                    torch.tensor(float(score.numel()), device=x.device), wanted.sum(), score.sum(), score.square().sum()
                ])  # fmt: skip
        if exact:
            slots = fullest(wanted)
        elif self.rule in ("topk", "threshold"):
            slots = min(length, max(1, int(length * self.capacity * SLACK)))
        else:
            slots = max(1, int(wanted.sum(1).max()))
        index, valid = pack(wanted, slots)
        routed = torch.zeros_like(wanted).scatter_(1, index, valid) if slots < length else wanted
        return Routing(score, routed, index, valid, wanted)

    def best(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture-of-Depths' choice by score (B, T): routed (B, T), and its positions in order, index (B, M)."""
        count = max(1, round(score.shape[1] * self.capacity))
        index = score.topk(count, dim=1).indices.sort(dim=1).values
        return torch.zeros_like(score, dtype=torch.bool).scatter_(1, index, True), index

    def wanted(self, score, tokens, previous, positions) -> Tensor:
        match self.rule:
            case "topk":
                return score > 0
            case "threshold":
                return score > self.threshold
            case "space":  # the first byte after a word: spacelike after one that is not, and every document start
                return spacelike(tokens) & (~spacelike(previous) | (tokens > 255))
            case "stride":
                return positions % round(1 / self.capacity) == 0
            case "random":  # a hash of the byte and of where it is in its text: the same however it is read
                mixed = (positions * 0x9E3779B1 + tokens * 0x85EBCA6B) & 0xFFFFFFFF
                mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
                return ((mixed ^ (mixed >> 13)) & 0xFFFF) < self.capacity * 0x10000
            case "all":
                return torch.ones_like(score, dtype=torch.bool)
            case "none":
                return torch.zeros_like(score, dtype=torch.bool)

    def loss(self, x: Tensor, routing: Routing) -> Tensor:
        """BCE of the causal rule against the top-k choice; 0 for other rules.

        x is detached: this loss teaches the router to foresee the choice and must not bend the trunk to it.
        """
        if self.rule != "topk":
            return routing.score.new_zeros(())
        chosen = self.best(routing.score)[0] if self.causal else routing.routed
        return F.binary_cross_entropy_with_logits(self.score(x.detach()), chosen.float())

    @torch.no_grad()
    def update(self) -> None:
        """Move tau towards the wanted fraction, from what was routed since the last call over all processes.

        One damped Newton step: the density of scores at tau is taken from a normal of their variance.
        """
        if self.rule != "threshold":
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.seen)
        count, over, total, squares = self.seen
        count = count.clamp(min=1)
        deviation = (squares / count - (total / count) ** 2).clamp(min=1e-12).sqrt()
        normal = NormalDist()
        density = normal.pdf(normal.inv_cdf(1 - min(self.capacity, 0.999))) / deviation
        self.threshold += 0.2 * ((over / count - self.capacity) / density).clamp(-deviation, deviation)
        self.seen.zero_()
