"""Draws assets/architecture.svg, the figure of Pico: `python scripts/architecture.py`.

Columns are the sixteen bytes of "Once upon a time", rows are the depth of the model, bottom to top.
Colours follow the reader's light or dark mode; the drawing brings its own background, so it reads on any page.
"""

from html import escape
from pathlib import Path

TEXT = "Once upon a time"
ROUTED = [0, 5, 10, 12]  # a quarter of the bytes: here, where words begin
WEIGHTS = [0.93, 0.22, 0.11, 0.07, 0.34, 0.88, 0.25, 0.12, 0.08, 0.31, 0.71, 0.38, 0.84, 0.18, 0.1, 0.06]
DRAFT = ", th"
LEFT, PITCH, CELL = 46, 36, 28
COLUMNS = len(TEXT) + len(DRAFT)
NOTES = LEFT + COLUMNS * PITCH + 22
WIDTH, HEIGHT = 1110, 880  # room at the right for the widest of the usual fonts

STYLE = """
  .page { fill: #ffffff; stroke: #d8dee4 }
  .ink { fill: #1f2328 } .soft { fill: #59636e } .line { stroke: #8c959f } .faint { stroke: #d1d9e0 }
  .cell { fill: #f6f8fa; stroke: #c8d1da } .band { fill: #dbe9fb; stroke: #86b1e8 }
  .deep { fill: #fde6cf; stroke: #e89c4b } .hot { fill: #d9670a } .hotline { stroke: #d9670a }
  .bar { fill: #afb8c1 } .plus { fill: #ffffff } .draft { fill: none; stroke: #d9670a }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .ink { fill: #f0f6fc } .soft { fill: #9ba5b0 } .line { stroke: #6e7681 } .faint { stroke: #2b323a }
    .cell { fill: #161b22; stroke: #3d444d } .band { fill: #14294a; stroke: #3f74b8 }
    .deep { fill: #43260d; stroke: #c87a2c } .hot { fill: #ff9a3d } .hotline { stroke: #ff9a3d }
    .bar { fill: #59636e } .plus { fill: #0d1117 } .draft { stroke: #ff9a3d }
  }
  text { font: 14px ui-sans-serif, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
  .mono { font: 600 15px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .tiny { font-size: 12px } .head { font-weight: 600; font-size: 15.5px } .mid { text-anchor: middle }
"""


def column(index: float) -> float:
    """Middle of a byte's column."""
    return LEFT + index * PITCH + CELL / 2


def text(x, y, content, kind="ink") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(content)}</text>'


def box(x, y, width, height, kind, radius=6, extra="") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" class="{kind}" {extra}/>'


def path(d, kind="line", width=1.5, extra="") -> str:
    return f'<path d="{d}" class="{kind}" fill="none" stroke-width="{width}" {extra}/>'


def rise(index, bottom, top, kind="faint") -> str:
    """A byte's residual stream between two rows."""
    hot = index in ROUTED and kind == "hot"
    return path(f"M{column(index):g} {bottom}V{top}", "hotline" if hot else "faint", 2 if hot else 1.5)


def bend(x0, y0, x1, y1) -> str:
    middle = (y0 + y1) / 2
    return path(f"M{x0:g} {y0}C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1}", "hotline", 2)


def note(y, title, *lines) -> list[str]:
    return [text(NOTES, y, title, "ink head")] + [text(NOTES, y + 20 * i, s, "soft") for i, s in enumerate(lines, 1)]


def cells(y, characters, first=0, kind="cell", extra="") -> list[str]:
    out = []
    for i, character in enumerate(characters, first):
        out.append(box(column(i) - CELL / 2, y, CELL, CELL, kind, 5, extra))
        out.append(text(column(i), y + 19, "␣" if character == " " else character, "ink mono mid"))
    return out


def local_blocks(y, height=54) -> list[str]:
    """A band over all columns, with one query's window drawn into it."""
    right = column(len(TEXT) - 1)
    out = [box(LEFT - 8, y, right - LEFT + CELL / 2 + 16, height, "band", 8)]
    for back in range(1, 5):
        x0, x1 = column(8), column(8 - back)
        out.append(
            path(
                f"M{x0} {y + height - 10}Q{(x0 + x1) / 2:g} {y + height - 10 - 13 * back:g} {x1} {y + height - 10}",
                "line",
                1.3,
            )
        )
    out += [f'<circle cx="{column(i):g}" cy="{y + height - 10}" r="2.6" class="soft"/>' for i in range(len(TEXT))]
    return out


def figure() -> str:
    everyone = range(len(TEXT))
    right = column(len(TEXT) - 1) + CELL / 2
    heads, local_out, add, deep_top, deep_bottom, router, local_in, embed, bytes_ = (
        58,
        150,
        252,
        330,
        556,
        624,
        696,
        776,
        822,
    )
    parts = [box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "page", 12)]

    # the streams of all bytes, drawn first so that everything lies on top of them
    parts += [rise(i, bytes_, local_in) for i in everyone]
    parts += [rise(i, local_in, router, "hot") for i in everyone]
    parts += [rise(i, router, add) for i in everyone]
    parts += [rise(i, add, local_out, "hot") for i in everyone] + [rise(i, local_out, heads + CELL) for i in everyone]

    # bytes and embedding
    parts += cells(bytes_, TEXT)
    parts.append(box(LEFT - 8, embed - 8, right - LEFT + 16, 20, "cell", 5))
    parts += note(bytes_ + 10, "Bytes", "no tokenizer: any byte string is text")
    parts += note(embed - 2, "Embedding", "of the byte and of the n-grams it ends")

    # first local blocks, router
    parts += local_blocks(local_in - 8)
    parts += note(local_in + 8, "Local blocks", "a short window, on every byte")
    for i in everyone:
        bar = 46 * WEIGHTS[i]
        parts.append(box(column(i) - 5, router + 30 - bar, 10, bar, "hot" if i in ROUTED else "bar", 2))
    threshold = router + 30 - 46 * 0.55
    parts.append(path(f"M{LEFT - 8} {threshold:g}H{right + 8}", "line", 1.3, 'stroke-dasharray="4 4"'))
    parts += note(
        router - 8, "Router", "a weight w for every byte; those above", "a threshold, here one in four, go deeper"
    )

    # gather, the latent stack, scatter
    slots = [column(6 + 1.2 * i) for i in range(len(ROUTED))]
    for i, x in zip(ROUTED, slots):
        parts.append(bend(column(i), router + 34 - 46 * WEIGHTS[i], x, deep_bottom))
        parts.append(bend(x, deep_top, column(i), add + 12))
    layers = 6
    pitch = (deep_bottom - deep_top) / layers
    for layer in range(layers):
        parts.append(box(slots[0] - 34, deep_top + layer * pitch + 3, slots[-1] - slots[0] + 68, pitch - 6, "deep", 7))
    for x in slots:
        parts.append(path(f"M{x:g} {deep_bottom}V{deep_top}", "hotline", 2))
        parts += [
            f'<circle cx="{x:g}" cy="{deep_top + (i + 0.5) * pitch:g}" r="4" class="hot"/>' for i in range(layers)
        ]
    middle = deep_bottom - pitch / 2
    for x in slots[:-1]:  # a wide window, drawn into the first of them
        lift = middle - 6 - (slots[-1] - x) / 8
        parts.append(path(f"M{slots[-1]:g} {middle:g}Q{(slots[-1] + x) / 2:g} {lift:g} {x:g} {middle:g}", "line", 1.3))
    parts += note(400, "Latent blocks", "deep, with a wide window, on the short", "sequence of routed bytes alone:",
                  "a quarter of the cost")  # fmt: skip
    parts.append(path(f"M{right + 18} 426H{right - 8}m6 -4l-6 4l6 4", "line", 1.3))
    parts.append(text(right + 24, 424, "the other bytes", "soft tiny"))
    parts.append(text(right + 24, 440, "pass by", "soft tiny"))

    # gated add
    for i in ROUTED:
        x = column(i)
        parts.append(f'<circle cx="{x:g}" cy="{add}" r="10" class="plus hotline" stroke-width="2"/>')
        parts.append(path(f"M{x - 5:g} {add}h10M{x:g} {add - 5}v10", "hotline", 2))
    parts += note(add - 4, "Gated add", "x + w · (latent(x) - x)", "so the router learns where depth pays")

    # second local blocks, heads
    parts += local_blocks(local_out - 8)
    parts += note(local_out + 8, "Local blocks", "spell out what the deep ones meant")
    parts += cells(heads, TEXT[1:] + DRAFT[0])
    parts += cells(heads, DRAFT[1:], len(TEXT), "draft", 'stroke-dasharray="4 3" stroke-width="1.5"')
    start = column(len(TEXT) - 1)
    for k in range(1, len(DRAFT)):
        x = column(len(TEXT) - 1 + k)
        curve = f"M{start:g} {local_out - 10}C{start:g} {local_out - 36} {x:g} {heads + 62} {x:g} {heads + CELL + 3}"
        parts.append(path(curve, "hotline", 1.6))
    parts.append(text(LEFT, heads - 18, "the next byte at every position", "soft"))
    parts.append(text(column(len(TEXT)) - CELL / 2, heads - 18, "and a draft", "soft"))
    parts += note(heads + 2, "N heads", "predict the next N bytes at once;", "the next pass checks the draft")
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="The architecture of Pico"><style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "assets" / "architecture.svg"
    target.write_text(figure(), encoding="utf-8")
    print(f"wrote {target}")
