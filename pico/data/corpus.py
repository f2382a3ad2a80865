"""The built-in corpus as documents: stories that are never trained on, and endless ones that are."""

from itertools import islice

import numpy as np

from pico.base.config import DataConfig
from pico.data.documents import Documents

STORIES_PER_EPOCH, VALIDATION_STORIES = 5000, 1000
FIRST_TRAINING_STORY = 1_000_000  # stories before it are never trained on, whatever the seed


def story_documents(seed: int, start: int, count: int) -> Documents:
    """Stories start .. start + count of a seed, with their entropy and recall points."""
    from pico.data.stories import stories

    found = list(islice(stories(seed, start), count))
    texts = [story.text.encode() for story in found]
    lengths = np.array([len(text) for text in texts])
    documents = Documents(b"".join(texts), np.cumsum(lengths) - lengths, lengths)
    documents.floor_bits, documents.stories = sum(story.bits for story in found), found
    return documents


def story_count(config: DataConfig) -> int:
    """How many stories validate."""
    size = config.validation_size or VALIDATION_STORIES
    return max(1, round(size * STORIES_PER_EPOCH)) if size < 1 else int(size)


class Stories(Documents):
    """Endless training stories: every epoch brings new ones. As a sequence, those of the first epoch."""

    repeats = False

    def __init__(self, seed: int):
        first = story_documents(seed, FIRST_TRAINING_STORY, STORIES_PER_EPOCH)
        super().__init__(first.buffer, first.starts, first.lengths)
        self.floor_bits, self.stories, self.seed = first.floor_bits, first.stories, seed

    def block(self, number: int, place: dict | None = None) -> Documents:
        if number == 0:
            return self
        return story_documents(self.seed, FIRST_TRAINING_STORY + number * STORIES_PER_EPOCH, STORIES_PER_EPOCH)
