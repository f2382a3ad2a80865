"""Routing: the router that scores every byte, and the way of the routed ones into the latent blocks and back.

Which bytes are routed is the business of the rules in routers.py. The router holds what they share: the learned score,
whose sigmoid is the gate, and a threshold; in training it gives each row a buffer of a fixed size.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.base.routers import TAUGHT, RouterInput, Rule
from pico.base.shapes import ModelConfig

ROOM = 1.5  # of a training buffer on a GPU for a rule by which the text decides, over the share that is routed
SLOT_STEP = 64  # what such a number of slots, and one of evaluation on a GPU, is rounded up to


class Routing(NamedTuple):
    score: Tensor  # (B, T) fp32 logit
    routed: Tensor  # (B, T) bool
    index: Tensor  # (B, M) routed positions in order; slots past a row's last routed byte hold other positions
    valid: Tensor  # (B, M) bool, False in those slots
    chosen: Tensor  # (B, T) bool, what the rule asked for before the buffer was full
    stream: Tensor  # (B, T, D) fp32, normalised: what the score was read from
    at: RouterInput  # what the rule saw
    key: Tensor | None = None  # (B, T, D) what the next byte's score is compared with, of CosineRouter
    log_p: Tensor | None = None  # (B, T, V) what the small model of EntropyRouter expects

    @property
    def weight(self) -> Tensor:
        return torch.sigmoid(self.score)  # (B, T) in [0, 1]


def pack(routed: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Positions of the first `slots` routed bytes of each row, in order: index (B, M) and valid (B, M).

    Where a row has fewer, the bytes that are not routed follow, in order too.
    """
    order = counted_order if routed.is_cuda else sorted_order
    index = order(routed)[:, :slots]
    return index, routed.gather(1, index)


def sorted_order(routed: Tensor) -> Tensor:
    """(B, T) bool -> (B, T) positions, the routed ones first."""
    return torch.argsort(~routed, dim=1, stable=True)


def counted_order(routed: Tensor) -> Tensor:
    """The same without a sort: less work for a GPU, and slower than sorting one short row on a CPU."""
    count, position = routed.cumsum(1), torch.arange(routed.shape[1], device=routed.device)
    place = torch.where(routed, count - 1, count[:, -1:] + position - count)
    return torch.empty_like(place).scatter_(1, place, position.expand_as(place))


def rounded(slots: float, length: int) -> int:
    return min(length, SLOT_STEP * math.ceil(slots / SLOT_STEP))


def slots_needed(routed: Tensor) -> int:
    """Slots that hold the routed bytes of every row. A GPU rounds up, to see few shapes: so it waits for no count where
    T is small, as in decoding, whose steps are captured as a CUDA graph."""
    length = routed.shape[1]
    if not routed.is_cuda:
        return int(routed.sum(1).max())
    return length if length <= SLOT_STEP else rounded(int(routed.sum(1).max()), length)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B M) rows of x (B, T, D) seen as (B T, D)."""
    return (index + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]).flatten()


def gather_routed(x: Tensor, routing: Routing, backend: str) -> Tensor:
    """The routed positions of x (B, T, D) in order: (B, M, D). Slots that are not valid hold anything finite."""
    if backend == "triton":
        from pico.model.kernels.gather import latent_gather

        return latent_gather(x, routing.index.where(routing.valid, -1))
    return x.flatten(0, 1).index_select(0, _rows(x, routing.index)).view(len(x), -1, x.shape[2])


def scatter_routed(x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, gate: Tensor, backend: str) -> Tensor:
    """x (B, T, D) with what was gathered, `chosen` (B, M, D), moved by its gate (B, T) towards y (B, M, D)."""
    gate = gate.gather(1, routing.index)  # (B, M)
    if backend == "triton":
        from pico.model.kernels.gather import gated_scatter

        return gated_scatter(x, y, routing.index.where(routing.valid, -1), gate)
    update = (y - chosen) * (gate * routing.valid).to(x.dtype)[..., None]
    return x.flatten(0, 1).index_add(0, _rows(x, routing.index), update.flatten(0, 1)).view_as(x)


class Router(nn.Module):
    """Scores every byte and lets a rule decide which are routed. Those of scorers.py score otherwise."""

    threshold: Tensor
    seen: Tensor
    least = 0  # slots that there are even where no byte is routed

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.rule = config, config.rule
        self.taught = False  # training is still routed by the config's teacher
        self.causal = False  # training has left the rule's teacher, if it has one, for the rule of generation
        self.share: float | None = None  # of the bytes, that a rule without a set number of slots chooses on a GPU
        self.weight = nn.Parameter(torch.empty(1, config.dim))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("threshold", torch.zeros(()))  # moved by `update`, if the rule is steered
        # since the last update: bytes, those the rule chose, sum and sum of squares of the score
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def begin_step(self, progress: float) -> Hashable:
        """Call before a training step, after this fraction of the run. Returns all that it decides about the step."""
        self.rule = self.config.rule_at(progress)
        self.taught = self.config.first_teacher is not None and progress < TAUGHT
        self.causal = progress >= self.rule.causal_from and not self.taught
        return self.causal, self.taught, self.rule.capacity

    @property
    def teacher(self) -> Rule | None:
        """The rule whose choice the router learns to foresee, and by which training routes until it is `causal`."""
        first = self.config.first_teacher if self.taught else None
        return first(self.rule.capacity) if first else self.rule.teacher

    def score(self, stream: Tensor) -> Tensor:
        """Normalised (B, T, D) -> (B, T) fp32 logit."""
        return F.linear(stream, self.weight, self.bias).squeeze(-1)

    # What a router of another kind does otherwise. carry (B, C): what it kept of the bytes before; None at a beginning.

    def init_weights(self) -> None:
        """After the model's own."""

    def scored(self, stream: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Score (B, T) of a normalised stream (B, T, D), and the `key` of a Routing."""
        return self.score(stream), None

    def judge(self, score: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the rule goes by (B, T), of the text (B, history + T), and the `log_p` of a Routing."""
        return score, None

    def gate(self, routing: Routing) -> Tensor:
        """(B, T) how much of its update a routed byte gets."""
        return routing.weight

    def come_back(
        self, x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, carry: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) with what came back: `chosen` (B, M, D) of it became y (B, M, D). And what `carried` needs."""
        return scatter_routed(x, chosen, y, routing, self.gate(routing), backend), None

    def carried(self, routing: Routing, smooth: Tensor | None, carry: Tensor) -> Tensor | None:
        """(B, T + 1, C): what it would keep if the text ended before or after each byte."""
        return None

    def slots(self, rule: Rule, chosen: Tensor) -> int:
        """How many the latent blocks run on in training: a number that the rule sets, or else as many as the fullest
        row of chosen (B, T) needs.

        On a GPU nothing but the first batch is waited for: its rows have room for the most that the rule can choose,
        or for `ROOM` times the share that it chose there.
        """
        length = chosen.shape[1]
        slots = rule.slots(length)
        if slots is None and not chosen.is_cuda:
            slots = int(chosen.sum(1).max())
        elif slots is None and (slots := rule.most(length)) is None:
            if self.share is None:
                self.share = chosen.float().mean().item()
            slots = rounded(ROOM * self.share * length, length)
        return max(1, slots)  # never 0: the latent blocks take part in every step

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        previous: Tensor,
        positions: Tensor,
        rule: Rule | None = None,
        text: Tensor | None = None,
        carry: Tensor | None = None,
    ) -> Routing:
        """x (B, T, D), tokens and the byte before each (B, T), integer positions (B, T); rule: None is the model's own.
        text: the tokens and the history before them (B, history + T).

        In eval mode every byte that the rule chooses is routed, through as many slots as the fullest row needs. In
        training the number of slots may be fixed (see `slots`), and late bytes pass by.
        """
        if rule is None:
            rule = self.teacher if self.training and not self.causal and self.teacher is not None else self.rule
        stream = F.rms_norm(x.float(), x.shape[-1:])
        score, key = self.scored(stream, carry)
        judged, log_p = self.judge(score, text)
        at = RouterInput(judged, tokens, previous, positions, self.threshold)
        chosen = rule.choose(at)
        slots = self.slots(rule, chosen) if self.training else max(self.least, slots_needed(chosen))
        if self.training and rule.steered:
            with torch.no_grad():
                count = judged.new_full((), judged.numel())
                self.seen += torch.stack([count, chosen.sum(), judged.sum(), judged.square().sum()])
        index, valid = pack(chosen, slots)
        routed = torch.zeros_like(chosen).scatter_(1, index, valid) if slots < x.shape[1] else chosen
        return Routing(score, routed, index, valid, chosen, stream, at, key, log_p)

    def loss(self, routing: Routing, targets: Tensor | None = None, nats: Tensor | None = None) -> Tensor:
        """BCE of the score against what the teacher wants; 0 where there is no teacher. targets (B, T + N - 1), and
        the nats (B, T) of the next byte, for those who ask for them.

        The stream is detached: this loss teaches the router to foresee the choice and must not bend the trunk to it.
        """
        if self.teacher is None:
            return routing.score.new_zeros(())
        if nats is not None and targets is not None:
            nats = nats.masked_fill(targets[:, : nats.shape[1]] < 0, math.nan)
        chosen = self.teacher.wants(routing.at, nats)
        score, weight = self.score(routing.stream.detach()), self.rule.foreseen(routing.at)
        return F.binary_cross_entropy_with_logits(score, chosen.float(), weight)

    @torch.no_grad()
    def update(self, gate: Tensor | None = None) -> None:
        """Let the rule move the threshold, by what it chose since the last call over all processes.

        gate: () tensor; where it is 0 the threshold stays.
        """
        if not self.rule.steered:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.seen)
        count, *others = self.seen
        correction = self.rule.correction(count.clamp(min=1), *others, self.threshold)
        self.threshold += correction if gate is None else correction.where(gate > 0, 0)
        self.seen.zero_()
