"""An experiment file: configurations to compare, their budget and seeds. Read and checked here, trained by compare.py.

plan = read_experiment("experiments/routers")
plan.settings(plan.configurations[0], seed=0).max_flops
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pico.base.config import Config, Count, DataConfig, Positive, TrainConfig, meant, nested_config
from pico.base.errors import PicoError
from pico.base.files import read_json
from pico.base.presets import PRESETS, preset
from pico.base.shapes import HEADS_FROM, GPTConfig, ModelConfig, Shape, check_context, check_routes
from pico.runs.folder import name_problem

BY_BUDGET = ("seed", "epochs", "max_steps", "max_minutes", "max_flops")  # of TrainConfig: not a configuration's to set
OWN_FILES = ("train_file", "validation_file")  # of DataConfig: they belong to one dataset
MOST_SEEDS = 1000
CHECKS = 10  # validations on the way, where the number of steps is known
NEVER = 10**9


def any_of(config: type[Config], without: tuple = ()) -> str:
    return f"any of {', '.join(name for name in config.model_fields if name not in without)}"


class Budget(Config):
    """What every run may spend; one of these."""

    minutes: Positive | None = Field(None, description="of training, by the clock")
    flops: Positive | None = Field(None, description="of training, charged by the bytes that were routed")
    steps: Count | None = Field(None, description="of the optimizer")
    bytes: Positive | None = Field(None, description="of text read")

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
        return {"max_steps": self.steps or max(1, round(self.bytes / TrainConfig.build(**train).step_symbols))}


def folder_name(name: str) -> str:
    """The name itself. Raises ValueError for one that no folder should have."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError("expected a folder name of letters, digits and . + - _")
    if problem := name_problem(name):
        raise ValueError(f"it {problem}: expected another name for a folder")
    return name


class Configuration(Config):
    """Differences: a preset, fields of its shape and of TrainConfig."""

    name: str = Field("base", description="its folder and its row")
    preset: str | None = Field(None, description=f"one of {', '.join(PRESETS)}; tiny where none is given")
    model: dict = Field({}, description=f"{any_of(ModelConfig)}, or of a gpt {any_of(GPTConfig)}")
    train: dict = Field({}, description=any_of(TrainConfig, without=BY_BUDGET))

    @field_validator("name")
    @classmethod
    def _folder(cls, name):
        return folder_name(name)


class Experiment(Config):
    """An experiment file."""

    title: str = Field("", description="of the table and the plot")
    data: dict = Field({"dataset": "stories"}, description=any_of(DataConfig))
    budget: Budget = Field(description="what each run may spend, one of")
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] | list[Annotated[int, Field(ge=0)]] = Field(
        3, description="how many, or which"
    )
    validation_bytes: Count | None = Field(None, description="scored, from the start of the validation text; or all")
    context_len: Count | None = Field(None, description="bytes looked back when scored; or as trained")
    base: Configuration = Field(Configuration(), description="what all configurations start from")
    configurations: Sequence[Configuration] = Field(
        min_length=1, description="what differs; the others are compared to the first"
    )

    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def data_config(self) -> DataConfig:
        return DataConfig.build(**self.data)

    def shape(self, configuration: Configuration) -> Shape:
        values = {**self.base.model, **configuration.model}
        return preset(configuration.preset or self.base.preset or "tiny", **values)

    def settings(self, configuration: Configuration, seed: int) -> TrainConfig:
        from pico.train.budget import step_flops

        shape = self.shape(configuration)
        values = {"context_len": shape.context_len, **self.base.train, **configuration.train}
        if self.budget.bytes and shape.unit != "byte":
            raise PicoError(
                "a budget of bytes needs models of bytes: how many a step of tokens reads, the text decides"
            )
        limit = self.budget.limit(values)
        plain = TrainConfig.build(**{**values, **limit, "seed": seed})
        check_context(shape, max(plain.context_len, self.context_len or 0))
        check_routes(shape, attention_backend=plain.attention_backend)
        steps = plain.max_steps or CHECKS * NEVER
        if plain.max_flops:  # about: what is routed decides
            first, last = (step_flops(shape, plain, heads=shape.heads_at(progress)) for progress in (0, 1))
            steps = plain.max_flops * (HEADS_FROM / first + (1 - HEADS_FROM) / last)
        quiet = {"validation_interval": math.ceil(steps / CHECKS), "sample_interval": NEVER, "keep_last": 1}
        return TrainConfig.build(**{**quiet, **plain.model_dump(include={*values, *limit, "seed"})})

    def plan(self, only: str | None = None, seeds: str | None = None) -> list[tuple[Configuration, int]]:
        """The runs to make, seed by seed. only: names of configurations, 'a,b'; seeds: how many, '2', or which, '0,3'.

        Raises PicoError for a name that is not in the file, and for what are not seeds.
        """
        names = [each.name for each in self.configurations]
        wanted = names if only is None else [name.strip() for name in only.split(",") if name.strip()]
        if unknown := [name for name in wanted if name not in names] or ([] if wanted else [""]):
            raise PicoError(f"--only: no configuration '{unknown[0]}': {meant(unknown[0], names)}")
        chosen = [each for each in self.configurations if each.name in wanted]
        return [(each, seed) for seed in parse_seeds(seeds, self.seed_list()) for each in chosen]


def parse_seeds(text: str | None, default: list[int]) -> list[int]:
    if text is None:
        return default
    if not re.fullmatch(r"\d+|\d+,|\d+(,\d+)+", text := text.replace(" ", "")):
        raise PicoError(f"--seeds {text!r}: expected how many, as 3, or which, as 0,1 (one alone: 5,)")
    if "," not in text:
        if not 1 <= int(text) <= MOST_SEEDS:
            raise PicoError(f"--seeds {text}: expected 1 to {MOST_SEEDS}; seed {text} alone is --seeds {text},")
        return list(range(int(text)))
    return sorted({int(seed) for seed in text.split(",") if seed})


def experiment_file(path: str | Path) -> Path:
    """The file itself, or the experiment.json of a folder."""
    return Path(path) / "experiment.json" if Path(path).is_dir() else Path(path)


def experiment_name(path: str | Path) -> str:
    """'routers', of experiments/routers, experiments/routers/experiment.json and routers.json."""
    file = experiment_file(path).resolve()
    return file.parent.name if file.name == "experiment.json" else file.stem


def read_experiment(
    file: str | Path, dataset: str | None = None, log: Callable = print, schema: type[Experiment] = Experiment
) -> Experiment:
    """Reads and checks an experiment, every configuration of it. Raises PicoError with all that is wrong.

    file: a JSON file, or a folder that holds it as experiment.json.
    dataset: used instead of the file's, with the file's other data settings; `log` hears of those without effect.
    schema: of the file, an Experiment or one with more keys.
    """
    file = experiment_file(file)
    try:
        values = read_json(file)
    except FileNotFoundError:
        raise PicoError(f"cannot read {file}: No such file or directory; there are examples in experiments/") from None
    try:
        experiment = schema.build(**values)
        if dataset is not None:
            experiment = experiment.model_copy(update={"data": on_dataset(experiment.data, dataset, log)})
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
        raise PicoError(f"{file}: {'; '.join(dict.fromkeys(problems))}")
    return experiment


def on_dataset(data: dict, dataset: str, log: Callable) -> dict:
    """The file's data settings with another dataset. Raises PicoError where they name files of their own one."""
    if named := [f"{key} {data[key]!r}" for key in OWN_FILES if data.get(key)]:
        raise PicoError(
            f"data: {' and '.join(named)} belong to its own dataset: take them out of the file to use --dataset"
        )
    unused = [key for key in data if key not in ("dataset", "validation_size")]
    if dataset == "stories" and unused:
        log(f"warning: the built-in stories have no use for {', '.join(unused)} of the file's data")
    return {**data, "dataset": dataset}


# --- the form of the file, for --help ---------------------------------------------------------------------------------

WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "object": "object",
    "boolean": "true or false",
}


def form(width: int = 76) -> str:
    """The keys of an experiment file, one a line, made from the classes above."""
    return "\n".join(lines_of(Experiment, "", width, set()))


def lines_of(config: type[Config], indent: str, width: int, seen: set) -> Iterator[str]:
    properties = config.model_json_schema()["properties"]
    for name, field in config.model_fields.items():
        inner, default = nested_config(field.annotation), properties[name].get("default")
        text = f"{name}: {words(properties[name])}" + ", required" * field.is_required()
        if default and not inner:
            text += f", default {json.dumps(default)}"
        text += f"; {field.description}" + " (as base)" * (inner in seen)
        yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "    ")
        if inner and inner not in seen:
            seen.add(inner)
            yield from lines_of(inner, indent + "  ", width, seen)


def words(schema: dict) -> str:
    """A JSON schema's type, for people."""
    if "anyOf" in schema:
        return " or ".join(words(each) for each in schema["anyOf"] if each.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {words(schema['items'])}s"
    return WORDS[schema.get("type", "object")]
