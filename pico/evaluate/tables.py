"""The report of analysis.py for people: grouped figures in the terminal, and the heat-map page with plots."""

import math
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pico import __version__
from pico.base.routers import ROUTERS
from pico.data.reading import plural
from pico.evaluate.analysis import KINDS
from pico.evaluate.page import document, write_html
from pico.evaluate.score import Trace
from pico.evaluate.tasks import TASKS
from pico.runs.folder import git_revision
from pico.runs.plots import Plot

NAMES = {
    "topk_sees_the_future": "top-k (sees future)",
    "word_start": "word starts",
    "word_end": "word ends",
    "after_word": "bytes after words",
    "spacelike": "spacelike",
}
OTHERS = {"value": "{:.4g}", "stderr": "{:.2g}", "chance": "{:.4g}", "questions": "{:,}"}
ABOUT_OTHERS = "acc: right answers; acc_norm: by likelihood per character"


def interval(pair, sign: bool = False) -> str:
    if not pair:
        return "unknown: too little text"
    return f"{pair[0]:+.4f} to {pair[1]:+.4f}" if sign else f"{pair[0]:.4f} to {pair[1]:.4f}"


def share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def report_table(report: dict) -> Group:
    """What `eval` prints: groups of name, figure and what the figure is; then the conclusion."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")

    def group(title: str, note: str = "") -> None:
        if table.row_count:
            table.add_row()
        table.add_row(Text(title, style="bold"), "", note)

    def row(name: str, value, note: str) -> None:
        table.add_row(f"  {name}", f"{value:.4f}" if isinstance(value, float) else value, note)

    routes = "routing" in report  # the report of a model that does not has nothing about it

    group("How good")
    row("bits per byte", report["bits_per_byte"], f"lower is better; 95% {interval(report['bits_per_byte_interval'])}")
    if mixed := report.get("mix_online"):
        row("mixed online", mixed["bits_per_byte"], f"with n-grams of each document so far: {_more(mixed)}")
    if report["entropy_floor"] is not None:
        row("entropy floor", report["entropy_floor"], "no model goes below")
    row("perplexity", report["perplexity"], f"of the next {report['unit']}; loss {report['loss']:.4f} nats")
    first, *further = [share(head["accuracy"]) for head in report["heads"]]
    note = "right at first guess" + f"; further heads {', '.join(further)}" * bool(further)
    row(f"next {report['unit']}", first, note)
    for name, figures in report.get("yardsticks", {}).items():
        after = figures.get("after_training_text")
        note = "compressor, bits per byte" + (f"; {after:.4f} after the training text" if after else "")
        row(name, figures["alone"], note)

    group("Where")
    for low, high, bits, off in by_place(report["by_distance"]):
        row(f"bytes {low} to {high - 1}", bits, "of each document" + f"; latent blocks off {off:.4f}" * routes)
    for found in report.get("recalls", ()):
        note = f"right, last said {found['from']} to {found['to'] - 1} bytes before"
        note += f"; latent blocks off {share(found['disable_latent']['word_accuracy'])}" if routes else ""
        row(f"{found['words']} recalled words", share(found["word_accuracy"]), note)
    if routes:
        routing_rows(report, group, row)

    size = f"{report['bytes']:,} bytes in {plural(report['documents'], 'document')} of {report['dataset']}"
    windows = f"context {context(report)}, stride {report['stride']}; interval: {report['interval']}"
    return Group(table, "", Text(f"{size}; {windows}", style="dim"), "", Text(conclusion(report)))


class Shown(NamedTuple):
    """A task for people; all of lm-eval's are one."""

    title: str
    about: str
    figures: list[str]
    rows: dict[str, list[str]]


def shown_tasks(results: dict[str, dict[str, dict]]) -> list[Shown]:
    """What `run_tasks` found, as it is written."""
    made = [
        Shown(name, task.about, *_cells(task.figures, results[name])) for name, task in TASKS.items() if name in results
    ]
    others = {
        f"{name}, {row}": values for name, rows in results.items() if name not in TASKS for row, values in rows.items()
    }
    return made + ([Shown("lm-eval", ABOUT_OTHERS, *_cells(OTHERS, others))] if others else [])


def _cells(figures: dict[str, str], rows: dict[str, dict]) -> tuple[list[str], dict[str, list[str]]]:
    written = {
        row: ["-" if values[name] is None else how.format(values[name]) for name, how in figures.items()]
        for row, values in rows.items()
    }
    return [name.replace("_", " ") for name in figures], written


def tasks_table(results: dict[str, dict[str, dict]]) -> Group:
    """What `eval --tasks` prints: of each task what it is, and a row for each of its parts."""
    parts = []
    for task in shown_tasks(results):
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(Text(task.title, style="bold not dim"))
        for figure in task.figures:
            table.add_column(figure, justify="right")
        for row, cells in task.rows.items():
            table.add_row(f"  {row}", *cells)
        parts += ["", table, Text(task.about, style="dim")]
    return Group(*parts[1:])


def routing_rows(report: dict, group, row) -> None:
    """Where a model routes: what, and what that is worth."""
    group("The router")
    routing = report["routing"]
    target = routing["target_fraction"]
    wanted = "the text decides" if target is None else f"wanted {share(target)}"
    row("routed", share(routing["realised_fraction"]), f"through latent blocks; {wanted}")
    if gaps := routing.get("gaps"):
        note = f"bytes, on average; CV {gaps['cv']:.2f}, by chance {gaps['chance_cv']:.2f}"
        row("gap between them", f"{gaps['mean']:.2f}", note)
    if routing["realised_fraction"]:
        for kind in KINDS:
            note = f"F1, 1 is perfect; by chance {routing[kind]['chance']['f1']:.2f}"
            row(f"at {NAMES[kind]}", f"{routing[kind]['f1']:.2f}", note)
        surprisal = routing["surprisal_enrichment"]
        note = f"times average surprise; the routed one {surprisal['own_byte']:.2f}"
        row("byte after a routed one", f"{surprisal['next_byte']:.2f}", note)
    if "topk_agreement" in routing:
        found = routing["topk_agreement"]
        row("as top-k", share(found["fraction"]), f"same choice, future seen; by chance {share(found['chance'])}")

    group("What routing is worth", "bits per byte of the same model, not retrained")
    difference = report["disable_latent"]
    row("latent blocks off", difference["bits_per_byte"], _more(difference))
    for name, figures in report.get("replaced_routing", {}).items():
        note = f"{_more(figures)}, {share(figures['routed_fraction'])} routed"
        row(f"by {NAMES.get(name, name)}", figures["bits_per_byte"], note)


def _more(figures: dict) -> str:
    return f"{figures['difference']:+.4f} ({interval(figures['difference_interval'], sign=True)})"


def by_place(rows: list[dict]) -> list[tuple[int, int, float, float]]:
    """(from, to, bits per byte, with the latent blocks off), two ranges of positions joined to one."""
    out = []
    for pair in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        size = sum(r["bytes"] for r in pair)
        keys = "bits_per_byte", "bits_per_byte_disable_latent"
        on, off = (sum(r["bytes"] * r.get(key, math.nan) for r in pair) / size for key in keys)
        out.append((pair[0]["from"], pair[-1]["to"], on, off))
    return out


def conclusion(report: dict) -> str:
    """One sentence that says no more than the intervals do: their ends are rounded outwards."""
    pair = report["bits_per_byte_interval"]
    sure = "{:.3f} to {:.3f}".format(*outwards(pair)) if pair else "too little text for an interval"
    start = f"The model needs {report['bits_per_byte']:.3f} bits per byte ({sure})"
    if "routing" not in report:
        return f"{start}."
    if not report["routing"]["realised_fraction"]:
        return f"{start} and routed no byte."
    pair = report["disable_latent"]["difference_interval"]
    if not pair:
        return f"{start}."
    low, high = outwards(pair)
    if low > 0:
        start += f"; its latent blocks save {low:.3f} to {high:.3f}"
    elif high < 0:
        start += f"; without its latent blocks it would need {-high:.3f} to {-low:.3f} less"
    else:
        start += f"; whether its latent blocks help, this text cannot tell ({low:+.3f} to {high:+.3f})"
    others = {k: v["difference_interval"] for k, v in report.get("replaced_routing", {}).items() if k in ROUTERS}
    if not others:
        return f"{start}."
    ends = {name: outwards(pair) for name, pair in others.items()}
    least = min(low for low, _ in ends.values())
    if least > 0:
        return (
            f"{start}; routed by {either(ends)} instead, without retraining, it would need at least {least:.3f} more."
        )
    if better := [name for name, (_, high) in ends.items() if high < 0]:
        return f"{start}; routed by {either(better)} instead, without retraining, it would need less."
    level = [name for name, (low, _) in ends.items() if low <= 0]
    return f"{start}; whether its own routing is better than by {either(level)}, this text cannot tell."


def either(names) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def outwards(pair) -> tuple[float, float]:
    """An interval's ends to three decimals, away from its middle."""
    return math.floor(pair[0] * 1e3) / 1e3, math.ceil(pair[1] * 1e3) / 1e3


def write_page(file: str | Path, report: dict, examples: list[Trace], command: str = "") -> None:
    """The heat-map page: the conclusion, the examples byte by byte, the figures and the plots.

    command: what was typed to make it.
    """
    shown = {f"document {i}": document(*_start(t)) for i, t in enumerate(examples, start=1)}
    pair = report["bits_per_byte_interval"]
    tiles = {"bits per byte": report["bits_per_byte"]}
    if pair:
        tiles["95% interval"] = "{:.3f} to {:.3f}".format(*outwards(pair))
    if "mix_online" in report:
        tiles["mixed online"] = report["mix_online"]["bits_per_byte"]
    if report["entropy_floor"] is not None:
        tiles["entropy floor"] = report["entropy_floor"]
    tables = {}
    if "routing" in report:
        tiles["latent blocks off"] = report["bits_per_byte_disable_latent"]
        tiles["routed"] = f"{report['routed_fraction']:.1%}"
        tables["Routing"] = _routing_rows(report["routing"])
    tiles["bytes scored"] = report["bytes"]
    for task in shown_tasks(report.get("tasks", {})):
        rows = {row: ", ".join(cells) for row, cells in task.rows.items()}
        tables[f"{task.title}: {', '.join(task.figures)}"] = rows
    tables |= {
        "How this was measured": {
            "dataset": report["dataset"],
            "documents": report["documents"],
            "context": context(report),
            "stride": report["stride"],
            "interval": report["interval"],
            "rule": report["rule"],
            "made": f"{date.today()}, pico {__version__}",
            "commit": git_revision() or "unknown",
            "command": command or "unknown",
        },
    }
    title = f"{report['run']} on {report['dataset']}"
    write_html(file, title, shown, tiles | tables, plots(report), conclusion(report), "routing" in report)


def context(report: dict) -> str:
    """'512', or of tokens '256 tokens, 1,018 bytes on average'."""
    length, each = report["context_len"], report.get("bytes_per_token")
    return f"{length} tokens, {length * each:,.0f} bytes on average" if each else str(length)


def _start(trace: Trace, most: int = 2500):
    sizes = trace.lengths if trace.shown is None else trace.shown
    ends = np.cumsum(sizes[:-1])
    n = int(np.searchsorted(ends, most, side="right"))  # symbols
    symbols = [trace.data[end - size : end] for end, size in zip(ends[:n].tolist(), sizes.tolist())]
    return symbols, trace.weight[1 : n + 1], trace.routed[1 : n + 1], trace.bits[:n]


def _routing_rows(routing: dict) -> dict:
    rows = {"routed": share(routing["realised_fraction"]), "wanted": share(routing["target_fraction"])}
    if gaps := routing.get("gaps"):
        rows["mean gap, bytes"] = f"{gaps['mean']:.2f}"
        rows["CV of the gaps (chance)"] = f"{gaps['cv']:.2f} ({gaps['chance_cv']:.2f})"
    if routing["realised_fraction"]:
        surprisal = routing["surprisal_enrichment"]
        for kind in KINDS:
            found, chance = routing[kind], routing[kind]["chance"]
            for measure in ("precision", "recall"):
                rows[f"{NAMES[kind]}, {measure} (chance)"] = f"{found[measure]:.2f} ({chance[measure]:.2f})"
        rows["surprisal of the next byte over the mean"] = f"{surprisal['next_byte']:.2f}"
        rows["surprisal of the routed byte over the mean"] = f"{surprisal['own_byte']:.2f}"
    if "topk_agreement" in routing:
        found = routing["topk_agreement"]
        rows["same choice as top-k (chance)"] = f"{share(found['fraction'])} ({share(found['chance'])})"
    return rows


def plots(report: dict) -> list[Plot]:
    """What there is to draw, most telling first."""
    floor = {"floor": report["entropy_floor"]} if report["entropy_floor"] is not None else {}
    made = []
    # bits per byte: of the same model routed otherwise, and of compressors
    bars = {
        "as trained": (report["bits_per_byte"], *(report["bits_per_byte_interval"] or [report["bits_per_byte"]] * 2))
    }
    for name, figures in report.get("replaced_routing", {}).items():
        bars[NAMES.get(name, name)] = figures["bits_per_byte"]
    routes = "routing" in report
    if routes:
        bars["latent blocks off"] = report["bits_per_byte_disable_latent"]
        made.append(Plot("Bits per byte, the same model routed otherwise", bars=bars, levels=floor))
    if yardsticks := report.get("yardsticks"):
        bars = {"this model": report["bits_per_byte"]}
        for name, figures in yardsticks.items():
            bars[name] = figures["alone"]
            if "after_training_text" in figures:
                bars[f"{name} + training text"] = figures["after_training_text"]
        made.append(Plot("Bits per byte against compressors", bars=bars, levels=floor))
    # how far back it remembers, and how much context helps
    if report.get("recalls"):
        x = [(max(1, (r["from"] + r["to"]) / 2), r) for r in report["recalls"]]
        lines = {
            "word": [(d, r["word_accuracy"]) for d, r in x],
            "first byte": [(d, r["first_byte_accuracy"]) for d, r in x],
        }
        if routes:
            lines["word, no latent"] = [(d, r["disable_latent"]["word_accuracy"]) for d, r in x]
        made.append(Plot("Recalled words right, by distance", "bytes back to the last mention", lines, log=True))
    x = [(max(1, (r["from"] + r["to"]) / 2), r) for r in report["by_distance"]]
    lines = {"as trained": [(d, r["bits_per_byte"]) for d, r in x]}
    if routes:
        lines["no latent"] = [(d, r["bits_per_byte_disable_latent"]) for d, r in x]
    made.append(Plot("Bits per byte, by place in the document", "bytes from its start", lines, log=True))
    # how far ahead it sees
    if len(report["heads"]) > 1:
        lines = {"bits": [(h["head"], h["bits"]) for h in report["heads"]]}
        made.append(Plot("Bits of each head, after right drafts", "head: bytes ahead, less one", lines))
        lines = {"accuracy": [(h["head"], h["accuracy"]) for h in report["heads"]]}
        made.append(Plot("Likeliest byte right, by head, after right drafts", "head: bytes ahead, less one", lines))
    # what is routed: gaps as a coin would leave them (geometric) beside those it leaves
    if "gaps" in report.get("routing", {}):
        rate = report["routing"]["realised_fraction"]
        share_of = report["routing"]["gaps"]["histogram"][:24]
        lines: dict[str, list[tuple[float, float]]] = {
            "routed": list(enumerate(share_of, start=1)),
            "chance": [(g, rate * (1 - rate) ** (g - 1)) for g in range(1, len(share_of) + 1)],
        }
        made.append(Plot("Gaps between routed bytes", "bytes to the next one", lines))
        bars = {}
        for kind in KINDS:
            bars[NAMES[kind]] = report["routing"][kind]["f1"]
            bars[f"{NAMES[kind]}, chance"] = report["routing"][kind]["chance"]["f1"]
        made.append(Plot("What is routed: F1 against kinds of bytes", bars=bars))
    return made
