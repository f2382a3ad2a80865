"""What the runs of an experiment came to: the score of each, what it spent, and the differences between designs.

A run's score is kept in its folder, in score.json, and holds for one text and one context. `collect_results` reads
nothing but run folders, so the results hold every run that there is, whoever made it.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pico.base.config import Config, TrainConfig
from pico.base.errors import PicoError
from pico.base.files import read_json, write_json
from pico.base.shapes import ModelConfig, Shape
from pico.decode.generation import generate
from pico.evaluate.analysis import Tally
from pico.evaluate.score import traces
from pico.evaluate.statistics import bootstrap, holm, paired_test, summary
from pico.lab.experiment import Configuration, Experiment
from pico.model.cost import model_facts
from pico.runs import checkpoint
from pico.runs.folder import read_config
from pico.runs.metrics import read_metrics

COSTS = ("flops", "bytes", "seconds")  # of a run, as its metrics count them
SUMMED = ("bits_per_byte", "routed_fraction", "charged_flops_per_byte", "executed_flops_per_byte", *COSTS)
MEASURED = ("training_bytes_per_second", "generation_bytes_per_second", "peak_memory_mb")
WRITTEN = 256  # bytes of each text whose writing is timed
FEWEST_SEEDS = 3  # that say anything by their spread
FAR = 0.1  # of a router's rate from its target, relative


class Scored(Config):
    """score.json of a run. Bits and bytes also of each unit: documents, or blocks where documents are few."""

    rule: dict
    bits_per_byte: float
    routed_fraction: float
    bytes: int
    unit_bits: list[float]
    unit_bytes: list[int]
    generation_bytes_per_second: float | None = None


def model_shape(experiment: Experiment, configuration: Configuration, folder: Path) -> Shape:
    """As it was made: a text may give fewer tokens than were asked for."""
    path = folder / configuration.name
    return read_config(path) if (path / "model.json").exists() else experiment.shape(configuration)


def all_seeds(experiment: Experiment, folder: Path) -> list[int]:
    """The file's seeds, and others that the folder has runs of."""
    runs = [run for each in experiment.configurations for run in (folder / each.name).glob("seed-*")]
    found = {int(run.name[5:]) for run in runs if run.name[5:].isdecimal()}
    return [*experiment.seed_list(), *sorted(found - {*experiment.seed_list()})]


def scored(experiment: Experiment, path: Path, run: str, settings: TrainConfig, validation, device: str) -> dict:
    """The run's score on the validation text, kept in its score.json."""
    rule = scoring_rule(experiment, settings, validation)
    if found := read_score(path / run, rule):
        return found
    context_len = rule["context_len"]
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
        "generation_bytes_per_second": round(writing_speed(model), 1),
    }
    write_json(path / run / "score.json", found)
    return found


def writing_speed(model) -> float:
    """Bytes a second of one text at temperature 0.8, as `run` writes it, on one thread: the median of three texts.

    A first one is not counted. What else runs on the machine slows it: figures of one row are of one machine alone.
    """
    threads, speeds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for seed in range(4):
            generation = generate(model, max_bytes=WRITTEN, seed=seed, stop_symbols=())
            for _ in generation:
                pass
            speeds.append(generation.stats["bytes_per_second"])
    finally:
        torch.set_num_threads(threads)
    return float(np.median(speeds[1:]))


def scoring_rule(experiment: Experiment, settings: TrainConfig, validation) -> dict:
    """What a score depends on besides the weights."""
    context_len = experiment.context_len or settings.context_len
    return {"context_len": context_len, "max_bytes": experiment.validation_bytes, "text": validation.fingerprint}


def read_score(run: Path, rule: dict) -> dict | None:
    """The run's score.json; None where there is none, or one of another rule, or something else."""
    try:
        found = Scored.build(**read_json(run / "score.json"))
    except (FileNotFoundError, PicoError):
        return None
    return found.model_dump() if found.rule == rule else None


def collect_results(experiment: Experiment, folder: Path, validation, failed: dict[str, str]) -> dict:
    """Everything the table and the plot show, from the run folders."""
    # 1. A row a configuration: its runs, and over them means with intervals.
    rows, missing, warnings, seeds = [], [], {}, all_seeds(experiment, folder)
    failed = dict(failed)
    for configuration in experiment.configurations:
        shape, runs = model_shape(experiment, configuration, folder), {}
        for seed in seeds:
            name, settings = f"{configuration.name}/seed-{seed}", experiment.settings(configuration, seed)
            score = read_score(folder / name, scoring_rule(experiment, settings, validation))
            if name in failed:
                continue
            if not score:
                missing.append(name)
                continue
            try:
                runs[seed] = run_costs(folder / name, shape, settings, score)
            except PicoError as error:
                failed[name] = str(error)
        row = {"name": configuration.name, "parameters": model_facts(shape)["parameters"], "runs": runs}
        row["table_parameters"] = math.prod(shape.matrices["ngrams"][0]) if shape.ngram_max else 0
        if runs:
            for key in SUMMED:
                row[key] = summary([facts[key] for facts in runs.values()])
            for key in MEASURED:
                known = [facts[key] for facts in runs.values() if facts[key] is not None]
                row[key] = summary(known) if known else None
            for warning in doubts(row, shape, settings):
                warnings.setdefault(warning, []).append(configuration.name)
        rows.append(row)
    # 2. Differences to the first, and p corrected for how many there are.
    for row in rows[1:]:
        row["against_first"] = against(row["runs"], rows[0]["runs"])
    tested = [
        row["against_first"] for row in rows[1:] if row["against_first"] and row["against_first"]["p"] is not None
    ]
    for found, p in zip(tested, holm([found["p"] for found in tested])):
        found["p_holm"] = p
    for row in rows:
        for facts in row["runs"].values():
            del facts["units"]  # thousands of numbers, in score.json already
    scored = validation.first(experiment.validation_bytes or validation.size)
    return {
        "title": experiment.title,
        "dataset": experiment.data_config().dataset,
        "budget": experiment.budget.model_dump(exclude_none=True),
        "seeds": seeds,
        "validation_bytes": min(validation.size, experiment.validation_bytes or math.inf),
        "entropy_floor": scored.floor_bits / scored.size if scored.floor_bits is not None else None,
        "configurations": rows,
        "failed": failed,
        "missing": missing,
        "warnings": [f"{', '.join(names)}: {warning}" for warning, names in warnings.items()],
    }


def doubts(row: dict, shape: Shape, settings: TrainConfig) -> Iterator[str]:
    """Why a row may not show what it seems to."""
    runs, warmup = row["runs"].values(), settings.warmup
    if len(runs) < FEWEST_SEEDS:
        yield f"fewer than {FEWEST_SEEDS} seeds, too few to tell a difference from chance: raise seeds"
    if isinstance(shape, ModelConfig):
        routed, rate = row["routed_fraction"]["mean"], shape.latent_capacity_factor
        if shape.rule.rate == rate and abs(routed - rate) > FAR * rate:
            yield f"routed {routed:.1%} of the bytes where latent_capacity_factor asks for {rate:.1%}"
    steps = min(facts["steps"] for facts in runs)
    if steps <= warmup:
        yield f"all {steps} steps are warm-up: lower warmup_steps, {warmup}, or raise the budget"
    elif steps < 3 * warmup:
        yield f"{warmup} of {steps} steps are warm-up: lower warmup_steps or raise the budget"


def run_costs(run: Path, shape: Shape, settings: TrainConfig, score: dict) -> dict:
    """What one run reached and spent, as it was measured. FLOPs a byte are of every position of its chunks; of a model
    of tokens, whose positions are no bytes, of what it read."""
    file, wanted = run / "metrics.jsonl", {"step", "executed_flops", *COSTS}
    lines = [line for line in read_metrics(file) if line.keys() >= wanted]
    if not lines:
        raise PicoError(f"{file} does not say what the run has spent: remove {run} to train it again")
    end = lines[-1]
    read = end["step"] * settings.step_symbols if shape.unit == "byte" else end["bytes"]
    return {
        "bits_per_byte": score["bits_per_byte"],
        "routed_fraction": score["routed_fraction"],
        "steps": end["step"],
        **{cost: end[cost] for cost in COSTS},
        "charged_flops_per_byte": end["flops"] / read,
        "executed_flops_per_byte": end["executed_flops"] / read,
        "training_bytes_per_second": end["bytes"] / end["seconds"] if end["seconds"] else None,
        "generation_bytes_per_second": score["generation_bytes_per_second"],
        "peak_memory_mb": max((line["peak_memory_mb"] for line in lines if "peak_memory_mb" in line), default=None),
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
