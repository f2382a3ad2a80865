"""Decoding a batch of texts where the model is: forward, verification, rollback and the next drafts in one step.

A step has fixed shapes, changes its state in place and tells the host only what was kept. So on a GPU it is captured
once and replayed as a CUDA graph: the 200 kernels of a small model's forward take less time to run than to launch.
The sampling is that of decode.py in torch, on the same random numbers.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from pico.cache import Cache
from pico.vocab import BOS, EOS, VOCABULARY

WARM_UP = 3  # real steps before the capture: they compile kernels, and libraries allocate what they keep


class BatchReader:
    """A batch of texts being read, on any device, in the model's dtype: `read` bytes, then `keep` the first few."""

    def __init__(self, model, batch: int):
        self.model, self.device = model, next(model.parameters()).device
        self.cache = Cache(model.config, batch, model.dtype, self.device)
        # what every Linear would cast in every forward, cast once
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        parameters = dict(model.named_parameters()) if model.dtype != torch.float32 else {}
        self.weights = {name: p.detach().to(model.dtype) for name, p in parameters.items() if name in linear}

    def computing(self):
        """In this context the reader decodes fastest: torch's threads are its user's matter."""
        return nullcontext()

    @torch.inference_mode()
    def forward(self, tokens: Tensor, disable_latent: bool):
        return functional_call(
            self.model, self.weights, (tokens,), dict(cache=self.cache, disable_latent=disable_latent)
        )

    def read(self, tokens: np.ndarray, disable_latent: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B, n) -> router weight (B, n), routed (B, n)."""
        out = self.forward(torch.from_numpy(tokens).to(self.device), disable_latent)
        return out.router_weight.cpu().numpy(), out.routed.cpu().numpy()

    @torch.inference_mode()
    def keep(self, count: np.ndarray) -> None:
        """Per row, how many (B,) bytes of the last read are part of its text."""
        self.cache.rollback(torch.from_numpy(count).to(self.device))


class BatchDecoder:
    """Continues the texts of a reader; every call is one forward. `last` (B, 1) are the bytes yet to be read."""

    def __init__(self, reader: BatchReader, last: np.ndarray, drafts: int, settings: dict):
        self.reader, self.last, self.drafts, self.settings = reader, last, drafts, settings
        batch, device = len(last), reader.device
        self.tokens = torch.zeros(batch, 1 + drafts, dtype=torch.long, device=device)  # drawn, then drafted
        self.q = torch.zeros(batch, drafts, VOCABULARY, device=device)  # what the drafts were drawn from
        self.u = torch.zeros(batch, 1 + 2 * drafts, dtype=widest(device), device=device)
        self.rows, ids = torch.arange(batch, device=device), torch.arange(VOCABULARY, device=device)
        self.mask = (ids == BOS) | (ids > EOS)  # control symbols that are never drawn
        self.run = Graphed(device) if device.type == "cuda" and settings["cuda_graph"] else run

    @torch.inference_mode()
    def __call__(self, u: np.ndarray) -> tuple[list, list, list, list]:
        """tokens (B, n) that were read, how many of them are kept (B,), routed (B, n), router weight (B, n).

        u (B, n + drafts) are uniform numbers to accept, draw and draft by.
        """
        chances = torch.from_numpy(u).to(self.u.dtype)  # here, for the device may not know float64
        if self.last is not None:  # nothing is drafted yet
            last, self.last = self.last, None
            record = self.step(*(x.to(self.reader.device) for x in (torch.from_numpy(last), chances)))
        else:
            self.u.copy_(chances)
            record = self.run(self.step, self.tokens, self.u)
        record = record.cpu()  # the one transfer back, and the only wait
        n = record.shape[1] // 3
        tokens, routed, weight, kept = record.split([n, n, n, 1], dim=1)
        return tokens.int().tolist(), kept[:, 0].int().tolist(), routed.bool().tolist(), weight.tolist()

    def step(self, tokens: Tensor, u: Tensor) -> Tensor:
        """Reads tokens (B, n), keeps what holds, leaves the next tokens and their q in place; u (B, n + drafts).

        All the host needs, as one tensor of floats (B, 3n + 1): tokens, routed, router weight, count kept.
        """
        n = tokens.shape[1]
        out = self.reader.forward(tokens, self.settings["disable_latent"])
        p = self.distribution(out.logits[:, :, 0])
        accepted, following = verify(p, tokens[:, 1:], self.q[:, : n - 1], u[:, :n])
        self.reader.cache.rollback(accepted + 1)
        parts = tokens, out.routed, out.router_weight, accepted[:, None] + 1
        record = torch.cat([part.float() for part in parts], dim=1)
        stream, drawn = out.stream[self.rows, accepted], following
        for k in range(self.drafts):
            logits = self.reader.model.draft_logits(stream, drawn, self.reader.cache.history)
            self.q[:, k] = self.distribution(logits)
            drawn = torch.cat([drawn, draw(self.q[:, k], u[:, n + k]).unsqueeze(1)], dim=1)
        self.tokens.copy_(drawn)
        return record

    def distribution(self, logits: Tensor) -> Tensor:
        """Logits (..., V) to the probabilities that are sampled from; see `decode.distribution`."""
        options = self.settings
        logits = logits.float().masked_fill(self.mask, float("-inf"))
        if options["temperature"] < 1e-5:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, best, 1.0)
        p = ((logits - logits.amax(-1, keepdim=True)) / options["temperature"]).exp()
        if options["top_k"]:
            p = p * (p >= p.topk(min(options["top_k"], VOCABULARY)).values[..., -1:])
        if options["top_p"] < 1:
            ordered, index = p.sort(dim=-1, descending=True, stable=True)
            inside = ordered.cumsum(-1) - ordered < options["top_p"] * ordered.sum(-1, keepdim=True)
            p = torch.zeros_like(p).scatter(-1, index, ordered * inside)
        if options["min_p"]:
            p = p * (p >= options["min_p"])
        return p / p.sum(-1, keepdim=True)


def widest(device: torch.device) -> torch.dtype:
    """The floats to draw by: float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(p: Tensor, u: Tensor) -> Tensor:
    """One sample of each distribution p (..., V), which need not sum to one, by uniform numbers u (...): (...) ids.

    Summed in u's dtype. In fp32 a u may be rounded up to 1, and would then draw what comes after all that is possible.
    """
    cumulative, u = p.cumsum(-1, dtype=u.dtype), u.clamp(max=1 - torch.finfo(u.dtype).eps)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1)


def verify(p: Tensor, drafts: Tensor, q: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`decode.verify` in torch: p (B, n, V), drafts (B, n - 1) drawn from q (B, n - 1, V), uniform u (B, n)."""
    chosen = drafts[..., None]
    ratio = (p[:, :-1].gather(-1, chosen) / q.gather(-1, chosen))[..., 0]
    accepted = (u[:, :-1] < ratio).cumprod(1).sum(1)
    at = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    p = p.gather(1, at)  # (B, 1, V)
    q = torch.cat([q, torch.zeros_like(p)], dim=1).gather(1, at)  # behind the last draft nothing is corrected
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # q = p but for rounding, and still rejected
    return accepted, draw(rest, u[:, -1:])


def run(function: Callable, *arguments):
    return function(*arguments)


class Graphed:
    """`run` for a function that works in place, always on the same tensors: as it is a few times, then as a CUDA graph.

    The function may not wait for the device, nor let a shape depend on values. What it returned at its capture is
    what every replay fills anew.
    """

    def __init__(self, device: torch.device):
        self.warm_up, self.graph, self.out = WARM_UP, None, None
        self.stream = torch.cuda.Stream(device)  # the default stream cannot be captured

    def __call__(self, function: Callable, *arguments):
        if self.warm_up:
            self.warm_up -= 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                out = function(*arguments)
            current.wait_stream(self.stream)
            return out
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as one that pins batches for training, may go on using the device meanwhile
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.out = function(*arguments)  # recorded, not run
        self.graph.replay()
        return self.out
