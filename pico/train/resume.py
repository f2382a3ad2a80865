"""Starting and resuming: what a run folder allows, train.json, and the weights to begin with."""

import os
import platform
from pathlib import Path

import torch

from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import PicoError
from pico.base.files import entries
from pico.base.shapes import Shape, shape
from pico.runs import checkpoint
from pico.runs.folder import checkpoints, differences, read_record
from pico.runs.folder import runs as runs_of

OWN_RATES = ("embedding_rate", "head_rate", "vector_rate")  # set or not, they decide what an optimizer steps together


def check_new(folder: Path) -> None:
    """Raises PicoError if there is already a run here: anything visible but a train.json."""
    there = [p for p in entries(folder) if not p.name.startswith(".") and p.name != "train.json"]
    if any(os.path.isdir(p) or os.lstat(p).st_size for p in there):
        raise PicoError(f"{folder} already holds a run: continue it with --resume, or choose another run name")


def check_resume(
    path, folder: Path, model: Shape, data: DataConfig, config: TrainConfig, fingerprint: str
) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint (None if the run has none yet), and what had to be skipped.

    Raises PicoError, with the difference, if the model, the dataset or settings changed that the run's state depends
    on; and if there are checkpoints but none is valid.
    """
    before = read_record(folder)
    if not before:
        raise PicoError(f"{folder} holds no train.json, so there is nothing to resume: leave out --resume")
    if missing := [key for key in ("train", "data", "model", "fingerprint") if key not in before]:
        raise PicoError(f"{folder}/train.json has no {', '.join(missing)}: mend it from another run's")
    changed = [differences(shape(before["model"]), model, name="model.json's {}".format)]
    if before["fingerprint"] != fingerprint:
        changed.append(differences(DataConfig.build(**before["data"]), data, name=DataConfig.flag))
        changed.append(f"the dataset's text is another (fingerprint {before['fingerprint']} -> {fingerprint})")
    old = TrainConfig.build(**before["train"])
    rates = [name for name in OWN_RATES if (getattr(old, name) is None) != (getattr(config, name) is None)]
    own = ("soap_exact", "soap_beta2", "soap_cautious", "tail_average")  # an optimizer's state remembers them
    fixed = ("optimizer", "muon_step", *own, "seed", "context_len", *rates)
    changed.append(differences(old, config, only=fixed, name=TrainConfig.flag))
    if old.step_chunks != config.step_chunks:
        changed.append(f"--batch-size x --grad-accumulation-steps {old.step_chunks} -> {config.step_chunks}")
    if any(changed):
        what = "; ".join(filter(None, changed))
        raise PicoError(f"cannot resume {folder}, this changed: {what}; undo that, or start a new run")
    source, skipped = checkpoint.newest(folder)
    if skipped and source is None:
        raise PicoError(f"no valid checkpoint in {folder} ({'; '.join(skipped)})")
    for newer in checkpoints(folder):
        if source and newer > source and os.path.isdir(newer) and not os.access(newer, os.W_OK | os.X_OK):
            raise PicoError(
                f"{newer} can be neither read nor replaced{checkpoint.of_another(newer)}: remove it, or take other "
                f"rights, then --resume from {source.name}; or start a new run with --base-weights {source}"
            )
    if source:
        checkpoint.saved_config(path, source)
    return source, skipped


def record(model: Shape, data: DataConfig, config: TrainConfig, **more) -> dict:
    """train.json: what it takes to repeat a run."""
    return {
        "train": config.model_dump(),
        "data": data.model_dump(),
        "model": model.model_dump(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **more,
    }


def take_base(model, path: str | Path, base: str) -> dict:
    """Gives the model the weights meant by --base-weights; returns what train.json remembers of them, for load_base.

    base: the name of a run of this model, a run's folder, or a checkpoint's. A folder in the model's is remembered by
    its name, so that the model can be moved. Raises PicoError where there are none.
    """
    for folder in (Path(path) / base, Path(base)):
        step: int | str = -1
        if os.path.exists(folder / checkpoint.STATE):
            folder, step = folder.absolute().parent, folder.absolute().name
        elif not os.path.isdir(folder) or not checkpoints(folder):
            continue
        step, digest = checkpoint.read_checkpoint(folder, step, lambda found: _load(model, found))
        where = folder.resolve()
        own = where.parent == Path(path).resolve()
        return {"run": where.name if own else str(where), "step": step, "sha256": digest}
    have = ", ".join(runs_of(path)) or "none"
    raise PicoError(f"no weights at '{base}': expected a run of {path} ({have}), or the folder of a run or checkpoint")


def load_base(model, path: str | Path, base: dict) -> None:
    """Gives the model the weights that a run began with, by its train.json. Raises PicoError if they are gone."""
    try:
        folder = Path(path) / base["run"] / f"{base['step']:08d}"
        problem = checkpoint.verify_checkpoint(folder, weights_only=True)
        if not problem and _load(model, folder)[1] != base["sha256"]:
            problem = f"{folder.name}: {checkpoint.WEIGHTS} is another one now"
    except (KeyError, TypeError, ValueError):
        raise PicoError("base_weights in train.json: expected run, step and sha256, as train writes them") from None
    if problem:
        raise PicoError(
            f"the run began from the weights in {folder.parent}, and {problem}: bring them back, or start a new run "
            "with --base-weights"
        )


def _load(model, folder: Path) -> tuple[int, str]:
    """Step and checksum of the weights, which the model has then."""
    checkpoint.load_weights(model, folder)
    state = checkpoint.read_state(folder)
    return state["step"], state["files"][checkpoint.WEIGHTS]
