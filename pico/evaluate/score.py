"""Causal bits per byte, and what every symbol cost.

Rule: a document is BOS, its symbols, EOS: bytes, or tokens as the tokenizer gives them, of whose many spellings of a
text only this one counts, so that bits are an upper bound. It is read in windows of `context_len` symbols that advance
by `stride`, each symbol is scored once, by head 0, in the first window that reaches it, in eval mode: the routing is
the one generation uses, at the positions that generation would have. bits per byte = all bits, EOS included, over the
number of raw bytes (control symbols cost but do not count). Of a conversation only what is scored in training is, by
default the assistant's text and its end of turn, and only these bytes count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pico.base.errors import PicoError
from pico.base.numbers import perplexity
from pico.base.routers import Rule
from pico.base.symbols import Alphabet
from pico.data.chat import lay_out, unpack_turns
from pico.data.documents import Packed
from pico.model.loss import head_targets

LN2 = float(np.log(2))


@dataclass
class Trace:
    """What a model did on one document of n symbols."""

    data: bytes
    ids: np.ndarray  # (n + 1,) the symbols, and EOS; ~s of a symbol s that is not scored
    lengths: np.ndarray  # (n + 1,) raw bytes of each symbol that is scored, 0 of others and of EOS, which has none
    bits: np.ndarray  # (n + 1,) surprisal of each symbol, and of EOS, under head 0; 0 of what is not scored
    weight: np.ndarray  # (n + 1,) router weight of BOS and each symbol as it was read
    routed: np.ndarray  # (n + 1,) bool
    correct: np.ndarray  # (n + 1,) bool, head 0's likeliest symbol was each symbol, and EOS
    # of each head as drafting uses it, shown the true symbols before the one it predicts (`Pico.right_draft_logits`)
    head_bits: np.ndarray  # (N,) sum over targets that exist
    head_correct: np.ndarray  # (N,) targets that were the most likely symbol
    head_count: np.ndarray  # (N,) targets
    shown: np.ndarray | None = None  # (n + 1,) bytes of each symbol in `data`; None: its length


@dataclass
class Score:
    """Totals over documents; `document_bits` and `document_bytes` allow a bootstrap."""

    context_len: int
    stride: int
    document_bits: list[float] = field(default_factory=list)
    document_bytes: list[int] = field(default_factory=list)
    routed: int = 0
    read: int = 0
    head_bits: np.ndarray = field(default_factory=lambda: np.zeros(()))
    head_correct: np.ndarray = field(default_factory=lambda: np.zeros((), int))
    head_count: np.ndarray = field(default_factory=lambda: np.zeros((), int))

    @property
    def bytes(self) -> int:
        return sum(self.document_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Total bits, control symbols' included, over raw bytes. Raises PicoError where there are none."""
        if not self.bytes:
            raise PicoError("nothing to score: the text has no bytes; expected at least one")
        return sum(self.document_bits) / self.bytes

    @property
    def symbols(self) -> int:
        """How many were scored, EOS of each document among them."""
        return int(self.head_count[0])

    @property
    def loss(self) -> float:
        """Nats a symbol."""
        return LN2 * float(self.head_bits[0]) / self.symbols

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """Fraction of the symbols that were the likeliest."""
        return float(self.head_correct[0]) / self.symbols

    @property
    def routed_fraction(self) -> float:
        """Of what was read, BOS included; 0 of nothing."""
        return self.routed / max(1, self.read)

    def add(self, trace: Trace) -> None:
        self.document_bits.append(float(trace.bits.sum()))
        self.document_bytes.append(int(trace.lengths.sum()))
        self.routed += int(trace.routed.sum())
        self.read += len(trace.routed)
        self.head_bits = self.head_bits + trace.head_bits
        self.head_correct = self.head_correct + trace.head_correct
        self.head_count = self.head_count + trace.head_count


def score(
    model,
    documents: Iterable[bytes],
    context_len: int,
    stride: int | None = None,
    max_bytes: int | None = None,
    disable_latent: bool = False,
) -> Score:
    """Causal bits per byte of the documents; see the module for the rule.

    max_bytes scores the first so many bytes, as if the document they end in ended there. Raises PicoError for an
    impossible stride or max_bytes.
    """
    total = Score(context_len, stride or max(1, context_len // 2))
    for trace in traces(model, documents, context_len, stride, max_bytes, disable_latent):
        total.add(trace)
    return total


def traces(
    model,
    documents: Iterable[bytes],
    context_len: int,
    stride: int | None = None,
    max_bytes: int | None = None,
    disable_latent: bool = False,
    batch_size: int = 16,
    rule: Rule | None = None,
) -> Iterator[Trace]:
    """One Trace per document, in order. stride defaults to context_len / 2; rule: another than the model's own."""
    stride = stride or max(1, context_len // 2)
    if not 1 <= stride <= context_len:
        raise PicoError(f"stride = {stride}: expected 1 to {context_len}, the context, so that nothing is passed over")
    if max_bytes is not None and max_bytes < 1:
        raise PicoError(f"--max-bytes = {max_bytes}: expected 1 or more")
    training = model.training
    model.eval()
    try:
        for group in _groups(documents, max_bytes, batch_size * context_len):
            yield from _read(model, group, context_len, stride, disable_latent, batch_size, rule)
    finally:
        model.train(training)


def _groups(documents, max_bytes, size) -> Iterator[list[bytes]]:
    """Documents in handfuls of about 16 * size bytes; the last is cut so that max_bytes are taken in all.

    A conversation is not cut.
    """
    group, held, left = [], 0, max_bytes
    for document in documents:
        if left is not None and not isinstance(document, Packed):
            document = document[:left]
        if left is not None:
            left = max(0, left - len(document))
        group.append(document)
        held += len(document)
        if held >= 16 * size:
            yield group
            group, held = [], 0
        if left == 0:
            break
    if group:
        yield group


class Window(NamedTuple):
    """A piece of a document: it reads ids[start:end] and predicts ids[start + 1 : end + 1]."""

    document: int
    start: int
    scored: int  # targets that earlier windows have scored
    end: int
    ids: np.ndarray  # from start to the last symbol that any head predicts; ~s of a symbol s that is not scored


def _symbols(document: bytes, alphabet: Alphabet) -> np.ndarray:
    """What a model reads of a document, and is scored on: ~s in place of a symbol s that is not."""
    if isinstance(document, Packed):
        return lay_out(unpack_turns(document), alphabet, loss_on=document.loss_on)[0].astype(np.int64)
    return np.concatenate([[alphabet.bos], alphabet.encode(document), [alphabet.eos]]).astype(np.int64)


@torch.inference_mode()
def _read(model, documents, context_len, stride, disable_latent, batch_size, rule) -> list[Trace]:
    heads, device, alphabet = model.config.next_tokens, next(model.parameters()).device, model.alphabet
    out, windows = [], []
    for d, data in enumerate(documents):
        ids = _symbols(data, alphabet)
        shown = None
        if isinstance(data, Packed):  # as a person may see it: a line for each turn
            pieces = [alphabet.table[max(s, ~s)] or b"\n" for s in ids[1:-1].tolist()]
            data, shown = b"".join(pieces), np.array([*map(len, pieces), 0])
        n = len(ids) - 1
        per_head = np.zeros((3, heads))
        each = np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros(n, bool), *per_head
        out.append(Trace(data, ids[1:], alphabet.lengths[ids[1:]] * (ids[1:] >= 0), *each, shown))
        scored = start = 0
        while scored < n:
            end = min(start + context_len, n)
            windows.append(Window(d, start, scored, end, ids[start : end + heads]))
            scored, start = end, start + stride
    windows.sort(key=lambda window: window.end - window.start)  # rows of a batch have about the same length
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        length = max(w.end - w.start for w in batch)
        text = np.zeros((len(batch), length + heads - 1), np.int64)  # of shorter rows the rest is never scored
        targets = np.full_like(text, -100)
        for row, w in enumerate(batch):
            text[row, : len(w.ids)] = np.where(w.ids >= 0, w.ids, ~w.ids)[: text.shape[1]]
            targets[row, : len(w.ids) - 1] = np.where(w.ids >= 0, w.ids, -100)[1:]
        text, targets = torch.from_numpy(text).to(device), torch.from_numpy(targets).to(device)
        start = torch.tensor([w.start for w in batch], device=device)  # generation counts on, so windows do too
        result = model(text[:, :length], disable_latent=disable_latent, start=start, rule=rule)
        targets = head_targets(targets, length, heads)  # (B, T, N)
        logits = model.right_draft_logits(result.stream, text).float()
        chosen = logits.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        bits = ((logits.logsumexp(-1) - chosen) / LN2).cpu().double().numpy()  # (B, T, N)
        correct = (logits.argmax(-1) == targets).cpu().numpy()
        exists = (targets >= 0).cpu().numpy()
        weight, routed = result.router_weight.cpu().numpy(), result.routed.cpu().numpy()
        for row, w in enumerate(batch):
            new = slice(w.scored - w.start, w.end - w.start)  # positions in the window that no earlier window covered
            trace, at = out[w.document], slice(w.scored, w.end)
            seen = exists[row, new]
            trace.bits[at], trace.correct[at] = bits[row, new, 0] * seen[:, 0], correct[row, new, 0]
            trace.weight[at], trace.routed[at] = weight[row, new], routed[row, new]
            trace.head_bits += (bits[row, new] * seen).sum(0)
            trace.head_correct += (correct[row, new] & seen).sum(0)
            trace.head_count += seen.sum(0)
    return out
