"""Checkpoints: there whole or not at all, verified, and the way back to a model.

    models/my-model/my-run/00001000/           model.safetensors, optimizer.safetensors, state.json

A checkpoint is written in a hidden folder beside its place, synced to disk, then renamed. state.json holds the SHA-256
of the other files and of itself, so a truncated or bit-flipped checkpoint is noticed and passed over. Everything is
JSON and safetensors: nothing in a checkpoint can execute.

    from pico import load
    model = load("models/my-model", "my-run")
"""

import errno
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pico.config import ModelConfig, PicoError
from pico.files import sync
from pico.files import write_json as write_json
from pico.folder import Locked as Locked
from pico.folder import checkpoints, differences, read_config, run_folder
from pico.folder import create as create
from pico.folder import lock as lock
from pico.folder import read_record as read_record
from pico.folder import runs as runs
from pico.state import pack, unpack

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save(run: Path, step: int, model, optimizer_state, state: dict) -> Path:
    """Writes checkpoint run/<step, eight digits> whole or not at all, and returns its folder.

    model: a Pico, for its config and state_dict; optimizer_state: any tree for pack; state: a tree that becomes part
    of state.json. Raises PicoError when the disk is full or not writable; older checkpoints are untouched.
    """
    target = run / f"{step:08d}"
    beside = run / f".{target.name}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        record = {"step": step, "model": model.config.model_dump(), **pack(state, "state", tensors)}
        record["optimizer"] = pack(optimizer_state, "optimizer", tensors)
        save_file({key: value.detach().contiguous() for key, value in model.state_dict().items()}, beside / WEIGHTS)
        save_file(tensors, beside / OPTIMIZER)
        write_state(beside, record, (WEIGHTS, OPTIMIZER))
        for file in beside.iterdir():
            file.chmod((beside / STATE).stat().st_mode)  # safetensors makes its files private
            sync(file)
        sync(beside)
        if target.exists():  # only a broken one: a valid one is never written twice
            shutil.rmtree(target)
        beside.rename(target)
        sync(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        full = getattr(error, "errno", 0) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
        older = [p for p in checkpoints(run) if p != target] if run.is_dir() else []
        kept = f"{older[-1]} stays usable" if older else "there is no earlier one"
        reason = "the disk is full" if full else str(error)
        raise PicoError(f"cannot save checkpoint {target}: {reason}; {kept}; free space, then --resume") from None
    return target


def write_state(folder: Path, record: dict, files) -> None:
    """state.json: the record, and the SHA-256 of the folder's other files and of itself."""
    record = {**record, "files": {name: _sha256(folder / name) for name in files}}
    record["checksum"] = _checksum(record)
    (folder / STATE).write_text(json.dumps(record, indent=1))


def prune(run: Path, keep_last: int, best: int | None = None) -> None:
    """Removes all but the newest `keep_last` checkpoints and the one of step `best`, and what crashes left behind."""
    for folder in checkpoints(run)[:-keep_last]:
        if int(folder.name) != best:
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in run.glob(".????????.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def read_state(folder: Path) -> dict:
    """state.json of a checkpoint, still packed. Raises PicoError if it is missing or does not match its checksum."""
    try:
        record = json.loads((folder / STATE).read_text())
        if record["checksum"] == _checksum(record):
            return record
        problem = "does not match its checksum"
    except FileNotFoundError:
        problem = "is missing"
    except (OSError, ValueError, TypeError, KeyError):
        problem = "cannot be read"
    raise PicoError(f"{folder.name}: {STATE} {problem}")


def verify(folder: Path, weights_only: bool = False) -> str | None:
    """None for a whole checkpoint, else what is wrong with it in one line."""
    try:
        record = read_state(folder)
    except PicoError as error:
        return str(error)
    if record["step"] != int(folder.name):
        return f"{folder.name}: {STATE} is of step {record['step']}"
    for name, digest in record["files"].items():
        if weights_only and name != WEIGHTS:
            continue
        if not (folder / name).is_file():
            return f"{folder.name}: {name} is missing"
        if _sha256(folder / name) != digest:
            return f"{folder.name}: {name} does not match its checksum"
    return None


def newest(run: Path, weights_only: bool = False) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of a run (None if there is none) and what was wrong with each newer one."""
    skipped = []
    for folder in reversed(checkpoints(run)):
        problem = verify(folder, weights_only)
        if problem is None:
            return folder, skipped
        skipped.append(problem)
    return None, skipped


def find(run: Path, checkpoint: int | str = -1, weights_only: bool = True) -> Path:
    """The checkpoint folder meant: -1 the newest valid one (skipped ones are warned of), 'best', or a step's number."""
    if str(checkpoint) in ("-1", "best"):
        folder, skipped = newest(run, weights_only)
        if folder is None:
            raise PicoError(f"no valid checkpoint in {run} ({'; '.join(skipped) or 'it holds none'})")
        for problem in skipped:
            warnings.warn(f"skipped checkpoint {problem}", stacklevel=2)
        if str(checkpoint) == "-1":
            return folder
        best = read_state(folder).get("best")
        if best is None:
            raise PicoError(f"{run} has no best checkpoint yet: it was never validated; use --checkpoint -1")
        checkpoint = best["step"]
    have = ", ".join(str(int(p.name)) for p in checkpoints(run)) or "none"
    if not re.fullmatch(r"\d{1,8}", str(checkpoint)):
        raise PicoError(f"checkpoint {checkpoint!r}: expected -1 (newest), 'best' or a step number; {run} has: {have}")
    folder = run / f"{int(checkpoint):08d}"
    if not folder.is_dir():
        raise PicoError(f"{run} has no checkpoint of step {checkpoint}; it has: {have}")
    if problem := verify(folder, weights_only):
        raise PicoError(f"checkpoint {run}/{problem}; {run} has: {have}")
    return folder


def saved_config(path: str | Path, folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint. Raises PicoError if it differs from model.json in more than the router."""
    try:
        config = ModelConfig.build(**read_state(folder)["model"])
    except PicoError as error:
        raise PicoError(f"{folder}: {error}") from None
    if difference := differences(read_config(path), config, ignore=("router",)):
        raise PicoError(f"{folder} is of another architecture than {path}/model.json: {difference}")
    return config


def load_weights(model, folder: Path) -> None:
    """Copies a checkpoint's weights into the model. Raises PicoError when names or shapes do not match."""
    weights, own = load_file(folder / WEIGHTS), model.state_dict()
    wrong = [f"no {key}" for key in own if key not in weights]
    wrong += [f"unknown {key}" for key in weights if key not in own]
    wrong += [
        f"{key} is {list(weights[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise PicoError(f"{folder / WEIGHTS} is of another architecture: {', '.join(wrong[:3])}{more}")
    model.load_state_dict(weights)


def load_training(folder: Path) -> tuple[object, dict]:
    """(optimizer_state, state) as they were given to save. The folder must have been verified."""
    if not (folder / OPTIMIZER).exists():
        raise PicoError(f"{folder} was exported without optimizer state: start a new run with --base-weights {folder}")
    tensors = load_file(folder / OPTIMIZER)
    record = unpack(read_state(folder), tensors)
    return record.pop("optimizer"), record


def load(
    path: str | Path,
    run: str = "",
    checkpoint: int | str = -1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention_backend: str | None = None,
):
    """A trained Pico in eval mode. `run` may be left out where there is only one.

    checkpoint: -1 the newest valid, 'best', or a step number; dtype: that of the activations (weights stay fp32).
    Raises PicoError for anything missing, broken or of another architecture, and says what there is instead.
    """
    from pico.model import Pico

    folder = find(run_folder(path, run), checkpoint)
    with torch.random.fork_rng(devices=[]):  # building draws random weights that are overwritten at once
        model = Pico(saved_config(path, folder), attention_backend=attention_backend, dtype=dtype)
    load_weights(model, folder)
    return model.to(device).eval()


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(record: dict) -> str:
    """SHA-256 of a state.json record without its own checksum, in canonical form."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
