"""The full report on a trained model: how good, how sure, where, and what its routing is worth.

    report, examples = evaluate_run("models/my-model", "my-run", DataConfig(dataset="stories"), full=True)

Two passes over the text, with the latent blocks on and off, give everything but what `full` adds: a pass for each
other way to route the same trained model, and general compressors on the same bytes. Every figure about routing
stands beside the one that a router choosing at random at the same rate would get.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.base.routers import ROUTERS, BestScored, spacelike
from pico.data.documents import Documents, Packed
from pico.data.open import open_data, open_evaluation
from pico.data.reading import Reading, plural
from pico.decode.online import mixed_bits
from pico.evaluate.compressors import last_bytes, yardsticks
from pico.evaluate.opened import open_run
from pico.evaluate.score import Score, Trace, traces
from pico.evaluate.statistics import bootstrap

RULE = (
    "each document is BOS, its {0}s, EOS; windows of context_len {0}s advance by stride; each {0} is scored once, "
    "by head 0, in the first window that reaches it, with the routing of generation; bits of EOS count, its byte "
    "does not; head k is shown the k true {0}s before the one it predicts, as when its drafts are right"
)
SPELLING = "; of the ways to spell a text in tokens the tokenizer's own alone counts: an upper bound"
BLOCK = 4096  # bytes: what is resampled where there are too few documents
FEW = 30  # documents
EXAMPLES, EXAMPLE_BYTES = 4, 5000  # documents of the page, and their bytes in all
FIRST_POSITIONS, FIRST_DISTANCES = 16, 32  # the first bin holds what is below, each further one twice as much
KINDS = "word_start", "word_end", "after_word", "spacelike"  # first and last byte of a word, the byte after it


class Tally:
    """What one pass over the documents found; `add` takes them one by one."""

    def __init__(self, context_len: int, stride: int):
        self.score = Score(context_len, stride)
        self.block_bits: list[float] = []
        self.block_bytes: list[int] = []
        self.distance = np.zeros((2, 64))  # bits, bytes of each bin of positions in the document
        self.recalls = np.zeros((4, 64))  # words, whole words right, first bytes right, bits; by distance

    def add(self, trace: Trace, recalls) -> None:
        self.score.add(trace)
        n = len(trace.data)
        place = np.cumsum(trace.lengths) - trace.lengths  # where each symbol begins, and EOS
        blocks = np.searchsorted(place[:-1], np.arange(0, max(n, 1), BLOCK))  # their first symbols
        blocks = np.unique(blocks[blocks < max(1, len(place) - 1)])
        self.block_bits += np.add.reduceat(trace.bits, blocks).tolist()  # the last one's with EOS
        self.block_bytes += np.add.reduceat(trace.lengths, blocks).tolist()
        where = bins(place[:-1], FIRST_POSITIONS)
        self.distance += [np.bincount(where, some[:-1], 64) for some in (trace.bits, trace.lengths)]
        for position, length, distance, _ in recalls:
            if position + length <= n:  # the symbols that the word, or a part of it, is in
                first, last = np.searchsorted(place, (position, position + length - 1), side="right") - 1
                right, bits = trace.correct[first : last + 1], trace.bits[first : last + 1].sum()
                self.recalls[:, bins(distance, FIRST_DISTANCES)] += np.array([1, right.all(), right[0], bits])

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """Bits and bytes of what a bootstrap draws: documents, or blocks where there are few of them."""
        few = len(self.score.document_bits) < FEW
        pair = (self.block_bits, self.block_bytes) if few else (self.score.document_bits, self.score.document_bytes)
        return np.array(pair[0]), np.array(pair[1])

    def against(self, other: "Tally") -> dict:
        """Bits per byte, and how much more than the other pass on the same text, with a paired bootstrap interval."""
        (ours, size), (theirs, _) = self.units, other.units
        return {
            "bits_per_byte": self.score.bits_per_byte,
            "routed_fraction": self.score.routed_fraction,
            "difference": self.score.bits_per_byte - other.score.bits_per_byte,
            "difference_interval": bootstrap(ours - theirs, size),
        }

    def by_distance(self) -> Iterator[tuple[int, int, float, int]]:
        """(from, to, bits per byte, bytes) of each range of positions that has any."""
        for k in np.flatnonzero(self.distance[1]):
            bits, count = self.distance[:, k]
            yield *edges(k, FIRST_POSITIONS), bits / count, int(count)

    def by_recall(self) -> Iterator[tuple[int, int, dict]]:
        """(from, to, figures) of each range of distances that has recalled words."""
        for k in np.flatnonzero(self.recalls[0]):
            words, whole, first, bits = self.recalls[:, k].tolist()
            figures = {"word_accuracy": whole / words, "first_byte_accuracy": first / words, "bits": bits / words}
            yield *edges(k, FIRST_DISTANCES), {"words": int(words), **figures}


def bins(value, first: int):
    """The bin of each value: 0 below `first`, then one for every doubling."""
    return np.maximum(0, np.frexp(np.asarray(value) / first)[1])


def edges(k: int, first: int) -> tuple[int, int]:
    """What bin k holds: from (included) and to (not)."""
    return (0 if k == 0 else first << int(k) - 1), first << int(k)


class Routed:
    """Which bytes were routed, over all documents: gaps, kinds of bytes, surprisal. BOS is left out throughout."""

    def __init__(self):
        self.bytes = self.routed = 0
        self.gaps = np.zeros(1, np.int64)  # [g] how often the next routed byte came g bytes later
        self.kind = np.zeros((2, len(KINDS)))  # bytes of each kind, and those of them that were routed
        self.surprisal = np.zeros((2, 3))  # own, next byte's; bits over all bytes, over routed ones, routed ones

    def add(self, trace: Trace) -> None:
        routed = trace.routed[1:]
        gaps = np.bincount(np.diff(np.flatnonzero(routed)), minlength=len(self.gaps))
        gaps[: len(self.gaps)] += self.gaps
        self.gaps = gaps
        self.bytes += len(routed)
        self.routed += int(routed.sum())
        for i, kind in enumerate(kinds(trace.data)):
            self.kind[:, i] += kind.sum(), (kind & routed).sum()
        own, following, last = trace.bits[:-1], trace.bits[1:-1], routed[:-1]
        self.surprisal[0] += own.sum(), own[routed].sum(), routed.sum()
        self.surprisal[1] += own.sum(), following[last].sum(), last.sum()

    def report(self, target: float | None) -> dict:
        rate = self.routed / self.bytes
        out = {"target_fraction": target, "realised_fraction": rate}
        if not self.routed:
            return out
        if total := self.gaps.sum():  # none where no document has two routed bytes
            length = np.arange(len(self.gaps))
            mean = float((self.gaps * length).sum() / total)
            sd = float((self.gaps * (length - mean) ** 2).sum() / total) ** 0.5
            out["gaps"] = {
                "mean": mean,
                "sd": sd,
                "cv": sd / mean,
                "chance_cv": (1 - rate) ** 0.5,  # of a geometric distribution; every k-th byte: 0
                "histogram": (self.gaps[1:65] / total).tolist(),  # share of gaps of 1, 2 ... 64 bytes
            }
        for i, name in enumerate(KINDS):
            there, both = self.kind[:, i]
            base = there / self.bytes
            out[name] = {
                "base_rate": base,
                **agreement(both / self.routed, both / max(1, there)),
                "chance": agreement(base, rate),
            }
        everything, at_routed, count = self.surprisal.T
        means = at_routed / np.maximum(1, count) / np.maximum(1e-12, everything / self.bytes)
        out["surprisal_enrichment"] = {"next_byte": float(means[1]), "own_byte": float(means[0]), "chance": 1.0}
        return out


def agreement(precision: float, recall: float) -> dict:
    both = precision + recall
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * precision * recall / both) if both else 0.0,
    }


def kinds(data: bytes) -> np.ndarray:
    """Which bytes are of each of KINDS: (4, n) bool.

    A word is a run of ASCII letters, digits and bytes from 128 up; spacelike is SpaceByte's rule (arXiv 2404.14408).
    """
    ids = np.frombuffer(data, np.uint8).astype(np.int64)
    space = spacelike(ids)
    word = ~space | (ids >= 128)
    begins, ends = word & ~np.append(False, word[:-1]), word & ~np.append(word[1:], False)
    return np.stack([begins, ends, space & ~np.append(True, space[:-1]), space])


# --- the report -------------------------------------------------------------------------------------------------------


def analyse(
    model,
    texts: Documents,
    context_len: int,
    max_bytes: int | None = None,
    full: bool = False,
    status: Callable[[str], None] = lambda text: None,
    mix_online: bool = False,
) -> tuple[dict, list[Trace]]:
    """The report as a dict that JSON can hold, and the traces of the first documents, for a page.

    max_bytes: only the first so many. full, mix_online: other routings, online n-grams too. status: told what is done.
    """
    stride = max(1, context_len // 2)
    stories = texts.stories or []

    def read(also: Callable[[int, Trace], None] = lambda i, trace: None, **settings) -> Tally:
        tally = Tally(context_len, stride)
        passage = (texts[i] for i in range(len(texts)))
        for i, trace in enumerate(traces(model, passage, context_len, stride, max_bytes, **settings)):
            tally.add(trace, stories[i].recalls if stories else ())
            also(i, trace)
        return tally

    # 1. One reading of the text, as the model was trained to read it, of which everything below is counted: bits of
    # each document, what was routed, and the first documents byte by byte for the page.
    routed, chosen, examples, mixed = Routed(), [], [], Tally(context_len, stride)

    def watch(i: int, trace: Trace) -> None:
        if model.config.routes:
            routed.add(trace)
        if mix_online:
            mixed.add(replace(trace, bits=mixed_bits(trace.ids, trace.bits)), ())
        if full:
            chosen.append(np.packbits(trace.routed))
        if len(examples) < EXAMPLES and sum(len(t.data) for t in examples) < EXAMPLE_BYTES:
            examples.append(trace)

    status("scoring the text")
    on = read(watch)
    # 2. The same text without latent blocks: what they are worth.
    off = None
    if model.config.routes:
        status("again, latent blocks off")
        off = read(disable_latent=True)
    # 3. What any model is asked. The entropy floor is of whole stories alone: nobody knows that of half a one.
    unit = model.alphabet.unit
    whole = [len(texts[i]) for i in range(len(stories))][: len(on.score.document_bytes)]
    whole = whole if whole == on.score.document_bytes else whole[:-1]  # max_bytes cut the last one
    bits, size = on.units
    by_documents = len(bits) == len(on.score.document_bits) >= FEW
    report: dict[str, Any] = {
        "bits_per_byte": on.score.bits_per_byte,
        "bits_per_byte_interval": bootstrap(bits, size),
        "entropy_floor": sum(story.bits for story in stories[: len(whole)]) / sum(whole) if whole else None,
        "loss": on.score.loss,
        "perplexity": on.score.perplexity,
        "accuracy": on.score.accuracy,
        "bytes": on.score.bytes,
        "symbols": on.score.symbols,
        "documents": len(on.score.document_bytes),
        "context_len": context_len,
        "stride": stride,
        "unit": unit,
        "rule": RULE.format(unit) + (SPELLING if unit == "token" else ""),
        "interval": f"95%, percentile bootstrap over {plural(len(bits), 'document' if by_documents else 'block')}"
        + ("" if by_documents else f" of {BLOCK} bytes"),
        "heads": [
            {"head": k, "bits": float(b / n), "accuracy": float(c / n), "targets": int(n)}
            for k, (b, c, n) in enumerate(zip(on.score.head_bits, on.score.head_correct, on.score.head_count))
            if n
        ],
        "by_distance": [{"from": a, "to": b, "bytes": n, "bits_per_byte": x} for a, b, x, n in on.by_distance()],
    }
    if unit == "token":
        report["bytes_per_token"] = on.score.bytes / max(1, on.score.read - len(on.score.document_bytes))
    if mix_online:
        report["mix_online"] = mixed.against(on)
    if stories:
        report["recalls"] = [{"from": a, "to": b, **x} for a, b, x in on.by_recall()]
    # 4. What only a model that routes is asked, document for document against the reading without latent blocks.
    if off is None:
        return report, examples
    report |= {
        "bits_per_byte_disable_latent": off.score.bits_per_byte,
        "disable_latent": off.against(on),
        "routed_fraction": on.score.routed_fraction,
        "routing": routed.report(model.config.rule.target),
    }
    for row, (_, _, bits, _) in zip(report["by_distance"], off.by_distance()):
        row["bits_per_byte_disable_latent"] = bits
    for row, (_, _, figures) in zip(report.get("recalls", ()), off.by_recall()):
        row["disable_latent"] = figures
    # 5. The same bytes routed by other rules: is it the choice that helps, or the depth?
    if full:
        report |= replaced(model, read, on, chosen, report["routing"], status)
    return report, examples


def replaced(model, read, on: Tally, chosen: list, routing: dict, status) -> dict:
    """The trained model with its bytes chosen otherwise: {"replaced_routing": {rule: figures}}.

    One pass for each other fixed rule, at the rate this model routes. For a learned one also a pass with the bytes of
    the best scores in each window, as expert choice trains: it sees the future, so its bits are no prediction.
    """
    rate, own, out = on.score.routed_fraction, model.config.rule, {}  # a steered rule needs a training of its own
    if not model.config.latent_blocks or not 0 < rate < 1:
        return {"replaced_routing": out}
    for name, rule in ((name, kind(rate)) for name, kind in ROUTERS.items()):
        if name != model.config.router and not rule.learned and not rule.steered and 0 < rule.rate < 1:
            status(f"again, routed by {name}")
            out[name] = read(rule=rule).against(on)
    if own.learned:
        same = [0, 0]

        def compare(i: int, trace: Trace) -> None:
            causal = np.unpackbits(chosen[i], count=len(trace.routed)).astype(bool)
            same[0] += int((causal == trace.routed).sum())
            same[1] += len(causal)

        status("again, routed by top-k over each window")
        best = read(compare, batch_size=1, rule=BestScored(own.capacity))  # one row: no padding to choose
        out["topk_sees_the_future"] = best.against(on)
        chance = rate * own.capacity + (1 - rate) * (1 - own.capacity)
        routing["topk_agreement"] = {"fraction": same[0] / same[1], "chance": chance}
    return {"replaced_routing": out}


def evaluate_run(
    path,
    run: str,
    data: DataConfig,
    step="-1",
    context_len: int | None = None,
    max_bytes: int | None = None,
    device=None,
    full: bool = False,
    status: Callable[[str], None] = lambda text: None,
    tell: Callable[[Reading], None] = lambda reading: None,
    mix_online: bool = False,
) -> tuple[dict, list[Trace]]:
    """`analyse` of a run's checkpoint on a dataset's validation part, or on all of it where it has none.

    context_len: that of the training unless given. full: yardsticks as well, whose history is the run's training text.
    tell: shows what was read, before it is scored.
    """
    opened = open_run(path, run, step, context_len, device)
    reading = Reading()
    texts = open_evaluation(data, opened.training.seed, reading)
    tell(reading)
    report, examples = analyse(opened.model, texts, opened.training.context_len, max_bytes, full, status, mix_online)
    report |= {"dataset": data.dataset, "run": str(opened.folder)}
    if full and not any(isinstance(texts[i], Packed) for i in range(report["documents"])):
        status("compressing the same bytes")
        text = b"".join(texts[i] for i in range(report["documents"]))[: report["bytes"]]
        history = training_text(opened.record, opened.training.seed)
        report["yardsticks"] = yardsticks(text, history)
        report["yardstick_history_bytes"] = len(history or b"")
    return report, examples


def training_text(record: dict, seed: int) -> bytes | None:
    """The end of what a run was trained on; None where it can no longer be read, or was a stream."""
    try:
        train, _ = open_data(DataConfig.build(**record["data"]), seed)
    except (PicoError, KeyError):
        return None
    return last_bytes(train) if isinstance(train, Documents) else None
