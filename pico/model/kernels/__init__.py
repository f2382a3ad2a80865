"""Triton kernels: sliding-window ALiBi attention and its decoding form, the latent gather and scatter, the loss,
the hash of n-grams, and speculative sampling.

They run on a CUDA GPU, or anywhere, slowly, under Triton's interpreter (TRITON_INTERPRET=1, set before triton is
first imported), which is how the tests check them against the dense formulas on a machine without a GPU. Importing
this package needs neither triton nor a GPU: ask `available()` first, then import from

    pico.model.kernels.attention  window_attention(qkv, sharpness, slopes, window)
    pico.model.kernels.decode     decode_attention(q, cache_k, cache_v, key_positions, query_positions, window, slopes)
    pico.model.kernels.gather     latent_gather(x, index), gated_scatter(x, latent, index, weight)
    pico.model.kernels.loss       head_nats(hidden, weight, targets)
    pico.model.kernels.ngrams     ngram_hashes(text, longest)
    pico.model.kernels.sampling   draft(logits, u, ...), verify(logits, drafts, q, u, ...)

Tile sizes come from small tables, not from an autotuner: an autotuner's choice changes the order of sums from run
to run, so resuming would not be exact, and it cannot run while a CUDA graph is captured.
"""

import os
from functools import cache
from importlib.util import find_spec

MAX_HEAD_DIM = 128


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@cache
def available() -> bool:
    """Whether the kernels can run here: triton is installed, and there is a recent GPU or the interpreter."""
    if find_spec("triton") is None:
        return False
    if interpreted():
        return True
    import torch

    # Triton's own floor for NVIDIA is 8.0 (AMD reports 9.0 and up). Of the ways to ask, torch.compile traces this one.
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).major >= 8
