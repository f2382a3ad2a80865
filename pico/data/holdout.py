"""Holding out what validates, where neither the flags nor the dataset say which part that is."""

from collections.abc import Callable

import numpy as np

from pico.base.errors import PicoError
from pico.data.documents import Documents
from pico.data.packing import mix, shuffled
from pico.data.reading import plural

HELD_OUT = 0.01  # of the documents
HOLD_OUT_KEY = (1, 99)  # the same documents whatever the training seed, so that runs and `eval` agree on them
STREAM_ROWS = 10_000  # of a stream, that validation documents are taken from


def hold_out(documents: Documents, size: float | None = None) -> tuple[Documents, Documents]:
    """(training, validation): `size` documents drawn at random, or that fraction of them, 1 % by default.

    Of a single document it is the last part. Raises PicoError when nothing would be left to train on.
    """
    size, n = size or HELD_OUT, len(documents)
    if n == 1 and documents.loss_on:
        raise PicoError("the text is one conversation, and to hold it out leaves nothing to train on: give more")
    if n == 1:
        start, length = documents.starts, documents.lengths
        count = max(1, round(float(size * length[0]))) if size < 1 else length[0]
        if count >= length[0]:
            fraction = "" if size < 1 else "a --dataset-validation-size below 1 (a fraction of it), "
            raise PicoError(
                f"the text is a single document of {plural(int(length[0]), 'byte')}, and to validate on "
                f"{size if size < 1 else plural(int(size), 'document')} leaves nothing to train on: give more text, "
                f"{fraction}a --document-separator, or a --dataset-validation-file"
            )
        train = Documents(documents.buffer, start, length - count)
        return train, Documents(documents.buffer, start + length - count, np.full(1, count))
    if size >= 1 and size != int(size):
        raise PicoError(
            f"--dataset-validation-size {size:g}: expected a fraction below 1 or a whole number of documents"
        )
    count = max(1, round(n * size)) if size < 1 else int(size)
    if count >= n:
        raise PicoError(f"cannot hold out {count:,} of {n:,} documents: give a smaller --dataset-validation-size")
    held = np.zeros(n, bool)
    held[shuffled(np.arange(count), n, *HOLD_OUT_KEY)] = True
    return documents.select(~held), documents.select(held)


def held_rows(size: float | None) -> Callable[[int], bool]:
    """Which rows of a stream validate: the first `size`, or that fraction of the first 10,000 (at least row 0)."""
    size = size or HELD_OUT
    if size >= 1:
        return lambda row: row < size
    chosen = mix(np.arange(STREAM_ROWS, dtype=np.uint64), *HOLD_OUT_KEY) / 2.0**64 < size
    chosen[0] = True
    return lambda row: row < STREAM_ROWS and bool(chosen[row])
