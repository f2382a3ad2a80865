"""Generated text for a person: characters as they become complete, and which of them were routed."""

from collections.abc import Iterable, Iterator

from rich.text import Text

from pico.base.symbols import characters, visible

WARM = ["#f3d9b8", "#f2b56b", "#ee8f30", "#e06c00"]  # router weight, from barely routed to certainly


# --- routed text ------------------------------------------------------------------------------------------------------


def marked(steps) -> Iterator[tuple[str, bool, float]]:
    """Generation steps of one text as (character, routed, weight), each as soon as it is complete.

    A character is routed if one of its bytes is; its weight is the largest of theirs.
    """
    for text, own in characters(steps):
        yield text, any(step.routed for step in own), max(step.weight for step in own)


def underscored(pieces: Iterable[tuple[str, bool, float]]) -> str:
    """(character, routed, weight) as plain, visible text with `_` before what was routed."""
    return "".join(f"_{visible(text)}" if routed else visible(text) for text, routed, _ in pieces)


def routed_text(pieces: Iterable[tuple[str, bool, float]]) -> Text:
    """(character, routed, weight) for a terminal: routed characters underlined, the warmer the higher the weight."""
    out = Text()
    for text, routed, weight in pieces:
        shade = WARM[min(int(weight * len(WARM)), len(WARM) - 1)]
        out.append(visible(text), style=f"bold underline {shade}" if routed else None)
    return out
