"""Router rules: which bytes go through the latent blocks. A class a rule, and one table of them that everything asks.

A rule sees each byte, the byte before it, its position and the router's learned score, and says which are routed. The
choice of a causal rule is written with operators alone, so that the same line runs on the model's tensors and on the
arrays of the numpy reader, and nothing here imports torch.

To add a rule write its class here and name it in ROUTERS. `init --router`, training, FLOPs, `eval --full` and `compare`
then know it, and `python -m pico.base.routers` prints the list for docs/routers.md.
"""

import math
from abc import ABC, abstractmethod
from statistics import NormalDist
from typing import Any, NamedTuple

Array = Any  # torch.Tensor or np.ndarray, which no type holds together
SLACK = 1.25  # room in the training buffer of a learned causal rule, over its rate
COIN = 0x10000
GUESS_WIDTHS = 16, 64  # of the small byte model of `entropy`: a symbol's embedding, the hidden layer
TAUGHT = 0.12  # share of a training that begins by the rule a config names as `router_teacher`


class RouterInput(NamedTuple):
    """What a rule may look at: torch tensors (B, T), or numpy arrays (n,)."""

    score: Array  # the router's learned logit
    tokens: Array  # ids: bytes, and control symbols from 256 up
    previous: Array  # the id before each
    positions: Array  # integers, counted from the start of the text
    threshold: Array  # () one number for all, which training moves for rules that ask for it


class Rule(ABC):
    """A fixed rule, unless what is said here is overridden. `capacity` is the fraction of bytes to route."""

    learned = False  # whether the choice follows the router's score
    causal = True  # False: the choice of a byte depends on later ones, so it can neither generate nor predict
    steered = False  # whether `correction` moves the router's threshold after every optimizer step
    scorer = "linear"  # what the score is: a linear map of the stream, or that of pico/model/scorers.py of this name
    causal_from = 0.0  # share of a training from which it routes by this rule; before, by the teacher
    first_teacher: str | None = None  # of TEACHERS: who teaches as a training begins, where the config names nobody

    def __init__(self, capacity: float):
        self.capacity = capacity

    @staticmethod
    def check(capacity: float) -> None:
        """Raises ValueError for a fraction that the rule cannot meet."""
        return None

    @property
    def rate(self) -> float:
        """Fraction of the bytes that FLOPs are planned by, before anything is measured."""
        return self.capacity

    @property
    def target(self) -> float | None:
        """Fraction of the bytes that should be routed; None if the text decides."""
        return self.rate

    @property
    def teacher(self) -> "Rule | None":
        """The rule that training begins with, and whose choice the router learns to foresee."""
        return None

    @abstractmethod
    def choose(self, at: RouterInput):
        """True where a byte is routed, in the shape of what is given."""

    def wants(self, at: RouterInput, nats):
        """As a teacher: what the router shall foresee, where the model needed these nats for the next byte (B, T), NaN
        where that is not scored."""
        return self.choose(at)

    def foreseen(self, at: RouterInput):
        """What each byte weighs in the loss that teaches the score: 0 where it decides nothing. None: all the same."""
        return None

    def slots(self, length: int) -> int | None:
        """Routed bytes that a row of a training chunk has room for; None: as many as the fullest row needs."""
        return None

    def most(self, length: int) -> int | None:
        """Routed bytes that a row of so many can have, for a rule without `slots`; None if the text decides."""
        return None

    def correction(self, count, chosen, total, squares, threshold):
        """What to add to the threshold after a step, from () tensors over its bytes: how many there were and were
        chosen, the sum of their scores and of the squares of these. Nothing where the rule is not `steered`."""
        return 0.0


class Learned(Rule):
    learned = True

    def slots(self, length: int) -> int:
        return min(length, max(1, int(length * self.capacity * SLACK)))  # fixed: no GPU has to wait for a count


class BestScored(Learned):
    """The bytes of the highest scores in each row, as Mixture-of-Depths routes (arXiv 2404.02258): sees the future."""

    causal = False

    def choose(self, at: RouterInput):
        best = at.score.topk(self.slots(at.score.shape[1]), dim=1).indices
        return at.score.new_zeros(at.score.shape, dtype=bool).scatter_(1, best, True)

    def slots(self, length: int) -> int:
        return max(1, round(length * self.capacity))


class Surprise(BestScored):
    """Routes the bytes of the highest scores, and the score learns where the next byte surprises the model most.

    Of what is only read, such as the questions of a chat, nothing is known: there the choice stays as it is.
    """

    def wants(self, at: RouterInput, nats):
        as_it_is = (2.0 * self.choose(at) - 1) * math.inf
        return self.choose(at._replace(score=nats.where(nats == nats, as_it_is)))


class TopK(Learned):
    """learns to foresee surprise at first, then the highest scores of a window; routes a score above 0"""

    first_teacher = "surprise"  # left to itself a router may settle on another letter of each word, for good
    causal_from = 0.8  # the model gets used to the rule that it will generate with

    @property
    def teacher(self) -> Rule:
        return BestScored(self.capacity)

    def choose(self, at: RouterInput):
        return at.score > 0


class Threshold(Learned):
    """learns; routes a score above a threshold, which training moves to hold the fraction"""

    steered = True

    def choose(self, at: RouterInput):
        return at.score > at.threshold

    def correction(self, count, chosen, total, squares, threshold):
        """One damped Newton step: the density of scores at the threshold is taken from a normal of their variance."""
        deviation = (squares / count - (total / count) ** 2).clamp(min=1e-12).sqrt()
        normal = NormalDist()
        density = normal.pdf(normal.inv_cdf(1 - min(self.capacity, 0.999))) / deviation
        return 0.2 * ((chosen / count - self.capacity) / density).clamp(-deviation, deviation)


class Entropy(Threshold):
    """BLT's: where a small byte model beside is least sure of the next byte, by a threshold that holds the fraction"""

    scorer = "entropy"

    def correction(self, count, chosen, total, squares, threshold):
        """Longer steps, for entropies fall fast; where the threshold has lost sight of them, to a normal's place."""
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=1e-12).sqrt()
        lost = (threshold - mean).abs() > 2 * deviation
        place = mean + deviation * NormalDist().inv_cdf(1 - min(self.capacity, 0.999))
        return (place - threshold).where(lost, 2 * super().correction(count, chosen, total, squares, threshold))


class Cosine(Learned):
    """H-Net's: where the stream turns away from what it was a byte before; a loss of its own holds the fraction"""

    scorer = "cosine"

    @staticmethod
    def check(capacity: float) -> None:
        if capacity == 1:
            raise ValueError("holds a fraction of the bytes: it needs a latent_capacity_factor below 1")

    def choose(self, at: RouterInput):
        return at.score > 0

    def slots(self, length: int) -> int:
        return min(length, max(1, int(1.5 * self.capacity * length)))  # a loss holds its fraction less well


def spacelike(tokens):
    """SpaceByte's rule (arXiv 2404.14408): not a letter, digit or UTF-8 continuation byte. Control symbols count."""
    letter = ((tokens | 32) >= ord("a")) & ((tokens | 32) <= ord("z"))
    digit = (tokens >= ord("0")) & (tokens <= ord("9"))
    continuation = (tokens >= 0x80) & (tokens < 0xC0)
    return ~(letter | digit | continuation) | (tokens > 255)


def coin(at: RouterInput):
    """A number below COIN, a hash of the byte and of where it is in its text: the same however it is read."""
    mixed = (at.positions * 0x9E3779B1 + at.tokens * 0x85EBCA6B) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 13)) & (COIN - 1)


def after_word(at: RouterInput):
    """The first byte after a word, and every control symbol, so every document's start."""
    return spacelike(at.tokens) & (~spacelike(at.previous) | (at.tokens > 255))


class Space(Rule):
    """the first byte after a word, as SpaceByte routes: the text decides how many"""

    @property
    def target(self) -> None:
        return None

    def choose(self, at: RouterInput):
        return after_word(at)


class SpaceAndBest(BestScored):
    """The bytes that `space` routes, and of the others those of the highest scores."""

    def choose(self, at: RouterInput):
        space = after_word(at)
        return space | super().choose(at._replace(score=at.score.masked_fill(space, math.inf)))


class SpaceTopK(TopK):
    """what `space` routes, and of the other bytes what `topk` would, up to the fraction"""

    first_teacher = None

    @property
    def teacher(self) -> Rule:
        return SpaceAndBest(self.capacity)

    def choose(self, at: RouterInput):
        return after_word(at) | (at.score > 0)

    def foreseen(self, at: RouterInput):
        return (~after_word(at)).float()


class SpaceRandom(Rule):
    """what `space` routes, and of the other bytes what a coin says, up to the fraction"""

    steered = True  # how many others there is room for, the text decides

    def choose(self, at: RouterInput):
        return after_word(at) | (coin(at) - round(COIN * (1 - self.capacity)) > at.threshold)

    def correction(self, count, chosen, total, squares, threshold):
        return 0.2 * COIN * (chosen / count - self.capacity)


class FirstLetter(Rule):
    """the first letter or digit of a word"""

    @property
    def target(self) -> None:
        return None

    def choose(self, at: RouterInput):
        return ~spacelike(at.tokens) & spacelike(at.previous)


class LastLetter(FirstLetter):
    """the last letter or digit of a word: sees the byte after it, of which the last one of a chunk has none"""

    causal = False

    def choose(self, at: RouterInput):
        letter = ~spacelike(at.tokens)
        following = letter.roll(-1, 1)
        following[:, -1] = True
        return letter & ~following


class Stride(Rule):
    """every k-th byte, for a fraction of 1/k"""

    @staticmethod
    def check(capacity: float) -> None:
        """Three figures of 1/k are enough, such as 0.333."""
        near = [1 / math.floor(1 / capacity), 1 / math.ceil(1 / capacity)]
        if f"{capacity:.3g}" not in [f"{x:.3g}" for x in near]:
            more, less = (f"{x:.4g}" for x in near)
            raise ValueError(
                f"routes every k-th byte, so it needs a latent_capacity_factor of 1/k, not {capacity:g}: "
                f"try {more} or {less}"
            )

    @property
    def every(self) -> int:
        return round(1 / self.capacity)

    def choose(self, at: RouterInput):
        return at.positions % self.every == 0

    def most(self, length: int) -> int:
        return math.ceil(length / self.every)


class Random(Rule):
    """a coin for every byte"""

    def choose(self, at: RouterInput):
        return coin(at) < self.capacity * COIN


class All(Rule):
    """every byte: a transformer whose middle blocks have another window"""

    rate = 1.0

    def choose(self, at: RouterInput):
        return at.positions >= 0

    def most(self, length: int) -> int:
        return length


class Nothing(Rule):
    """no byte, and no latent blocks"""

    rate = 0.0

    def choose(self, at: RouterInput):
        return at.positions < 0

    def most(self, length: int) -> int:
        return 0


ROUTERS: dict[str, type[Rule]] = {
    "topk": TopK,
    "threshold": Threshold,
    "space": Space,
    "stride": Stride,
    "random": Random,
    "hnet": Cosine,
    "entropy": Entropy,
    "space+topk": SpaceTopK,
    "space+random": SpaceRandom,
    "all": All,
    "none": Nothing,
}
# Rules that may route at the beginning of a training, while a learned one learns to foresee them. Not all are causal:
# those are no model's own.
TEACHERS: dict[str, type[Rule]] = {
    "surprise": Surprise,
    "itself": BestScored,
    "space": Space,
    "stride": Stride,
    "first-letter": FirstLetter,
    "last-letter": LastLetter,
}


def listing() -> str:
    """The rules as a Markdown list."""
    return "".join(f"- `{name}`: {rule.__doc__}.\n" for name, rule in ROUTERS.items())


if __name__ == "__main__":
    print(listing(), end="")
