"""The token twin as a Llama, where its choices are Llama's: then any program that knows Llama loads it."""

from typing import TypeGuard

import torch

from pico.base.shapes import GPTConfig, Shape
from pico.model.norm import EPS

LLAMA = dict(  # what it has no switch for
    qk_norm="none", sandwich_norm=False, mlp="swiglu", gate="none", embedding_scale="none", logit_softcap=None,
    ngram_max=0, rope_fraction=1.0,
)  # fmt: skip


def is_llama(config: Shape) -> TypeGuard[GPTConfig]:
    """Whether it is one, for texts up to max_context: beyond, Llama goes on to see all."""
    return (
        isinstance(config, GPTConfig)
        and all(getattr(config, name) == value for name, value in LLAMA.items())
        and config.reach == config.max_context - 1
        and len(set(config.mlp_dims)) == 1
        and config.dim % config.att_q_heads == 0
    )


def llama_config(config: GPTConfig) -> dict:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dims[0],
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.att_q_heads,
        "num_key_value_heads": config.att_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.qkv_bias,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
    }


def llama_weights(config: GPTConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Its state_dict from the twin's."""
    c, width = config, config.head_dim
    ones = weights["embedding.weight"].new_ones(c.dim)
    out = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights.get("norm.gain", ones),
    }
    if not c.tied:
        out["lm_head.weight"] = weights["head.weight"]
    sizes = [c.att_q_heads * width, c.att_kv_heads * width, c.att_kv_heads * width]
    for layer in range(c.num_blocks):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias")[: 1 + c.qkv_bias]:
            q, k, v = weights[f"{ours}attention.qkv.{kind}"].split(sizes)
            for name, part in {"q": half_turned(q, width), "k": half_turned(k, width), "v": v}.items():
                out[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        if c.qkv_bias:  # Llama has one behind attention too
            out[f"{theirs}self_attn.o_proj.bias"] = ones * 0
        out[f"{theirs}self_attn.o_proj.weight"] = weights[f"{ours}attention.out.weight"]
        gate, value = weights[f"{ours}mlp.up.weight"].chunk(2)
        out |= {f"{theirs}mlp.gate_proj.weight": gate, f"{theirs}mlp.up_proj.weight": value}
        out[f"{theirs}mlp.down_proj.weight"] = weights[f"{ours}mlp.down.weight"]
        for place, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            out[f"{theirs}{name}.weight"] = weights.get(f"{ours}norms.{place}.gain", ones)
    return {name: x.clone(memory_format=torch.contiguous_format) for name, x in out.items()}  # none is shared


def half_turned(x: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of the heads of queries or keys: our RoPE turns channels 2i and 2i + 1 together, theirs i and i + E/2."""
    return x.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).reshape(x.shape)
