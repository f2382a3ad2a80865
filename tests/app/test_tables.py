"""What people look at: routed text, sizes, the heat-map page, the architecture figure."""

import errno
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from helpers import tiny, tiny_config, write_metrics
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pico.app.tables import model_table, runs_table
from pico.base.errors import PicoError
from pico.base.numbers import count
from pico.decode.text import marked, routed_text, underscored
from pico.evaluate.page import contrast, document, shaded, write_html
from pico.model.cost import cache_bytes, flops_per_symbol, model_facts
from pico.runs.metrics import read_metrics, run_facts
from pico.runs.plots import Plot

ROOT = Path(__file__).parents[2]


class Step(NamedTuple):
    bytes: bytes
    routed: bool = False
    weight: float = 0.0


# --- routed text ------------------------------------------------------------------------------------------------------


def test_a_character_is_marked_if_one_of_its_bytes_was_routed():
    data = "aé€b".encode()
    for position, expected in enumerate(["_aé€b", "a_é€b", "a_é€b", "aé_€b", "aé_€b", "aé_€b", "aé€_b"]):
        steps = [Step(bytes([byte]), i == position) for i, byte in enumerate(data)]
        assert underscored(marked(steps)) == expected


def test_marks_of_broken_characters_stay_with_their_bytes():
    cut = [Step(b"\xe2", routed=True), Step(b"\x82"), Step(b"a")]  # an unfinished euro sign, then a letter
    assert underscored(marked(cut)) == "_\ufffda"
    assert underscored(marked([Step(b"\xe2"), Step(b"\x82"), Step(b"a", routed=True)])) == "\ufffd_a"
    assert underscored(marked([Step(b"\xe2"), Step(b"\xf0", routed=True)])) == "\ufffd_\ufffd"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.booleans(), st.floats(0, 1)), max_size=40))
def test_marked_text_is_the_decoded_bytes(values):
    steps = [Step(*value) for value in values]
    pieces = list(marked(steps))
    assert "".join(text for text, _, _ in pieces) == b"".join(s.bytes for s in steps).decode(errors="replace")
    assert any(routed for _, routed, _ in pieces) == any(s.routed for s in steps)
    assert max((w for _, _, w in pieces), default=0) == max((s.weight for s in steps), default=0)


def test_characters_come_as_soon_as_they_are_complete():
    read = []

    def steps():
        for byte in "é!".encode():
            read.append(byte)
            yield Step(bytes([byte]))

    pieces = marked(steps())
    assert next(pieces)[0] == "é" and len(read) == 2


def test_a_terminal_shows_routed_text_underlined_and_plain_text_intact():
    text = routed_text(marked([Step(b"a", True, 0.9), Step(b"b", False, 0.2), Step(b"[", True, 0.3)]))
    assert text.plain == "ab["
    styles = {text.plain[span.start]: str(span.style) for span in text.spans}
    assert set(styles) == {"a", "["}
    assert all("underline" in style for style in styles.values()) and styles["a"] != styles["["]


def test_nothing_shown_moves_a_terminal():
    pieces = list(marked([Step(bytes([byte]), byte == 0x1B) for byte in b"a\x1b[31m\r\tb\n\xff"]))
    assert underscored(pieces) == "a_␛[31m␍\tb\n\ufffd"
    assert routed_text(pieces).plain == "a␛[31m␍\tb\n\ufffd"
    page = shaded(document([b"\x1b", b"\x7f", b"<"], [0.5] * 3, [False] * 3, [1.0] * 3))
    assert "␛" in page and "␡" in page and "&lt;" in page


# --- sizes and runs ---------------------------------------------------------------------------------------------------


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path):
    path = write_metrics(tmp_path / "metrics.jsonl", 3)
    path.write_text(path.read_text() + '{"step": 4, "bytes": 12')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_facts_agree_with_the_model():
    config = tiny_config()
    facts, model = model_facts(config, 100), tiny()
    assert facts["parts"] == model.parts()
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    forward, most = flops_per_symbol(config, 100)
    least = flops_per_symbol(config, 100, heads=1)[1]
    assert facts["forward_flops_per_symbol"] == forward
    assert facts["training_flops_per_symbol"] == pytest.approx((4 * least + most) / 5)  # of five steps one teaches all
    assert facts["kv_cache_bytes"] == cache_bytes(config)
    console = Console(record=True, width=120)
    console.print(model_table(config, facts))
    assert f"{facts['parameters']:,}" in console.export_text()


def test_runs_are_listed_whatever_they_lack(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(tiny_config().model_dump()))
    for name in ("fresh", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json").write_text("{}")
    (tmp_path / "trained" / "00000050").mkdir()
    write_metrics(tmp_path / "trained" / "metrics.jsonl")
    runs = [run_facts(tmp_path, name) for name in ("fresh", "trained")]
    assert runs[0] == {
        "run": "fresh", "checkpoints": [], "best_bpb": None, "best_step": None, "steps": None, "bytes_seen": None
    }  # fmt: skip
    assert runs[1]["checkpoints"] == [50] and runs[1]["bytes_seen"] == 200 * 4096
    assert runs[1]["best_step"] == 200 and runs[1]["best_bpb"] == pytest.approx(1.135)
    console = Console(record=True, width=120)
    console.print(runs_table(runs))
    assert "1.1350" in console.export_text()


@pytest.mark.parametrize(
    "value, text", [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (4.2e6, "4.2 MB"), (1e12, "1 TB")]
)
def test_counts_are_readable(value, text):
    assert count(value, "B") == text


# --- the heat-map page ------------------------------------------------------------------------------------------------


class Bytes(HTMLParser):
    """Collects the page's characters: (text, attributes of its element)."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], None

    def handle_starttag(self, tag, attributes):
        self.open = dict(attributes) if tag == "i" and "data-b" in dict(attributes) else None

    def handle_data(self, data):
        if self.open is not None:
            self.found.append((data, self.open))

    def handle_endtag(self, tag):
        self.open = None


TEXT = 'She said: "<b>€ &amp; é</b>"\nand\tleft\x00\xff'


def example(text: str = TEXT):
    data = text.encode("latin-1", "ignore") if "€" not in text else text.encode()
    n = len(data)
    each = [data[i : i + 1] for i in range(n)]
    return document(each, [i / n for i in range(n)], [i % 4 == 0 for i in range(n)], [0.5] * n)


def test_every_character_of_the_text_is_on_the_page():
    steps = example()
    parser = Bytes()
    parser.feed(shaded(steps))
    assert {">&lt;</i>", ">&amp;</i>", ">&gt;</i>"} <= set(re.findall(r">&\w+;</i>", shaded(steps)))
    shown = "".join(text for text, _ in parser.found)
    assert shown.replace("↵\n", "\n").replace("⇥\t", "\t").replace("\u2400", "\x00") == TEXT
    assert sum(float(a["data-b"]) for _, a in parser.found) == pytest.approx(0.5 * len(steps))
    assert bytes.fromhex("".join(a["data-c"] for _, a in parser.found)) == b"".join(b.bytes for b in steps)
    euro = next(a for text, a in parser.found if text == "€")
    place = TEXT.index("€")
    weight = f"{(place + 2) / len(steps):.2f}"
    assert euro["data-b"] == "1.50" and euro["data-w"] == weight and f"--w:{weight};" in euro["style"]
    assert ("class" in euro) == any(b.routed for b in steps[place : place + 3])
    assert any("class" not in a for _, a in parser.found) and any("class" in a for _, a in parser.found)


def test_shades_span_the_weights_that_occur():
    steps = document([b"x"] * 100, [0.5] + [0.5 + 0.001 * i for i in range(98)] + [0.99], [False] * 100, [0.0] * 100)
    low, high = contrast([b.weight for b in steps])
    assert (low, high) == pytest.approx((0.501, 0.596))
    shades = [float(x) for x in re.findall(r"--w:([\d.]+)", shaded(steps, low, high))]
    assert shades[0] == 0 and shades[-1] == 1 and shades[50] == pytest.approx(0.5, abs=0.02)
    assert contrast([]) == (0, 0) and "--w:0.00" in shaded(steps[:1], 0.5, 0.5)


def test_the_page_needs_no_network_and_cannot_be_scripted_by_text(tmp_path):
    metrics = {"bits per byte": 1.25, "bytes": 12345, "dataset": "<script>", "Routing": {"F1": 0.5}}
    plots = [
        Plot("Falling", "bytes", {"<one>": [(1, 2.0), (10, 1.0)], "two": [(1, 3.0)]}, levels={"floor": 0.5}, log=True),
        Plot("Bars", bars={"learned": (1.0, 0.9, 1.1), "random": 1.2}, levels={"floor": 0.5}),
        Plot("Nothing"),
    ]
    write_html(
        tmp_path / "page.html", "<model> & run", {"<story>": example("<script>alert(1)</script>")}, metrics, plots
    )
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|src=|href=(?!.#)|@import|url\((?!#)", page)
    assert page.count("<script>") == 1
    assert "&lt;model&gt; &amp; run" in page and "1.2500" in page and "12,345" in page and "0.5000" in page
    assert page.count("<svg") == 2 and "nothing to show" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


def test_half_a_page_on_a_full_disk_is_removed_and_the_page_named(tmp_path, monkeypatch):
    def full(path, text, **_):
        path.write_bytes(text[:100].encode())
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write has it, without the file's name

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PicoError, match=r"cannot write .*page.html: the disk is full; free space, or choose another"):
        write_html(tmp_path / "page.html", "a page", {}, {})
    assert not list(tmp_path.iterdir())


# --- the architecture figure ------------------------------------------------------------------------------------------


def test_the_architecture_figure_is_what_the_code_draws():
    path = ROOT / "scripts" / "architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ElementTree.fromstring(module.figure())
    assert (ROOT / "assets" / "architecture.svg").read_text() == module.figure()
