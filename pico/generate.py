"""Self-speculative generation: the N heads draft, the same forward verifies, and the output is exactly the model's.

One forward a cycle reads the last sampled byte and the drafts behind it. Head 0 checks the drafts by speculative
sampling (arXiv 2211.17192): draft d is kept with probability min(1, p(d) / q(d)); at the first rejection the byte
drawn from max(p - q, 0) is emitted instead. Heads 1.. at the last kept byte are the next drafts. At temperature 0
both distributions are one-hot and the same lines are greedy decoding.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pico.cache import MAX_FEED, Cache
from pico.config import PicoError
from pico.vocab import BOS, EOS


class Step(NamedTuple):
    row: int  # which sample of the batch
    byte: int
    routed: bool  # whether the latent blocks ran on this byte
    weight: float  # the router's gate in [0, 1]
    prompt: bool  # True for echoed bytes of the prompt


def generate(
    model,
    prompt: bytes | str | list[bytes | str] = b"",
    *,
    max_bytes: int = 512,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = 0,
    num_samples: int = 1,
    speculative: bool = True,
    disable_latent: bool = False,
    echo: bool = False,
) -> "Generation":
    """Continue a prompt, or a list of prompts as one batch. Iterate over the result for one Step per byte.

    top_k 0, top_p 1 and min_p 0 are off; seed None draws a new one; num_samples continues each prompt so many times;
    echo gives the prompt's bytes first. Stops at the end of the document. Raises PicoError for impossible settings.
    """
    return Generation(**locals())


class Generation:
    """An iterable of Steps; `stats` grows while it is read. Reading it twice generates twice."""

    def __init__(self, model, prompt, num_samples, seed, **settings):
        prompts = prompt if isinstance(prompt, list) else [prompt]
        prompts = [p.encode() if isinstance(p, str) else bytes(p) for p in prompts]
        self.model, self.seed, self.settings = model, seed, settings
        self.prompts = [p for p in prompts for _ in range(num_samples)]
        _check(num_samples=num_samples, **settings)
        self.stats: dict = {}

    def __iter__(self) -> Iterator[Step]:
        training = self.model.training
        self.model.eval()
        try:
            yield from self._steps()
        finally:
            self.model.train(training)

    def _steps(self) -> Iterator[Step]:
        options, started = self.settings, time.perf_counter()
        limit, rows = options["max_bytes"], len(self.prompts)
        left, routed_bytes = [limit] * rows, 0
        for count, (tokens, keep, routed, weight, prompt) in enumerate(self._cycles(), start=1):
            for row, kept in enumerate(keep):
                for i in range(kept):
                    byte, is_prompt = tokens[row][i], i < prompt[row]
                    if is_prompt:
                        if options["echo"] and byte < 256:
                            yield Step(row, byte, routed[row][i], weight[row][i], True)
                    elif left[row] > 0:
                        left[row] = left[row] - 1 if byte != EOS else -left[row]  # negative: stopped by the model
                        if byte != EOS:
                            routed_bytes += routed[row][i]
                            yield Step(row, byte, routed[row][i], weight[row][i], False)
            self._count(time.perf_counter() - started, [limit - abs(x) for x in left], count, routed_bytes)
            if all(x <= 0 for x in left):
                return

    def _count(self, seconds: float, made: list[int], forwards: int, routed: int) -> None:
        total, tried = sum(made), max(self._verified, 1)
        self.stats = {
            "bytes": total,
            "seconds": seconds,
            "bytes_per_second": total / seconds,
            "forwards": forwards,
            "bytes_per_forward": total / len(made) / forwards,
            "acceptance": [n / tried for n in self._accepted],
            "routed_fraction": routed / max(total, 1),
        }

    @torch.inference_mode()
    def _cycles(self) -> Iterator[tuple]:
        """One forward each: tokens, how many of them are kept, routed, weight, how many belong to the prompt."""
        model, options = self.model, self.settings
        device = next(model.parameters()).device
        off = options["disable_latent"]
        drafts = model.config.next_tokens - 1 if options["speculative"] else 0
        self._accepted, self._verified = [0] * drafts, 0
        generator = torch.Generator(device)
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)

        prompts = [[BOS, *p] for p in self.prompts]
        cache = Cache(model.config, len(prompts), model.dtype, device)
        for start in range(0, max(map(len, prompts)) - 1, MAX_FEED):  # all but the last byte of each prompt
            piece = [p[start : min(start + MAX_FEED, len(p) - 1)] for p in prompts]
            widest = max(map(len, piece))
            tokens = torch.tensor([p + [0] * (widest - len(p)) for p in piece], device=device)
            out = model(tokens, cache=cache, disable_latent=off)
            keep = [len(p) for p in piece]
            cache.rollback(torch.tensor(keep, device=device))
            yield piece, keep, out.routed.tolist(), out.router_weight.tolist(), keep

        tokens = torch.tensor([p[-1:] for p in prompts], device=device)
        q = None
        prompt = [1] * len(prompts)
        while True:
            out = model(tokens, cache=cache, disable_latent=off)
            logits = out.logits.float()
            p = self.distribution(logits[:, :, 0])  # (B, n, V)
            accepted, following = verify(p, tokens[:, 1:], q, generator)
            keep = accepted + 1
            cache.rollback(keep)
            kept = keep.tolist()
            yield tokens.tolist(), kept, out.routed.tolist(), out.router_weight.tolist(), prompt
            prompt = [0] * len(prompts)
            if tokens.shape[1] > 1:
                self._verified += len(kept)
                for k in range(drafts):
                    self._accepted[k] += sum(n > k + 1 for n in kept)
            tokens = following
            if drafts:
                heads = logits[torch.arange(len(kept), device=device), accepted, 1:]  # (B, N - 1, V)
                q = self.distribution(heads)
                tokens = torch.cat([tokens, draw(q, generator)], dim=1)

    def distribution(self, logits: Tensor) -> Tensor:
        """Logits (..., V) to the probabilities that are sampled from; control symbols other than EOS never are."""
        options = self.settings
        logits = logits.clone()
        logits[..., BOS], logits[..., EOS + 1 :] = -torch.inf, -torch.inf
        if options["temperature"] == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        p = (logits / options["temperature"]).softmax(-1)
        if options["top_k"]:
            kth = p.topk(min(options["top_k"], p.shape[-1])).values[..., -1:]
            p = p * (p >= kth)
        if options["top_p"] < 1:
            ordered, index = p.sort(-1, descending=True)
            p = p * torch.empty_like(p).scatter_(-1, index, (ordered.cumsum(-1) - ordered < options["top_p"]).to(p))
        if options["min_p"]:
            p = p * (p >= options["min_p"] * p.amax(-1, keepdim=True))
        return p / p.sum(-1, keepdim=True)


def draw(p: Tensor, generator: torch.Generator) -> Tensor:
    """One sample of each distribution p (..., V), which need not sum to one: (...) ids."""
    cumulative = p.double().cumsum(-1)
    u = torch.rand(p.shape[:-1], generator=generator, device=p.device, dtype=torch.double)
    return (cumulative <= (u[..., None] * cumulative[..., -1:])).sum(-1).clamp(max=p.shape[-1] - 1)


def verify(p: Tensor, drafts: Tensor, q: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Speculative sampling (arXiv 2211.17192, algorithm 1).

    p (B, n, V) the model after each byte read, drafts (B, n - 1) drawn from q (B, n - 1, V). Returns how many drafts
    are accepted (B,) and the byte that follows them (B, 1), distributed exactly as p.
    """
    if q is None or drafts.shape[1] == 0:
        return torch.zeros(len(p), dtype=torch.long, device=p.device), draw(p[:, :1], generator)
    chosen = drafts[..., None]
    ratio = p[:, :-1].gather(-1, chosen).squeeze(-1) / q.gather(-1, chosen).squeeze(-1)
    u = torch.rand(ratio.shape, generator=generator, device=p.device)
    accepted = (u < ratio).long().cumprod(dim=1).sum(dim=1)
    rest = torch.cat([(p[:, :-1] - q).clamp(min=0), p[:, -1:]], dim=1)  # the corrected distributions
    rest = rest.gather(1, accepted[:, None, None].expand(-1, 1, p.shape[-1]))  # (B, 1, V)
    return accepted, draw(rest, generator)


def _check(num_samples, max_bytes, temperature, top_k, top_p, min_p, **_):
    problems = [
        text
        for bad, text in (
            (not 0 <= temperature < float("inf"), f"temperature = {temperature}: expected 0 (greedy) or more"),
            (top_k < 0, f"top-k = {top_k}: expected 0 (off) or more"),
            (not 0 < top_p <= 1, f"top-p = {top_p}: expected a number above 0 and at most 1 (off)"),
            (not 0 <= min_p <= 1, f"min-p = {min_p}: expected a number from 0 (off) to 1"),
            (max_bytes < 1, f"max-bytes = {max_bytes}: expected 1 or more"),
            (num_samples < 1, f"num-samples = {num_samples}: expected 1 or more"),
        )
        if bad
    ]
    if problems:
        raise PicoError("; ".join(problems))
