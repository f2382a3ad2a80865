"""Charts: what is drawn is what was measured, names never overlap, the page's colours follow light and dark."""

import re
import struct
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from helpers import write_metrics
from hypothesis import given
from hypothesis import strategies as st

from pico.base.errors import PicoError
from pico.runs.metrics import read_metrics
from pico.runs.plots import COLOURS, Plot, plot_comparison, plot_losses, smooth, spread, svg

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize("steps, validation, floor", [(200, True, 0.9), (1, False, None), (3, True, 5.0)])
def test_the_loss_plot_is_a_picture(tmp_path, steps, validation, floor):
    plot_losses(write_metrics(tmp_path / "metrics.jsonl", steps, validation), tmp_path / "loss.png", floor)
    data = (tmp_path / "loss.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG") and width > height > 500


def test_the_plot_shows_curves_floor_and_their_values(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: kept.append(figure))
    plot_losses(write_metrics(tmp_path / "metrics.jsonl"), tmp_path / "loss.png", floor=0.9)
    (axes,) = kept[0].axes
    assert {text.get_text().split()[0] for text in axes.texts} == {"training", "validation", "floor"}
    raw, _, validation, floor = axes.lines
    assert list(raw.get_ydata()) == [1 + 7 / step for step in range(1, 201)]
    assert list(validation.get_ydata()) == pytest.approx([1.1 + 7 / step for step in (50, 100, 150, 200)])
    assert list(validation.get_xdata()) == pytest.approx([204.8, 409.6, 614.4, 819.2])  # kB
    assert set(floor.get_ydata()) == {0.9}
    low, high = axes.get_ylim()
    assert low < 0.9 and 1.2 < high < 8  # the floor is in sight, the first steep fall is cut


def test_an_empty_run_has_nothing_to_plot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "by')
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    with pytest.raises(PicoError, match="nothing to plot"):
        plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.floats(1, 50))
def test_smoothing_stays_between_the_extremes(values, window):
    out = smooth(values, window)
    assert len(out) == len(values) and out[0] == values[0]
    assert min(values) - 1e-6 <= min(out) and max(out) <= max(values) + 1e-6


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.floats(0.1, 100))
def test_labels_are_moved_apart_and_keep_their_order(values, gap):
    placed = spread(values, gap)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(placed[b] - placed[a] >= gap * 0.999 - 1e-6 for a, b in pairwise(order))
    if all(values[b] - values[a] >= gap for a, b in pairwise(order)):
        assert placed == pytest.approx(values)


def test_names_with_dollars_are_no_formulas(tmp_path):
    curve = [dict(flops=5.0, seconds=5.0, bytes=5.0, bits_per_byte=2.0)]
    mean = {"mean": 9.0, "sd": None}
    row = {"name": "$\\no$", "runs": {0: {"bits_per_byte": 1.5, "curve": curve * 2}}, "bits_per_byte": mean}
    row |= {"flops": mean, "seconds": mean, "bytes": mean}
    results = {"title": "$\\frac$ or 5 $", "configurations": [row, {"name": "none", "runs": {}}], "entropy_floor": 0.5}
    results["budget"] = {"minutes": 2}
    plot_comparison(results, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    plot = Plot("$\\x$", "$\\x$", lines={"$\\y$": [(1, 2.0), (2, 1.0)]}, levels={"$\\z$": 0.5})
    bars = Plot("$\\x$", bars={"$\\y$": 1.0}, levels={"$\\z$": 0.5})
    assert r"$\y$" in svg(plot) and r"$\z$" in svg(plot) and r"$\y$" in svg(bars) and r"$\z 0.5" not in svg(plot)


def test_the_pages_charts_take_every_colour_from_the_page():
    lines = {f"line {i}": [(1, i), (10, 2 * i)] for i in range(7)}
    for plot in (
        Plot("Lines", "bytes", lines, levels={"floor": 0.5}, log=True),
        Plot("Bars", bars={"learned": (1.0, 0.9, 1.1), "random": 1.2}, levels={"floor": 0.5}),
        Plot("Bars", bars={"learned": 1.0}),
    ):
        drawn = svg(plot)
        assert drawn == svg(plot)
        assert not re.search('#[0-9a-f]{3,6}[;" ]', drawn.replace("url(#", ""))
        assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(COLOURS)
        assert "DejaVu" not in drawn and 'id="figure' not in drawn and "http" not in drawn


def test_the_pages_charts_show_names_and_values():
    lines = {"<one>": [(1, 2.0), (1000, 1.25)], "two": [(1, 3.0)]}
    drawn = ElementTree.fromstring(svg(Plot("Falling", "bytes", lines, levels={"floor": 0.5}, log=True)))
    shown = {text.text for text in drawn.iter("text")}
    assert {"<one>", "two", "floor", "bytes", "1k"} <= shown
    assert {title.text for title in drawn.iter("title")} == {"<one>: 2 at 1", "<one>: 1.25 at 1000", "two: 3 at 1"}
    bars = {"learned": (1.0, 0.9, 1.125), "random": 1.2}
    drawn = ElementTree.fromstring(svg(Plot("Bars", bars=bars, levels={"floor": 0.5})))
    assert {text.text for text in drawn.iter("text")} == {"learned", "random", "1", "1.2", "floor 0.5"}
    assert drawn.get("aria-label") == "Bars"
