"""Tables in a terminal: a model's size, its runs, and plain facts."""

from rich.table import Table

from pico.base.numbers import count
from pico.base.shapes import Shape


def model_table(config: Shape, facts: dict) -> Table:
    """Parts and cost of a model, for a person."""
    what = described(config)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, size in facts["parts"].items():
        table.add_row(name, f"{size:,}", what.get(name, ""))
    table.add_row("parameters", f"{facts['parameters']:,}", "", style="bold")
    table.add_row()
    cost = f"per {config.unit}, at {facts['context_len']} {config.unit}s of context"
    table.add_row("forward", count(facts["forward_flops_per_symbol"], "FLOP"), cost)
    table.add_row("training", count(facts["training_flops_per_symbol"], "FLOP"), cost)
    table.add_row("cache", count(facts["kv_cache_bytes"], "B"), "keys and values in generation, however long the text")
    if memory := facts.get("memory_bytes"):
        add_memory(table, config, facts, memory)
    return table


def add_memory(table: Table, config: Shape, facts: dict, memory: dict) -> None:
    """What training and generation of a gpt take, so that a person knows before starting."""
    fixed = memory["weights"] + memory["gradients"]
    text, saved = (memory[key]["mps"] for key in ("activations", "activations_checkpointed"))
    table.add_row()
    table.add_row("memory", count(memory["weights"] + facts["kv_cache_bytes"], "B"), "in generation, in fp32: all here")
    each = f"weights and gradients {count(memory['weights'], 'B')} each"
    for name, state in memory["optimizer"].items():
        table.add_row("", count(fixed + state, "B"), f"training with {name}: {each}, its state {count(state, 'B')}")
    chunk = f"chunk of {facts['context_len']:,} {config.unit}s in a batch"
    table.add_row("", count(text, "B"), f"and activations of every {chunk}, at most (on a Mac)")
    table.add_row("", count(saved, "B"), "these with --set gradient_checkpointing=true")


def described(config: Shape) -> dict[str, str]:
    """What each part of a model is."""
    c, each = config, f"every {config.unit}"
    what = {
        "embedding": f"{c.vocabulary:,} {c.unit}s to {c.dim} channels",
        "ngrams": f"n-grams of 2 to {c.ngram_max} {c.unit}s, {c.ngram_rows:,} rows of {c.ngram_dim} each",
    }
    if c.kind == "gpt":
        heads = f"{c.att_q_heads} query and {c.att_kv_heads} key/value heads of {c.head_dim}"
        return what | {"blocks": f"{c.num_blocks}, {each}, {heads}, {c.mlp}", "head": f"the next {c.unit}"}
    local = f"{c.fb_num_blocks} blocks, {each}, window {c.fb_att_window_size}"
    return what | {
        "local_in": local,
        "router": f"{c.router}, {c.rule.rate:.0%} of the bytes",
        "latent": f"{c.latent_num_blocks} blocks, routed bytes, window {c.latent_att_window_size}",
        "local_out": local,
        "heads": f"the next {c.next_tokens} bytes",
        "chain": "shows a head the byte before the one it predicts",
    }


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
