"""A text that goes on: what a model has read of it is kept between turns, so that a turn reads only what is new."""

from collections.abc import Iterator

import numpy as np

from pico.base.config import PREFILL
from pico.decode.generation import Generation, Prompt, Reader, reader, to_ids
from pico.decode.sampling import Sampling
from pico.decode.torch_reader import TorchReader
from pico.model.cache import prompt_feed


class Session:
    """One text of a model, which is continued again and again.

    Pico's windows forget, so its text may grow without end. The token twin looks back at `context` symbols, and what
    is before them it no longer sees: a caller whose text is longer drops the oldest turns, and the rest is read anew.
    """

    def __init__(self, model, disable_latent: bool = False):
        self.model, self.options = model, dict(disable_latent=disable_latent)
        self.context: int | None = getattr(model.config, "max_context", None)
        self.read: list[int] = []  # the ids that the reader knows, and how many of them it read last
        self.last = 0
        self.reader: Reader | None = None

    def generate(self, prompt: Prompt, sampling: Sampling | None = None, **settings) -> "_Turn":
        """Continue the whole text so far: a `Generation` of one row, which reads what the session has not read yet.

        Where the text is another than what was read, by more than the last forward, it is read from its start.
        """
        sampling = Sampling.build(**{**dict(sampling or ()), **settings, "num_samples": 1})
        return _Turn(self, to_ids(prompt, self.model.alphabet), sampling)

    def begin(self, ids: list[int], feed: int) -> tuple[Reader, int]:
        """A reader that has read a beginning of the ids, and how many those are; the last id is always left."""
        same = next(
            (i for i, (a, b) in enumerate(zip(self.read, ids[:-1])) if a != b), min(len(self.read), len(ids) - 1)
        )
        before = len(self.read) - self.last
        if self.reader is None or same < before:
            self.reader, self.read, self.last = reader(self.model, 1, feed, **self.options), [], 0
        elif same < len(self.read):
            self.reader.keep(np.array([same - before]))
            self.read, self.last = self.read[:same], same - before
        return self.reader, len(self.read)

    def note(self, tokens: list[int]) -> None:
        """The reader has read and kept these."""
        self.read, self.last = [*self.read, *tokens], len(tokens)


class _Turn(Generation):
    """The continuation of a session's text. Reading it twice generates twice; what comes of it last is what is kept."""

    def __init__(self, session: Session, ids: list[int], sampling: Sampling):
        super().__init__(session.model, [ids], sampling, True, echo=False, cuda_graph=True, **session.options)
        self.session = session

    def _cycles(self) -> Iterator[tuple]:
        for cycle in super()._cycles():
            tokens, keep = cycle[:2]
            self.session.note(tokens[0][: keep[0]])
            yield cycle

    def _reader(self, longest: int) -> tuple[Reader, int, int]:
        texts, known = self.session.begin(self.ids[0], prompt_feed(1, longest))
        return texts, known, texts.cache.feed if isinstance(texts, TorchReader) else PREFILL
