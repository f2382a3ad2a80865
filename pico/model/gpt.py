"""The token twin: a dense decoder-only transformer, with the switches that people use today.

    symbols -> embedding (and those of the n-grams that end there) -> blocks -> norm -> head

A symbol is a byte or a token. Every one goes through all blocks and sees itself and the W symbols before it, W being
max_context - 1 or a smaller window. B batch, T symbols, D width, H query heads, K key/value heads, E head width,
V vocabulary. Weights are fp32; activations have the model's `dtype`, and every Linear casts to it.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.base.device import widest
from pico.base.shapes import GPTConfig
from pico.base.symbols import BYTES, Alphabet
from pico.model.blocks import Linear, SwiGLU, check_groups, dropout, run_block
from pico.model.cache import Cache, Ring
from pico.model.causal import causal_attention, on_cpu, sdpa
from pico.model.loss import multi_byte_loss, soft_capped
from pico.model.ngrams import NGrams
from pico.model.norm import norm
from pico.model.pico import Output

DEEPEST = 0.1  # of the first block's deviation is left in the last one of init = depth


class Norm(nn.Module):
    """RMSNorm, with gains or without."""

    def __init__(self, width: int, gain: bool):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        return norm(x) if self.gain is None else norm(x) * self.gain.to(x.dtype)


def rotation(positions: Tensor, config: GPTConfig) -> Tensor:
    """RoPE (arXiv 2104.09864) of positions (B or 1, T): cosine and sine (B or 1, T, 1, E/2, 2), fp32.

    The pair of channels 2i and 2i + 1 turns by theta^(-2i/R) radians a position; those from R on stay.
    """
    half = round(config.head_dim * config.rope_fraction / 2)
    wide = widest(positions.device)  # a text may be millions of symbols long
    frequency = config.rope_theta ** (-torch.arange(half, device=positions.device, dtype=wide) / max(half, 1))
    angle = F.pad(positions[..., None, None] * frequency, (0, config.head_dim // 2 - half))
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """x (B, T, heads, E), fp32, a pair of channels being a complex number: so a CPU needs one pass, not eight."""
    pairs = x.unflatten(-1, (-1, 2))
    if on_cpu(x) and not torch.compiler.is_compiling():  # which knows no complex numbers
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(-2)
    (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class CausalAttention(nn.Module):
    """Grouped-query attention with RoPE, QK-norm before or after it, and a gate, each if wanted."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config, width, heads = config, config.head_dim, config.att_q_heads
        self.qkv = Linear(config.dim, (heads + 2 * config.att_kv_heads) * width, bias=config.qkv_bias)
        gains = config.qk_norm != "none" and config.norm_gain
        self.q_gain, self.k_gain = (nn.Parameter(torch.ones(width)) if gains else None for _ in range(2))
        gates = {"none": None, "query": (width, width), "input": (config.dim, heads * width)}[config.gate]
        self.gate = Linear(*gates) if gates else None
        self.out = Linear(heads * width, config.dim)

    def forward(self, x: Tensor, turn: Tensor, ring: Ring | None, layer: int) -> Tensor:
        c = self.config
        qkv = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (B, T, H + 2K, E)
        qk, v = qkv.split((c.att_q_heads + c.att_kv_heads, c.att_kv_heads), dim=2)
        qk = qk.float()
        if c.qk_norm == "before":
            qk = self.normed(qk)
        if c.rope_fraction:
            qk = rotate(qk, turn)
        if c.qk_norm == "after":
            qk = self.normed(qk)
        q, k = qk.to(x.dtype).split((c.att_q_heads, c.att_kv_heads), dim=2)
        if ring is None:
            y = causal_attention(q, k, v, c.reach)
        else:
            assert isinstance(ring.bias, Tensor), "it was opened for torch's own attention"
            filled = ring.bias.shape[-1]
            k, v = ring.write(layer, torch.stack([k, v], dim=2))
            y = sdpa(q, k[:, :filled], v[:, :filled], ring.bias)
        if self.gate is None:
            return self.out(y.flatten(2))
        if c.gate == "query":  # one matrix for all heads of a block
            y = y * torch.sigmoid(self.gate(q))
        else:  # G1 of arXiv 2505.06708
            y = y * torch.sigmoid(self.gate(x)).view_as(y)
        return self.out(y.flatten(2))

    def normed(self, qk: Tensor) -> Tensor:
        """QK-norm (arXiv 2010.04245) of (B, T, H + K, E)."""
        if self.q_gain is None or self.k_gain is None:
            return norm(qk)
        gains = [self.q_gain.expand(self.config.att_q_heads, -1), self.k_gain.expand(self.config.att_kv_heads, -1)]
        return norm(qk) * torch.cat(gains)


class SquaredReLU(nn.Module):
    """arXiv 2109.08668"""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class GPTBlock(nn.Module):
    """Attention and MLP, each of what is normalised; in a sandwich what they add is normalised too."""

    def __init__(self, config: GPTConfig, hidden: int):
        super().__init__()
        self.attention = CausalAttention(config)
        self.mlp = {"swiglu": SwiGLU, "relu2": SquaredReLU}[config.mlp](config.dim, hidden)
        self.norms = nn.ModuleList(Norm(config.dim, config.norm_gain) for _ in range(2))
        self.outer_norms = nn.ModuleList(
            Norm(config.dim, config.norm_gain) if config.sandwich_norm else nn.Identity() for _ in range(2)
        )
        self.dropout = 0.0  # share of what it adds that training leaves out

    def forward(self, x: Tensor, turn: Tensor, ring: Ring | None = None, layer: int = 0) -> Tensor:
        share = self.dropout if self.training else 0.0
        x = x + dropout(self.outer_norms[0](self.attention(self.norms[0](x), turn, ring, layer)), share)
        return x + dropout(self.outer_norms[1](self.mlp(self.norms[1](x))), share)


class GPT(nn.Module):
    """The whole model."""

    alphabet: Alphabet = BYTES  # what its ids stand for
    regions = ()  # what torch.compile traces besides the blocks

    def __init__(self, config: GPTConfig, dtype=torch.float32):
        super().__init__()
        self.config, self.dtype, self.attention_backend = config, dtype, None
        self.gradient_checkpointing = False  # training keeps what goes into each block, and runs it again
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.ngrams = NGrams(config) if config.ngram_max else None
        self.blocks = nn.ModuleList(GPTBlock(config, hidden) for hidden in config.mlp_dims)
        self.norm = Norm(config.dim, config.norm_gain)
        self.head = None if config.tied else Linear(config.dim, config.vocabulary)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal, with a standard deviation by role; biases 0, gains 1, n-gram tables 0. Of n inputs and L blocks:

                          standard           zero         depth
        embedding         .02                1, or D^-.5 if it is scaled by sqrt(D), or .5 if it is left as it is
        out               .02 / sqrt(2 L)    0            0
        down              .02 / sqrt(2 L)    0            .04, falling with depth
        up, SwiGLU's gate .02                1/sqrt(n)    .04, falling with depth
        SwiGLU's value    .02                1/sqrt(n)    0
        head              .02                0            0
        other matrices    .02                1/sqrt(n)    1/sqrt(n)

        Standard is GPT-2's, zero nanochat's, depth Simple-PicoLM's. There the line falls to zero in the last block,
        which then never learns: with gate, value and down at zero no gradient gets in. Here a tenth is left.
        """
        c, standard = self.config, self.config.init == "standard"
        scaled = {"none": 0.5, "sqrt": c.dim**-0.5, "norm": 1.0}[c.embedding_scale]
        std: dict[Tensor, float] = {self.embedding.weight: 0.02 if standard or c.tied else scaled}
        if self.head:
            std[self.head.weight] = 0.02 if standard else 0.0
        if self.ngrams:
            std[self.ngrams.table.weight] = 0.0
        blocks = cast(list[GPTBlock], list(self.blocks))
        for layer, block in enumerate(blocks):
            out, up, down = block.attention.out.weight, block.mlp.up.weight, block.mlp.down.weight
            std[out] = std[down] = 0.02 / (2 * c.num_blocks) ** 0.5 if standard else 0.0
            if c.init == "depth":
                std[up] = std[down] = 0.04 * max(DEEPEST, 1 - layer / max(1, c.num_blocks - 1))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std.get(parameter, 0.02 if standard else parameter.shape[1] ** -0.5))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if c.init == "depth" and c.mlp == "swiglu":
            for block in blocks:
                nn.init.zeros_(block.mlp.up.weight.chunk(2)[1])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter, by what its optimizer must know; see `Pico.parameter_groups`."""
        inside = [p for module in (self.blocks, self.norm) for p in module.parameters()]
        groups = {
            "tables": [self.ngrams.table.weight] if self.ngrams else [],
            "symbols": [self.embedding.weight, *([self.head.weight] if self.head else [])],
            "matrices": [p for p in inside if p.ndim > 1] + ([self.ngrams.project.weight] if self.ngrams else []),
            "undecayed": [p for p in inside if p.ndim < 2],  # gains and biases
        }
        return check_groups(self, groups)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: Cache | None = None,
        disable_latent: bool = False,
        start: Tensor | None = None,
        rule=None,
    ) -> Output:
        """tokens and targets (B, T) integers, -100 where there is no target. The rest is as in `Pico.forward`; start,
        disable_latent and rule change nothing here: RoPE knows distances alone, and nothing is routed.

        A text may be longer than max_context: every symbol then sees the max_context - 1 before it, in each block. So
        it is with a cache too, whose oldest positions leave the window; its logits are those of the whole text within
        1e-5 of the largest, in fp32 on a CPU.
        """
        tokens = tokens.long()
        batch, length = tokens.shape
        if cache is None:
            ring, history = None, tokens.new_full((batch, self.config.history), self.alphabet.bos)
            positions = torch.arange(length, device=tokens.device)[None]
        else:
            assert length <= cache.feed, f"feed at most {cache.feed} symbols at a time"
            ring, history = cache.local, cache.history
            positions = ring.open(length, "sdpa")
        x = self.embed(torch.cat([history, tokens], dim=1))
        turn = rotation(positions, self.config)
        for layer, block in enumerate(self.blocks):
            x = run_block(block, self.gradient_checkpointing and self.training, x, turn, ring, layer)
        x = self.norm(x)
        passed = torch.zeros_like(tokens, dtype=torch.bool)
        if cache is not None:
            cache.advance(tokens, passed)

        none = torch.zeros((), device=x.device)
        seen = x, none.expand(batch, length), passed, none, 0
        if targets is None:
            return Output(self.logits(x)[:, :, None], *seen)
        loss, nats, _ = multi_byte_loss([x], self.head_weight, targets, self.config.logit_softcap)
        return Output(None, *seen, loss, nats, none)

    @property
    def head_weight(self) -> Tensor:
        head = self.head or self.embedding
        held = getattr(head, "cast", None)
        return head.weight if held is None else held

    def embed(self, text: Tensor) -> Tensor:
        """Of each symbol and of the n-grams that end with it: (B, history + T) -> (B, T, D)."""
        x = F.embedding(text[:, self.config.history :], self.embedding.weight).to(self.dtype)
        if self.config.embedding_scale == "sqrt":
            x = x * self.config.dim**0.5
        if self.ngrams:
            x = x + self.ngrams(text, self.dtype, self.alphabet.bos)
        return norm(x) if self.config.embedding_scale == "norm" else x

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)"""
        return soft_capped(F.linear(x, self.head_weight.to(x.dtype)), self.config.logit_softcap)

    def right_draft_logits(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, T, 1, V): it has one head, which drafts nothing."""
        return self.logits(x)[:, :, None]

    def set_dropout(self, updates: float, times: Tensor | None = None) -> None:
        """What training leaves out from now on: a share of what each block adds, and lookups in rows (B,) of text that
        it has read so many times before; None: all of it is new."""
        for block in cast(list[GPTBlock], self.blocks):
            block.dropout = updates
        if self.ngrams:
            self.ngrams.times = times

    def begin_step(self, progress: float) -> None:
        """Nothing here depends on how far the training is."""

    def end_step(self, gate: Tensor | None = None) -> None:
        """Nothing here moves but by the optimizers."""

    def forget_step(self) -> None:
        """Nothing here is counted."""

    def new_cache(self, batch: int, feed: int) -> Cache:
        """For a batch of texts, of each of which a forward reads at most `feed` symbols."""
        return Cache(self.config, batch, self.dtype, self.embedding.weight.device, feed, self.alphabet.bos)

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but the n-gram tables, of which a step touches some thousand rows."""
        table = self.ngrams.table.weight if self.ngrams else None
        return [p for p in self.parameters() if p is not table]

    def uncast_parameters(self) -> list[nn.Parameter]:
        """Those that the forward reads in fp32, whatever the dtype of its activations."""
        return self.parameter_groups()["tables"]

    def parts(self) -> dict[str, int]:
        """Parameters of each part."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
