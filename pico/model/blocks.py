"""What the network is made of: Linear, norm, attention, SwiGLU, block.

B batch, T bytes, D width, H query heads, K key/value heads, E head width. Weights are fp32; activations have the
model's `dtype`, and every Linear casts to it.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pico.base.shapes import ModelConfig
from pico.model.attention import attend_cached, attention, split_heads
from pico.model.cache import Ring
from pico.model.norm import norm

SHARPNESS = 1.5  # of attention with QK-norm, before it is learned


class Linear(nn.Linear):
    """The fp32 weight is cast to the dtype of what comes in, unless `cast` holds it (see casts.py)."""

    cast: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype) if self.cast is None else self.cast, bias)


def dropout(update: Tensor, share: float) -> Tensor:
    """Dropout of what a block adds. One random byte a number: torch's own draws take a third of a step on a CPU."""
    if not share:
        return update
    cut, count = round(256 * share), update.numel()
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-count // 8),), device=update.device)
    kept = draws.view(torch.uint8)[:count].view(update.shape) >= cut
    return update * (kept.to(update.dtype) * (256 / (256 - cut)))


class Attention(nn.Module):
    """Grouped-query sliding-window attention with ALiBi; see pico/model/attention.py."""

    def __init__(self, config: ModelConfig, window: int):
        super().__init__()
        self.window, self.heads, self.width = window, config.att_q_heads, config.head_dim
        self.qkv = Linear(config.dim, (config.att_q_heads + 2 * config.att_kv_heads) * self.width)
        self.sharpness = nn.Parameter(torch.full((1,), SHARPNESS)) if config.qk_norm else None
        self.out = Linear(config.att_q_heads * self.width, config.dim)

    def forward(self, x: Tensor, backend: str, ring: Ring | None, layer: int) -> Tensor:
        qkv = rearrange(self.qkv(x), "b t (h e) -> b t h e", e=self.width)  # (B, T, H + 2K, E)
        if ring is None:
            y = attention(qkv, self.sharpness, self.heads, self.window, backend)
        else:
            q, k, v = split_heads(qkv, self.sharpness, self.heads)
            y = attend_cached(q, *ring.write(layer, torch.stack([k, v], dim=2)), ring.bias)
        return self.out(y.flatten(2))


class SwiGLU(nn.Module):
    """arXiv 2002.05202; gate and value in one matmul."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = Linear(dim, 2 * hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and SwiGLU. A local block may begin by mixing the embedding back into the stream."""

    def __init__(self, config: ModelConfig, window: int, skip: bool = False):
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0])) if skip else None
        self.attention = Attention(config, window)
        self.mlp = SwiGLU(config.dim, config.mlp_dim)
        self.dropout = 0.0  # share of what it adds that training leaves out

    def forward(
        self, x: Tensor, backend: str, ring: Ring | None = None, layer: int = 0, embedding: Tensor | None = None
    ) -> Tensor:
        if self.mix is not None:
            keep, add = self.mix.to(x.dtype)
            x = keep * x + add * embedding
        share = self.dropout if self.training else 0.0
        x = x + dropout(self.attention(norm(x), backend, ring, layer), share)
        return x + dropout(self.mlp(norm(x)), share)


def run_block(block, again: bool, *inputs) -> Tensor:
    """What the block makes of them. again: it keeps nothing but its inputs, and runs once more in the backward pass
    (arXiv 1604.06174)."""
    if not again:
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=block.dropout > 0)


def check_groups(model: nn.Module, groups: Mapping[str, Sequence[Tensor]]) -> dict[str, list[nn.Parameter]]:
    """The groups, each in the order of `model.parameters()`, if every parameter is in exactly one of them."""
    found = {id(p): [] for p in model.parameters()}
    for group, parameters in groups.items():
        for p in parameters:
            found[id(p)].append(group)
    for name, p in model.named_parameters():
        assert len(found[id(p)]) == 1, f"{name} is in {' and '.join(found[id(p)]) or 'none'} of the parameter groups"
    return {group: [p for p in model.parameters() if found[id(p)] == [group]] for group in groups}
