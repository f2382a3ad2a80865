"""What the runs of an atlas came to: of each kind the difference between learning and the best fixed rule, as a table.

found = judged(atlas, read_lines(atlas, file))
print(atlas_markdown(found))
"""

import math

import numpy as np

from pico.base.shapes import ModelConfig, Shape
from pico.evaluate.statistics import holm, summary
from pico.lab.atlas import COMPRESSORS, Atlas, Key, Kind
from pico.lab.results import against
from pico.lab.tables import LEVEL, pair, probability

EQUAL, AHEAD = 0.005, -0.02  # bits per byte, learned minus rule: up to which they are level, from which it is ahead
NOTES = (
    "Bits per byte of all that is scored, mean ± sd over seeds, at the share of bytes that is routed; compressors on "
    "these bytes, after the training text. "
    "Learned minus rule: on their second half, against the fixed rule that needs the fewest bits on the first; "
    "negative is better. 95 %: t interval over the seeds that both have. By blocks: bootstrap over blocks of 4 kB, of "
    "these same models. Chance: of surprise, where 95 % of the ratios lie when the same routing is shifted around the "
    "text; of F1, a coin at the same rate; of gaps, a geometric distribution. F1 over all seeds, the rest of the first."
)
UNIT_HEADS = ("units", "F1", "the byte before", "chance")
UNIT_KEYS = ("f1", "before", "chance")


def judged(atlas: Atlas, lines: dict[Key, dict]) -> dict:
    """What is known of each kind, the best for learning on top, and last those that nothing is known of."""
    learned, *others = atlas.configurations
    shapes = {each.name: atlas.shape(each) for each in others}
    rules = [name for name, shape in shapes.items() if is_fixed(shape)]
    kinds = []
    for kind in atlas.kinds:
        runs = {each.name: {} for each in atlas.configurations}
        for (folder, name, seed), line in sorted(lines.items()):
            if folder == kind.folder and name in runs:
                runs[name][seed] = line
        kinds.append(judged_kind(kind, runs, learned.name, rules))
        kinds[-1]["compressors"] = {
            name: figures.get("after_training_text", figures["alone"])
            for name, figures in lines.get((kind.folder, COMPRESSORS, 0), {}).get(COMPRESSORS, {}).items()
        }
    tested = [each["difference"] for each in kinds if each["difference"] and each["difference"]["p"] is not None]
    for found, p in zip(tested, holm([found["p"] for found in tested]) if tested else ()):
        found["p_holm"] = p
    kinds.sort(key=lambda each: each["difference"]["mean"] if each["difference"] else math.inf)
    made = sum(run.key in lines for run in atlas.runs())
    return {"title": atlas.title, "kinds": kinds, "made": made, "wanted": len(atlas.runs())}


def is_fixed(shape: Shape) -> bool:
    """Whether it routes some bytes, and not by what it learned."""
    return isinstance(shape, ModelConfig) and not shape.rule.learned and 0 < shape.rule.rate < 1


def judged_kind(kind: Kind, runs: dict[str, dict[int, dict]], learned: str, rules: list[str]) -> dict:
    """The rule is the one that is best on the first half of the text, the difference to it that of the second half."""
    ours = runs[learned]
    known = [name for name in rules if runs[name].keys() & ours.keys()]
    first = {name: np.mean([half(line, 0)["bits_per_byte"] for line in runs[name].values()]) for name in known}
    rule = min(first, key=first.__getitem__, default="")
    mine, theirs = (
        {seed: half(line, 1) for seed, line in runs.get(name, {}).items() if len(line["block_bytes"]) > 1}
        for name in (learned, rule)
    )
    routed = [line["routing"] for line in ours.values()]

    shared = [name for name in (routed[0]["units"] if routed else ()) if all(name in each["units"] for each in routed)]

    def over_seeds(key: str) -> dict[str, dict]:
        return {name: summary([line[key] for line in own.values()]) for name, own in runs.items() if own}

    def mean_unit(name: str) -> tuple[float, ...]:
        return tuple(float(np.mean([each["units"][name][key] for each in routed])) for key in UNIT_KEYS)

    return {
        **kind.model_dump(),
        "bits_per_byte": over_seeds("bits_per_byte"),
        "routed": over_seeds("routed_fraction"),
        "rule": rule,
        "difference": against(mine, theirs),
        "seeds": [mine[seed]["bits_per_byte"] - theirs[seed]["bits_per_byte"] for seed in mine if seed in theirs],
        "routing": routed[0] if routed else None,
        "units": {name: mean_unit(name) for name in shared},
    }


def half(line: dict, which: int) -> dict:
    """A run's figures on the first (0) or the second half (1) of the text, as `against` takes them.

    They share no block, so a text of a single one has no second half.
    """
    bits, sizes = np.array(line["block_bits"]), np.array(line["block_bytes"])
    middle = max(1, int(np.searchsorted(np.cumsum(sizes), sizes.sum() / 2, side="right")))
    part = slice(middle, None) if which else slice(middle)
    return {"bits_per_byte": float(bits[part].sum() / sizes[part].sum()), "units": (bits[part], sizes[part])}


def atlas_verdict(found: dict) -> str:
    known = [each["difference"] for each in found["kinds"] if each["difference"]]
    if not known:
        return "Nothing can be said: no kind has a run of the learned router and one of a fixed rule."
    equal, ahead = (sum(each["mean"] <= limit for each in known) for limit in (EQUAL, AHEAD))
    over = summary([each["mean"] for each in known])
    between = f" (95 % {pair(over['interval'], sign=True)})" if over["interval"] else ""
    sure = [each["mean"] for each in known if each.get("p_holm", 1) < LEVEL]
    part = f" So far: {found['made']} of {found['wanted']} runs." if found["made"] < found["wanted"] else ""
    return (
        f"Learned routing is level with the best fixed rule (at most +{EQUAL} bits per byte) or ahead of it on {equal} "
        f"of {len(known)} kinds, and ahead by {-AHEAD} or more on {ahead}. Over kinds the mean difference is "
        f"{over['mean']:+.4f}{between}. Of single kinds, after Holm's correction, it is surely better "
        f"on {sum(mean < 0 for mean in sure)} and surely worse on {sum(mean > 0 for mean in sure)}.{part}"
    )


def atlas_markdown(found: dict) -> str:
    names = list(dict.fromkeys(name for each in found["kinds"] for name in each["bits_per_byte"]))
    packers = list(dict.fromkeys(name for each in found["kinds"] for name in each["compressors"]))
    heads = ["kind", "best rule", "learned minus rule", "95 %", "p (Holm)", "by blocks", "predicted"]
    lines = [f"## {found['title']}", "", atlas_verdict(found), "", row([*heads, *names, *packers])]
    lines += [row(["---", "---", *["---:"] * (len(heads) - 2 + len(names) + len(packers))])]
    for each in found["kinds"]:
        told = each["difference"] or {"mean": None, "interval": None, "document_interval": None}
        cells = [each["title"], each["rule"], signed(told["mean"]), pair(told["interval"], sign=True)]
        cells += [
            probability(told.get("p_holm")),
            pair(told["document_interval"], sign=True),
            signed(each["predicted"]),
        ]
        cells += [" at ".join(scores[name]) if name in (scores := score_cells(each)) else "" for name in names]
        cells += [f"{each['compressors'][name]:.3f}" if name in each["compressors"] else "" for name in packers]
        lines.append(row(cells))
    lines += ["", row(["kind", *(words for words, _ in routing_facts(None)), *UNIT_HEADS]), row(["---"] * 7)]
    for each in found["kinds"]:
        facts = [value for _, value in routing_facts(each["routing"])]
        for name, values in (each["units"] or {"": ()} if each["routing"] else {}).items():
            figures = [f"{value:.2f}" for value in values] or [""] * len(UNIT_KEYS)
            lines.append(row([each["title"], *facts, name, *figures]))
    return "\n".join([*lines, "", NOTES]) + "\n"


def row(cells) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def score_cells(kind: dict) -> dict[str, tuple[str, str]]:
    """Of each configuration that has runs: bits per byte, and the share of bytes that it routes."""

    def score(found: dict) -> str:
        return f"{found['mean']:.4f}" + (f" ± {found['sd']:.4f}" if found["sd"] is not None else "")

    return {n: (score(found), f"{kind['routed'][n]['mean']:.1%}") for n, found in kind["bits_per_byte"].items()}


def routing_facts(routing: dict | None) -> list[tuple[str, str]]:
    """What is said of surprise and of gaps."""
    rise, gaps = (routing["enrichment"].get("next_byte"), routing["gaps"]) if routing else (None, None)
    surprise = f"{rise['ratio']:.2f} ({rise['chance'][0]:.2f} to {rise['chance'][1]:.2f})" if rise else ""
    apart = f"{gaps['mean']:.1f}, {gaps['cv']:.2f} ({gaps['chance_cv']:.2f})" if gaps else ""
    return [("surprise after routed bytes, of the mean (chance)", surprise), ("gaps: mean, cv (chance)", apart)]
