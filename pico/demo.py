"""The demo: a tiny model, a few minutes of training on the built-in stories, its text with routed bytes marked.

python picolm.py demo --minutes 3
"""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from pico import checkpoint
from pico.config import DataConfig, TrainConfig, preset
from pico.data import open_evaluation
from pico.evaluate import score, traces
from pico.generate import generate
from pico.page import Plot, document, write_html
from pico.report import marked, model_facts, model_table, read_metrics, routed_text, underscored
from pico.train import train

PROMPT = "Once upon a time"
SCORED = 100_000  # bytes of validation text for each figure at the end


def run_demo(path: Path, minutes: float) -> int:
    """Init, train, run, and a word about each. Returns the exit code; the text goes to stdout, the talk to stderr."""
    training = TrainConfig.build(max_minutes=minutes)
    talk = Console(stderr=True, highlight=False)
    data = DataConfig(dataset="stories")

    def heading(text: str) -> None:
        talk.print(f"\n[bold]{text}[/bold]")

    heading("The text")
    stories = open_evaluation(data, training.seed)
    talk.print("Little stories from a grammar that never runs out. This is one that the model will not see:\n")
    talk.print(Text(stories[0].decode()), style="dim")

    heading("The model")
    if not (path / "model.json").exists():
        checkpoint.create(path, preset("tiny"))
    config = checkpoint.read_config(path)
    talk.print(model_table(config, model_facts(config, training.context_len)))

    heading(f"Training for {minutes:g} minutes")
    run = next(name for i in range(1, 10_000) if not (path / (name := f"run-{i}")).exists())
    summary = train(path, run, data, training)
    if summary.exit_code:
        return summary.exit_code

    model = checkpoint.load(path, run)
    heading("What it writes")
    talk.print("Underlined, or after a _: the bytes the router sent through the latent blocks.\n")
    show(model)
    heading("The same with the latent blocks off")
    talk.print("It can still spell, but who, what and where get lost.\n")
    show(model, disable_latent=True)

    texts = [stories[i] for i in range(len(stories))]
    on, off = (score(model, texts, training.context_len, max_bytes=SCORED, disable_latent=d) for d in (False, True))
    page = write_page(path / run, model, texts, on, off, summary.floor)
    heading("What was learned")
    bpb, floor = on.bits_per_byte, summary.floor
    talk.print(f"{bpb:.3f} bits per byte on stories it has not seen; guessing costs 8, and {floor:.3f} is the floor:")
    talk.print(f"the grammar's own entropy, which no model can beat. {(8 - bpb) / (8 - floor):.1%} of the way is done.")
    talk.print(
        f"Without its latent blocks, which see {on.routed_fraction:.0%} of the bytes, it needs {off.bits_per_byte:.3f}."
    )
    talk.print(f"Pictures: {path / run / 'loss.png'}\n          {page} (every byte, its routing and its surprise)")

    heading("What to try next")
    for what, command in (
        ("more of its text", f'run {path} {run} --prompt "{PROMPT}" --show-router-decisions'),
        ("train it longer", f"train {path} {run} stories --resume --max-minutes {10 * minutes:g}"),
        ("your own text", f"train {path} my-run my-text.txt --max-minutes {minutes:g}"),
        ("another shape", "init models/mine --preset s --router stride"),
    ):
        talk.print(f"  {what:<17} [cyan]python picolm.py {command}[/cyan]", soft_wrap=True)
    return 0


def show(model, **settings) -> None:
    """One text on stdout, in colour on a terminal, with _ before routed bytes elsewhere."""
    out = Console(highlight=False)
    pieces = list(marked(generate(model, PROMPT, max_bytes=400, seed=1, echo=True, **settings)))
    out.print(routed_text(pieces) if out.is_terminal else Text(underscored(pieces)), soft_wrap=True)


def write_page(folder: Path, model, texts: list[bytes], on, off, floor: float) -> Path:
    """The heat-map page of a run: three stories, byte by byte, and how the training went."""
    metrics = [line for line in read_metrics(folder / "metrics.jsonl") if line["bytes"]]
    every = max(1, len(metrics) // 300)
    lines = {
        "training": [(line["bytes"], line["train_bpb"]) for line in metrics[every::every]],
        "validation": [(line["bytes"], line["validation_bpb"]) for line in metrics if line.get("validation_bpb")],
    }
    plots = [
        Plot(
            "Bits per byte while training",
            "bytes of text",
            {k: v for k, v in lines.items() if v},
            levels={"floor": floor},
        ),
        Plot(
            "Bits per byte",
            bars={"latent blocks on": on.bits_per_byte, "latent blocks off": off.bits_per_byte},
            levels={"floor": floor},
        ),
    ]
    stories = {
        f"story {i}": document(t.data, t.weight[1:], t.routed[1:], t.bits[:-1])
        for i, t in enumerate(traces(model, texts[:3], 512), start=1)
    }
    metrics = {
        "bits per byte": on.bits_per_byte,
        "entropy floor": floor,
        "latent blocks off": off.bits_per_byte,
        "routed": f"{on.routed_fraction:.1%}",
        "bytes scored": on.bytes,
    }
    write_html(folder / "report.html", f"{folder} on stories", stories, metrics, plots)
    return folder / "report.html"
