"""Compare designs fairly: many configurations, one budget, several seeds, one table.

    python picolm.py compare experiments/routers --dataset my-text.jsonl

Every run is an ordinary run folder made by train/loop.py, so a comparison that was stopped goes on where it was, and
any of its models can be sampled. The same command started once per core or GPU shares the work: each process takes
what no other is training. All are scored on the same validation text, causally, at their last step; no checkpoint is
picked by it. Differences to the first configuration are tested seed by seed (paired t test), so that what all seeds
share cancels, and p is corrected for the number of configurations (Holm). With only some of the runs made, the table
holds those that are there and names the others.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pico.base.config import DataConfig, TrainConfig
from pico.base.device import pick_device
from pico.base.errors import DiskFull, PicoError
from pico.base.files import write_whole
from pico.base.shapes import GPTConfig, Shape
from pico.data.open import open_data
from pico.data.reading import Reading
from pico.lab.experiment import Configuration, Experiment
from pico.lab.results import all_seeds, collect_results, scored
from pico.runs import checkpoint
from pico.runs.folder import Locked, create, differences, lock, read_config, read_record, with_tokenizer
from pico.train.budget import progress

WAIT = 5  # seconds between looks at a run that another process is training
Plan = list[tuple[Configuration, int]]


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    device: str | None = None,
    quiet: bool = False,
    log: Callable = print,
    plan: Plan | None = None,
) -> tuple[dict, str]:
    """Trains what is not trained yet, scores what is not scored yet, and writes compare.json, .md and .png in folder.

    plan: the runs to make, by default all of the experiment's; the results hold every run that the folder has.
    Returns the results and how the last training ended: 'finished', or what stopped it. A run that fails is named in
    the results, and the others go on. Raises PicoError where the folder holds runs of another experiment, or the disk
    is full.
    """
    from pico.lab.tables import markdown, write_report

    folder, data = Path(folder), experiment.data_config()
    plan, device = plan or experiment.plan(), str(pick_device(device))
    check_folder(experiment, folder)
    validation = open_validation(data, log)

    def work(configuration: Configuration, seed: int, say: Callable) -> str:
        ended = train_one(experiment, configuration, seed, folder, device, quiet, say)
        if ended == "finished":
            path, settings = folder / configuration.name, experiment.settings(configuration, seed)
            with lock(path / f"seed-{seed}"):  # two that score it at once would time each other
                found = scored(experiment, path, f"seed-{seed}", settings, validation, device)
            say(f"{found['bits_per_byte']:.4f} bits per byte")
        return ended

    jobs = [Job(f"{each.name}/seed-{seed}", partial(work, each, seed)) for each, seed in plan]
    failed, ended = share_out(jobs, log)
    if ended != "finished":
        return {}, ended

    # From here on nothing but run folders is read, so the table is the same whoever trained what, and when.
    results = collect_results(experiment, folder, validation, failed)
    for warning in results["warnings"]:
        log(f"warning: {warning}")
    try:
        write_report(results, folder)
    except PicoError:  # the table is not lost
        log(markdown(results))
        raise
    return results, "finished"


class Job(NamedTuple):
    """One run, and what makes it: told where to report, it says how its training ended."""

    name: str
    work: Callable[[Callable], str]


def share_out(jobs: list[Job], log: Callable) -> tuple[dict[str, str], str]:
    """Does the jobs that no other process does. Returns why some failed, by name, and how the last training ended.

    What another process has goes to the end of the queue, and is looked at again until that one is through. Raises
    DiskFull, since that is so for all the others, too.
    """
    failed: dict[str, str] = {}
    queue, elsewhere, said = deque(enumerate(jobs, start=1)), set(), set()

    def tell(head: str, text: str) -> None:
        if (head, text) not in said:
            said.add((head, text))
            log(f"{head}: {text}")

    while queue:
        number, job = turn = queue.popleft()
        head = f"[{number}/{len(jobs)}] {job.name.replace('/', ' ')}"
        try:
            ended = job.work(partial(tell, head))
            if ended != "finished":
                return failed, ended
        except Locked:  # it ends there, or is resumed here if that process dies
            if number in elsewhere:
                time.sleep(WAIT)
            elsewhere.add(number)
            tell(head, "another process is training it")
            queue.append(turn)
        except DiskFull as error:
            raise DiskFull(f"{head}: {str(error).replace('--resume', 'give the same command again')}") from None
        except PicoError as error:
            tell(head, f"failed: {error}")
            failed[job.name] = str(error)
    return failed, "finished"


def train_one(
    experiment: Experiment,
    configuration: Configuration,
    seed: int,
    folder: Path,
    device: str,
    quiet: bool,
    say: Callable,
) -> str:
    """Trains a run as far as it is not trained yet; how that ended. Raises Locked where another process trains it."""
    from pico.train.loop import train

    path, run, data = folder / configuration.name, f"seed-{seed}", experiment.data_config()
    settings = experiment.settings(configuration, seed)
    make_model(path, experiment.shape(configuration), data, folder, say)
    if done(path / run, settings) == 1:
        return "finished"
    say("training")
    resume = (path / run / "train.json").exists()
    return train(path, run, data, settings, resume=resume, quiet=quiet, device=device, head=False).stopped


def make_model(path: Path, shape: Shape, data: DataConfig, folder: Path, log: Callable = lambda text: None) -> None:
    """Makes the model at `path`, if it is not there; one of tokens has a tokenizer learned from the training text.

    `folder` keeps the tokenizers, one for each size.
    """
    if (path / "model.json").exists():
        return
    if not isinstance(shape, GPTConfig) or shape.unit == "byte":
        create(path, shape)
        return
    from pico.data import bpe

    file = folder / f"tokenizer-{shape.vocab_size}.json"
    if not file.exists():
        log(f"making a tokenizer of {shape.vocab_size:,} ids from the training text")
        made = bpe.train_tokenizer(open_data(data, 0, Reading())[0].block(0), shape.vocab_size)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, made.encode())
    if not (path / "model.json").exists():  # another process may have been faster
        create(path, with_tokenizer(shape, bpe.read_tokenizer(file)), file)


def open_validation(data: DataConfig, log: Callable = lambda text: None):
    """The validation documents, the same whatever the training seed. Raises PicoError where there are none.

    log: is told what was read.
    """
    reading = Reading()
    validation = open_data(data, 0, reading)[1]
    for line in reading.lines() + reading.warnings:
        log(line)
    if not len(validation):
        raise PicoError(f"'{data.dataset}' has no validation text to compare on: give a validation_size in data")
    return validation


def check_folder(experiment: Experiment, folder: Path) -> None:
    """Raises PicoError if the folder holds a model or a run that is not this experiment's."""
    for configuration in experiment.configurations:
        for seed in all_seeds(experiment, folder):
            check_run(experiment, configuration, seed, folder)


def check_run(experiment: Experiment, configuration: Configuration, seed: int, folder: Path) -> None:
    path, run = folder / configuration.name, folder / configuration.name / f"seed-{seed}"
    changed = ""
    if (path / "model.json").exists():
        made, wanted = read_config(path), experiment.shape(configuration)
        same = {"vocab_size", "tokenizer_sha256"} if wanted.unit == "token" else set()  # what the text decides
        changed = differences(made, wanted, only=[*({**made.model_dump(), **wanted.model_dump()}.keys() - same)])
    record = read_record(run)
    if record and not changed:
        before = TrainConfig.build(**record.get("train", {}))
        changed = differences(before, experiment.settings(configuration, seed))
        data, now = DataConfig.build(**record.get("data", {})), experiment.data_config()
        if Path(data.dataset).resolve() == Path(now.dataset).resolve():  # one folder has many paths
            data = data.model_copy(update={"dataset": now.dataset})
        changed = changed or differences(data, now)
    if changed:
        raise PicoError(f"{run} is of another experiment ({changed}): remove it, or give another --out")


def done(run: Path, settings: TrainConfig) -> float:
    """The fraction of the budget that the run's newest valid checkpoint has spent."""
    newest, _ = checkpoint.newest(run) if os.path.isdir(run) else (None, [])
    try:
        return progress(settings, settings.max_steps, checkpoint.read_state(newest)) if newest else 0.0
    except (KeyError, TypeError) as error:
        raise PicoError(f"{newest} does not say what it has spent ({error!r}): remove it") from None
