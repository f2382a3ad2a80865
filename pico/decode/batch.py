"""Continuous batching: texts of many users go through the model together, and join and leave between two forwards.

What a text says does not depend on who else is there: each symbol is drawn with noise of the text's own seed
(`sampling.Noise`). So any number of drafts may be tried, many for one text and few for each of eight, and all give the
text that `generate` gives on a CPU.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from math import nan
from typing import Any

import numpy as np
import torch

from pico.base.config import PREFILL
from pico.base.memory import require
from pico.base.threads import blas_threads
from pico.decode.generation import Continuation, Step, needs_torch
from pico.decode.numpy_batch import NumpyBatch
from pico.decode.numpy_gpt import NumpyGPT
from pico.decode.numpy_reader import NumpyReader, TextState
from pico.decode.sampling import Noise, Sampling, numpy_draw, numpy_filtered, numpy_penalised, numpy_surprise
from pico.decode.torch_batch import TorchBatch
from pico.decode.torch_reader import cast
from pico.model.cost import cache_bytes

PIECE = 256  # symbols of prompts that are read between two forwards of the texts that grow
ALONE = 1024  # the same where none grows
REMEMBERED = 64 * 2**20  # bytes of states of texts that are kept, to go on from


class GrowingText:
    """One text that grows. `heard(steps, ended, choices)` is called after each forward that made some of it:

    the steps that are certain now; None, or how it ended as in `Generation`; of each step the (id, bits) of the `top`
    likeliest symbols there. Another thread may set `cancelled` at any time.
    """

    def __init__(
        self, ids: list[int], sampling: Sampling, most: int, alphabet, disable_latent: bool, top: int, heard: Callable
    ):
        self.ids, self.sampling, self.most, self.disable_latent = ids, sampling, most, disable_latent
        self.top, self.heard = top, heard
        self.cancelled, self.begun = False, False
        self.read = self.reused = 0  # symbols of the prompt, and those that were known from another text
        self.state: TextState | None = None  # between two pieces of the prompt
        self.growing = Continuation(sampling, sampling.ends(alphabet))
        self.banned = sampling.banned(alphabet)
        self.recent = sampling.recent(ids[:-1], alphabet)
        self.pending = ids[-1:]  # drawn and not read yet, and drafts behind it
        self.decided = 0  # symbols that were drawn
        self.surprise, self.choices = nan, []  # of the symbol drawn last
        self.told: list[list] = []  # choices of the steps that are not certain
        self.noise = Noise(sampling, alphabet.size)


def readers(model, rows: int, feed: int) -> tuple[Any, Any]:
    """What reads a prompt, and what reads up to `rows` texts by `feed` symbols each; the fastest where the model is.

    Raises PicoError if the texts do not fit there.
    """
    device = next(model.parameters()).device
    size = rows * cache_bytes(model.config, model.dtype, feed)
    require(size, device, f"keys and values of {rows} texts do not fit", "serve fewer at a time")
    if device.type == "cpu" and model.dtype == torch.float32 and not needs_torch(model.config):
        one = (NumpyReader if model.config.routes else NumpyGPT)(model)
        return one, NumpyBatch(one, rows, feed)
    model = cast(model)
    return TorchBatch(model, 1, PREFILL), TorchBatch(model, rows, feed)


class Engine:
    """Grows up to `rows` texts of a model at once; more wait for their turn."""

    def __init__(self, model, rows: int = 16):
        self.model, self.alphabet, self.rows = model, model.alphabet, rows
        self.most = model.config.drafts
        self.reader, self.batch = readers(model.eval(), rows, 1 + self.most)
        self.empty = self.reader.state()
        self.texts: list[GrowingText] = []  # a row each
        self.waiting: deque[GrowingText] = deque()
        self.remembered: OrderedDict[tuple, TextState] = OrderedDict()
        self.reading: GrowingText | None = None  # whose prompt is being read
        self.wake, self.closed = threading.Condition(), False
        self.stats = dict(forwards=0, symbols=0, bytes=0, prompt_symbols=0, remembered_symbols=0)

    # --- from any thread ----------------------------------------------------------------------------------------------

    def add(
        self, ids: list[int], sampling: Sampling, heard: Callable, most: int = 10**9, disable_latent=False, top: int = 0
    ) -> GrowingText:
        """A text that begins with ids, as `to_ids` gives them, and grows by at most so many symbols from now on."""
        text = GrowingText([*ids], sampling, most, self.alphabet, disable_latent, top, heard)
        with self.wake:
            self.waiting.append(text)
            self.wake.notify()
        return text

    def run(self) -> None:
        """Until closed: grows what there is to grow."""
        with blas_threads(self.reader.threads):
            while True:
                with self.wake:
                    self.wake.wait_for(lambda: self.closed or self.waiting or self.texts)
                    if self.closed:
                        return
                try:
                    self.step()
                except Exception:  # of one text, perhaps; whatever it was, all whom it may have met are told
                    logging.getLogger(__name__).exception("a forward failed; the texts that grew are lost")
                    for text in filter(None, [*self.texts, self.reading]):
                        text.heard([], "failed", [])
                    self.texts, self.batch.texts, self.reading = [], 0, None
                    self.remembered.clear()

    def close(self) -> None:
        with self.wake:
            self.closed = True
            self.wake.notify()

    # --- a step -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Some of the prompts, and one forward of the texts that grow."""
        for row in reversed(range(len(self.texts))):
            if self.texts[row].cancelled:
                self._leave(row)
        self._read_prompts(PIECE if self.texts else ALONE)
        if self.texts:
            self._grow()

    def _read_prompts(self, symbols: int) -> None:
        """Texts in turn, a piece each, until so many symbols were read; who is through joins."""
        while symbols > 0 and self.waiting and len(self.texts) < self.rows:
            self.reading = text = self.waiting.popleft()
            if text.cancelled:
                continue
            if text.state is None:
                text.state, text.read = self._known(text)
                text.reused = text.read
            self.reader.disable_latent = text.disable_latent
            self.reader.restore(text.state)
            skimmed = len(text.ids) - 1 - self.reader.tail
            piece = text.ids[text.read : skimmed if text.read < skimmed else -1][:symbols]
            if piece:
                (self.reader.skim if text.read < skimmed else self.reader.read)(np.array([piece]))
                self.reader.keep(np.array([len(piece)]))
                text.read, text.state = text.read + len(piece), self.reader.state()
            symbols -= len(piece)
            self.stats["prompt_symbols"] += len(piece)
            if text.read < len(text.ids) - 1:
                self.waiting.append(text)
                continue
            self._remember(text.ids[:-1], text)
            self.batch.join(text.state, text.disable_latent)
            self.texts.append(text)
            text.state = None
        self.reading = None

    def _grow(self) -> None:
        texts, n = self.texts, 1 + self._drafts()
        rows = np.arange(len(texts))
        tokens = np.array([[*text.pending, *[0] * n][:n] for text in texts])
        weight, routed = self.batch.read(tokens)
        logits = self.batch.logits()
        bits = numpy_surprise(logits)
        noise = np.stack([text.noise(text.decided, 2 * n) for text in texts])  # (B, 2n, V)
        drawn = self._draw(logits, tokens, noise[:, :n])  # (B, n)
        accepted = (tokens[:, 1:] == drawn[:, :-1]).cumprod(1).sum(1)
        following = drawn[rows, accepted]

        kept = accepted + 1
        surprises = bits[rows[:, None], np.arange(n), drawn].tolist()
        facts = tokens.tolist(), routed.tolist(), weight.tolist(), surprises
        for row, text in enumerate(texts):
            kept[row] = self._hear(row, text, int(kept[row]), *(each[row] for each in facts), bits[row])
        self.batch.keep(kept)
        self.stats["forwards"] += 1

        pending = following[:, None]
        for k in range(1, n):
            logits = self.batch.draft_logits(kept - 1, pending)[:, None]
            ahead = self._draw(logits, pending, noise[rows, accepted + k][:, None])
            pending = np.concatenate([pending, ahead], axis=1)
        for text, symbols in zip(texts, pending.tolist()):
            text.pending = symbols
        for row in reversed(rows.tolist()):
            if texts[row].growing.ended:
                self._leave(row)

    def _drafts(self) -> int:
        """How many drafts each text tries: the more texts, the more a draft costs that is not kept."""
        return min(self.most, 5 if len(self.texts) <= 4 else 4 if len(self.texts) <= 8 else 3)

    def _draw(self, logits: np.ndarray, tokens: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The symbol after each of the last n tokens: logits and noise (B, n, V) -> (B, n)."""
        for row, text in enumerate(self.texts):
            penalised = numpy_penalised(logits[row], text.recent, tokens[row].tolist(), text.sampling)
            logits[row] = numpy_filtered(penalised, text.sampling, text.banned)
        return numpy_draw(logits, noise, np.array([text.banned for text in self.texts])[:, None])

    def _hear(self, row: int, text: GrowingText, kept: int, tokens, routed, weight, surprise, bits) -> int:
        """Tells what a text has gained in a forward; returns how many of the tokens it keeps."""
        sure: list[Step] = []
        for i in range(kept):
            if text.begun:
                own = text.surprise if i == 0 else surprise[i - 1]
                step = Step(row, tokens[i], self.alphabet.table[tokens[i]], routed[i], weight[i], False, own)
                if text.top:
                    text.told.append(text.choices if i == 0 else likeliest(bits[i - 1], text.top))
                sure += text.growing.add(step)
                text.ids.append(tokens[i])
                text.most -= 1
                if not (text.most or text.growing.ended):
                    sure += text.growing.cut()
                if text.growing.ended:
                    kept = i + 1
                    break
            text.begun = True
        text.surprise = surprise[kept - 1]
        if text.top:
            text.choices = likeliest(bits[kept - 1], text.top)
        text.recent = [*text.recent, *tokens[:kept]][-len(text.recent) :]
        text.decided += kept
        self.stats["symbols"] += len(sure)
        self.stats["bytes"] += sum(len(step.bytes) for step in sure)
        if sure or text.growing.ended:
            told, text.told = text.told[: len(sure)], text.told[len(sure) :]
            text.heard(sure, text.growing.ended, told)
        return kept

    def _leave(self, row: int) -> None:
        self._remember(self.texts[row].ids, self.texts[row], row)
        self.batch.leave(row)
        last = self.texts.pop()
        if row < len(self.texts):
            self.texts[row] = last

    # --- what was read before -----------------------------------------------------------------------------------------

    def _known(self, text: GrowingText) -> tuple[TextState, int]:
        """The longest beginning of a text that was read before, and how many symbols that is."""
        best: Any = ()
        for key in self.remembered:
            ids, latent_off = key
            if latent_off == text.disable_latent and len(best and best[0]) < len(ids) < len(text.ids):
                best = key if text.ids[: len(ids)] == list(ids) else best
        if not best:
            return self.empty, 0
        self.remembered.move_to_end(best)
        self.stats["remembered_symbols"] += len(best[0])
        return self.remembered[best], len(best[0])

    def _remember(self, ids: list[int], text: GrowingText, row: int | None = None) -> None:
        """What it takes to go on from the end of these ids: of a turn of a chat, or of a prompt that is asked again."""
        state = self.batch.of(row) if row is not None else text.state
        if len(ids) < 16 or state is None or (tuple(ids), text.disable_latent) in self.remembered:
            return
        self.remembered[tuple(ids), text.disable_latent] = state
        while sum(each.memory_bytes() for each in self.remembered.values()) > REMEMBERED:
            self.remembered.popitem(last=False)


def likeliest(bits: np.ndarray, count: int) -> list[tuple[int, float]]:
    """(id, bits) of the symbols of which bits (V,) are least."""
    best = np.argpartition(bits, count)[:count]
    return [(int(i), float(bits[i])) for i in best[np.argsort(bits[best])]]
