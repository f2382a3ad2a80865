"""The heat-map page: text with every byte's router weight as shade, what was routed, what surprised, and plots.

One HTML file that needs no network and follows the reader's light or dark mode.

    write_html("report.html", "my-model/my-run", documents, metrics, plots)
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

from pico.base.files import remove, writing
from pico.base.symbols import characters, visible
from pico.runs.plots import COLOURS, Plot, svg

NOTHING = "<p class=none>nothing to show</p>"


class Symbol(NamedTuple):
    """A byte or token of a document: the router's weight in [0, 1], whether it was routed, its surprisal in bits."""

    bytes: bytes
    weight: float
    routed: bool
    bits: float


def document(symbols: Iterable[bytes], weights, routed, bits) -> list[Symbol]:
    """A document from one value per symbol of each kind."""
    each = zip(symbols, weights, routed, bits, strict=True)
    return [Symbol(symbol, float(w), bool(r), float(s)) for symbol, w, r, s in each]


def write_html(
    path: str | Path,
    title: str,
    documents: dict[str, list[Symbol]],
    metrics: dict,
    plots: Iterable[Plot] = (),
    conclusion: str = "",
    routes: bool = True,
) -> None:
    """Writes the page. metrics: {name: number or text}; a dict among the values becomes a table of its own.

    routes: whether the model does; if not, surprisal is all there is to shade.
    """
    plain = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    tables = {name: value for name, value in metrics.items() if isinstance(value, dict)}
    tiles = "".join(f"<div><b>{figure(v)}</b><span>{escape(k)}</span></div>" for k, v in plain.items())
    low, high = contrast([b.weight for d in documents.values() for b in d])
    texts = "".join(
        f'<h2>{escape(name)}</h2><p class=text role=group aria-label="{escape(name)}, byte by byte">'
        f"{shaded(d, low, high)}</p>"
        for name, d in documents.items()
    )
    charts = "".join(
        f"<figure><figcaption>{escape(p.title)}</figcaption>{svg(p) if p.lines or p.bars else NOTHING}</figure>"
        for p in plots
    )
    for name, rows in tables.items():
        cells = "".join(f"<tr><th scope=row>{escape(str(k))}<td>{figure(v)}" for k, v in rows.items())
        charts += f"<figure><figcaption>{escape(name)}</figcaption><table>{cells}</table></figure>"
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    filled = {"title": escape(title), "conclusion": escape(conclusion)}
    filled |= {"tiles": tiles, "texts": texts, "charts": charts}
    filled["kind"] = "" if routes else "surprise dense"
    filled |= {"low": f"{low:.2f}", "high": f"{high:.2f}"}
    for i, mode in enumerate(("light", "dark")):
        filled[mode] = "; ".join(f"--{key}: {colours[i]}" for key, colours in COLOURS.items())
    for key, value in filled.items():
        page = page.replace(f"<!--{key}-->", value).replace(f"/*{key}*/", value)
    path = Path(path)
    with writing(path):
        try:
            path.write_text(page, encoding="utf-8")
        except OSError:
            if path.is_file():  # and no device
                remove(path)  # half a page
            raise


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


def shaded(steps: list[Symbol], low: float = 0.0, high: float = 1.0) -> str:
    """A document as one element per character. A character's weight is its bytes' largest, its surprisal their sum."""
    span = max(high - low, 1e-3)
    out = []
    for text, own in characters(steps):
        weight, bits = max(b.weight for b in own), sum(b.bits for b in own)
        kind = " class=r" if any(b.routed for b in own) else ""
        code = b"".join(b.bytes for b in own).hex(" ")
        shown = {"\n": "↵\n", "\t": "⇥\t"}.get(text, escape(visible(text)))
        style = f"--w:{min(max((weight - low) / span, 0), 1):.2f};--s:{min(bits / 8, 1):.2f}"
        data = f'data-w="{weight:.2f}" data-b="{bits:.2f}" data-c="{code}"'
        out.append(f'<i{kind} style="{style}" {data}>{shown}</i>')
    return "".join(out)
