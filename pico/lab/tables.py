"""What a comparison leaves behind: compare.json, compare.md (the table), compare.png (bits per byte against cost)."""

from pathlib import Path

from pico.base.files import write_json, write_whole
from pico.base.numbers import count
from pico.runs.plots import plot_comparison

LEVEL = 0.05  # of p, corrected: below it a difference is one
UNITS = {"flops": "FLOP", "minutes": "min", "bytes": "bytes of text", "steps": "optimizer steps"}


def write_report(results: dict, folder: Path) -> None:
    write_json(folder / "compare.json", results)
    write_whole(folder / "compare.md", markdown(results).encode())
    plot_comparison(results, folder / "compare.png")


def markdown(results: dict) -> str:
    """The table, and how to read it."""
    (budget, amount), seeds = next(iter(results["budget"].items())), results["seeds"]
    first = results["configurations"][0]["name"]
    lines = [
        f"## {results['title'] or 'Comparison'}",
        "",
        f"Each run: {amount:,g} {UNITS[budget]} on {Path(results['dataset']).name}; {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)}; scored causally on {results['validation_bytes']:,} bytes of validation text.",
    ]
    if results["entropy_floor"] is not None:
        lines[-1] += f" Entropy floor: {results['entropy_floor']:.4f}."
    heads = ["configuration", "parameters", "and in tables", "MFLOP a byte", "executed", "text", "seconds"]
    heads += ["reads", "writes", "memory", "routed"]
    heads += ["bits per byte", "95 %", f"against {first}", "p", "p (Holm)", "by documents"]
    lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' + '---:|' * (len(heads) - 1)}"]
    for row in results["configurations"]:
        lines.append(f"| {' | '.join(cells(row))} |")
    lines += [
        "",
        "MFLOP a byte: of training, charged by the bytes that were routed, and executed, with the empty slots of the "
        "latent buffer. reads: bytes of text a second in training, validations included. writes: bytes a second of one "
        "text at temperature 0.8, the median of three of 256 bytes after each run, on one thread. memory: the most "
        "that training held, of a GPU by tensors, else by the process. bits per byte: mean ± sd over seeds. 95 %: "
        "where the mean of very many seeds probably lies (t "
        f"interval over these). against {first}: mean difference of runs with the same seed; negative is better. p: "
        "paired t test of it over seeds. p (Holm): the same, corrected for the number of comparisons in this table. "
        "by documents: where that difference of these same trained models probably lies on other text of the same kind "
        "(95 % bootstrap interval over the documents); of other seeds it says nothing.",
        "",
    ]
    notes = [f"- failed: {run}: {why}" for run, why in results["failed"].items()]
    notes += [f"- missing: {', '.join(results['missing'])}"] if results["missing"] else []
    notes += [f"- warning: {warning}" for warning in results["warnings"]]
    return "\n".join([*lines, *notes, *[""] * bool(notes), verdict(results)]) + "\n"


def verdict(results: dict) -> str:
    """One sentence: which configurations differ from the first after correction, and by how much."""
    first, *others = results["configurations"]
    head = "Verdict so far" if results["missing"] or results["failed"] else "Verdict"
    if not others:
        return f"{head}: there is nothing to compare {first['name']} with."
    if not first["runs"]:
        return f"{head}: nothing can be said, because {first['name']}, which the others are compared to, has no run."
    tested = [row for row in others if "p_holm" in (row["against_first"] or {})]
    if not tested:
        return f"{head}: nothing can be said, because a difference needs two seeds at least."
    sure = [row for row in tested if row["against_first"]["p_holm"] < LEVEL]
    number = f"{len(tested)} comparison{'s' * (len(tested) > 1)}"
    if not sure:
        return f"{head}: no difference to {first['name']} survives Holm's correction for {number}."
    said = [(row["name"], row["against_first"]["mean"]) for row in sure]
    found = ", ".join(f"{name} is {'better' if mean < 0 else 'worse'} by {abs(mean):.4f}" for name, mean in said)
    rest = len(tested) - len(sure)
    tail = f"; the other {rest} may be chance" if rest > 1 else "; the other one may be chance" if rest else ""
    return f"{head}: against {first['name']}, after Holm's correction for {number}, {found} bits per byte{tail}."


def cells(row: dict) -> list[str]:
    tables = row.get("table_parameters", 0)
    name = [row["name"], count(row["parameters"] - tables), count(tables)]
    if not row["runs"]:
        return name + ["no run"] + [""] * 13
    bpb = row["bits_per_byte"]
    out = [
        *name,
        f"{row['charged_flops_per_byte']['mean'] / 1e6:.2f}",
        f"{row['executed_flops_per_byte']['mean'] / 1e6:.2f}",
        count(row["bytes"]["mean"], "B"),
        f"{row['seconds']['mean']:.0f}",
        *(with_unit(row, f"{kind}_bytes_per_second", 1e3, "kB/s") for kind in ("training", "generation")),
        with_unit(row, "peak_memory_mb", 1, "MiB"),
        f"{row['routed_fraction']['mean']:.1%}",
        f"{bpb['mean']:.4f}" + (f" ± {bpb['sd']:.4f}" if bpb["sd"] is not None else ""),
        pair(bpb["interval"]),
    ]
    against = row.get("against_first")
    if not against:
        return [*out, "", "", "", ""]
    shown = [probability(against["p"]), probability(against.get("p_holm"))]
    return [*out, f"{against['mean']:+.4f}", *shown, pair(against["document_interval"], sign=True)]


def with_unit(row: dict, key: str, scale: float, unit: str) -> str:
    """The mean over seeds; nothing where it was not measured."""
    if not (found := row.get(key)):
        return ""
    value = found["mean"] / scale
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def probability(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def pair(interval, sign: bool = False) -> str:
    if not interval:
        return ""
    return " to ".join(f"{x:+.4f}" if sign else f"{x:.4f}" for x in interval)
