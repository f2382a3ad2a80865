"""Compare designs fairly: many configurations, one budget, several seeds, one table.

    python picolm.py compare benchmarks/routers.json --dataset my-text.jsonl

Every run is an ordinary run folder made by pico/train.py, so a comparison that was stopped goes on where it was, and
any of its models can be sampled. The same command started once per core or GPU shares the work: each process takes
what no other is training. All are scored on the same validation text, causally, at their last step; no checkpoint is
picked by it. Differences to the first configuration are tested seed by seed (paired t test), so that what all seeds
share cancels. With several configurations, expect one in twenty to reach p < 0.05 by chance.
"""

import json
import math
import re
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pico import checkpoint
from pico.analysis import Tally
from pico.budget import progress, step_flops
from pico.config import Config, Count, DataConfig, ModelConfig, PicoError, Positive, TrainConfig, preset
from pico.data import open_data
from pico.evaluate import traces
from pico.files import write_json
from pico.folder import Locked, create, differences, read_config, read_record
from pico.machine import pick_device
from pico.metrics import read_metrics
from pico.report import model_facts
from pico.statistics import bootstrap, paired_test, summary

BY_BUDGET = ("seed", "epochs", "max_steps", "max_minutes", "max_flops")  # of TrainConfig: not a configuration's to set
CHECKS = 10  # validations on the way, where the number of steps is known
NEVER = 10**9
COSTS = ("flops", "bytes", "seconds")  # of a run, as its metrics count them
SUMMED = ("bits_per_byte", "routed_fraction", "charged_flops_per_byte", "executed_flops_per_byte", *COSTS)
WAIT = 5  # seconds between looks at a run that another process is training


class Budget(Config):
    """What every run may spend; one of these."""

    minutes: Positive | None = None
    flops: Positive | None = None
    steps: Count | None = None
    bytes: Positive | None = None

    @model_validator(mode="after")
    def _one(self):
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"budget: expected one of minutes, flops, steps, bytes, not {given or 'none'}")
        return self

    def limit(self, train: dict) -> dict:
        """The TrainConfig field that ends a run."""
        if self.minutes:
            return {"max_minutes": self.minutes}
        if self.flops:
            return {"max_flops": self.flops}
        return {"max_steps": self.steps or max(1, round(self.bytes / TrainConfig.build(**train).step_bytes))}


class Configuration(Config):
    """Differences: a preset, fields of ModelConfig and of TrainConfig."""

    name: str = "base"
    preset: str | None = None
    model: dict = Field({})
    train: dict = Field({})

    @field_validator("name")
    @classmethod
    def _folder(cls, name):
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError("expected a folder name of letters, digits and . + - _")
        return name


class Experiment(Config):
    """An experiment file."""

    title: str = ""
    data: dict = Field({"dataset": "stories"})
    budget: Budget
    seeds: Count | list[Annotated[int, Field(ge=0)]] = 3
    validation_bytes: Count | None = None
    context_len: Count | None = Field(None, description="scored at (default: each as it was trained)")
    base: Configuration = Configuration()
    configurations: list[Configuration] = Field(min_length=1)

    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def data_config(self) -> DataConfig:
        return DataConfig.build(**self.data)

    def shape(self, configuration: Configuration) -> ModelConfig:
        values = {**self.base.model, **configuration.model}
        return preset(configuration.preset or self.base.preset or "tiny", **values)

    def settings(self, configuration: Configuration, seed: int) -> TrainConfig:
        values = {**self.base.train, **configuration.train}
        limit = self.budget.limit(values)
        plain = TrainConfig.build(**{**values, **limit, "seed": seed})
        steps = plain.max_steps or CHECKS * NEVER
        if plain.max_flops:  # about: what is routed decides
            steps = plain.max_flops / step_flops(self.shape(configuration), plain)
        quiet = {"validation_interval": math.ceil(steps / CHECKS), "sample_interval": NEVER, "keep_last": 1}
        return TrainConfig.build(**{**quiet, **plain.model_dump(include={*values, *limit, "seed"})})


def read_experiment(file: str | Path, dataset: str | None = None) -> Experiment:
    """Reads and checks an experiment, every configuration of it. Raises PicoError with all that is wrong."""
    try:
        values = json.loads(Path(file).read_text())
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
    except OSError as error:
        raise PicoError(f"cannot read {file}: {error.strerror}; there are examples in benchmarks/") from None
    except ValueError as error:
        raise PicoError(f"{file} cannot be read as JSON: {error}") from None
    if dataset:
        values["data"] = {"dataset": dataset}
    try:
        experiment = Experiment.build(**values)
    except PicoError as error:
        raise PicoError(f"{file}: {error}") from None
    problems = []
    names = [each.name for each in experiment.configurations]
    if len(set(names)) < len(names):
        problems.append(f"two configurations have the same name: {', '.join(names)}")
    seeds = experiment.seed_list()
    if not seeds or len(set(seeds)) < len(seeds):
        problems.append(f"seeds {seeds}: expected different numbers, or how many")
    for section in (experiment.base, *experiment.configurations):
        if taken := [key for key in BY_BUDGET if key in section.train]:
            problems.append(f"{section.name}: train sets {', '.join(taken)}: the budget and the seeds do that")
    builds = [("data", experiment.data_config)]
    for each in experiment.configurations:
        builds += [(each.name, partial(experiment.shape, each)), (each.name, partial(experiment.settings, each, 0))]
    for owner, build in builds:
        try:
            build()
        except PicoError as error:
            problems.append(f"{owner}: {error}")
    if problems:
        raise PicoError(f"{file}: {'; '.join(problems)}")
    return experiment


# --- training ---------------------------------------------------------------------------------------------------------


def compare(
    experiment: Experiment, folder: str | Path, device: str | None = None, quiet: bool = False, say: Callable = print
) -> tuple[dict, str]:
    """Trains what is not trained yet, scores what is not scored yet, and writes compare.json, .md and .png in folder.

    Returns the results and how the last training ended: 'finished', or what stopped it. A run that fails is named in
    the results, and the others go on. Raises PicoError where the folder holds runs of another experiment.
    """
    from pico.compare_report import write_report
    from pico.train import train

    folder, data = Path(folder), experiment.data_config()
    seeds, device = experiment.seed_list(), str(pick_device(device))
    plan = [(configuration, seed) for seed in seeds for configuration in experiment.configurations]
    for configuration, seed in plan:
        check_folder(experiment, configuration, seed, folder)
    validation = open_data(data, seeds[0])[1]
    if not len(validation):
        raise PicoError(f"'{data.dataset}' has no validation text to compare on: give a validation_size in data")
    failed: dict[str, str] = {}
    queue, elsewhere = deque(enumerate(plan, start=1)), set()
    while queue:
        number, (configuration, seed) = turn = queue.popleft()
        path, run = folder / configuration.name, f"seed-{seed}"
        settings, head = experiment.settings(configuration, seed), f"[{number}/{len(plan)}] {configuration.name} {run}"
        if not (path / "model.json").exists():
            create(path, experiment.shape(configuration))
        try:
            if not finished(path / run, settings):
                if number not in elsewhere:
                    say(f"{head}: training")
                resume = (path / run / "train.json").exists()
                stopped = train(path, run, data, settings, resume=resume, quiet=quiet, device=device).stopped
                if stopped != "finished":
                    return {}, stopped
            found = scored(experiment, path, run, settings, validation, device)
            say(f"{head}: {found['bits_per_byte']:.4f} bits per byte")
        except Locked:  # it ends there, or is resumed here if that process dies
            if number in elsewhere:
                time.sleep(WAIT)
            else:
                say(f"{head}: another process is training it")
                elsewhere.add(number)
            queue.append(turn)
        except PicoError as error:
            say(f"{head}: failed: {error}")
            failed[f"{configuration.name}/{run}"] = str(error)
    results = gather(experiment, folder, validation, failed)
    write_report(results, folder)
    return results, "finished"


def check_folder(experiment: Experiment, configuration: Configuration, seed: int, folder: Path) -> None:
    """Raises PicoError if the run's folder holds a model or a run that is not this experiment's."""
    path, run = folder / configuration.name, folder / configuration.name / f"seed-{seed}"
    changed = ""
    if (path / "model.json").exists():
        changed = differences(read_config(path), experiment.shape(configuration))
    record = read_record(run)
    if record and not changed:
        before = TrainConfig.build(**record["train"])
        changed = differences(before, experiment.settings(configuration, seed))
        changed = changed or differences(DataConfig.build(**record["data"]), experiment.data_config())
    if changed:
        raise PicoError(f"{run} is of another experiment ({changed}): remove it, or give another --out")


def finished(run: Path, settings: TrainConfig) -> bool:
    """Whether the run's newest valid checkpoint has spent the budget."""
    newest, _ = checkpoint.newest(run) if run.is_dir() else (None, [])
    if newest is None:
        return False
    state = checkpoint.read_state(newest)
    return progress(settings, settings.max_steps, state) >= 1


def scored(experiment: Experiment, path: Path, run: str, settings: TrainConfig, validation, device: str) -> dict:
    """The run's score on the validation text, kept in its score.json."""
    context_len = experiment.context_len or settings.context_len
    rule = {
        "context_len": context_len, "max_bytes": experiment.validation_bytes, "text": validation.fingerprint
    }  # fmt: skip
    file = path / run / "score.json"
    if file.exists() and (found := json.loads(file.read_text()))["rule"] == rule:
        return found
    model = checkpoint.load(path, run, device=device)
    tally = Tally(context_len, max(1, context_len // 2))
    documents = (validation[i] for i in range(len(validation)))
    for trace in traces(model, documents, context_len, tally.score.stride, experiment.validation_bytes):
        tally.add(trace, ())
    bits, sizes = tally.units
    found = {
        "rule": rule,
        "bits_per_byte": tally.score.bits_per_byte,
        "routed_fraction": tally.score.routed_fraction,
        "bytes": tally.score.bytes,
        "unit_bits": [round(x, 3) for x in bits.tolist()],  # of documents, or blocks where they are few
        "unit_bytes": sizes.tolist(),
    }
    write_json(file, found)
    return found


# --- results ----------------------------------------------------------------------------------------------------------


def gather(experiment: Experiment, folder: Path, validation, failed: dict[str, str]) -> dict:
    """Everything the table and the plot show, from the run folders."""
    rows = []
    for configuration in experiment.configurations:
        shape, runs = experiment.shape(configuration), {}
        for seed in experiment.seed_list():
            run = folder / configuration.name / f"seed-{seed}"
            if f"{configuration.name}/seed-{seed}" not in failed:
                runs[seed] = run_facts(run, experiment.settings(configuration, seed))
        row = {"name": configuration.name, "parameters": model_facts(shape)["parameters"], "runs": runs}
        if runs:
            for key in SUMMED:
                row[key] = summary([facts[key] for facts in runs.values()])
        rows.append(row)
    for row in rows[1:]:
        row["against_first"] = against(row["runs"], rows[0]["runs"])
    for row in rows:
        for facts in row["runs"].values():
            del facts["units"]
    return {
        "title": experiment.title,
        "dataset": experiment.data_config().dataset,
        "budget": experiment.budget.model_dump(exclude_none=True),
        "seeds": experiment.seed_list(),
        "validation_bytes": min(validation.bytes, experiment.validation_bytes or math.inf),
        "entropy_floor": validation.floor_bits / validation.bytes if validation.floor_bits is not None else None,
        "configurations": rows,
        "failed": failed,
    }


def run_facts(run: Path, settings: TrainConfig) -> dict:
    """What one run reached and spent, as it was measured. FLOPs a byte are of every position of its chunks."""
    lines = read_metrics(run / "metrics.jsonl")
    score = json.loads((run / "score.json").read_text())
    end, positions = lines[-1], lines[-1]["step"] * settings.step_bytes
    return {
        "bits_per_byte": score["bits_per_byte"],
        "routed_fraction": score["routed_fraction"],
        **{cost: end[cost] for cost in COSTS},
        "charged_flops_per_byte": end["flops"] / positions,
        "executed_flops_per_byte": end["executed_flops"] / positions,
        "curve": [
            {cost: line[cost] for cost in COSTS} | {"bits_per_byte": line["validation_bpb"]}
            for line in lines
            if "validation_bpb" in line
        ],
        "units": (score["unit_bits"], score["unit_bytes"]),
    }


def against(ours: dict, first: dict) -> dict | None:
    """Paired over the seeds that both have: the t test, and a bootstrap over documents of the mean difference."""
    seeds = [seed for seed in ours if seed in first]
    if not seeds:
        return None
    sizes = ours[seeds[0]]["units"][1]
    differences = [
        sum(ours[s]["units"][0][i] - first[s]["units"][0][i] for s in seeds) / len(seeds) for i in range(len(sizes))
    ]
    found = paired_test(*([runs[seed]["bits_per_byte"] for seed in seeds] for runs in (ours, first)))
    return found | {"document_interval": bootstrap(differences, sizes)}
