"""Draws assets/sample.svg: a text of the shipped model beside its twin without latent blocks.

Run `python scripts/sample.py`. The seed is the first one, not picked. What the router sent through the latent blocks is
underlined.
"""

import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PROMPT, SEED, BYTES = "Once upon a time", 0, 420
COLUMNS, CHARACTER, LINE = 50, 9, 24  # characters a line; width and height of one
LEFT, TOP, GAP = 28, 74, 44
WIDTH = 2 * LEFT + 2 * COLUMNS * CHARACTER + GAP

STYLE = """
  .page { fill: #ffffff; stroke: #d8dee4 } .ink { fill: #1f2328 } .soft { fill: #59636e } .hot { fill: #d9670a }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d } .ink { fill: #f0f6fc } .soft { fill: #9ba5b0 } .hot { fill: #ff9a3d }
  }
  text { font: 15px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }
  .head { font: 600 15.5px ui-sans-serif, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
"""


def wrapped(steps: list) -> list[list[tuple[str, bool]]]:
    """Steps of ASCII text as lines of (character, routed), each with the space or line end that breaks it."""
    text, lines = b"".join(step.bytes for step in steps).decode(), []
    for found in re.finditer(rf".{{0,{COLUMNS}}}(?:[ \n]|$)", text):
        lines.append([(step.bytes.decode(), step.routed) for step in steps[found.start() : found.end()]])
    return [line for line in lines if line]


def column(x: float, title: str, lines: list) -> str:
    """One text: its title, and each line with a bar under what was routed."""
    drawn = [f'<text x="{x}" y="44" class="ink head">{escape(title)}</text>']
    for i, line in enumerate(lines):
        y = TOP + i * LINE
        shown = "".join(c for c, _ in line).rstrip()
        length = len(shown) * CHARACTER
        drawn.append(f'<text x="{x}" y="{y}" class="ink" textLength="{length}">{escape(shown)}</text>')
        for j, (_, routed) in enumerate(line[:COLUMNS]):
            if routed:
                drawn.append(
                    f'<rect x="{x + j * CHARACTER}" y="{y + 4}" width="{CHARACTER}" height="2.5" class="hot"/>'
                )
    return "\n".join(drawn)


def figure(routed: list, without: list) -> str:
    """Both texts, as one drawing with its own background, in the reader's light or dark mode."""
    texts = wrapped(routed), wrapped(without)
    height = TOP + LINE * max(map(len, texts)) + 8
    said = "Left, a story with the routed bytes underlined; right, the same model without its latent blocks, rambling"
    page = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" class="page"/>'
    columns = (
        column(LEFT, "as trained: routed bytes underlined", texts[0]),
        column(WIDTH - LEFT - COLUMNS * CHARACTER, "same seed, latent blocks off", texts[1]),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">\n'
        f"<style>{STYLE}</style>\n{page}\n" + "\n".join(columns) + "\n</svg>\n"
    )


def main() -> None:
    from pico import generate, load

    model = load(ROOT / "models" / "tinystories", "best")
    texts = (
        list(generate(model, PROMPT, max_bytes=BYTES, seed=SEED, echo=True, disable_latent=off))
        for off in (False, True)
    )
    (ROOT / "assets" / "sample.svg").write_text(figure(*texts), encoding="utf-8")


if __name__ == "__main__":
    main()
