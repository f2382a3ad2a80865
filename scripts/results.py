"""Writes the figures of RESULTS.md and of each experiments/.../README.md from the JSON that they come from.

    python scripts/results.py           # after new results: rewrites the pages in place
    python scripts/results.py --check   # changes nothing; names what differs, and ends with 1 if anything does

Pages hold blocks, from `<!-- from experiments/routers/tinystories/compare.json -->` to `<!-- end -->`. What stands
between is made here from the file named, a path from the top of the repository. Elsewhere on a page, code excepted, a
decimal number must be one that stands in a block.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from pico.evaluate.statistics import holm  # noqa: E402
from pico.lab.tables import LEVEL, UNITS, probability, verdict  # noqa: E402

BLOCK = re.compile(r"(<!-- from (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
CODE = re.compile(r"```.*?```|^ {4}.*?$|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
DECIMAL = re.compile(r"\d+\.\d+")
NOT_KEPT = "No runs of this are kept yet."


def pages() -> list[Path]:
    return [ROOT / "RESULTS.md", *sorted(ROOT.glob("experiments/**/README.md"))]


def render(text: str, page: Path) -> str:
    """The page's text with every block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(ROOT / found[2], page.parent)}\n{found[3]}", text)


def unsourced(text: str) -> list[str]:
    """Decimal numbers in the words of a page that stand in none of its blocks."""
    known = {number for found in BLOCK.finditer(text) for number in DECIMAL.findall(found[0])}
    return [number for number in DECIMAL.findall(CODE.sub(" ", BLOCK.sub(" ", text))) if number not in known]


def block(file: Path, folder: Path) -> str:
    if not file.exists() or (file.is_dir() and not [*file.glob("*/compare.json")]):
        return NOT_KEPT
    if file.is_dir():
        return beside_each_other(file)
    values = json.loads(file.read_text(encoding="utf-8"))
    if "configurations" in values:
        return comparison(values, file, folder)
    if "claims" in values:
        return claims(values["claims"], file.parent)
    return table(
        ("figure", "measured", "95 %", "compared with"), [shown(each, file.parent) for each in values["figures"]]
    )


def table(heads, rows) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# --- a comparison: what `compare` leaves in compare.json --------------------------------------------------------------


def comparison(results: dict, file: Path, folder: Path) -> str:
    """Verdict, plot and table."""
    (budget, amount), rows = next(iter(results["budget"].items())), results["configurations"]
    ran = [row for row in rows if row["runs"]]
    text, seeds, plot = Path(results["dataset"]).name, len(results["seeds"]), file.with_suffix(".png")
    head = f"{text}, {amount:,g} {UNITS[budget]} a run, {seeds} seed{'s' * (seeds > 1)}."
    head += f" {len(ran)} of {len(rows)} configurations have run." if len(ran) < len(rows) else ""
    head += f" {verdict(results)}" if seeds > 1 else ""
    lines = [textwrap.fill(head, 120), ""]
    if plot.exists():
        lines += [f"![Bits per byte against cost, {text}]({os.path.relpath(plot, folder)})", ""]
    heads = ("configuration", "routed", "bits per byte", f"against {rows[0]['name']} (95 %)", "p (Holm)")
    return "\n".join([*lines, table(heads, map(cells, ran))])


def cells(row: dict) -> tuple[str, ...]:
    score, found = row["bits_per_byte"], row.get("against_first")
    spread = f" ± {score['sd']:.4f}" if score["sd"] is not None else ""
    cells = row["name"], f"{row['routed_fraction']['mean']:.1%}", f"{score['mean']:.4f}{spread}"
    if not found:
        return *cells, "", ""
    return *cells, with_interval(found["mean"], found["interval"], "+.4f"), probability(found.get("p_holm"))


def beside_each_other(folder: Path) -> str:
    """One comparison on several texts, a folder each: a row for each configuration, and its difference to the first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/compare.json"))]
    ran = {row["name"]: {} for results in found for row in results["configurations"] if row["runs"]}
    for results in found:
        for row in results["configurations"]:
            if row["runs"]:
                against = row.get("against_first")
                more = f", {with_interval(against['mean'], against['interval'], '+.3f')}" if against else ""
                ran[row["name"]][results["dataset"]] = f"{row['bits_per_byte']['mean']:.3f}{more}"
    texts = [results["dataset"] for results in found]
    rows = [(name, *(of.get(text, "") for text in texts)) for name, of in ran.items()]
    return table((f"bits per byte, and against {next(iter(ran))} (95 %)", *(Path(text).name for text in texts)), rows)


def with_interval(value: float, interval, form: str) -> str:
    return f"{value:{form}}" + (f" ({span(interval, form)})" if interval else "")


def span(interval, form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""


# --- figures of one model: of the JSON of `eval` and `bench`, by the path of their keys -------------------------------


def at(folder: Path, path: str | None):
    """What "eval.json:routing.word_end.f1" leads to; None where there is no such file."""
    if not path or not (folder / path.split(":")[0]).exists():
        return None
    file, keys = path.split(":")
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    for key in keys.split("."):
        value = value[key]
    return value


def shown(figure: dict, folder: Path) -> tuple[str, ...]:
    value, interval, other = (at(folder, figure.get(key)) for key in ("value", "interval", "other"))
    form = figure["form"]
    if value is None:
        return figure["name"], NOT_KEPT, "", ""
    beside = "" if other is None else f"{other:{form}}, {figure['other_is']}"
    return figure["name"], f"{value:{form}}", span(interval, form), beside


# --- the claims -------------------------------------------------------------------------------------------------------


def claims(rows: list[dict], folder: Path) -> str:
    """p is corrected for every comparison of every compare.json that is kept."""
    files = sorted(folder.rglob("compare.json"))
    found = [
        ((file, row["name"]), row["against_first"])
        for file in files
        for row in json.loads(file.read_text(encoding="utf-8"))["configurations"]
        if (row.get("against_first") or {}).get("p") is not None
    ]
    tested = {key: against | {"p_all": p} for (key, against), p in zip(found, holm([each["p"] for _, each in found]))}
    heads = ("claim", "measured (95 %)", "compared with", "p (Holm)", "verdict")
    return table(heads, [claim(row, folder, tested) for row in rows])


def claim(row: dict, folder: Path, tested: dict) -> tuple[str, ...]:
    """The claim is that the value, interval and all, is "above" or "below" its bar: the other figure, else 0."""
    if "configuration" in row:
        against = tested.get((folder / row["file"], row["configuration"]))
        if not against:
            return row["claim"], NOT_KEPT, "", "", "open"
        sure, right = against["p_all"] < LEVEL, (against["mean"] > 0) == (row["is"] == "above")
        measured = with_interval(against["mean"], against["interval"], "+.4f")
        verdict = "may be chance" if not sure else "yes" if right else "no: the reverse"
        return row["claim"], measured, row["other_is"], probability(against["p_all"]), verdict
    value, interval, other = (at(folder, row.get(key)) for key in ("value", "interval", "other"))
    if value is None:
        return row["claim"], NOT_KEPT, "", "", "open"
    bar, (low, high) = row.get("bar", other or 0), interval or (value, value)
    held = low > bar if row["is"] == "above" else high < bar
    beside = row["other_is"] if other is None else f"{other:{row['form']}}, {row['other_is']}"
    return (
        row["claim"],
        with_interval(value, interval, row["form"]),
        beside,
        "",
        "yes, of this model" if held else "not shown",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    check, wrong = parser.parse_args().check, []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = render(text, page)
        if new != text:
            wrong.append(f"{page.relative_to(ROOT)}: a block differs from its file")
            if not check:
                page.write_text(new, encoding="utf-8")
        wrong += [f"{page.relative_to(ROOT)}: {number} stands in no block" for number in unsourced(new)]
    print("\n".join(wrong) or "every number has its source")
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
