"""The atlas: what a model finds worth thinking about, in many kinds of bytes.

    python picolm.py atlas experiments/atlas/atlas.json --data FOLDER

The same small models are trained on each kind at equal FLOPs, by the machinery of compare.py. A run that is through
leaves one line in runs.jsonl and nothing else, so another clone, or another process, goes on from these lines; the page
and the table are made of them alone. A line counts as long as the file asks for the same run.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from pico.base.config import Config, Count, meant
from pico.base.device import pick_device
from pico.base.errors import PicoError
from pico.base.files import append, open_regular, reason, remove, size_of, writing
from pico.base.presets import PRESETS
from pico.base.shapes import ModelConfig
from pico.data.documents import Documents
from pico.data.open import open_data
from pico.evaluate.compressors import last_bytes, yardsticks
from pico.lab import atlas_measure
from pico.lab.atlas_units import UNITS
from pico.lab.compare import Job, check_run, share_out, train_one
from pico.lab.experiment import Configuration, Experiment, folder_name, parse_seeds, read_experiment
from pico.lab.results import COSTS, model_shape, run_costs
from pico.runs import checkpoint
from pico.runs.folder import lock, read_record

WORK = Path("models/atlas")  # run folders, until they are scored
LINES = "runs.jsonl"
COMPRESSORS = "compressors"  # in the place of a configuration
RECIPE = 1  # raised by hand where the same settings train otherwise than before: then older lines do not count
Key = tuple[str, str, int]


class Kind(Config):
    """A kind of bytes."""

    folder: str = Field(description="that holds its train and valid files")
    title: str = Field(description="for people")
    text: bool = Field(False, description="characters, on which models of tokens are tried, too")
    units: list[str] = Field([], description=f"what routing is compared with: {', '.join(UNITS)}")
    predicted: float = Field(description="learned minus the best fixed rule, in bits per byte, before any run")

    @field_validator("folder")
    @classmethod
    def _plain(cls, name):
        return folder_name(name)

    @field_validator("units")
    @classmethod
    def _known(cls, units):
        for unit in units:
            if unit not in UNITS:
                raise ValueError(f"no unit '{unit}': {meant(unit, UNITS)}")
        return units


class Tried(Configuration):
    """A configuration, and where it is tried."""

    seeds: Count = Field(2, description="how many")
    of_text: bool = Field(False, description="on kinds of text alone")


class Atlas(Experiment):
    """An experiment on many kinds of bytes. The first configuration is the one that learns to route."""

    configurations: Sequence[Tried] = Field(min_length=1)
    kinds: list[Kind] = Field(min_length=1)

    def on(self, kind: Kind, folders: list[Path]) -> "Atlas":
        """The experiment on one of its kinds."""
        found = [folder / kind.folder for folder in folders if (folder / kind.folder).exists()]
        if not found:
            where = ", ".join(map(str, folders)) or "no folder"
            raise PicoError(
                f"no '{kind.folder}' in {where}: give the folder that holds it with --data, or leave it out with --only"
            )
        return self.model_copy(update={"data": {**self.data, "dataset": str(found[0])}})

    def runs(self, only: str | None = None, seeds: str | None = None) -> list["Run"]:
        """The runs to make, seed by seed. only: folders of kinds, 'a,b'; seeds: how many, '2', or which, '0,3'."""
        names = [kind.folder for kind in self.kinds]
        wanted = names if only is None else [name.strip() for name in only.split(",")]
        if unknown := [name for name in wanted if name not in names]:
            raise PicoError(f"--only: no kind '{unknown[0]}': {meant(unknown[0], names)}")
        pairs = [(seed, each) for each in self.configurations for seed in parse_seeds(seeds, list(range(each.seeds)))]
        return [
            Run(kind, each, seed)
            for now in sorted({seed for seed, _ in pairs})
            for kind in self.kinds
            for seed, each in pairs
            if seed == now and kind.folder in wanted and (kind.text or not each.of_text)
        ]

    def rule(self, name: str) -> str:
        """What a line's figures depend on besides kind, seed and text, as eight hex digits."""
        parts: list[Any] = [self.validation_bytes]
        if each := next((each for each in self.configurations if each.name == name), None):
            parts += [RECIPE, PRESETS[each.preset or self.base.preset or "tiny"]]
            parts += [self.budget.model_dump(), self.context_len]
            parts += [some.model_dump(include={"preset", "model", "train"}) for some in (self.base, each)]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=4).hexdigest()


class Run(NamedTuple):
    kind: Kind
    configuration: Tried
    seed: int

    @property
    def key(self) -> Key:
        return self.kind.folder, self.configuration.name, self.seed


def read_atlas(file: Path) -> Atlas:
    """Reads and checks the file. Raises PicoError with all that is wrong."""
    atlas = read_experiment(file, schema=Atlas)
    assert isinstance(atlas, Atlas)
    problems, first, shape = [], atlas.configurations[0].name, atlas.shape(atlas.configurations[0])
    if not isinstance(shape, ModelConfig) or not shape.rule.learned:
        problems.append(f"configurations: the first, '{first}', is compared with rules: expected a router that learns")
    if any(each.name == COMPRESSORS for each in atlas.configurations):
        problems.append(f"configurations: '{COMPRESSORS}' is what compressors are called: expected another name")
    twice = [name for name, count in Counter(kind.folder for kind in atlas.kinds).items() if count > 1]
    problems += [f"kinds: '{name}' stands there twice" for name in twice]
    if "seeds" in atlas.model_fields_set:
        problems.append("seeds: each configuration says how many")
    if problems:
        raise PicoError(f"{file}: {'; '.join(problems)}")
    return atlas


def read_lines(atlas: Atlas, file: Path) -> dict[Key, dict]:
    """The lines that count, the newest of each run; {} where there is no file. A line that was cut is passed over.

    Raises PicoError for scores on two texts of one kind, as two clones may bring together.
    """
    try:
        with open_regular(file) as stream:
            raw = stream.read().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PicoError(f"{file} cannot be read: {reason(error)}") from None
    out, texts = {}, {}
    for each in raw:
        try:
            line = json.loads(each)
            if line["rule"] == atlas.rule(line["configuration"]) and line["text"]:
                out[line["kind"], line["configuration"], line["seed"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    for (folder, *_), line in out.items():
        if texts.setdefault(folder, line["text"]) != line["text"]:
            raise PicoError(f"{file} has scores on two texts of {folder}: remove the lines of one")
    return out


def text_name(training, validation: Documents) -> str:
    """What two runs must have in common to be compared: the text that is learned, and the one that is scored."""
    return hashlib.blake2b(f"{training.fingerprint} {validation.fingerprint}".encode(), digest_size=8).hexdigest()


def run_atlas(
    atlas: Atlas,
    out: Path,
    folders: list[Path],
    runs: list[Run],
    device: str | None = None,
    quiet: bool = False,
    log: Callable = print,
    work: Path = WORK,
) -> tuple[dict[str, str], str]:
    """Makes the runs that no line of out/runs.jsonl has. Returns why some failed, and how the last training ended."""
    file, device, texts = out / LINES, str(pick_device(device)), {}
    for run in runs:
        atlas.on(run.kind, folders)  # which says what is missing before anything is trained
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)

    def place_of(key: Key) -> Path:
        """Of its models: another one when the file asks for other settings."""
        return work / key[0] / atlas.rule(key[1])

    def text_of(kind: Kind) -> tuple:
        """What is learned and what is scored; those that lines of this kind are of."""
        if kind.folder not in texts:
            training, scored = open_data(atlas.on(kind, folders).data_config(), 0)
            size, least = min(scored.size, atlas.validation_bytes or math.inf), 2 * atlas_measure.BLOCK
            if size < least:
                raise PicoError(
                    f"{kind.folder}: {size:,} bytes to score, expected {least:,} or more: the rule is chosen on the "
                    "first half of them alone"
                )
            texts[kind.folder] = training, scored
        name = text_name(*texts[kind.folder])
        if any(line["text"] != name for key, line in read_lines(atlas, file).items() if key[0] == kind.folder):
            raise PicoError(f"{file} has scores of another text of {kind.folder}: remove these lines, or give --out")
        return texts[kind.folder]

    def compress(kind: Kind) -> dict:
        training, documents = text_of(kind)
        size = min(documents.size, atlas.validation_bytes or documents.size)
        text = b"".join(documents)[:size]
        history = last_bytes(training) if isinstance(training, Documents) else None
        return {COMPRESSORS: yardsticks(text, history)}

    def train(run: Run, say: Callable) -> dict | str:
        here, path, name = atlas.on(run.kind, folders), place_of(run.key), f"seed-{run.seed}"
        (_, documents), settings = text_of(run.kind), here.settings(run.configuration, run.seed)
        check_run(here, run.configuration, run.seed, path)
        ended = train_one(here, run.configuration, run.seed, path, device, quiet, say)
        if ended != "finished":
            return ended
        folder, context_len = path / run.configuration.name, here.context_len or settings.context_len
        model = checkpoint.load(folder, name, device=device)
        found = atlas_measure.measure_run(model, documents, context_len, atlas.validation_bytes, run.kind.units)
        score = found | dict(unit_bits=[], unit_bytes=[], generation_bytes_per_second=None)
        costs = run_costs(folder / name, model_shape(here, run.configuration, path), settings, score)
        say(f"{found['bits_per_byte']:.4f} bits per byte")
        commit = read_record(folder / name).get("git_revision")
        return {key: costs[key] for key in ("steps", *COSTS)} | {"git_revision": commit} | found

    def work_off(key: Key, make: Callable[[Callable], dict | str], kind: Kind, say: Callable) -> str:
        """One line, unless it is there by now; whoever makes it holds the lock from the first step to that line."""
        with lock(work / "busy" / "-".join(map(str, key))):
            if key in read_lines(atlas, file):
                return "finished"
            found = make(say)
            if isinstance(found, str):
                return found
            head = dict(zip(("kind", "configuration", "seed"), key))
            head |= {"rule": atlas.rule(key[1]), "text": text_name(*texts[kind.folder])}
            append_line(file, json.dumps(shortened(head | found), separators=(",", ":")))
            remove(place_of(key) / key[1] / f"seed-{key[2]}")
        return "finished"

    there, jobs = read_lines(atlas, file), []
    for kind in {run.kind.folder: run.kind for run in runs}.values():
        key = (kind.folder, COMPRESSORS, 0)
        jobs += [(key, partial(work_off, key, lambda say, kind=kind: compress(kind), kind))]
    jobs += [(run.key, partial(work_off, run.key, partial(train, run), run.kind)) for run in runs]
    left = [Job("/".join(map(str, key)), each) for key, each in jobs if key not in there]
    log(f"{len(jobs) - len(left)} lines of {len(jobs)} are there, {len(left)} to make")
    return share_out(left, log)


def append_line(file: Path, line: str) -> None:
    """In one write, behind a new line where a killed process left the last one unfinished."""
    whole = size_of(file) == 0 or file.read_bytes().endswith(b"\n")
    append(file, f"{'' if whole else chr(10)}{line}\n", durable=True)  # for the run's folder goes now


def shortened(value):
    """Floats to six significant digits, in whatever JSON holds."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    return [shortened(each) for each in value] if isinstance(value, list | tuple) else value


def estimate_atlas(
    atlas: Atlas,
    out: Path,
    folders: list[Path],
    runs: list[Run],
    device: str | None = None,
    log: Callable = print,
    work: Path = WORK,
) -> tuple[str, str]:
    """How long the runs will take that are not made yet, and how the measuring ended: 'finished', or what stopped it.

    A few steps of each configuration are trained on the first kind that it is tried on: bytes cost the same wherever
    they are from, except that `space` routes as many as the text has.
    """
    from pico.lab.estimate import STEPS, measure
    from pico.train.parts import VALIDATION_BYTES

    for run in runs:
        atlas.on(run.kind, folders)  # which says what is missing before anything is measured
    there = read_lines(atlas, out / LINES)
    left = [run for run in runs if run.key not in there]
    counts, device = Counter(run.configuration.name for run in left), str(pick_device(device))
    lines, total = ["| configuration | measured on | minutes a run | runs to do |", "|---|---|---:|---:|"], 0.0
    for run in {run.configuration.name: run for run in reversed(left)}.values():
        name, here = run.configuration.name, atlas.on(run.kind, folders)
        log(f"{name}: measuring {STEPS} steps")
        cost = measure(here, run.configuration, device, work / run.kind.folder)
        if isinstance(cost, str):
            return "", cost
        scoring = cost.check * (atlas.validation_bytes or VALIDATION_BYTES) / VALIDATION_BYTES
        minutes = (cost.run(here.settings(run.configuration, 0)) + scoring) / 60
        lines.append(f"| {name} | {run.kind.folder} | {minutes:.1f} | {counts[name]} |")
        total += minutes * counts[name]
    lines += [
        "",
        f"In all: {len(left)} runs, {total / 60:.1f} hours of one process here ({device}); several share them.",
    ]
    return "\n".join(lines) + "\n", "finished"
