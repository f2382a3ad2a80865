"""Several texts read at once where the model is, on any device and in its dtype: what numpy_batch.py is for a CPU.

The rings of pico/model/cache.py have a row for each text that may come. A forward sees those of the first ones, which
are in use; where a text leaves, the last one takes its place.
"""

from copy import copy

import numpy as np
import torch
from torch import Tensor

from pico.base.routers import Rule
from pico.base.threads import blas
from pico.decode.numpy_reader import StackState, TextState
from pico.model.cache import Cache, Ring


class RowRule(Rule):
    """The rule of a model in some rows, and no routing in the others."""

    def __init__(self, rule: Rule, off: Tensor):
        self.rule, self.off = rule, off  # (B, 1)

    def choose(self, at):
        return self.rule.choose(at) & ~self.off


class TorchBatch:
    """Up to so many texts of a model, which is in eval mode and read by `feed` symbols of each at a time.

    With one text it is also what a prompt is read with, before it joins others.
    """

    tail, disable_latent = 0, False

    def __init__(self, model, texts: int, feed: int):
        self.model, self.alphabet, self.device = model, model.alphabet, model.embedding.weight.device
        self.cache: Cache = model.new_cache(texts, feed)
        self.latent_off = torch.zeros(texts, 1, dtype=torch.bool, device=self.device)
        self.texts, self.threads = 0, blas().get_num_threads()

    @property
    def rings(self) -> list[Ring]:
        return [self.cache.local, self.cache.latent]

    def first(self, texts: int) -> Cache:
        """The cache of the first rows, which shares its memory with that of all."""
        some = copy(self.cache)
        some.history, some.carry = self.cache.history[:texts], self.cache.carry[:texts]
        some.local, some.latent = (copy(ring) for ring in self.rings)
        for ring in some.local, some.latent:
            ring.memory, ring.length = ring.memory[:, : texts * ring.slots], ring.length[:texts]
            ring._row = ring._row[:texts]
        return some

    @torch.inference_mode()
    def join(self, state: TextState, latent_off: bool) -> None:
        """One more row, the last one."""
        row = self.texts
        for ring, kept in zip(self.rings, (state.local, state.latent)):
            assert kept
            positions = torch.arange(kept.length - kept.memory.shape[1], kept.length, device=self.device)
            ring.memory[:, row * ring.slots + positions % ring.slots] = kept.memory
            ring.length[row] = kept.length
        self.cache.history[row] = torch.tensor(state.history, device=self.device)
        assert state.carry is not None
        self.latent_off[row], self.cache.carry[row] = latent_off, state.carry
        self.texts += 1

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """The last row has this number from now on."""
        self.texts -= 1
        for ring in self.rings:
            rows = ring.memory.unflatten(1, (-1, ring.slots))
            rows[:, row] = rows[:, self.texts].clone()
            ring.length[row] = ring.length[self.texts]
        for each in self.cache.history, self.cache.carry, self.latent_off:
            each[row] = each[self.texts].clone()

    @torch.inference_mode()
    def of(self, row: int) -> TextState:
        kept = []
        for ring in self.rings:
            length = int(ring.length[row])
            positions = torch.arange(max(0, length - ring.window), length, device=self.device)
            kept.append(StackState(length, ring.memory[:, row * ring.slots + positions % ring.slots]))
        return TextState(*kept, self.cache.history[row].tolist(), self.cache.carry[row].clone())

    def state(self) -> TextState:
        return self.of(0)

    def restore(self, state: TextState) -> None:
        """Read one text, from there."""
        self.texts = 0
        self.join(state, self.disable_latent)

    @torch.inference_mode()
    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.now, off = self.first(len(tokens)), self.latent_off[: len(tokens)]
        rule = RowRule(self.model.config.rule, off) if self.model.config.routes and off.any() else None
        self.out = self.model(torch.from_numpy(tokens).to(self.device), cache=self.now, rule=rule)
        return self.out.router_weight.float().cpu().numpy(), self.out.routed.cpu().numpy()

    skim = read

    @torch.inference_mode()
    def keep(self, count: np.ndarray) -> None:
        """count (B,)"""
        self.now.rollback(torch.from_numpy(count).to(self.device))

    @torch.inference_mode()
    def logits(self) -> np.ndarray:
        """(B, n, V) of head 0 after each symbol read."""
        return self.out.logits[:, :, 0].float().cpu().numpy()

    @torch.inference_mode()
    def draft_logits(self, row: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """(B, V) of what follows `drawn` (B, k), after the `row`-th (B,) of the symbols read of each text, its last."""
        stream = self.out.stream[torch.arange(len(row)), torch.from_numpy(row)]
        return (
            self.model.draft_logits(stream, torch.from_numpy(drawn).to(self.device), self.now.history)
            .float()
            .cpu()
            .numpy()
        )
