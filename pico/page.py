"""The heat-map page: text with every byte's router weight as shade, what was routed, what surprised, and plots.

One HTML file that needs no network and follows the reader's light or dark mode.

    write_html("report.html", "my-model/my-run", documents, metrics, plots)
"""

import math
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

from pico.report import spread
from pico.vocab import characters, visible


class Byte(NamedTuple):
    """One byte of a document: the router's weight in [0, 1], whether it was routed, its surprisal in bits."""

    byte: int
    weight: float
    routed: bool
    bits: float


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


def document(data: bytes, weights, routed, bits) -> list[Byte]:
    """A document from one value per byte of each kind."""
    return [Byte(b, float(w), bool(r), float(s)) for b, w, r, s in zip(data, weights, routed, bits, strict=True)]


def write_html(
    path: str | Path, title: str, documents: dict[str, list[Byte]], metrics: dict, plots: list[Plot] = ()
) -> None:
    """Writes the page. metrics: {name: number or text}; a dict among the values becomes a table of its own."""
    plain = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    tables = {name: value for name, value in metrics.items() if isinstance(value, dict)}
    tiles = "".join(f"<div><b>{figure(v)}</b><span>{escape(k)}</span></div>" for k, v in plain.items())
    low, high = contrast([b.weight for d in documents.values() for b in d])
    texts = "".join(f"<h2>{escape(name)}</h2><p class=text>{shaded(d, low, high)}</p>" for name, d in documents.items())
    charts = "".join(f"<figure><figcaption>{escape(p.title)}</figcaption>{chart(p)}</figure>" for p in plots)
    for name, rows in tables.items():
        cells = "".join(f"<tr><td>{escape(str(k))}<td>{figure(v)}" for k, v in rows.items())
        charts += f"<figure><figcaption>{escape(name)}</figcaption><table>{cells}</table></figure>"
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    filled = {"title": escape(title), "tiles": tiles, "texts": texts, "charts": charts}
    filled |= {"low": f"{low:.2f}", "high": f"{high:.2f}"}
    for key, value in filled.items():
        page = page.replace(f"<!--{key}-->", value)
    Path(path).write_text(page, encoding="utf-8")


def figure(value) -> str:
    """A metric as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def contrast(weights: list[float]) -> tuple[float, float]:
    """The weights of the lightest and the darkest shade: all but the lowest and highest 2 % lie between them."""
    ordered = sorted(weights) or [0.0]
    cut = len(ordered) // 50
    return ordered[cut], ordered[-1 - cut]


def shaded(steps: list[Byte], low: float = 0.0, high: float = 1.0) -> str:
    """A document as one element per character. A character's weight is its bytes' largest, its surprisal their sum."""
    span = max(high - low, 1e-3)
    out = []
    for text, own in characters(steps):
        weight, bits = max(b.weight for b in own), sum(b.bits for b in own)
        kind = " class=r" if any(b.routed for b in own) else ""
        code = bytes(b.byte for b in own).hex(" ")
        shown = {"\n": "↵\n", "\t": "⇥\t"}.get(text, escape(visible(text)))
        style = f"--w:{min(max((weight - low) / span, 0), 1):.2f};--s:{min(bits / 8, 1):.2f}"
        data = f'data-w="{weight:.2f}" data-b="{bits:.2f}" data-c="{code}"'
        out.append(f'<i{kind} style="{style}" {data}>{shown}</i>')
    return "".join(out)


# --- charts -----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 230, 44, 112, 10, 36


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def chart(plot: Plot) -> str:
    return bars(plot) if plot.bars else lines(plot)


def lines(plot: Plot) -> str:
    """Lines with their names at the right end."""
    points = [point for line in plot.lines.values() for point in line]
    if not points:
        return "<p class=none>nothing to show</p>"
    place = (lambda x: math.log10(max(x, 1e-9))) if plot.log else float
    xs, ys = [place(x) for x, _ in points], [y for _, y in points] + list(plot.levels.values())
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = 0.06 * (y1 - y0) or 0.5
    y0, y1, x1 = y0 - pad, y1 + pad, x1 if x1 > x0 else x0 + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = []
    for y in ticks(y0, y1):
        height = at(x0, y)[1]
        out += [
            f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" class="grid"/>',
            label(LEFT - 6, height + 4, f"{y:g}", "end"),
        ]
    for x in range(math.ceil(x0), math.floor(x1) + 1) if plot.log else ticks(x0, x1, 4):
        out.append(label(at(x, y0)[0], HEIGHT - 20, short(10.0**x if plot.log else x), "mid"))
    out.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, plot.x, "mid soft"))
    names = []
    for i, (name, line) in enumerate(plot.lines.items()):
        spots = [at(place(x), y) for x, y in line]
        out.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in spots)}" class="line c{i % 5}"/>')
        if len(spots) <= 24:
            for (x, y), (a, b) in zip(spots, line):
                dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot c{i % 5}">'
                out.append(f"{dot}<title>{escape(name)}: {b:.4g} at {short(a)}</title></circle>")
        names.append((spots[-1][1], name, f"c{i % 5}"))
    for name, level in plot.levels.items():
        height = at(x0, level)[1]
        out.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" class="level"/>')
        names.append((height, name, "soft"))
    for height, (_, name, kind) in zip(spread([n[0] for n in names], 14), names):
        out.append(label(WIDTH - RIGHT + 8, height + 4, name, f"name {kind}"))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">{"".join(out)}</svg>'


def bars(plot: Plot) -> str:
    """Horizontal bars from zero, with their value and, where given, an interval."""
    rows = {k: v if isinstance(v, (tuple, list)) else (v, v, v) for k, v in plot.bars.items()}
    left, right, pitch = 128, 64, 26
    top = max([high for _, _, high in rows.values()] + list(plot.levels.values())) or 1
    scale, height = (WIDTH - left - right) / top, pitch * len(rows) + (18 if plot.levels else 4)
    out = []
    for i, (name, (value, low, high)) in enumerate(rows.items()):
        y = i * pitch + 3
        out.append(label(left - 8, y + 14, name, "end"))
        out.append(
            f'<rect x="{left}" y="{y}" width="{max(value, 0) * scale:.1f}" height="{pitch - 8}" rx="3" class="c0"/>'
        )
        if high > low:
            out.append(f'<path d="M{left + low * scale:.1f} {y + 9}H{left + high * scale:.1f}" class="interval"/>')
        out.append(label(left + high * scale + 8, y + 14, f"{value:.4g}"))
    for name, level in plot.levels.items():
        x = left + level * scale
        out.append(f'<path d="M{x:.1f} 0V{pitch * len(rows)}" class="level"/>')
        out.append(label(x, pitch * len(rows) + 13, f"{name} {level:.4g}", "mid soft"))
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(plot.title)}">{"".join(out)}</svg>'


def short(value: float) -> str:
    """1500000 -> '1.5M'."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"
