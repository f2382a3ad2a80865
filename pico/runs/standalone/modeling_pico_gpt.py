"""Pico's dense twin in one file, for transformers: bytes or tokens in, the next one out. Padding, cache and loss are
those of modeling_pico.py, which lies beside it.

    symbols -> embedding (and those of the n-grams that end there) -> blocks -> norm -> head

Every symbol goes through all blocks and sees itself and the W symbols before it. B batch, T symbols, D width, H query
heads, K key/value heads, E head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_pico import NGrams, PicoCache, PicoPreTrainedModel, Stack, SwiGLU, embedding, linear, norm


class PicoGPTConfig(PretrainedConfig):
    """Widths in channels."""

    model_type = "pico_gpt"
    keys_to_ignore_at_inference = ["cache", "router_weight", "routed"]
    attribute_map = {
        "hidden_size": "dim",
        "num_attention_heads": "att_q_heads",
        "num_key_value_heads": "att_kv_heads",
        "num_hidden_layers": "num_blocks",
        "max_position_embeddings": "max_context",
    }

    def __init__(
        self,
        dim=128,
        num_blocks=4,
        att_q_heads=4,
        att_kv_heads=2,
        head_dim=32,
        vocab_size=264,
        max_context=512,  # it was trained on so many symbols at a time
        reach=511,  # W
        rope_theta=1e4,
        rope_fraction=1.0,  # part of a head that rotates
        qk_norm="after",  # queries and keys are normalised before or after they rotate, or "none"
        sandwich_norm=False,  # what attention and MLP add is normalised too
        norm_gain=False,
        mlp="swiglu",  # or relu2
        mlp_dims=(336,) * 4,  # hidden width of each block
        gate="none",  # a head's output times sigmoid(W q), "query", one W for all heads, or sigmoid(W x), "input"
        qkv_bias=False,
        embedding_scale="none",  # sqrt: times sqrt(D); norm: normalised
        tie_word_embeddings=False,
        logit_softcap=None,  # logits become c tanh(logits / c)
        ngram_max=0,  # longest n-gram looked up; 0: none
        ngram_rows=65536,  # of the hash table for each length
        ngram_dim=16,
        ngram_shared=True,  # one table for all lengths, as large as theirs together
        use_cache=True,
        **others,
    ):
        self.dim, self.num_blocks, self.vocab_size, self.max_context = dim, num_blocks, vocab_size, max_context
        self.att_q_heads, self.att_kv_heads, self.head_dim, self.reach = att_q_heads, att_kv_heads, head_dim, reach
        self.rope_theta, self.rope_fraction, self.qk_norm = rope_theta, rope_fraction, qk_norm
        self.sandwich_norm, self.norm_gain, self.mlp, self.mlp_dims = sandwich_norm, norm_gain, mlp, list(mlp_dims)
        self.gate, self.qkv_bias, self.embedding_scale = gate, qkv_bias, embedding_scale
        self.logit_softcap, self.use_cache = logit_softcap, use_cache
        self.ngram_max, self.ngram_rows, self.ngram_dim = ngram_max, ngram_rows, ngram_dim
        self.ngram_shared = ngram_shared
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **others})


class Norm(nn.Module):
    """RMSNorm, with gains or without."""

    def __init__(self, width: int, gain: bool):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        return norm(x) if self.gain is None else norm(x) * self.gain.to(x.dtype)


def rotate(x: Tensor, positions: Tensor, config: PicoGPTConfig) -> Tensor:
    """RoPE (arXiv 2104.09864) of x (B, T, heads, E), fp32, at positions (B, T).

    The pair of channels 2i and 2i + 1 turns by theta^(-2i/R) radians a position; those from R on stay.
    """
    half = round(config.head_dim * config.rope_fraction / 2)
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # a text may be millions of symbols long
    frequency = config.rope_theta ** (-torch.arange(half, device=x.device, dtype=wide) / max(half, 1))
    angle = F.pad(positions[..., None, None] * frequency, (0, config.head_dim // 2 - half))
    (a, b), cos, sin = x.unflatten(-1, (-1, 2)).unbind(-1), angle.cos().float(), angle.sin().float()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class CausalAttention(nn.Module):
    """Grouped query heads with RoPE, QK-norm before or after it, and a gate, each if wanted."""

    def __init__(self, config: PicoGPTConfig):
        super().__init__()
        self.config, width, heads = config, config.head_dim, config.att_q_heads
        self.qkv = linear(config.dim, (heads + 2 * config.att_kv_heads) * width, bias=config.qkv_bias)
        gains = config.qk_norm != "none" and config.norm_gain
        self.q_gain, self.k_gain = (nn.Parameter(torch.ones(width)) if gains else None for _ in range(2))
        sizes = {"none": None, "query": (width, width), "input": (config.dim, heads * width)}[config.gate]
        self.gate = linear(*sizes) if sizes else None
        self.out = linear(heads * width, config.dim, 0.0)

    def forward(self, x: Tensor, stack: Stack, layer: int) -> Tensor:
        c = self.config
        heads = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (B, T, H + 2K, E)
        q, k, v = heads.split((c.att_q_heads, c.att_kv_heads, c.att_kv_heads), dim=2)
        q, k = self.placed(q, self.q_gain, stack.queries), self.placed(k, self.k_gain, stack.queries)
        y = stack.attend(layer, q, k, v, None)
        if c.gate == "query":  # one matrix for all heads of a block
            y = y * torch.sigmoid(self.gate(q))
        elif c.gate == "input":  # G1 of arXiv 2505.06708
            y = y * torch.sigmoid(self.gate(x)).view_as(y)
        return self.out(y.flatten(2))

    def placed(self, x: Tensor, gain: Tensor | None, positions: Tensor) -> Tensor:
        """Queries or keys, normalised and rotated."""
        y = x.float()
        if self.config.qk_norm == "before":
            y = norm(y) if gain is None else norm(y) * gain
        if self.config.rope_fraction:
            y = rotate(y, positions, self.config)
        if self.config.qk_norm == "after":
            y = norm(y) if gain is None else norm(y) * gain
        return y.to(x.dtype)


class SquaredReLU(nn.Module):
    """arXiv 2109.08668"""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = linear(dim, hidden), linear(hidden, dim, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class GPTBlock(GradientCheckpointingLayer):
    """Attention and MLP, each of what is normalised; in a sandwich what they add is normalised too."""

    def __init__(self, config: PicoGPTConfig, hidden: int):
        super().__init__()
        self.attention = CausalAttention(config)
        self.mlp = {"swiglu": SwiGLU, "relu2": SquaredReLU}[config.mlp](config.dim, hidden)
        self.norms = nn.ModuleList(Norm(config.dim, config.norm_gain) for _ in range(2))
        outer = (Norm(config.dim, config.norm_gain) if config.sandwich_norm else nn.Identity() for _ in range(2))
        self.outer_norms = nn.ModuleList(outer)

    def forward(self, x: Tensor, stack: Stack, layer: int) -> Tensor:
        x = x + self.outer_norms[0](self.attention(self.norms[0](x), stack, layer))
        return x + self.outer_norms[1](self.mlp(self.norms[1](x)))


class PicoGPTForCausalLM(PicoPreTrainedModel, GenerationMixin):
    config_class = PicoGPTConfig
    _no_split_modules = ["GPTBlock"]
    _tied_weights_keys = {"head.weight": "embedding.weight"}

    def __init__(self, config: PicoGPTConfig):
        super().__init__(config)
        c = config
        self.embedding = embedding(c.vocab_size, c.dim, 0.02 if c.tie_word_embeddings else 0.5)
        self.ngrams = NGrams(c) if c.ngram_max else None
        self.blocks = nn.ModuleList(GPTBlock(c, hidden) for hidden in c.mlp_dims)
        self.norm = Norm(c.dim, c.norm_gain)
        self.head = linear(c.dim, c.vocab_size, 0.0)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def new_cache(self, keep: bool = True) -> PicoCache:
        return PicoCache([self.config.reach], keep)

    def read(self, ids: Tensor, real: Tensor, cache: PicoCache, disable_latent: bool) -> tuple[Tensor, None, None]:
        """The stream behind the last norm (B, T, D); nothing is routed."""
        text = cache.read(ids, real, max(1, self.config.ngram_max - 1), self.config.bos_token_id)
        (stack,) = cache.stacks
        stack.open(real)
        x = self.embedding(text[:, -ids.shape[1] :])
        if self.config.embedding_scale == "sqrt":
            x = x * self.config.dim**0.5
        if self.ngrams is not None:
            x = x + self.ngrams(text)
        if self.config.embedding_scale == "norm":
            x = norm(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, stack, layer)
        return self.norm(x), None, None

    def logits(self, x: Tensor) -> Tensor:
        logits, cap = self.head(x), self.config.logit_softcap
        return logits if cap is None else (cap * torch.tanh(logits.float() / cap)).to(logits.dtype)
