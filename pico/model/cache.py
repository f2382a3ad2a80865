"""Key/value state for generation: a ring per layer, so memory stays the same however long the text.

Every row of the batch has its own length, so rows may route and accept differently. Rolling back rejected drafts
only moves lengths: what they wrote lies after the new end and is hidden by the mask until it is overwritten
(see `attention.ring_bias`).

A ring has W slots, and as many more as one forward may read. Decoding needs few, and every slot costs it time; a prompt
is read in large pieces. So a cache begins wide and is made `narrow` when its prompt is read.
"""

import torch
from torch import Tensor

from pico.base.config import MAX_FEED, PREFILL
from pico.base.shapes import Shape
from pico.base.symbols import BOS
from pico.model.attention import ring_bias, slot_positions


class Ring:
    """Keys and values of a stack of layers, for the last W + feed positions of each row."""

    def __init__(self, layers: int, batch: int, window: int, config: Shape, dtype, device, feed: int):
        self.window, self.heads = window, config.att_q_heads
        self.slots = window + feed
        shape = (layers, batch * self.slots, 2, config.att_kv_heads, config.head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.length = torch.zeros(batch, dtype=torch.long, device=device)  # (B,) positions kept
        # on the CPU: arithmetic on a meta device would import torch's compiler, which takes seconds
        self._row = (torch.arange(batch)[:, None] * self.slots).to(device)

    def narrow(self, feed: int) -> None:
        """From now on `feed` positions are written at a time: keeps the last W + feed of each row."""
        slots = self.window + feed
        positions = slot_positions(self.length[:, None] - 1, slots)  # (B, R)
        self.memory = self.memory.index_select(1, (self._row + positions % self.slots).flatten())
        self._row, self.slots = self._row // self.slots * slots, slots

    def open(self, count: int, backend: str | None = None) -> Tensor:
        """Make room for `count` positions in every row (B, n): where they are written, and what they may see."""
        positions = self.length[:, None] + torch.arange(count, device=self.length.device)  # (B, n)
        self._written = (self._row + positions % self.slots).flatten()
        self.bias = ring_bias(positions, self.slots, self.heads, self.window, self.memory.dtype, backend)
        return positions

    def write(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store kv (B, n, 2, K, E) at the opened positions; returns all keys and values (B, R, K, E)."""
        memory = self.memory[layer].index_copy_(0, self._written, kv.flatten(0, 1))
        keys, values = memory.view(kv.shape[0], self.slots, *kv.shape[2:]).unbind(2)
        return keys, values


class Cache:
    """State of a batch of texts being read: local and latent rings, positions, and the last few bytes of each row.

    feed: the most bytes of a text that one forward reads.
    """

    def __init__(self, config: Shape, batch: int, dtype=torch.float32, device="cpu", feed: int = MAX_FEED, bos=BOS):
        self.feed = feed
        self.local, self.latent = (
            Ring(layers, batch, window, config, dtype, device, feed) for layers, window in config.stacks
        )
        self.history = torch.full((batch, config.history), bos, device=device)  # (B, H) bytes before the next
        self.carry = torch.zeros(batch, config.carry, device=device)  # (B, C) what the router keeps; see Router.carried

    @property
    def length(self) -> Tensor:
        """(B,) bytes read so far."""
        return self.local.length

    def narrow(self, feed: int = MAX_FEED) -> None:
        """From now on a forward reads at most `feed` bytes of a text: gives back the memory that more would need."""
        if feed < self.feed:
            self.feed = feed
            self.local.narrow(feed)
            self.latent.narrow(feed)

    def advance(self, tokens: Tensor, routed: Tensor, carried: Tensor | None = None) -> None:
        """Count tokens (B, n) as read, of which `routed` (B, n) went through the latent blocks.

        carried (B, n + 1, C): what the router keeps, before and after each of them.
        """
        self._before = self.local.length.clone(), self.latent.length.clone(), self.history.clone()
        self._carried = carried
        self._tokens, self._routed = tokens.clone(), routed  # the decoder writes the next ones into its tensor
        self.rollback(torch.full_like(self.length, tokens.shape[1]))

    def rollback(self, keep: Tensor) -> None:
        """Keep only the first `keep` (B,) bytes of each row of the last forward."""
        local, latent, history = self._before
        kept = torch.arange(self._tokens.shape[1], device=keep.device) < keep[:, None]
        newest = keep[:, None] + torch.arange(history.shape[1], device=keep.device)
        # in place: a replayed CUDA graph knows no other tensors than those it was captured with
        self.local.length.copy_(local + keep)
        self.latent.length.copy_(latent + (self._routed & kept).sum(1))
        self.history.copy_(torch.cat([history, self._tokens], dim=1).gather(1, newest))
        if self._carried is not None:
            self.carry.copy_(self._carried[torch.arange(len(keep), device=keep.device), keep])

    def memory_bytes(self) -> int:
        return sum(ring.memory.nbytes for ring in (self.local, self.latent)) + self.carry.nbytes


def prompt_feed(batch: int, longest: int) -> int:
    """How many bytes of each of `batch` texts one forward of their prompts, of which the longest has so many, reads."""
    return max(MAX_FEED, min(PREFILL // batch, longest))
