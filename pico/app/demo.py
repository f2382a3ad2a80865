"""The demo: a tiny model, a few minutes of training on the built-in stories, its text with routed bytes marked.

python picolm.py demo --minutes 3
"""

import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pico.app.tables import model_table
from pico.base import hints
from pico.base.config import DataConfig, TrainConfig
from pico.base.presets import preset
from pico.data.open import open_evaluation
from pico.decode.generation import generate
from pico.decode.text import marked, routed_text, underscored
from pico.evaluate.analysis import evaluate_run
from pico.evaluate.tables import write_page
from pico.model.cost import model_facts
from pico.runs import checkpoint
from pico.runs.folder import create, read_config
from pico.train.loop import train
from pico.train.progress import Display

PROMPT = "Once upon a time"
ENOUGH = 1000  # steps after which it writes sentences
SHIPPED = Path(__file__).parents[2] / "models" / "tinystories"
SCORED = 100_000  # bytes of stories for the figures at the end


def run_demo(path: Path, minutes: float) -> int:
    """Init, train, run, and a word about each. Returns the exit code. Its text is on stdout, all else on stderr."""
    training = TrainConfig.build(max_minutes=minutes)
    console = Console(stderr=True, highlight=False)
    data = DataConfig(dataset="stories")

    def heading(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]")

    heading("The text")
    stories = open_evaluation(data, training.seed)
    console.print("Little stories from a grammar that never runs out. This is one that the model will not see:\n")
    console.print(Text(stories[0].decode()), style="dim")

    heading("The model")
    if not (path / "model.json").exists():
        create(path, preset("tiny"))
    config = read_config(path)
    console.print(model_table(config, model_facts(config, training.context_len)))

    heading(f"Training for {minutes:g} minutes")
    run = next(name for i in range(1, 10_000) if not (path / (name := f"run-{i}")).exists())
    pace = PaceDisplay(path, minutes)
    if code := train(path, run, data, training, display=pace).exit_code:
        return code

    model = checkpoint.load(path, run)
    heading("What it writes")
    console.print("Underlined, or after a _: the bytes the router sent through the latent blocks.\n")
    print_sample(model)
    heading("The same with the latent blocks off")
    console.print("What the local blocks, which see no further than a few words, can do alone.\n")
    print_sample(model, disable_latent=True)

    if pace.short and (SHIPPED / "model.json").exists():
        heading("The model that comes with Pico, after longer training")
        print_sample(checkpoint.load(SHIPPED, "best"))

    heading("What was learned")
    with console.status("scoring stories that it has not seen"):
        report, examples = evaluate_run(path, run, data, max_bytes=SCORED)
    write_page(path / run / "report.html", report, examples)
    for line in learned(report):
        console.print(line, soft_wrap=True)
    console.print(
        f"Pictures: {path / run}/loss.png and {path / run}/report.html, every byte with its routing and surprise.",
        markup=False,
    )

    heading("What to try next")
    for what, words in (
        ("more of its text", ("run", path, run, "--prompt", PROMPT, "--show-router-decisions")),
        ("train it longer", ("train", path, run, "stories", "--resume", "--max-minutes", f"{10 * minutes:g}")),
        ("your own text", ("train", path, "my-run", "my-text.txt", "--max-minutes", f"{minutes:g}")),
        ("another shape", ("init", "models/mine", "--preset", "s", "--router", "stride")),
    ):
        console.print(Text.assemble(f"  {what:<17} ", (hints.command(*words), "cyan")), soft_wrap=True)
    return 0


class PaceDisplay(Display):
    """The display of a training that says, once its speed is known, whether it is too short to learn to write.

    path: of the model; minutes: those it may take. `short` tells the answer.
    """

    def __init__(self, path: Path, minutes: float):
        super().__init__()
        self.path = path
        self.seconds, self.first, self.short, self.known = 60 * minutes, None, False, False

    def step(self, line: dict, done: float, remaining: float | None, floor: float | None) -> None:
        super().step(line, done, remaining, floor)
        self.first = self.first or line  # the first step takes longer than others
        steps, seconds = (line[key] - self.first[key] for key in ("step", "seconds"))
        if self.known or not steps or seconds < min(10, 0.05 * self.seconds):
            return
        self.known, expected = True, line["step"] + (self.seconds - line["seconds"]) * steps / seconds
        self.short = expected < ENOUGH / 2
        if self.short:
            minutes = ENOUGH * seconds / steps / 60
            self.log(f"At this speed there is time for about {expected:,.0f} steps, too few to learn to write.")
            self.log(f"{ENOUGH:,} steps take about {minutes:,.0f} minutes here:")
            self.log(f"  {hints.command('demo', self.path, '--minutes', math.ceil(minutes))}")


def print_sample(model, **settings) -> None:
    """One text on stdout, in colour on a terminal, with _ before routed bytes elsewhere."""
    out = Console(highlight=False)
    pieces = list(marked(generate(model, PROMPT, max_bytes=400, seed=1, echo=True, **settings)))
    out.print(routed_text(pieces) if out.is_terminal else Text(underscored(pieces)), soft_wrap=True)


def learned(report: dict) -> Iterator[str]:
    """An evaluation on stories, in a few sentences."""
    bpb, floor, off = (report[k] for k in ("bits_per_byte", "entropy_floor", "bits_per_byte_disable_latent"))
    yield f"{bpb:.3f} bits per byte on stories it has not seen. Guessing costs 8."
    if floor is not None:  # of whole stories
        yield f"The floor is the entropy of their grammar, {floor:.3f}: no model goes below. On the way there from 8,"
        yield f"{max(0, 8 - bpb) / (8 - floor):.1%} is done."
    yield f"Its latent blocks see {report['routed_fraction']:.0%} of the bytes; without them it needs {off:.3f}."
    for recall in report["recalls"]:
        if recall["to"] in (64, 512):
            own, without = recall["word_accuracy"], recall["disable_latent"]["word_accuracy"]
            yield (
                f"Words last said {recall['from']} to {recall['to'] - 1} bytes before: {own:.0%} recalled right, "
                f"{without:.0%} without the latent blocks."
            )
