"""Starting and resuming: what a run folder allows, train.json, and the weights to begin with."""

import json
import platform
import subprocess
from pathlib import Path

import torch

from pico import checkpoint
from pico.config import DataConfig, ModelConfig, PicoError, TrainConfig
from pico.folder import checkpoints, differences
from pico.folder import runs as runs_of


def check_new(folder: Path) -> None:
    """Raises PicoError if there is already a run here: anything visible but a train.json."""
    there = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "train.json"]
    if any(p.is_dir() or p.stat().st_size for p in there):
        raise PicoError(f"{folder} already holds a run: continue it with --resume, or choose another run name")


def check_resume(
    path, folder: Path, model: ModelConfig, data: DataConfig, config: TrainConfig, fingerprint: str, router: str | None
) -> tuple[Path | None, ModelConfig, list[str]]:
    """The newest valid checkpoint (None if the run has none yet), the run's ModelConfig, and what had to be skipped.

    Raises PicoError, with the difference, if the model, the dataset or settings changed that the run's state depends
    on; and if there are checkpoints but none is valid. `router` None stands for the run's own.
    """
    if not (folder / "train.json").exists():
        raise PicoError(f"{folder} holds no train.json, so there is nothing to resume: leave out --resume")
    before = json.loads((folder / "train.json").read_text())
    was = ModelConfig.build(**before["model"])
    if router is None:
        model = model.model_copy(update={"router": was.router})
    changed = [differences(was, model)]
    if before["fingerprint"] != fingerprint:
        changed.append(differences(DataConfig.build(**before["data"]), data))
        changed.append(f"dataset fingerprint {before['fingerprint']} -> {fingerprint}")
    old = TrainConfig.build(**before["train"])
    changed.append(differences(old, config, only=("optimizer", "seed", "context_len")))
    if old.step_chunks != config.step_chunks:
        changed.append(f"batch_size x grad_accumulation_steps {old.step_chunks} -> {config.step_chunks}")
    if any(changed):
        raise PicoError(f"cannot resume {folder}, this changed: {'; '.join(filter(None, changed))}")
    source, skipped = checkpoint.newest(folder)
    if skipped and source is None:
        raise PicoError(f"no valid checkpoint in {folder} ({'; '.join(skipped)})")
    if source:
        checkpoint.saved_config(path, source)
    return source, model, skipped


def record(model: ModelConfig, data: DataConfig, config: TrainConfig, **more) -> dict:
    """train.json: what it takes to repeat a run."""
    return {
        "train": config.model_dump(),
        "data": data.model_dump(),
        "model": model.model_dump(),
        **more,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "git_revision": git_revision(),
    }


def find_base(path: str | Path, base: str) -> Path:
    """The checkpoint meant by --base-weights: the name of a run of this model, a run's folder, or a checkpoint's."""
    for folder in (Path(path) / base, Path(base)):
        if (folder / checkpoint.STATE).exists():
            return checkpoint.find(folder.parent, folder.name)
        if folder.is_dir() and checkpoints(folder):
            return checkpoint.find(folder)
    have = ", ".join(runs_of(path)) or "none"
    raise PicoError(f"no weights at '{base}': expected a run of {path} ({have}), or the folder of a run or checkpoint")


def git_revision() -> str | None:
    """The commit of the code, where it is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
