"""What a model costs: FLOPs per byte and bytes of cache, without building it."""

import torch

from pico.base.config import ModelConfig
from pico.model.cache import MAX_FEED, Cache


def flops_per_byte(config: ModelConfig, context_len: int, routed: float | None = None) -> tuple[float, float]:
    """(forward, training) FLOPs per byte: 2 a multiply-add of matmuls and attention; training is 3 forwards of all.

    routed: fraction of the bytes that the latent blocks run on; None is the rate that the config names.
    """
    c, width = config, config.head_dim
    linear = c.dim * width * (c.att_q_heads + 2 * c.att_kv_heads) + c.att_q_heads * width * c.dim
    linear += 3 * c.dim * c.mlp_dim

    def block(window: int, length: float) -> float:
        window = min(window, length - 1)
        seen = (window + 1) * (1 - window / max(length, 1) / 2)  # keys of an average query; the first ones have fewer
        return linear + 2 * c.att_q_heads * width * seen

    if routed is None:
        routed = c.rule.rate
    local = 2 * c.fb_num_blocks * block(c.fb_att_window_size, context_len)
    latent = routed * c.latent_num_blocks * block(c.latent_att_window_size, routed * context_len)
    lookup = c.ngram_orders * c.ngram_dim * c.dim  # their projection: reading a row costs no FLOP
    forward = 2 * (lookup + local + latent + c.dim * c.next_tokens * c.vocabulary + c.dim)
    chain = 2 * c.chained_heads * (c.next_tokens - 1) * c.dim**2  # only drafting and the loss need it
    return forward, 3 * (forward + chain)


def cache_bytes(config: ModelConfig, dtype=torch.float32, feed: int = MAX_FEED) -> int:
    """Bytes of key/value state that generation needs for one text, however long; `feed` of it in one forward."""
    return Cache(config, 1, dtype, "meta", feed).memory_bytes()


def model_facts(config: ModelConfig, context_len: int = 512) -> dict:
    """Parameters of each part, FLOPs per byte at that context, bytes of key/value cache. Builds no weights."""
    from pico.model.cost import cache_bytes, flops_per_byte

    parts = config.parameters
    forward, training = flops_per_byte(config, context_len)
    return {
        "parameters": sum(parts.values()),
        "parts": parts,
        "context_len": context_len,
        "forward_flops_per_byte": forward,
        "training_flops_per_byte": training,
        "kv_cache_bytes": cache_bytes(config),
    }
