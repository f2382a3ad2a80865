"""Self-speculative generation: the N heads draft, the same forward verifies, and the output is exactly the model's.

One forward a cycle reads the last sampled byte and the drafts behind it. Head 0 checks the drafts, and heads 1.. at the
last kept byte draw the next, each knowing those before it. Of one text on a CPU a draft is kept if it is the byte that
head 0 draws with the same noise: the text is byte for byte what it is without drafts. In a batch draft d is kept with
probability min(1, p(d) / q(d)), and at the first rejection a byte drawn from max(p - q, 0) is emitted (speculative
sampling, arXiv 2211.17192): the text is as likely as without. At temperature 0 both are greedy decoding.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from math import nan
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pico.base.config import LONGEST_PROMPT
from pico.base.errors import PicoError
from pico.base.memory import require
from pico.base.shapes import ModelConfig, Shape
from pico.base.symbols import Alphabet
from pico.decode.numpy_gpt import NumpyGPT
from pico.decode.numpy_reader import NumpyReader
from pico.decode.online import MixingDecoder
from pico.decode.sampling import Sampling
from pico.decode.torch_reader import TorchReader
from pico.model.cache import prompt_feed
from pico.model.cost import cache_bytes

MOST_TEXTS = 2**16

Prompt = bytes | str | list[int]


class Decoder(Protocol):
    """Continues the texts of a reader."""

    def __call__(self) -> tuple[list, list, list, list, list]:
        """One forward: tokens (B, n) that were read, how many are kept (B,); routed, router weight, surprise (B, n)."""


class Reader(Protocol):
    """Texts being read: `read` some bytes of each, then `keep` the first few of them."""

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B, n), n <= the feed it was made for -> router weight (B, n), routed (B, n)."""

    def keep(self, count: np.ndarray) -> None:
        """count (B,): so many bytes of the last read are part of each text, the others never were. May change."""

    def decoder(self, ids: list[list[int]], drafts: int, sampling: Sampling) -> AbstractContextManager[Decoder]:
        """What continues the texts, in a context in which it is fastest. ids: all of each text, its last one unread."""


class Step(NamedTuple):
    """One symbol of a text."""

    row: int  # which sample of the batch
    id: int
    bytes: bytes  # what it stands for; of the last symbol what is inside `max_bytes` and before a stop text
    routed: bool  # whether the latent blocks ran on it
    weight: float  # the router's gate in [0, 1]
    prompt: bool  # True for echoed symbols of the prompt
    surprise: float = nan  # bits: -log2 p of the model itself, whatever is sampled from; nan in the prompt


def generate(
    model,
    prompt: Prompt | list[Prompt] = b"",
    sampling: Sampling | None = None,
    *,
    speculative: bool = True,
    disable_latent: bool = False,
    echo: bool = False,
    cuda_graph: bool = True,
    mix_online: bool = False,
    **settings,
) -> "Generation":
    """Continue a prompt, or a list of prompts as one batch. Iterate over the result for one Step per symbol.

    A prompt is text, bytes, or ids, which begin with BOS or get one. settings: fields of `Sampling` to set or change,
    such as temperature=0 or max_bytes=100. echo gives the prompt's bytes first. On a GPU, cuda_graph False launches
    every kernel of every step from Python. mix_online draws from what pico/decode/online.py makes of the model, one
    symbol a forward.
    Raises PicoError for impossible settings and for texts that do not fit into memory.
    """
    sampling = Sampling.build(**{**dict(sampling or ()), **settings})
    several = isinstance(prompt, list) and not any(isinstance(p, int) for p in prompt)
    prompts: list[Any] = list(prompt) if several else [prompt]
    each = [to_ids(prompt, model.alphabet) for prompt in prompts]
    ids = [ids for ids in each for _ in range(sampling.num_samples)]
    if not 0 < len(ids) <= MOST_TEXTS:
        raise PicoError(f"prompt: {len(prompts)} of them, expected 1 to {MOST_TEXTS} texts in all")
    return Generation(model, ids, sampling, speculative, disable_latent, echo, cuda_graph, mix_online)


def to_ids(prompt: Prompt, alphabet: Alphabet) -> list[int]:
    """The ids of a prompt, BOS first. Raises PicoError for what is none."""
    prompt = prompt.encode() if isinstance(prompt, str) else prompt
    if len(prompt) > LONGEST_PROMPT:
        raise PicoError(f"prompt: {len(prompt):,} bytes or more, expected at most {LONGEST_PROMPT:,}")
    if not isinstance(prompt, list):
        ids = alphabet.encode(prompt).tolist()
    elif all(isinstance(i, int) and 0 <= i < alphabet.size for i in prompt):
        ids = prompt
    else:
        raise PicoError(f"prompt: expected text, bytes, or ids from 0 to {alphabet.size - 1}")
    return ids if ids[:1] == [alphabet.bos] else [alphabet.bos, *ids]


class Continuation:
    """One text as it grows. Symbols that may be part of a stop text are held back until they are known to be none.

    The text ends at a byte: where `max_bytes` or the stop text ask for it, its last symbol is cut.
    """

    def __init__(self, sampling: Sampling, stop_symbols: frozenset[int]):
        self.left, self.stop, self.stop_symbols = sampling.max_bytes, sampling.stop, stop_symbols
        self.held: list[Step] = []
        self.ended: str | None = None  # by a symbol: "end", by a text: "stop", by max_bytes: "length"

    def add(self, step: Step) -> list[Step]:
        """One more symbol, or stop symbol: the steps that are certain now."""
        before = sum(len(s.bytes) for s in self.held)
        if step.id in self.stop_symbols:
            self.ended = "end"
            return self._release(before)
        self.held.append(step)
        tail = b"".join(s.bytes for s in self.held)[: before + self.left]
        self.left -= len(tail) - before
        for end in range(before + 1, len(tail) + 1 if self.stop else 0):
            if written := max((len(s) for s in self.stop if tail.endswith(s, 0, end)), default=0):
                self.ended = "stop"
                return self._release(end - written)
        if not self.left:
            self.ended = "length"
        return self._release(len(tail) - (0 if self.ended else self._begun(tail)))

    def cut(self) -> list[Step]:
        """The text ends here: the steps that were held back."""
        self.ended = "length"
        return self._release(sum(len(step.bytes) for step in self.held))

    def _begun(self, tail: bytes) -> int:
        """The most bytes at its end with which a stop text begins."""
        return max((n for s in self.stop for n in range(1, len(s)) if tail.endswith(s[:n])), default=0)

    def _release(self, size: int) -> list[Step]:
        """The steps that lie within the first `size` bytes held, and at the end of the text what does of the next."""
        sure = []
        while self.held and len(self.held[0].bytes) <= size:
            sure.append(self.held.pop(0))
            size -= len(sure[-1].bytes)
        if self.ended and size:
            sure.append(self.held[0]._replace(bytes=self.held[0].bytes[:size]))
        return sure


class Generation:
    """An iterable of Steps; reading it twice generates twice. Brought up to date by every forward:

    `ended`, of each text: None, or "end" (a stop symbol, as at the end of its document), "stop" (a stop text), "length"
    `stats`:
    bytes, seconds, bytes_per_second   generated bytes of all texts, and the time that making them took: what happens
                                       between two steps, outside, is not counted
    symbols                            as which these bytes were drawn: bytes or tokens
    forwards                           all of them, those that read the prompt included
    bytes_per_forward                  generated bytes of a text per forward that reads them: of a byte model 1 without
                                       speculation, at most 1 + drafts. Forwards that read only the prompt, or after
                                       the text ended, are out
    acceptance                         per draft, how often its symbol was kept in those same forwards
    routed_fraction                    of the generated symbols
    """

    def __init__(self, model, ids, sampling, speculative, disable_latent, echo, cuda_graph, mix_online=False):
        self.model, self.ids, self.sampling, self.echo = model, ids, sampling, echo
        self.drafts, self.mix_online = model.config.drafts if speculative and not mix_online else 0, mix_online
        self.options = dict(disable_latent=disable_latent, cuda_graph=cuda_graph)  # of the reader
        self.stop_symbols = sampling.ends(model.alphabet)
        self.prompts = [model.alphabet.decode(text) for text in ids]
        self.stats: dict = {}
        self.ended: list[str | None] = [None] * len(ids)

    def __iter__(self) -> Iterator[Step]:
        training = self.model.training
        self.model.eval()
        try:
            yield from self._steps()
        finally:
            self.model.train(training)

    def _steps(self) -> Iterator[Step]:
        seconds, started = 0.0, time.perf_counter()
        texts = [Continuation(self.sampling, self.stop_symbols) for _ in self.ids]
        table = self.model.alphabet.table
        size = symbols = routed_symbols = decodes = 0
        accepted = [0] * self.drafts
        for forwards, (tokens, keep, routed, weight, surprise, prompt) in enumerate(self._cycles(), start=1):
            sure = []
            for row, (text, kept) in enumerate(zip(texts, keep)):
                if not text.ended and kept > prompt[row] and tokens[row][0] not in self.stop_symbols:
                    decodes += 1
                    accepted = [n + (kept > k) for k, n in enumerate(accepted, start=1)]
                for i in range(kept):
                    symbol = tokens[row][i]
                    seen = routed[row][i], weight[row][i], i < prompt[row], surprise[row][i]
                    step = Step(row, symbol, table[symbol], *seen)
                    if step.prompt:
                        if self.echo and step.bytes:
                            sure.append(step)
                    elif not text.ended:
                        sure += text.add(step)
            made = [step for step in sure if not step.prompt]
            symbols += len(made)
            size += sum(len(step.bytes) for step in made)
            routed_symbols += sum(step.routed for step in made)
            seconds += time.perf_counter() - started
            self.ended = [text.ended for text in texts]
            self.stats = {
                "bytes": size,
                "symbols": symbols,
                "seconds": seconds,
                "bytes_per_second": size / seconds,
                "forwards": forwards,
                "bytes_per_forward": size / max(decodes, 1),
                "acceptance": [n / max(decodes, 1) for n in accepted],
                "routed_fraction": routed_symbols / max(symbols, 1),
            }
            yield from sure
            if all(self.ended):
                return
            started = time.perf_counter()

    def _cycles(self) -> Iterator[tuple]:
        """One forward each: tokens, how many are kept, routed, weight, surprise, how many belong to the prompt."""
        texts, known, feed = self._reader(max(map(len, self.ids)) - 1)  # all but the last symbol of each prompt
        for start in range(known, max(map(len, self.ids)) - 1, feed):
            piece = [ids[start : min(start + feed, len(ids) - 1)] for ids in self.ids]
            keep = np.array([len(ids) for ids in piece])
            weight, routed = texts.read(np.array([ids + [0] * (keep.max() - len(ids)) for ids in piece]))
            texts.keep(keep)
            unknown = np.full(weight.shape, nan).tolist()
            yield piece, keep.tolist(), routed.tolist(), weight.tolist(), unknown, keep.tolist()

        prompt = [1] * len(self.ids)
        with texts.decoder(self.ids, self.drafts, self.sampling) as decode:
            if self.mix_online:
                decode = MixingDecoder(texts, self.ids, self.sampling)
            while True:
                yield *decode(), prompt
                prompt = [0] * len(self.ids)

    def _reader(self, longest: int) -> tuple[Reader, int, int]:
        """What reads the texts, how many symbols of them it has read, and how many of the prompts it reads at once."""
        feed = prompt_feed(len(self.ids), longest)
        return reader(self.model, len(self.ids), feed, **self.options), 0, feed


def needs_torch(config: Shape) -> bool:
    """Whether it is a Pico that numpy knows nothing of."""
    return isinstance(config, ModelConfig) and bool(config.torch_alone)


def reader(model, batch: int, feed: int, disable_latent: bool = False, cuda_graph: bool = True) -> Reader:
    """The fastest reader of `batch` texts for this model where it is, `feed` bytes of each at a time.

    Raises PicoError if they do not fit there.
    """
    size, device = batch * cache_bytes(model.config, model.dtype, feed), next(model.parameters()).device
    require(size, device, f"keys and values of {batch} texts do not fit", "generate fewer at a time")
    if batch == 1 and device.type == "cpu" and model.dtype == torch.float32 and not needs_torch(model.config):
        return (NumpyReader if model.config.routes else NumpyGPT)(model, disable_latent)
    return TorchReader(model, batch, feed, disable_latent, cuda_graph)
