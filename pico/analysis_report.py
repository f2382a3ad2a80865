"""The report of pico/analysis.py for people: a compact table in the terminal, and the heat-map page with plots."""

from pathlib import Path

from rich.table import Table

from pico.analysis import KINDS
from pico.evaluate import Trace
from pico.page import document, write_html
from pico.plots import Plot

NAMES = {
    "topk_sees_the_future": "top-k (sees future)",
    "word_start": "word starts",
    "word_end": "word ends",
    "after_word": "bytes after words",
    "spacelike": "spacelike",
}


def interval(pair, sign: bool = False) -> str:
    if not pair:
        return "no interval: too little text"
    return f"{pair[0]:+.4f} to {pair[1]:+.4f}" if sign else f"{pair[0]:.4f} to {pair[1]:.4f}"


def share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def report_table(report: dict) -> Table:
    """Name, figure, and what to hold it against."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")

    def row(name: str, value, note: str = "") -> None:
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value), note)

    row("bits per byte", report["bits_per_byte"], f"95 % {interval(report['bits_per_byte_interval'])}")
    if report["entropy_floor"] is not None:
        row("entropy floor", report["entropy_floor"], "what a perfect model would need")
    difference = report["disable_latent"]
    row("latent blocks off", difference["bits_per_byte"], _more(difference))
    for name, figures in report.get("replaced_routing", {}).items():
        row(
            f"routed by {NAMES.get(name, name)}",
            figures["bits_per_byte"],
            f"{_more(figures)}, {share(figures['routed_fraction'])} of bytes",
        )
    for name, figures in report.get("yardsticks", {}).items():
        after = figures.get("after_training_text")
        row(name, figures["alone"], f"{after:.4f} after the training text" if after else "")
    table.add_row()
    for head in report["heads"]:
        right = f"bits, likeliest byte right {head['accuracy']:.1%}"
        row(f"head {head['head']}", f"{head['bits']:.3f}", right + ", after right drafts" * (head["head"] > 0))
    table.add_row()
    routing = report["routing"]
    row("routed", share(routing["realised_fraction"]), f"wanted {share(routing['target_fraction'])}")
    if gaps := routing.get("gaps"):
        row("  gap", f"{gaps['mean']:.2f}", f"bytes; CV {gaps['cv']:.2f}, by chance {gaps['chance_cv']:.2f}")
    if routing["realised_fraction"]:
        for kind in KINDS:
            found, chance = routing[kind], routing[kind]["chance"]
            pairs = (f"{m} {found[m]:.2f} (chance {chance[m]:.2f})" for m in ("precision", "recall"))
            note = f"F1 (chance {chance['f1']:.2f}), {', '.join(pairs)}"
            row(f"  at {NAMES[kind]}", f"{found['f1']:.2f}", note)
        surprisal = routing["surprisal_enrichment"]
        note = f"times the mean, of the next byte; {surprisal['own_byte']:.2f} of the routed one itself"
        row("  surprisal", f"{surprisal['next_byte']:.2f}", note)
    if "topk_agreement" in routing:
        found = routing["topk_agreement"]
        row("  as top-k would", share(found["fraction"]), f"of the choices; by chance {share(found['chance'])}")
    for found in report.get("recalls", ()):
        note = f"of {found['words']} words right; latent blocks off {share(found['disable_latent']['word_accuracy'])}"
        row(f"recalled over {found['from']}+ bytes", share(found["word_accuracy"]), note)
    table.add_row()
    note = f"{report['documents']:,} documents of {report['dataset']}, context {report['context_len']}"
    row("bytes", f"{report['bytes']:,}", f"{note}, stride {report['stride']}")
    table.add_row("", "", f"interval: {report['interval']}")
    return table


def _more(figures: dict) -> str:
    return f"{figures['difference']:+.4f} ({interval(figures['difference_interval'], sign=True)})"


def write_page(file: str | Path, report: dict, examples: list[Trace]) -> None:
    """The heat-map page: the examples byte by byte, the figures and the plots."""
    shown = {f"document {i}": document(*_start(t)) for i, t in enumerate(examples, start=1)}
    pair = report["bits_per_byte_interval"]
    tiles = {"bits per byte": report["bits_per_byte"]}
    if pair:
        tiles["95 % interval"] = f"{pair[0]:.3f} to {pair[1]:.3f}"
    if report["entropy_floor"] is not None:
        tiles["entropy floor"] = report["entropy_floor"]
    tiles["latent blocks off"] = report["bits_per_byte_disable_latent"]
    tiles["routed"] = f"{report['routed_fraction']:.1%}"
    tiles["bytes scored"] = report["bytes"]
    tables = {
        "Routing": _routing_rows(report["routing"]),
        "How this was measured": {
            "dataset": report["dataset"],
            "documents": report["documents"],
            "context": report["context_len"],
            "stride": report["stride"],
            "interval": report["interval"],
            "rule": report["rule"],
        },
    }
    write_html(file, f"{report['run']} on {report['dataset']}", shown, tiles | tables, plots(report))


def _start(trace: Trace, most: int = 2500):
    n = min(len(trace.data), most)
    return trace.data[:n], trace.weight[1 : n + 1], trace.routed[1 : n + 1], trace.bits[:n]


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
    bars = {
        "as trained": (report["bits_per_byte"], *(report["bits_per_byte_interval"] or [report["bits_per_byte"]] * 2))
    }
    for name, figures in report.get("replaced_routing", {}).items():
        bars[NAMES.get(name, name)] = figures["bits_per_byte"]
    bars["latent blocks off"] = report["bits_per_byte_disable_latent"]
    made.append(Plot("Bits per byte, the same model routed otherwise", bars=bars, levels=floor))
    if yardsticks := report.get("yardsticks"):
        bars = {"this model": report["bits_per_byte"]}
        for name, figures in yardsticks.items():
            bars[name] = figures["alone"]
            if "after_training_text" in figures:
                bars[f"{name} + training text"] = figures["after_training_text"]
        made.append(Plot("Bits per byte against compressors", bars=bars, levels=floor))
    if report.get("recalls"):
        x = [(max(1, (r["from"] + r["to"]) / 2), r) for r in report["recalls"]]
        lines = {
            "word": [(d, r["word_accuracy"]) for d, r in x],
            "first byte": [(d, r["first_byte_accuracy"]) for d, r in x],
            "word, no latent": [(d, r["disable_latent"]["word_accuracy"]) for d, r in x],
        }
        made.append(Plot("Recalled words right, by distance", "bytes back to the last mention", lines, log=True))
    x = [(max(1, (r["from"] + r["to"]) / 2), r) for r in report["by_distance"]]
    lines = {"as trained": [(d, r["bits_per_byte"]) for d, r in x]}
    lines["no latent"] = [(d, r["bits_per_byte_disable_latent"]) for d, r in x]
    made.append(Plot("Bits per byte, by place in the document", "bytes from its start", lines, log=True))
    if len(report["heads"]) > 1:
        lines = {"bits": [(h["head"], h["bits"]) for h in report["heads"]]}
        made.append(Plot("Bits of each head, after right drafts", "head: bytes ahead, less one", lines))
        lines = {"accuracy": [(h["head"], h["accuracy"]) for h in report["heads"]]}
        made.append(Plot("Likeliest byte right, by head, after right drafts", "head: bytes ahead, less one", lines))
    if "gaps" in report["routing"]:
        rate = report["routing"]["realised_fraction"]
        share_of = report["routing"]["gaps"]["histogram"][:24]
        lines = {
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
