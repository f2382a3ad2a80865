"""The page of an atlas: one plot over all kinds and a card for each, in one HTML file that needs no network."""

import re
from html import escape
from pathlib import Path

import numpy as np

from pico.base.files import write_whole
from pico.base.symbols import Utf8Stream, characters, visible
from pico.evaluate.page import document
from pico.lab.atlas_table import (
    AHEAD,
    EQUAL,
    NOTES,
    UNIT_HEADS,
    atlas_markdown,
    atlas_verdict,
    routing_facts,
    score_cells,
    signed,
)
from pico.lab.tables import pair
from pico.runs.plots import COLOURS

WIDTH, LEFT, RIGHT, ROW, FOOT = 960, 230, 130, 24, 30  # of the plot: names, values, a kind's row, numbers below
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MARKS = {"\n": "↵", "\t": "⇥", " ": "␣"}


def write_atlas(found: dict, folder: Path) -> None:
    """Writes atlas.md and atlas.html. found: as `judged` gives it."""
    write_whole(folder / "atlas.md", atlas_markdown(found).encode())
    page = Path(__file__).with_name("atlas.html").read_text(encoding="utf-8")
    filled = {"title": escape(found["title"]), "verdict": escape(atlas_verdict(found)), "notes": escape(NOTES)}
    filled |= {"plot": difference_plot(found["kinds"]), "cards": "".join(map(card, found["kinds"]))}
    for i, mode in enumerate(("light", "dark")):
        filled[mode] = "; ".join(f"--{key}: {colours[i]}" for key, colours in COLOURS.items())
    page = re.sub(r"<!--(\w+)-->|/\*(\w+)\*/", lambda mark: filled[mark[1] or mark[2]], page)  # nothing twice
    write_whole(folder / "atlas.html", page.encode())


def difference_plot(kinds: list[dict]) -> str:
    """Learned minus rule, sorted: mean, 95 % over seeds as far as the axis goes, each seed, and what was predicted."""
    known = [each for each in kinds if each["difference"]]
    if not known:
        return "<p class=soft>nothing to compare yet"
    ends = [value for each in known for value in (*each["seeds"], each["predicted"], EQUAL, AHEAD)]
    margin = 0.05 * (max(ends) - min(ends))
    low, high, height = min(ends) - margin, max(ends) + margin, ROW * len(known) + FOOT
    step = next((step for step in TICKS if (high - low) / step <= 9), TICKS[-1])

    def x(value: float) -> float:
        return round(LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    out = [f"<rect class=equal x={x(-EQUAL)} y=0 width={x(EQUAL) - x(-EQUAL):.1f} height={height - FOOT} />"]
    for tick in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step:
        out.append(f'<path class="{"tick" if abs(tick) > step / 2 else "zero"}" d="M{x(tick)} 0V{height - FOOT}"/>')
        number = f"{tick:+.3g}" if abs(tick) > step / 2 else "0"
        out.append(f"<text class=soft x={x(tick)} y={height - 8} text-anchor=middle>{number}</text>")
    for i, each in enumerate(known):
        y, told = ROW * i + ROW / 2, each["difference"]
        mean, (start, end) = told["mean"], told["interval"] or (told["mean"], told["mean"])
        tone = "good" if mean <= AHEAD else "level" if mean <= EQUAL else "bad"
        name = f"<text x={LEFT - 14} y={y + 5} text-anchor=end>{escape(each['title'])}</text>"
        out.append(f'<a href="#{each["folder"]}">{name}</a><path class={tone} d="M{x(start)} {y}H{x(end)}"/>')
        out += [f"<circle class={tone} opacity=.5 cx={x(value)} cy={y} r=2.5 />" for value in each["seeds"]]
        out.append(f"<circle class={tone} cx={x(mean)} cy={y} r=5 />")
        out.append(f'<path class=guess d="M{x(each["predicted"])} {y - 6}v12"/>')
        out.append(f"<text x={WIDTH - RIGHT + 14} y={y + 5}>{mean:+.3f} {escape(each['rule'])}</text>")
    label = "Learned minus rule of each kind, in bits per byte"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img aria-label="{label}">{"".join(out)}</svg>'


def card(each: dict) -> str:
    told, routing, line = each["difference"], each["routing"], "not compared yet"
    if told:
        line = f"learned minus <b>{escape(each['rule'])}</b>: <b>{signed(told['mean'])}</b>"
        line += f" ({pair(told['interval'], sign=True)})" if told["interval"] else ""
    scores = [(name, *cells) for name, cells in score_cells(each).items()]
    scores += [(name, f"{found:.3f}", "") for name, found in each["compressors"].items()]
    body = "<p class=soft>no learned run yet"
    if routing:
        units = [(name, *(f"{value:.2f}" for value in values)) for name, values in each["units"].items()]
        tables = [
            grid(("", "bits per byte", "routed"), scores),
            (grid(UNIT_HEADS, units) if units else "") + grid((), routing_facts(routing)),
        ]
        parts = "".join(f"<div>{table}</div>" for table in tables)
        body = f"{picture(routing['sample'], each['text'])}<div class=parts>{parts}</div>"
        for key, words in ("most", "routed most often"), ("least", "least often"):
            codes = (
                f'<code title="{rate:.0%} of {n:,}">{context_cell(code, each["text"])}</code>'
                for code, n, rate in routing[key]
            )
            body += f"<p class=list><span class=soft>{words}</span> {' '.join(codes)}"
    head = f"<h2>{escape(each['title'])}</h2><p class=soft>{line}; predicted {signed(each['predicted'])}"
    return f'<article id="{each["folder"]}">{head}{body}</article>'


def grid(heads: tuple, rows: list[tuple]) -> str:
    top = f"<tr>{''.join(f'<th>{head}' for head in heads)}" if heads else ""
    body = "".join(f"<tr><th>{name}{''.join(f'<td>{cell}' for cell in cells)}" for name, *cells in rows)
    return f"<table>{top}{body}</table>"


def picture(sample: dict, text: bool) -> str:
    """A hundred bytes, those that are routed marked: as characters, of which a part is marked, or each byte in hex."""
    data, routed = bytes.fromhex(sample["bytes"]), [flag == "1" for flag in sample["routed"]]
    if not text and not data.isascii():
        cells = "".join(f"<i{' class=r' * flag}>{byte:02x}</i>" for byte, flag in zip(data, routed))
        return f"<p class=cells>{cells}"
    out, ends = [], Utf8Stream()
    ends.push(data)
    data = data[: len(data) - ends.pending]  # of a character at the end that has only begun nothing can be shown
    routed = routed[: len(data)]
    for letter, own in characters(document(map(bytes, zip(data)), routed, routed, routed)):
        edges = [f"{100 * i / len(own):.0f}% {100 * (i + 1) / len(own):.0f}%" for i in range(len(own))]
        parts = ", ".join(f"{'var(--mark)' if byte.routed else '#0000'} {edge}" for byte, edge in zip(own, edges))
        mark = f' style="background: linear-gradient(90deg, {parts})"' if any(byte.routed for byte in own) else ""
        shown = {"\n": "↵\n", "\t": "⇥\t"}.get(letter, escape(visible(letter)))
        out.append(f"<i{mark}>{shown}</i>" if mark else shown)
    return f"<p class=text>{''.join(out)}"


def context_cell(code: str, text: bool) -> str:
    """The bytes up to one, as text, with … for the end of a character and 1/3 for one of three bytes; or in hex."""
    data = bytes.fromhex(code)
    if not text and not (data.isascii() and data.decode().isprintable()):
        return data.hex(" ")
    whole = data.lstrip(bytes(range(0x80, 0xC0)))
    stream = Utf8Stream()
    words = escape(visible("".join(MARKS.get(each, each) for each in stream.push(whole))))
    begun = whole[len(whole) - stream.pending :]
    size = 2 + (begun[:1] >= b"\xe0") + (begun[:1] >= b"\xf0")
    return "…" * (len(whole) < len(data)) + words + (f"<sub>{len(begun)}/{size}</sub>" if begun else "")
