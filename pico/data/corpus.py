"""The built-in corpora, which need no file: stories, and conversations on spelling and on the model itself."""

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data.chat import pack_turns
from pico.data.documents import Documents

BUILT_IN = {
    "stories": "stories",
    "spelling": "conversations on the letters of words",
    "identity": "conversations on the model itself",
}
PER_EPOCH, VALIDATION = 5000, 1000
FIRST_TRAINED_ON = 1_000_000  # documents before it are never trained on, whatever the seed


def story_documents(seed: int, start: int, count: int, test: bool = False) -> Documents:
    """Stories start .. start + count of a seed, with their entropy and recall points."""
    from pico.data.stories import stories

    found = list(islice(stories(seed, start), count))
    documents = _joined([story.text.encode() for story in found])
    documents.floor_bits, documents.stories = sum(story.bits for story in found), found
    return documents


def conversation_documents(talk: Callable, loss_on: str, seed: int, start: int, count: int, test=False) -> Documents:
    """Conversations start .. start + count that `talk` has for a seed; test: those that are never trained on."""
    documents = _joined([pack_turns(talk(seed, number, test)) for number in range(start, start + count)])
    documents.loss_on = loss_on
    return documents


def _joined(texts: list[bytes]) -> Documents:
    lengths = np.array([len(text) for text in texts])
    return Documents(b"".join(texts), np.cumsum(lengths) - lengths, lengths)


def maker(config: DataConfig) -> Callable[..., Documents]:
    """(seed, start, count, test) -> documents of a built-in corpus."""
    if config.dataset == "stories":
        return story_documents
    from pico.data import identity, spelling

    if config.dataset == "identity":
        return partial(conversation_documents, identity.identity_conversation, config.loss_on)
    talk = partial(
        spelling.spelling_conversation, excluded=read_words(config.exclude_words) if config.exclude_words else ()
    )
    return partial(conversation_documents, talk, config.loss_on)


def read_words(file: str) -> set[str]:
    """All words of a file, in small letters. Raises PicoError if it cannot be read, or has none."""
    try:
        words = set(re.findall("[a-z]+", Path(file).expanduser().read_text(errors="replace").lower()))
    except OSError as error:
        raise PicoError(f"cannot read --exclude-words {file}: {error.strerror}") from None
    if not words:
        raise PicoError(f"no words in --exclude-words {file}: expected at least one")
    return words


def held_back(config: DataConfig) -> Documents:
    """What is never trained on: as many as --dataset-validation-size says."""
    size = config.validation_size or VALIDATION
    return maker(config)(0, 0, max(1, round(size * PER_EPOCH)) if size < 1 else int(size), test=True)


class Endless(Documents):
    """A built-in corpus to train on: every epoch brings new documents. As a sequence, those of the first epoch.

    rows, size: how many documents an epoch has, or how many bytes at most (at least one document).
    """

    repeats = False

    def __init__(self, config: DataConfig, seed: int, rows: int | None = None, size: int | None = None):
        self.make, self.rows, self.limit = partial(maker(config), seed), rows or PER_EPOCH, size
        if size:  # enough rows, by the length of some
            some = self.make(FIRST_TRAINED_ON, 100)
            self.rows = math.ceil(1.2 * size / some.size * len(some)) + 1
        self.__dict__.update(vars(self._epoch(0)))

    def _epoch(self, number: int) -> Documents:
        documents = self.make(FIRST_TRAINED_ON + number * self.rows, self.rows)
        return documents.first(self.limit) if self.limit else documents

    def block(self, number: int, place: dict | None = None) -> Documents:
        return self if number == 0 else self._epoch(number)
