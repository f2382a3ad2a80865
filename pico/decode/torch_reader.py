"""Decoding a batch of texts where the model is: forward, verification, rollback and the next drafts in one step.

A step has fixed shapes, changes its state in place and tells the host only what was kept. So on a GPU it is captured
once and replayed as a CUDA graph: the 200 kernels of a small model's forward take less time to run than to launch.
"""

from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from pico.base.device import widest
from pico.base.graphs import Graphed, run
from pico.decode.sampling import Sampling, torch_draft, torch_penalised, torch_surprise, torch_verify
from pico.model.cache import MAX_FEED


class TorchReader:
    """A `Reader` of a batch of texts, on any device, in the model's dtype.

    On a GPU, cuda_graph False launches every kernel of every step from Python.
    """

    def __init__(self, model, batch: int, feed: int = MAX_FEED, disable_latent: bool = False, cuda_graph: bool = True):
        self.model, self.device = cast(model), next(model.parameters()).device
        self.alphabet, self.disable_latent, self.cuda_graph = model.alphabet, disable_latent, cuda_graph
        self.cache = self.model.new_cache(batch, feed)

    @torch.inference_mode()
    def forward(self, tokens: Tensor):
        return self.model(tokens, cache=self.cache, disable_latent=self.disable_latent)

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = self.forward(torch.from_numpy(tokens).to(self.device))
        self.said = out.logits[:, -1, 0].clone()
        return out.router_weight.cpu().numpy(), out.routed.cpu().numpy()

    @torch.inference_mode()
    def logits(self) -> np.ndarray:
        """(B, V) of head 0 after the last symbol read of each text."""
        return self.said.float().cpu().numpy()

    @torch.inference_mode()
    def keep(self, count: np.ndarray) -> None:
        self.cache.rollback(torch.from_numpy(count).to(self.device))

    @torch.inference_mode()
    def decoder(self, ids: list[list[int]], drafts: int, sampling: Sampling):
        self.cache.narrow()
        return nullcontext(TorchDecoder(self, ids, drafts, sampling))  # torch's threads are its user's matter


class TorchDecoder:
    """A `Decoder` of the texts of a reader; the last of the ids of each is yet to be read."""

    def __init__(self, reader: TorchReader, ids: list[list[int]], drafts: int, sampling: Sampling):
        self.reader, self.drafts, self.sampling = reader, drafts, sampling
        self.rng = np.random.default_rng(sampling.seed)
        self.last: np.ndarray | None = np.array([text[-1:] for text in ids])
        batch, device, alphabet = len(ids), reader.device, reader.alphabet
        self.tokens = torch.zeros(batch, 1 + drafts, dtype=torch.long, device=device)  # drawn, then drafted
        self.q = torch.zeros(batch, drafts, alphabet.size, device=device)  # what the drafts were drawn from
        self.u = torch.zeros(batch, 1 + 2 * drafts, dtype=widest(device), device=device)
        self.surprise = torch.full((batch, 1), torch.nan, device=device)  # of the token drawn
        self.rows = torch.arange(batch, device=device)
        self.banned = torch.from_numpy(sampling.banned(alphabet)).to(device)
        self.recent = torch.tensor(
            [sampling.recent(text[:-1], alphabet) for text in ids], dtype=torch.long, device=device
        )
        self.window = torch.arange(sampling.repetition_window, device=device)
        self.run = Graphed(device, warm_up=1) if device.type == "cuda" and reader.cuda_graph else run

    @torch.inference_mode()
    def __call__(self) -> tuple[list, list, list, list, list]:
        n = 1 if self.last is not None else 1 + self.drafts
        u = np.concatenate([self.rng.random((len(self.u), k)) for k in (n - 1, 1, self.drafts)], axis=1)
        chances = torch.from_numpy(u).to(self.u.dtype)  # here, for the device may not know float64
        if self.last is not None:  # nothing is drafted yet
            last, self.last = self.last, None
            record = self.step(*(x.to(self.reader.device) for x in (torch.from_numpy(last), chances)))
        else:
            self.u.copy_(chances)
            record = self.run(self.step, self.tokens, self.u)
        record = record.cpu()  # the one transfer back, and the only wait
        n = record.shape[1] // 4
        tokens, routed, weight, surprise, kept = record.split([n, n, n, n, 1], dim=1)
        kept = kept[:, 0].int().tolist()
        return tokens.int().tolist(), kept, routed.bool().tolist(), weight.tolist(), surprise.tolist()

    def step(self, tokens: Tensor, u: Tensor) -> Tensor:
        """Reads tokens (B, n), keeps what holds, leaves the next tokens and their q in place; u (B, n + drafts).

        All the host needs, as one tensor of floats (B, 4n + 1): tokens, routed, router weight, surprise, count kept.
        """
        n = tokens.shape[1]
        out = self.reader.forward(tokens)
        arguments = self.sampling, self.banned
        bits = torch_surprise(out.logits[:, :, 0])
        logits = torch_penalised(out.logits[:, :, 0], self.recent, tokens, self.sampling)
        accepted, following = torch_verify(logits, tokens[:, 1:], self.q[:, : n - 1], u[:, :n], *arguments)
        self.reader.cache.rollback(accepted + 1)
        if self.sampling.repetition_penalty != 1:
            text = torch.cat([self.recent, tokens], dim=1)
            self.recent.copy_(text.gather(1, accepted[:, None] + 1 + self.window))
        surprise = torch.cat([self.surprise, bits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]], dim=1)
        self.surprise.copy_(bits[self.rows, accepted].gather(-1, following))
        parts = tokens, out.routed, out.router_weight, surprise, accepted[:, None] + 1
        record = torch.cat([part.float() for part in parts], dim=1)
        self.tokens[:, :1] = following
        stream = out.stream[self.rows, accepted] if self.drafts else None
        for k in range(self.drafts):
            logits = self.reader.model.draft_logits(stream, self.tokens[:, : k + 1], self.reader.cache.history)
            logits = torch_penalised(logits[:, None], self.recent, self.tokens[:, : k + 1], self.sampling)[:, 0]
            torch_draft(logits, u[:, n + k], *arguments, self.q[:, k], self.tokens[:, k + 1])
        return record


def cast(model):
    """The model with what every forward would cast cast once; all else is shared."""
    fp32 = {id(p) for p in model.uncast_parameters()}
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    for p in model.parameters():
        if model.dtype != p.dtype and id(p) not in fp32:
            shared[id(p)] = torch.nn.Parameter(p.detach().to(model.dtype), requires_grad=False)
    return deepcopy(model, shared)
