"""The run folder: model.json, checkpoints that are there whole or not at all, and the way back to a model.

    models/my-model/model.json                 ModelConfig
    models/my-model/my-run/train.json          how the run was started
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
import os
import re
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pico.config import ModelConfig, PicoError
from pico.state import pack, unpack

try:
    import fcntl
except ImportError:  # Windows has no flock; a run folder is not guarded there
    fcntl = None

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


# --- the model folder -------------------------------------------------------------------------------------------------


def create(path: str | Path, config: ModelConfig) -> Path:
    """Writes path/model.json. Raises PicoError where there is a model already."""
    path = Path(path)
    if (path / "model.json").exists():
        raise PicoError(f"{path}/model.json already exists: choose another path, or remove that folder first")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "model.json", config.model_dump())
    except OSError as error:
        raise PicoError(f"cannot write {path}/model.json: {error.strerror}; choose another path") from None
    return path


def read_config(path: str | Path) -> ModelConfig:
    """The ModelConfig of a model folder. Raises PicoError: no such model, broken JSON, unknown keys, bad values."""
    path = Path(path)
    file = path / "model.json"
    if not file.is_file():
        nearby = sorted(str(p.parent) for p in path.parent.glob("*/model.json"))
        have = f"there are {', '.join(nearby)}" if nearby else f"{path.parent} holds no model"
        raise PicoError(f"no model at {path} ({have}); make one with: python picolm.py init {path}")
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise PicoError(f"{file} cannot be read as JSON ({error}): mend it, or make a new model") from None
    try:
        return ModelConfig.build(**values)
    except PicoError as error:
        raise PicoError(f"{file}: {error}") from None


def runs(path: str | Path) -> list[str]:
    """Names of the runs of a model: its folders that hold a train.json or a checkpoint."""
    folders = [p for p in Path(path).iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(p.name for p in folders if (p / "train.json").exists() or checkpoints(p))


def run_folder(path: str | Path, run: str = "") -> Path:
    """The folder of an existing run; without a name, the model's only run. PicoError lists the runs there are."""
    read_config(path)
    have = runs(path)
    if not run and len(have) == 1:
        run = have[0]
    if run and (Path(path) / run).is_dir():
        return Path(path) / run
    wrong = f"no run '{run}' in {path}" if run else f"which run of {path}?"
    if have:
        raise PicoError(f"{wrong} (there are: {', '.join(have)})")
    raise PicoError(f"{wrong}: it has no runs; start one with: python picolm.py train {path} {run or 'my-run'} stories")


def read_record(run: Path) -> dict:
    """train.json of a run, {} if it has none. Raises PicoError if it cannot be read."""
    try:
        return json.loads((run / "train.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PicoError(f"{run}/train.json cannot be read as JSON ({error}): mend it from another run's") from None


def write_json(file: Path, value) -> None:
    """Writes a JSON file, synced, in one step: a reader sees the old file or the new one, whoever else writes it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(beside, "w") as stream:
        stream.write(json.dumps(value, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


class Locked(PicoError):
    """Another live training holds the run folder."""


@contextmanager
def lock(run: Path):
    """Keeps a run folder (made if missing) for one live training. Raises Locked if another one holds it."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a+") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise Locked(
                    f"{run} is locked by a live training (process {file.read().strip() or 'unknown'}): "
                    "wait for it, stop it, or choose another run name"
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, valid or not."""
    return sorted(p for p in Path(run).iterdir() if p.is_dir() and re.fullmatch(r"\d{8}", p.name))


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
            _sync(file)
        _sync(beside)
        if target.exists():  # only a broken one: a valid one is never written twice
            shutil.rmtree(target)
        beside.rename(target)
        _sync(run)
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


def differences(before, after, ignore=(), only=None) -> str:
    """'dim 128 -> 64; ...': fields in which two configs differ, or ''."""
    before, after = before.model_dump(), after.model_dump()
    return "; ".join(
        f"{key} {before.get(key)} -> {after.get(key)}"
        for key in only or {**before, **after}
        if key not in ignore and before.get(key) != after.get(key)
    )


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


def _sync(path: Path) -> None:
    """fsync of a file or, where the system knows such a thing, of a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
