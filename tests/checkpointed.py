"""A model folder with checkpoints, and what is done to them."""

import torch

from pico import preset
from pico.model.pico import Pico

SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=64, ngram_dim=4,
)  # fmt: skip


def embedding(step):
    torch.manual_seed(step)
    return Pico(preset("tiny", **SMALL)).embedding.weight


def flip(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
