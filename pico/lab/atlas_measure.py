"""What one run of the atlas came to, in numbers that fit a line: its score, and what its router looks for."""

from collections.abc import Iterable

import numpy as np

from pico.evaluate.analysis import BLOCK, Routed, Tally, agreement
from pico.evaluate.score import Trace, traces
from pico.lab.atlas_units import UNITS

SHIFTS = 200  # circular ones, that say what enrichment comes by chance
CONTEXT, SHOWN, SELDOM = 4, 10, 5000  # bytes of a context, contexts shown, and the share of a text that is too few
GAPS = 40  # shares of gaps that are kept
SAMPLE = 100  # bytes, those after the first so many of the first document that is long enough


def measure_run(
    model, documents: Iterable[bytes], context_len: int, max_bytes: int | None, units: Iterable[str]
) -> dict:
    """The score of a model on the text, and of one that learned to route also `routing`.

    block_bits, block_bytes: of pieces of about 4 kB, in order, of which a half or a bootstrap is made.
    """
    tally, routed, seen = Tally(context_len, max(1, context_len // 2)), Routed(), []
    learned = model.config.routes and model.config.rule.learned
    for trace in traces(model, documents, context_len, tally.score.stride, max_bytes):
        tally.add(trace, ())
        if learned:
            routed.add(trace)
            seen.append(trace)
    sizes = np.array(tally.block_bytes)
    first = np.unique((np.cumsum(sizes) - sizes) // BLOCK, return_index=True)[1]
    out = {
        "bits_per_byte": tally.score.bits_per_byte,
        "routed_fraction": tally.score.routed_fraction,
        "block_bits": np.add.reduceat(tally.block_bits, first).round(1).tolist(),
        "block_bytes": np.add.reduceat(sizes, first).tolist(),
    }
    return out | {"routing": looked_for(routed, seen, units)} if learned else out


def looked_for(routed: Routed, seen: list[Trace], units: Iterable[str]) -> dict:
    gaps = routed.report(None).get("gaps", {})
    return {
        "gaps": gaps | {"histogram": gaps["histogram"][:GAPS]} if gaps else {},
        "enrichment": enrichment(seen),
        "units": unit_agreement(seen, units),
        **contexts(seen),
        "sample": sample(seen),
    }


def enrichment(seen: list[Trace]) -> dict:
    """Mean surprise of the bytes after routed ones, and of these themselves, over that of all bytes.

    chance: from and to of 95 % of the values that the same routing gives when it is shifted around the text.
    """
    flags = np.concatenate([trace.routed[1:-1] for trace in seen])
    shifts, out = np.random.default_rng(0).integers(1, max(2, len(flags)), SHIFTS), {}
    for name, part in ("next_byte", slice(1, -1)), ("own_byte", slice(0, -2)):
        bits = np.concatenate([trace.bits[part] for trace in seen])
        if not flags.any() or not bits.any():
            continue
        by_chance = [bits[np.roll(flags, shift)].mean() / bits.mean() for shift in shifts]
        low, high = np.quantile(by_chance, (0.025, 0.975))
        out[name] = {"ratio": float(bits[flags].mean() / bits.mean()), "chance": [float(low), float(high)]}
    return out


def unit_agreement(seen: list[Trace], units: Iterable[str]) -> dict:
    """Of each unit: F1 of the routed bytes with its first byte, with the byte before that, and what F1 chance has.

    rate: routed share of these bytes (recall), of `share` of all bytes; a router that is blind to them routes them as
    often as any.
    """
    counts: dict[str, np.ndarray] = {}
    for trace in seen:
        flags = trace.routed[1:]
        for unit in units:
            for name, there in UNITS[unit](trace.data).items():
                found = [there.sum(), (there & flags).sum(), there[1:].sum(), (there[1:] & flags[:-1]).sum()]
                counts[name] = counts.get(name, 0) + np.array(found)
    size, routed = sum(len(trace.data) for trace in seen), sum(int(trace.routed[1:].sum()) for trace in seen)
    out = {}
    for name, (there, both, after, before) in counts.items():
        share = there / size
        out[name] = {
            "share": float(share),
            "rate": float(both / max(1, there)),
            "f1": agreement(both / max(1, routed), both / max(1, there))["f1"],
            "before": agreement(before / max(1, routed), before / max(1, after))["f1"],
            "chance": agreement(share, routed / size)["f1"],
        }
    return out


def contexts(seen: list[Trace]) -> dict:
    """The last bytes up to the one that is routed, or not: those most and least often routed, as (hex, how often they
    stand there, share routed). Too rare ones are left out."""
    keys, flags = [], []
    for trace in seen:
        if len(trace.data) >= CONTEXT:
            window = np.lib.stride_tricks.sliding_window_view(np.frombuffer(trace.data, np.uint8), CONTEXT)
            keys.append(np.ascontiguousarray(window).view(f">u{CONTEXT}").ravel())
            flags.append(trace.routed[CONTEXT:])
    if not keys:
        return {"most": [], "least": []}
    found, place, count = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    rate = np.bincount(place, np.concatenate(flags)) / count
    often = np.flatnonzero(count >= max(2, count.sum() / SELDOM))

    def first(order: np.ndarray) -> list:
        return [[f"{found[i]:0{2 * CONTEXT}x}", int(count[i]), float(rate[i])] for i in often[order][:SHOWN]]

    return {
        "most": first(np.lexsort((-count[often], -rate[often]))),
        "least": first(np.lexsort((-count[often], rate[often]))),
    }


def sample(seen: list[Trace]) -> dict:
    """About bytes 100 to 199 of the first document of twice as many (else the first of the longest), as hex, and which
    were routed, a digit each."""
    longest = max(seen, key=lambda trace: len(trace.data))
    trace = next((trace for trace in seen if len(trace.data) >= 2 * SAMPLE), longest)
    start = SAMPLE if len(trace.data) >= 2 * SAMPLE else 0
    while start > SAMPLE - 4 and start and trace.data[start] & 0xC0 == 0x80:  # of a character the first byte
        start -= 1
    part = slice(start, start + SAMPLE)
    return {"bytes": trace.data[part].hex(), "routed": "".join(str(int(x)) for x in trace.routed[1:][part])}
