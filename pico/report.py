"""What a person reads in a terminal: routed text, tables of a model's size and of its runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pico.config import ModelConfig
from pico.folder import checkpoints, run_folder
from pico.metrics import read_metrics
from pico.vocab import characters, visible

WARM = ["#f3d9b8", "#f2b56b", "#ee8f30", "#e06c00"]  # router weight, from barely routed to certainly


# --- routed text ------------------------------------------------------------------------------------------------------


def marked(steps) -> Iterator[tuple[str, bool, float]]:
    """Generation steps of one text as (character, routed, weight), each as soon as it is complete.

    A character is routed if one of its bytes is; its weight is the largest of theirs.
    """
    for text, own in characters(steps):
        yield text, any(step.routed for step in own), max(step.weight for step in own)


def underscored(pieces: Iterable[tuple[str, bool, float]]) -> str:
    """(character, routed, weight) as plain, visible text with `_` before what was routed."""
    return "".join(f"_{visible(text)}" if routed else visible(text) for text, routed, _ in pieces)


def routed_text(pieces: Iterable[tuple[str, bool, float]]) -> Text:
    """(character, routed, weight) for a terminal: routed characters underlined, the warmer the higher the weight."""
    out = Text()
    for text, routed, weight in pieces:
        shade = WARM[min(int(weight * len(WARM)), len(WARM) - 1)]
        out.append(visible(text), style=f"bold underline {shade}" if routed else None)
    return out


# --- sizes and runs ---------------------------------------------------------------------------------------------------


def model_facts(config: ModelConfig, context_len: int = 512) -> dict:
    """Parameters of each part, FLOPs per byte at that context, bytes of key/value cache. Builds no weights."""
    from pico.model import cache_bytes, flops_per_byte

    parts = config.parameters
    forward, training = flops_per_byte(config, context_len)
    return {
        "parameters": sum(parts.values()),
        "parts": parts,
        "context_len": context_len,
        "forward_flops_per_byte": forward,
        "training_flops_per_byte": training,
        "kv_cache_bytes": cache_bytes(config),
    }


def run_facts(path: str | Path, run: str) -> dict:
    """What is known of a run without loading it: its checkpoints, best and last bpb, bytes seen, settings."""
    folder = run_folder(path, run)
    facts = {"run": folder.name, "checkpoints": [int(p.name) for p in checkpoints(folder)]}
    metrics = read_metrics(folder / "metrics.jsonl")
    scored = [line for line in metrics if "validation_bpb" in line]
    best = min(scored, key=lambda line: line["validation_bpb"], default={})
    return facts | {
        "best_bpb": best.get("validation_bpb"),
        "best_step": best.get("step"),
        "steps": metrics[-1]["step"] if metrics else None,
        "bytes_seen": metrics[-1].get("bytes") if metrics else None,
    }


def count(value: float, unit: str = "") -> str:
    """1234567 -> '1.23 M'; three figures and a thousands' letter."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def model_table(config: ModelConfig, facts: dict) -> Table:
    """Parts and cost of a model, for a person."""
    c, stack = config, config.fb_num_blocks
    what = {
        "embedding": f"bytes to {c.dim} channels",
        "ngrams": f"n-grams of 2 to {c.ngram_max} bytes, {c.ngram_rows:,} rows of {c.ngram_dim} each",
        "local_in": f"{stack} blocks, every byte, window {c.fb_att_window_size}",
        "router": f"{c.router}, {c.rule.rate:.0%} of the bytes",
        "latent": f"{c.latent_num_blocks} blocks, routed bytes, window {c.latent_att_window_size}",
        "local_out": f"{stack} blocks, every byte, window {c.fb_att_window_size}",
        "heads": f"the next {c.next_tokens} bytes",
        "chain": "shows a head the byte before the one it predicts",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, size in facts["parts"].items():
        table.add_row(name, f"{size:,}", what.get(name, ""))
    table.add_row("parameters", f"{facts['parameters']:,}", "", style="bold")
    table.add_row()
    context = f"at {facts['context_len']} bytes of context"
    table.add_row("forward", count(facts["forward_flops_per_byte"], "FLOP"), f"per byte, {context}")
    table.add_row("training", count(facts["training_flops_per_byte"], "FLOP"), f"per byte, {context}")
    table.add_row("cache", count(facts["kv_cache_bytes"], "B"), "keys and values in generation, however long the text")
    return table


def runs_table(runs: list[dict]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "checkpoints", "best bpb", "at step", "text seen"):
        table.add_column(name, justify="left" if name in ("run", "checkpoints") else "right")
    for run in runs:
        steps = ", ".join(map(str, run["checkpoints"])) or "none"
        best = f"{run['best_bpb']:.4f}" if run["best_bpb"] is not None else "-"
        read = count(run["bytes_seen"], "B") if run["bytes_seen"] is not None else "-"
        table.add_row(run["run"], steps, best, str(run["best_step"] if run["best_step"] is not None else "-"), read)
    return table


def facts_table(facts: dict) -> Table:
    """Nested facts as rows, one a leaf: what `bench` prints."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()

    def add(name: str, value) -> None:
        if isinstance(value, dict) and "median" in value:
            low, high = value["spread"]
            more = "".join(f"  {part} {row['median']:.2f}" for part, row in value.get("parts", {}).items())
            table.add_row(name, f"{value['median']:.3f}  ({low:.3f} to {high:.3f}, n = {value['repetitions']}){more}")
        elif isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name} {key}".strip(), inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                add(" ".join(f"{k} {v}" for k, v in row.items() if not isinstance(v, dict)), row["ms"])
        else:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))

    add("", facts)
    return table
