"""Every chart, drawn by matplotlib: loss.png of a run, compare.png of an experiment, and those of the report page.

plot_losses("models/my-model/my-run/metrics.jsonl", "loss.png", floor=1.02)
plot_comparison(results, "compare.png")
svg(Plot("Falling", "bytes read", lines={"loss": [(1, 2.0), (10, 1.0)]}))
"""

import io
import itertools
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from pico.base.errors import PicoError
from pico.base.files import writing
from pico.runs.metrics import read_metrics

COLOURS = {  # on white, and on a dark page
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9ba5b0"),
    "axis": ("#afb8c1", "#545d68"),
    "line": ("#d8dee4", "#30363d"),
    "c0": ("#d9670a", "#ff9a3d"),
    "c1": ("#2f6fd0", "#6aa5ff"),
    "c2": ("#1a8f6a", "#3fc79a"),
    "c3": ("#9a4fc4", "#c58cf0"),
    "c4": ("#8a7a1f", "#d6c14a"),
    "c5": ("#c2385a", "#ff7d9c"),
    "c6": ("#3aa6b9", "#63cfe2"),
    "c7": ("#6b6b6b", "#a8a8a8"),
    "c8": ("#7fae2e", "#a9d65c"),
    "c9": ("#7a4a2b", "#c99a76"),
}
INK, SOFT, AXIS, LINE, *SERIES = (light for light, _ in COLOURS.values())
DASHED = (0, (5, 4))
DOT = "dot "  # begins the id of what tells its value
COSTS = {"flops": "training FLOPs", "bytes": "bytes of text read", "seconds": "seconds of training"}


# --- what all of them share -------------------------------------------------------------------------------------------


def _figure(width: float, height: float, dpi: int = 72, **rows):
    """A figure of inches that needs no display, and its axes. Imported here: most commands draw nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")
    panels = figure.subplots(squeeze=False, **rows)[0]
    for axes in panels:
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=SOFT, length=0, pad=6)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(AXIS)
    return figure, panels


def _title(axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12, parse_math=False)


def _name_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """(y, name, colour) of each curve's end: names at the right edge, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 14 / (0.8 * 72 * axes.figure.get_figheight()) * (high - low)  # 14 points; axes are four fifths of the height
    places = spread([y for y, _, _ in ends], gap)
    for rank, i in enumerate(sorted(range(len(ends)), key=places.__getitem__)):
        places[i] = max(places[i], low + (rank + 0.5) * gap)  # below the axes are the numbers of x
    for place, (_, name, colour) in zip(places, ends):
        axes.annotate(
            name, (1.02, place), xycoords=("axes fraction", "data"), color=colour, va="center",
            annotation_clip=False, parse_math=False,
        )  # fmt: skip


def spread(values: list[float], gap: float) -> list[float]:
    """The values moved apart as little as keeps them, in their order, at least `gap` from one another."""
    order = sorted(range(len(values)), key=values.__getitem__)
    clusters: list[list[int]] = []  # runs of labels that touch, each centred on the mean of its values

    def top(cluster: list[int]) -> float:
        return sum(values[i] for i in cluster) / len(cluster) + gap * (len(cluster) - 1) / 2

    for i in order:
        clusters.append([i])
        while len(clusters) > 1:
            below, above = clusters[-2:]
            if top(above) - gap * (len(above) - 1) - top(below) >= gap:
                break
            clusters[-2:] = [below + above]
    placed = {i: top(c) - gap * (len(c) - 1 - k) for c in clusters for k, i in enumerate(c)}
    return [placed[i] for i in range(len(values))]


# --- a run's losses ---------------------------------------------------------------------------------------------------


def smooth(values: list[float], window: float) -> list[float]:
    """Exponential moving average over about `window` values, fewer at first: the start is steep."""
    out: list[float] = []
    for i, value in enumerate(values):
        share = 1 / max(1, min(window, i / 5))
        out.append(value if not out else out[-1] + share * (value - out[-1]))
    return out


def plot_losses(metrics_path: str | Path, png_path: str | Path, floor: float | None = None) -> None:
    """Training and validation bits per byte against bytes seen, with the entropy floor where it is known.

    metrics_path: a metrics.jsonl with `bytes`, `train_bpb` and here and there `validation_bpb`.
    Raises PicoError where there is nothing to plot.
    """
    lines = [line for line in read_metrics(metrics_path) if {"bytes", "train_bpb"} <= line.keys()]
    if not lines:
        raise PicoError(f"{metrics_path} holds no training step yet: nothing to plot")
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
    scale, unit = next((pair for pair in units if lines[-1]["bytes"] >= pair[0]), units[-1])
    x = [line["bytes"] / scale for line in lines]
    y = [line["train_bpb"] for line in lines]
    average = smooth(y, len(y) / 50)
    checks = [(line["bytes"] / scale, line["validation_bpb"]) for line in lines if "validation_bpb" in line]

    figure, (axes,) = _figure(8, 4.6, dpi=160)
    validation, training, *_ = SERIES
    axes.plot(x, y, color=training, alpha=0.25, linewidth=0.8)
    axes.plot(x, average, color=training, linewidth=1.8)
    ends = [(average[-1], f"training {average[-1]:.3f}", training)]
    if checks:
        dots = dict(marker="o", markersize=4.5, markeredgecolor="white", clip_on=False)
        axes.plot(*zip(*checks), color=validation, linewidth=1.8, **dots)
        ends.append((checks[-1][1], f"validation {checks[-1][1]:.3f}", validation))
    if floor is not None:
        axes.axhline(floor, color=SOFT, linewidth=1.2, linestyle=DASHED)
        ends.append((floor, f"floor {floor:.3f}", SOFT))

    low = min(value for value, _, _ in ends)
    high = max([average[len(average) // 25], *(value for value, _, _ in ends)])  # the first steep fall is cut off
    margin = 0.06 * max(high - low, 0.05)
    axes.set_ylim(min([low, *average]) - margin, high + margin)
    axes.set_xlim(0, x[-1] or 1)
    axes.locator_params(axis="x", nbins=7)
    axes.set_xlabel(f"{unit} of text seen", color=SOFT)
    _name_ends(axes, ends)
    _title(axes, "Bits per byte")
    with writing(png_path):
        figure.savefig(png_path)


# --- an experiment ----------------------------------------------------------------------------------------------------


def plot_comparison(results: dict, png_path: str | Path) -> None:
    """Bits per byte against each cost: validations on the way, and the final score with its spread over seeds.

    Seconds are drawn where they were the budget: else they tell what else the machine did.
    results: as `pico.lab.compare` writes them to compare.json; nothing is drawn where no configuration has a run.
    """
    from matplotlib.ticker import EngFormatter

    rows = [row for row in results["configurations"] if row["runs"]]
    if not rows:
        return
    costs = [cost for cost in COSTS if cost != "seconds" or "flops" not in results["budget"]]
    figure, panels = _figure(5 + 8 * len(costs) / len(COSTS), 4.4, dpi=140, ncols=len(costs), sharey=True)
    colours = [SERIES[i % len(SERIES)] for i in range(len(rows))]
    for axes, cost in zip(panels, costs):
        for row, colour in zip(rows, colours):
            bpb, end = row["bits_per_byte"], row[cost]["mean"]
            way = mean_curve(list(row["runs"].values()), cost)
            axes.plot(*zip(*way, (end, bpb["mean"])), color=colour, linewidth=1.6, alpha=0.8)
            axes.errorbar(
                end, bpb["mean"], yerr=bpb["sd"] or 0, xerr=row[cost]["sd"] or 0,
                color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.2,
            )  # fmt: skip
        if results["entropy_floor"] is not None:
            axes.axhline(results["entropy_floor"], color=SOFT, linewidth=1, linestyle=DASHED)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel(COSTS[cost], color=SOFT)
    finals = [row["bits_per_byte"]["mean"] for row in rows]
    # the first steep fall is cut off; what is worth comparing is where the curves end
    top = max(finals) + max(0.25 * (max(finals) - min(finals)), 0.15 * max(finals))
    panels[0].set_ylim(min(finals) - 0.1 * (top - min(finals)), top)
    panels[0].set_ylabel("bits per byte, causal", color=SOFT)
    # of the figure, not of an axes, which would grow as wide as its title
    figure.suptitle(results["title"], x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    _name_ends(panels[-1], [(y, f"{row['name']} {y:.3f}", colour) for y, row, colour in zip(finals, rows, colours)])
    with writing(png_path):
        figure.savefig(png_path)


def mean_curve(runs: list[dict], cost: str) -> list[tuple[float, float]]:
    """Mean cost and bits per byte over seeds at each validation that all of them had, but the last.

    Validations read the beginning of the text only. Each curve is scaled to end in its run's score.
    """
    scales = [run["bits_per_byte"] / run["curve"][-1]["bits_per_byte"] for run in runs]
    curves = [
        [(check[cost], k * check["bits_per_byte"]) for check in run["curve"][:-1]] for k, run in zip(scales, runs)
    ]
    return [tuple(sum(values) / len(values) for values in zip(*together)) for together in zip(*curves)]


# --- the report page --------------------------------------------------------------------------------------------------


@dataclass
class Plot:
    """Lines over numbers, or bars over names.

    lines: {name: [(x, y), ...]}; bars: {name: value or (value, low, high)}; levels: {name: y}, drawn dashed.
    """

    title: str
    x: str = ""
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    bars: dict = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    log: bool = False


def svg(plot: Plot) -> str:
    """The plot, without its title, as an <svg> in the page's font and colours. Dots tell their values to a mouse."""
    import matplotlib

    style = {"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.size": 12, "text.parse_math": False}
    with matplotlib.rc_context(dict[Any, Any](style)):  # text stays text, and the same plot is drawn the same each time
        figure, drawn = _bars(plot) if plot.bars else _lines(plot), io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True)
    box, body = re.findall('<svg.*?(viewBox=".*?").*?>(.*)', drawn.getvalue(), re.S)[0]
    body = re.sub("<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(f'<g id="{DOT}([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub(r' id="[\w.]+_\d+"| transform="rotate\(-0 [^"]*"|font-family: [^;]*; ', "", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("xlink:href", "href")
    for name, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{name})")
    return f'<svg {box} role="img" aria-label="{escape(plot.title)}">{body}'


def _lines(plot: Plot):
    """Lines with their names at the right end."""
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure(440 / 72, 230 / 72)
    axes.locator_params(axis="both", nbins=5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if plot.log:
        axes.set_xscale("log")
        axes.minorticks_off()
    ends = []
    for (name, line), colour in zip(plot.lines.items(), itertools.cycle(SERIES)):
        axes.plot(*zip(*line), color=colour, linewidth=2)
        for x, y in line if len(line) <= 24 else ():
            axes.plot(x, y, "o", color=colour, markersize=5, clip_on=False, gid=f"{DOT}{name}: {y:.4g} at {x:g}")
        ends.append((line[-1][1], name, colour))
    for name, level in plot.levels.items():
        axes.axhline(level, color=SOFT, linewidth=1, linestyle=DASHED)
        ends.append((level, name, SOFT))
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(plot.x, color=SOFT)
    _name_ends(axes, ends)
    return figure


def _bars(plot: Plot):
    """Horizontal bars from zero, with their values and, where given, an interval."""
    rows = {name: value if isinstance(value, tuple | list) else (value,) * 3 for name, value in plot.bars.items()}
    figure, (axes,) = _figure(440 / 72, (26 * len(rows) + (18 if plot.levels else 4)) / 72)
    for y, (value, low, high) in enumerate(rows.values()):
        axes.barh(y, value, height=0.7, color=SERIES[0])
        if high > low:
            axes.plot([low, high], [y, y], color=INK, linewidth=1.5)
        axes.annotate(
            f"{value:.4g}", (max(value, high), y), (8, 0), textcoords="offset points", va="center", color=INK,
            annotation_clip=False,
        )  # fmt: skip
    for name, level in plot.levels.items():
        axes.axvline(level, color=SOFT, linewidth=1, linestyle=DASHED)
        axes.set_xticks([level], [f"{name} {level:.4g}"], color=SOFT)
    if not plot.levels:
        axes.set_xticks([])
    axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return figure
