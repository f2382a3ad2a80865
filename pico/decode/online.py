"""N-grams of the text so far, mixed with what a model says: what a text repeats need not surprise twice.

A cache model (Kuhn and De Mori, 1990) of several orders, as PPM has them (Cleary and Witten, 1984), with the model in
the place of PPM's order -1. From the shortest context that the text has had before to the longest,

    p <- (1 - w) p + w count(context, symbol) / count(context)

so p sums to 1 over the model's alphabet wherever the model's does. A weight w is the share that such contexts had in
what came so far (online EM). All is counted within one text, from nothing: a document costs the same wherever it
stands, and its names and phrases are what a model forgets. Texts that came before help less than they mislead.
"""

from math import log2, nan

import numpy as np

from pico.decode.sampling import Noise, Sampling, numpy_draw, numpy_filtered, numpy_penalised, numpy_surprise

ORDERS = 1, 2, 3, 4, 6, 8, 12, 18  # symbols of a context
ALL = -1  # the key of a context's total among its counts
BELIEF = 2.0  # symbols that a weight's first value counts for
TINY = np.finfo(np.float64).tiny


class OnlineNgrams:
    """One text as it grows, in ids of an alphabet."""

    def __init__(self):
        self.text = ""  # the last of it, a character for each id
        self.counts: dict[str, dict[int, int]] = {}  # context -> {id: how often it came next}
        self.shares: dict[tuple, list[float]] = {}  # kind of context -> [sum of its shares, symbols]: w is the mean

    def _share(self, order: int, counts: dict[int, int]) -> list[float]:
        """Contexts are alike if they are as long, about as frequent, and were followed by as many different symbols."""
        total, different = counts[ALL], len(counts) - 1
        kind = order, min(total, 8).bit_length(), min(different, 4)
        share = self.shares.get(kind)
        if share is None:  # before anything is known: the longer and the fewer, the surer
            share = self.shares[kind] = [BELIEF * order / (100 * different), BELIEF]
        return share

    def mixed(self, p: np.ndarray) -> np.ndarray:
        """The distribution (V,) of the next symbol, of the model's own."""
        p = np.array(p, np.float64)
        for order in ORDERS:
            counts = self.counts.get(self.text[-order:]) if order <= len(self.text) else None
            if counts is None:
                break
            share, symbols = self._share(order, counts)
            p *= 1 - share / symbols
            for symbol, count in counts.items():
                if symbol != ALL:
                    p[symbol] += share / symbols * count / counts[ALL]
        return p

    def read(self, symbol: int, p: float | None = None) -> float:
        """The text goes on with this, to which the model gave p: what the mixture gave it. Counts and weights learn.

        Without a p, as where nothing is predicted, only counts do.
        """
        q = 1.0 if p is None else p
        for order in ORDERS:
            if order > len(self.text):
                break
            context = self.text[-order:]
            counts = self.counts.get(context)
            if counts is None:
                self.counts[context] = {symbol: 1, ALL: 1}
                continue
            seen = counts.get(symbol, 0)
            if p is not None:
                share = self._share(order, counts)
                ours = share[0] / share[1] * seen / counts[ALL]
                q = ours + q * (1 - share[0] / share[1])
                share[0] += ours / q if seen else 0
                share[1] += 1
            counts[symbol], counts[ALL] = seen + 1, counts[ALL] + 1
        self.text = self.text[1 - ORDERS[-1] :] + chr(symbol)
        return q


def mixed_bits(ids: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """What each symbol of a text costs the mixture, of what it costs the model; (n,). ~s: a symbol s costs nothing."""
    ngrams = OnlineNgrams()
    read = (ngrams.read(s, 2.0**-b) if s >= 0 else ngrams.read(~s) for s, b in zip(ids.tolist(), bits.tolist()))
    return -np.log2(np.fromiter(read, float, len(ids)))


class MixingDecoder:
    """A `Decoder` of texts that draws from the mixture, without drafts. Of what was not drawn, only counts learn."""

    def __init__(self, reader, ids: list[list[int]], sampling: Sampling):
        self.reader, self.tokens, self.sampling = reader, np.array([text[-1:] for text in ids]), sampling
        self.banned, self.drawn = sampling.banned(reader.alphabet), 0
        self.noise = Noise(sampling, len(ids) * reader.alphabet.size)
        self.recent = [sampling.recent(text[:-1], reader.alphabet) for text in ids]
        self.surprise = [nan for _ in ids]  # of the token that is read next
        self.ngrams = [OnlineNgrams() for _ in ids]
        for ngrams, text in zip(self.ngrams, ids):
            for symbol in text[1:]:  # counts begin behind BOS, as in a document
                ngrams.read(symbol)

    def __call__(self) -> tuple[list, list, list, list, list]:
        tokens, surprise = self.tokens.tolist(), [[bits] for bits in self.surprise]
        weight, routed = self.reader.read(self.tokens)
        says = 2.0 ** -numpy_surprise(self.reader.logits()).astype(np.float64)  # (B, V)
        self.reader.keep(np.ones(len(tokens), int))
        noise = self.noise(self.drawn, 1).reshape(says.shape)
        self.drawn += 1
        for row, (ngrams, p) in enumerate(zip(self.ngrams, says)):
            mixed = np.maximum(ngrams.mixed(p), TINY)
            logits = numpy_penalised(np.log(mixed)[None], self.recent[row], tokens[row], self.sampling)
            drawn = numpy_draw(numpy_filtered(logits, self.sampling, self.banned), noise[row], self.banned).item()
            self.recent[row] = [*self.recent[row], *tokens[row]][1:]
            self.tokens[row], self.surprise[row] = drawn, -log2(mixed[drawn])
            ngrams.read(drawn, p[drawn])
        return tokens, [1] * len(tokens), routed.tolist(), weight.tolist(), surprise
