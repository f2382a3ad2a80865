"""Shapes of models that have a name.

preset("tiny", dim=64), preset("gpt-bytes-tiny")
"""

from pico.base.errors import PicoError
from pico.base.shapes import Shape, shape
from pico.base.symbols import VOCABULARY

SIMPLE = dict(
    kind="gpt", dim=384, num_blocks=12, att_q_heads=4, att_kv_heads=1, head_dim=96, tokenizer="bpe", vocab_size=49152,
    max_context=384, rope_theta=1e5, rope_fraction=0.5, qk_norm="before", sandwich_norm=True, norm_gain=True,
    mlp_ratio=1.5, mlp_ratio_last=4.0, gate="query", qkv_bias=True, embedding_scale="sqrt", init="depth",
)  # fmt: skip
# of Simple-PicoLM's choices those that paid, with all of a head rotating
TWIN = SIMPLE | dict(rope_theta=1e4, rope_fraction=1.0, norm_gain=False, gate="none")
ORIGINAL = dict(next_tokens=8, ngram_max=0, qk_norm=False, embedding_skip=False, chained_heads=False)
PRESETS: dict[str, dict] = {
    "xs": {},
    # about 0.2M parameters besides the tables: what learns most from minutes of a laptop's CPU
    "tiny": dict(
        dim=64, att_q_heads=4, att_kv_heads=1, mlp_ratio=1.0, fb_num_blocks=1, fb_att_window_size=32,
        latent_num_blocks=3, latent_att_window_size=256, latent_capacity_factor=0.2,
    ),
    # about 11M besides the tables; widths that are multiples of 64 fill the tiles of a GPU's matrix units
    "s": dict(dim=384, att_q_heads=6, att_kv_heads=2, latent_num_blocks=8, fb_att_window_size=32),
    # about 85M
    "m": dict(
        dim=768, att_q_heads=12, att_kv_heads=4, mlp_ratio=8 / 3, fb_num_blocks=2,
        fb_att_window_size=64, latent_num_blocks=9, latent_att_window_size=1024,
    ),
    # the design of loristns/pico: its defaults, and the model of its README
    "original-xs": ORIGINAL,
    "original-10m": ORIGINAL | dict(dim=372, latent_num_blocks=8, fb_att_window_size=32),
    # the same in all but size; 56.9M parameters, and 674M
    "simple-picolm": SIMPLE,
    "simple-picolm-xl": SIMPLE | dict(
        dim=1280, num_blocks=32, att_q_heads=10, att_kv_heads=5, head_dim=128, vocab_size=32768, max_context=4096
    ),
    # 335.5M parameters
    "picochat": dict(
        kind="gpt", dim=1024, num_blocks=16, att_q_heads=8, att_kv_heads=8, head_dim=128, tokenizer="bpe",
        vocab_size=65536, max_context=1024, mlp="relu2", mlp_ratio=4.0, embedding_scale="norm", logit_softcap=15.0,
    ),
    # the twins of tiny: choices, shapes, contexts and batches from experiments/twins
    "gpt-tiny": TWIN | dict(dim=96, num_blocks=3, head_dim=24, vocab_size=4096, max_context=64),
    "gpt-bytes-tiny": TWIN | dict(
        dim=96, num_blocks=2, head_dim=24, tokenizer="bytes", vocab_size=VOCABULARY, max_context=64
    ),
}  # fmt: skip


def preset(name: str = "xs", **overrides) -> Shape:
    """The preset's config with some values replaced. Raises PicoError for an unknown name or bad values."""
    if name not in PRESETS:
        raise PicoError(f"unknown preset '{name}': expected one of {', '.join(PRESETS)}")
    return shape({**PRESETS[name], **overrides})
