"""How long a comparison will take on this machine, from a few real steps of each configuration.

print(estimate(read_experiment("experiments/routers"), "models/compare/routers")[0])
"""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from pico.base.config import TrainConfig
from pico.base.device import pick_device
from pico.base.numbers import count
from pico.base.shapes import HEADS_FROM
from pico.lab.compare import Plan, check_folder, done, make_model, open_validation
from pico.lab.experiment import NEVER, Configuration, Experiment
from pico.lab.results import read_score, scoring_rule
from pico.runs.metrics import read_metrics
from pico.train.loop import train
from pico.train.parts import VALIDATION_BYTES

WARM, COUNTED, STEPS = 3, 12, 16  # steps left out, the last one before all heads learn and routing is causal, in all
HEADS = ("configuration", "steps", "text", "minutes a run", "runs to do", "minutes to do")


class Cost(NamedTuple):
    """Measured means: of a step seconds, bytes and charged FLOPs; and seconds of a validation on the way."""

    seconds: float
    bytes: float
    flops: float
    check: float

    def steps(self, settings: TrainConfig) -> int:
        """How many a run has."""
        if settings.max_minutes:
            return math.ceil(60 * settings.max_minutes / self.seconds)
        if settings.max_steps:
            return settings.max_steps
        assert settings.max_flops is not None, "an experiment has a budget"
        return math.ceil(settings.max_flops / self.flops)

    def run(self, settings: TrainConfig) -> float:
        """Seconds that a run takes."""
        steps = self.steps(settings)
        return steps * self.seconds + max(1, steps // settings.validation_interval) * self.check


def estimate(
    experiment: Experiment,
    folder: str | Path,
    device: str | None = None,
    log: Callable = print,
    plan: Plan | None = None,
) -> tuple[str, str]:
    """The table of what is still to do, and how the measuring ended: 'finished', or what stopped it.

    Trains a few steps of each configuration that is not done, in a folder that is thrown away. Raises PicoError as
    `compare` would.
    """
    folder, plan, device = Path(folder), plan or experiment.plan(), str(pick_device(device))
    check_folder(experiment, folder)
    validation = open_validation(experiment.data_config())
    left: dict[str, list[float]] = {}  # of each run that is to be made or scored: the share of its budget to spend
    for configuration, seed in plan:
        settings, run = experiment.settings(configuration, seed), folder / configuration.name / f"seed-{seed}"
        todo = left.setdefault(configuration.name, [])
        if not read_score(run, scoring_rule(experiment, settings, validation)):
            todo.append(1 - done(run, settings))
    lines, total = [HEADS, ("---", *["---:"] * (len(HEADS) - 1))], 0.0
    for configuration in experiment.configurations:
        todo = left.get(configuration.name)
        if not todo:
            lines += [(configuration.name, "", "", "", "0", "0")] * (todo is not None)
            continue
        log(f"{configuration.name}: measuring {STEPS} steps")
        cost, settings = measure(experiment, configuration, device, folder), experiment.settings(configuration, 0)
        if isinstance(cost, str):
            return "", cost
        shares = min(validation.size, experiment.validation_bytes or math.inf) / min(validation.size, VALIDATION_BYTES)
        steps, training, scoring = cost.steps(settings), cost.run(settings), cost.check * shares
        seconds = sum(todo) * training + len(todo) * scoring
        each = f"{steps:,}", count(steps * cost.bytes, "B"), f"{(training + scoring) / 60:.1f}"
        lines.append((configuration.name, *each, str(len(todo)), f"{seconds / 60:.1f}"))
        total += seconds
    where = f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else device
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    runs = sum(map(len, left.values()))
    return f"{text}\nIn all: {runs} runs, {total / 60:.1f} minutes of one process here ({where}).\n", "finished"


def measure(experiment: Experiment, configuration: Configuration, device: str, home: Path) -> Cost | str:
    """The cost of one configuration, or what stopped the measuring. home: keeps the tokenizers."""
    settings = experiment.settings(configuration, 0).model_dump()
    settings |= dict(max_steps=STEPS, max_minutes=None, max_flops=None, warmup_steps=0, tracker="none")
    settings |= dict(validation_interval=COUNTED, checkpoint_interval=NEVER, sample_interval=NEVER)
    with TemporaryDirectory() as folder:
        path, data = Path(folder) / "model", experiment.data_config()
        make_model(path, experiment.shape(configuration), data, home)
        stopped = train(path, "run", data, TrainConfig.build(**settings), quiet=True, device=device, head=False).stopped
        lines = read_metrics(path / "run/metrics.jsonl")
    if stopped != "finished":
        return stopped
    after, checked = lines[COUNTED - 1], lines[COUNTED]
    early, late = per_step(lines[WARM - 1], after), per_step(checked, lines[-1])
    means = (HEADS_FROM * a + (1 - HEADS_FROM) * b for a, b in zip(early, late, strict=True))
    return Cost(*means, check=max(0.0, checked["seconds"] - after["seconds"] - early[0]))


def per_step(before: dict, after: dict) -> list[float]:
    """Seconds, bytes and FLOPs of a step, the mean of those between two lines of metrics."""
    steps = after["step"] - before["step"]
    return [(after[key] - before[key]) / steps for key in ("seconds", "bytes", "flops")]
