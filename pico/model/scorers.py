"""Routers of others, each with its own way to score a byte; and two by which an update reaches the bytes after it too.

The table says which rule, or which `latent_update`, needs which. None has a reader in numpy: torch generates with them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.base.routers import GUESS_WIDTHS
from pico.base.shapes import ModelConfig
from pico.model.routing import Router, Routing, scatter_routed

ALIKE = 1 - 1e-4  # the largest cosine, so that a score is finite
FASTER = 4.0  # the small byte model's weights are a fourth of what they stand for, and so learn four times as fast
CERTAIN = math.log1p(ALIKE) - math.log1p(-ALIKE)  # the largest score


class EntropyRouter(Router):
    """BLT's rule (Pagnoni et al., arXiv 2412.09871, section 2.3): a small byte model beside tells how sure it is of the
    next byte, and where its entropy is above one threshold for the whole text, the byte is routed.

    What differs: theirs is a transformer of 100M parameters, trained before and frozen, and a byte that is hard to
    foresee begins a patch. Here it is a network of one hidden layer that sees the last few bytes (Bengio et al. 2003),
    trained beside by a loss of its own; the byte before the one that is hard to foresee is routed, for its update is
    what foresees it; and training moves the threshold to hold the fraction. The gate is the learned one, as everywhere.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        width, hidden = GUESS_WIDTHS
        self.symbols = nn.Embedding(config.vocabulary, width)
        self.hidden = nn.Linear(width * (config.history + 1), hidden, bias=False)
        self.guess = nn.Linear(hidden, config.vocabulary, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        for layer in (self.symbols, self.hidden, self.guess):
            layer.weight.div_(FASTER)

    def judge(self, score: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        seen = FASTER * self.symbols(text.unfold(1, self.config.history + 1, 1)).flatten(2)  # (B, T, (H + 1) E)
        log_p = (FASTER * self.guess(FASTER * F.relu(self.hidden(seen)))).log_softmax(-1)  # (B, T, V)
        return -(log_p.exp() * log_p).sum(-1).detach(), log_p

    def loss(self, routing: Routing, targets: Tensor | None = None, nats: Tensor | None = None) -> Tensor:
        """The small model's own, nats a byte. targets (B, T or more), -100 where there is none."""
        assert routing.log_p is not None and targets is not None
        length = routing.log_p.shape[1]
        nats = F.nll_loss(routing.log_p.flatten(0, 1), targets[:, :length].flatten(), reduction="sum")
        return nats / (targets[:, :length] >= 0).sum().clamp(min=1)


class CosineRouter(Router):
    """H-Net's (Hwang, Wang and Gu, arXiv 2507.07955, section 2.2), with q = W_q x and k = W_k x, both W begun at 1:

        p_t = (1 - cos(q_t, k_(t-1))) / 2      routed where p_t >= 1/2; the first byte has p = 1
        c_j = p_j u_j + (1 - p_j) c_(j-1)      what comes back of the j-th routed byte, smoothed over the routed ones
        loss = N / (N - 1) ((N - 1) F G + (1 - F) (1 - G))      F mean choice, G mean p, N bytes for a routed one

    and a gate that is 1 but has the gradient of p (straight-through). The score is the logit of p.

    What differs: u is how far the latent blocks moved the stream, which here is added to the routed bytes alone, where
    H-Net gives every byte the c of its chunk; attention where H-Net has Mamba; one stage; the ratio loss weighs
    `router_loss_weight`, in place of 0.03; and in training a row has room for 1.5 times its fraction.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(2 * config.dim, config.dim))  # of q, then of k
        self.register_parameter("bias", None)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.weight.copy_(torch.eye(self.config.dim, device=self.weight.device).repeat(2, 1))

    def scored(self, stream: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k = F.linear(stream, self.weight).chunk(2, dim=-1)  # (B, T, D)
        first = torch.zeros_like(k[:, 0]) if carry is None else carry[:, : k.shape[-1]]
        before = torch.cat([first[:, None], k[:, :-1]], dim=1)
        cos = F.cosine_similarity(q, before, dim=-1).clamp(-ALIKE, ALIKE)
        begins = ~before.any(-1)  # nothing was before
        return (torch.log1p(-cos) - torch.log1p(cos)).masked_fill(begins, CERTAIN), k

    def gate(self, routing: Routing) -> Tensor:
        return 1 + (routing.weight - routing.weight.detach())

    def come_back(
        self, x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, carry: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        p = (routing.weight.gather(1, routing.index) * routing.valid)[..., None]  # (B, M, 1)
        smooth = smoothed(p, (y - chosen).float(), None if carry is None else carry[:, chosen.shape[-1] :])
        return scatter_routed(x, chosen, chosen + smooth.to(x.dtype), routing, self.gate(routing), backend), smooth

    def carried(self, routing: Routing, smooth: Tensor | None, carry: Tensor) -> Tensor:
        assert routing.key is not None
        first = carry[:, None, carry.shape[1] // 2 :]  # (B, 1, D)
        passed = F.pad(routing.routed.cumsum(1), (1, 0))  # (B, T + 1) routed bytes so far
        if smooth is None:
            latest = first.expand(-1, passed.shape[1], -1)
        else:
            index = passed[..., None].expand(-1, -1, smooth.shape[-1])
            latest = torch.cat([first, smooth], dim=1).gather(1, index)
        keys = torch.cat([carry[:, None, : first.shape[-1]], routing.key], dim=1)
        return torch.cat([keys, latest], dim=-1)

    def loss(self, routing: Routing, targets: Tensor | None = None, nats: Tensor | None = None) -> Tensor:
        """The ratio loss less 1, which it is where F and G are the fraction."""
        bytes_each, chosen, p = 1 / self.rule.capacity, routing.chosen.float().mean(), routing.weight.mean()
        return bytes_each / (bytes_each - 1) * ((bytes_each - 1) * chosen * p + (1 - chosen) * (1 - p)) - 1


def smoothed(p: Tensor, update: Tensor, before: Tensor | None) -> Tensor:
    """s_j = p_j u_j + (1 - p_j) s_(j-1) of p (B, M, 1) and u (B, M, D), where `before` (B, D), or 0, comes first.

    In log2 M rounds, each of which doubles how far a sum reaches back.
    """
    keep, total = 1 - p, p * update
    if before is not None:
        total = torch.cat([total[:, :1] + keep[:, :1] * before[:, None], total[:, 1:]], dim=1)
    reach = 1
    while reach < p.shape[1]:
        total = torch.cat([total[:, :reach], total[:, reach:] + keep[:, reach:] * total[:, :-reach]], dim=1)
        keep = torch.cat([keep[:, :reach], keep[:, reach:] * keep[:, :-reach]], dim=1)
        reach *= 2
    return total


class HoldRouter(Router):
    """A byte that is not routed gets the update of the last one that was, times both gates; a routed one gets its own.

        x_r += w_r u_r        u_r = y_r - x_r of the routed byte r
        x_t += w_t w_r u_r    of a byte t that is not, r the last routed one before it

    It keeps w_r u_r of each text. The gate of every byte behind a routed one has a gradient, and an update has one from
    all of them.
    """

    least = 1  # for a byte that is not routed gets something too

    def come_back(
        self, x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, carry: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        gate = routing.weight.gather(1, routing.index)[..., None]  # (B, M, 1)
        held = latest(gate * (y - chosen).float(), routing.routed, carry)
        share = routing.weight.masked_fill(routing.routed, 1.0)[..., None]  # (B, T, 1)
        return x + (share * held).to(x.dtype), held

    def carried(self, routing: Routing, smooth: Tensor | None, carry: Tensor) -> Tensor:
        if smooth is None:
            return carry[:, None].expand(-1, routing.routed.shape[1] + 1, -1)
        return torch.cat([carry[:, None], smooth], dim=1)


class SmoothRouter(HoldRouter):
    """As in SOMBRERO (arXiv 2601.22805) updates fade into each other byte by byte, and each byte gets what there is:

        h_t = w_t u_t + (1 - w_t) h_(t-1)      x_t += h_t

    u_t is the update of the last byte routed up to t, and w_t at every byte is its own gate. So a byte that is not
    routed, whose gate is small, keeps what there was, and moves on to the newest update as far as it was near to being
    routed. With its confidence 1 - w_t instead it would hold u_t and nothing else one byte after r, whatever w_r is.
    It keeps u_t and h_t of each text.
    """

    def come_back(
        self, x: Tensor, chosen: Tensor, y: Tensor, routing: Routing, carry: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        before, smooth_before = (None, None) if carry is None else carry.chunk(2, dim=-1)
        update = latest((y - chosen).float(), routing.routed, before)
        smooth = smoothed(routing.weight[..., None], update, smooth_before)
        return x + smooth.to(x.dtype), torch.cat([update, smooth], dim=-1)


def latest(update: Tensor, routed: Tensor, before: Tensor | None) -> Tensor:
    """(B, T, D): at each byte the update (B, M, D) of the last one routed (B, T) up to it, or `before` (B, D), or 0."""
    first = torch.zeros_like(update[:, 0]) if before is None else before
    passed = routed.cumsum(1)[..., None].expand(-1, -1, update.shape[-1])  # routed bytes so far
    return torch.cat([first[:, None], update], dim=1).gather(1, passed)


SCORERS: dict[str, type[Router]] = {
    "linear": Router,
    "cosine": CosineRouter,
    "entropy": EntropyRouter,
    "hold": HoldRouter,
    "smooth": SmoothRouter,
}
