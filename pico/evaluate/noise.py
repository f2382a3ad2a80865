"""Text with mistakes in it, and the bits that say where they are.

A reader who knew the clean text's probabilities, and of the noise its kind and rate, would need at most the clean
text's bits and the noise's own: p(noisy) is a sum over all that may have happened, of which one term is p(clean) times
the noise's own probability. What a model needs beyond that is what the mistakes cost it.
"""

import math
from collections.abc import Callable, Iterable
from random import Random

RATES = (0.01, 0.02, 0.05, 0.1)


def _case(one: str, _: str) -> str | None:
    other = one.swapcase()
    return other if other != one and other.swapcase() == one else None


# of each kind: a character and the one after it ('' at the end) -> what stands there instead, None where it would not
# show; of a swap it stands for both
NOISES: dict[str, Callable[[str, str], str | None]] = {
    "case": _case,
    "drop": lambda one, following: "" if one != following else None,  # the last of a run: all its letters are alike
    "repeat": lambda one, following: 2 * one if one != following else None,
    "swap": lambda one, following: following + one if following and one != following else None,
}


def noisy(text: str, kind: str, rate: float, random: Random) -> tuple[str, float]:
    """The text with each place that would show the noise hit with probability `rate`, and the noise's own bits.

    Each place costs -log2 of its chance: `rate` where it was hit, 1 - `rate` where it was not. Of drops these bits are
    an upper bound, for different ones may leave the same text. Of swapped characters neither is swapped again.
    """
    change, out, places, hits, i = NOISES[kind], [], 0, 0, 0
    while i < len(text):
        changed = change(text[i], text[i + 1 : i + 2])
        hit = changed is not None and random.random() < rate
        places += changed is not None
        hits += hit
        out.append(changed if hit else text[i])
        i += 2 if hit and kind == "swap" else 1
    return "".join(out), -hits * math.log2(rate) - (places - hits) * math.log2(1 - rate)


def noisy_documents(documents: Iterable[bytes], kind: str, rate: float, seed: int = 0) -> tuple[list[bytes], float]:
    """Each document with its mistakes, in characters where it is UTF-8, and the bits of all of them."""
    random, out, total = Random(f"{kind} {rate} {seed}"), [], 0.0
    for document in documents:
        text, bits = noisy(document.decode(errors="surrogateescape"), kind, rate, random)
        out.append(text.encode(errors="surrogateescape"))
        total += bits
    return out, total
