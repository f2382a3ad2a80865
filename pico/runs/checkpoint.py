"""Checkpoints: there whole or not at all, verified, and the way back to a model.

    models/my-model/my-run/00001000/           model.safetensors, optimizer.safetensors, state.json

A checkpoint is written in a hidden folder beside its place, synced to disk, then renamed. state.json holds the SHA-256
of the other files and of itself, so a truncated or bit-flipped checkpoint is noticed and passed over (verify.py).
Everything is JSON and safetensors: nothing in a checkpoint can execute.

    from pico import load
    model = load("models/my-model", "my-run")
"""

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pico.base.errors import DiskFull, PicoError
from pico.base.files import is_full, reason, remove, sync
from pico.base.log import log
from pico.base.memory import require_weights
from pico.base.shapes import Shape, shape
from pico.runs.folder import checkpoints, differences, local_folder, read_alphabet, read_config, run_folder
from pico.runs.state import pack_state, unpack_state
from pico.runs.verify import (
    OPTIMIZER,
    STATE,
    UNREADABLE,
    WEIGHTS,
    mismatches,
    read_state,
    shapes_of,
    tensors_in,
    verify_checkpoint,
    write_state,
)

TRIES = 5  # at reading a checkpoint while a training saves and prunes

T = TypeVar("T")


# --- writing ----------------------------------------------------------------------------------------------------------


def save(run: Path, step: int, model, optimizer_state, state: dict) -> Path:
    """Writes checkpoint run/<step, eight digits> whole or not at all, and returns its folder.

    model: for its config and state_dict; optimizer_state: any tree for pack_state; state: a tree that becomes
    part of state.json. Raises PicoError when the disk is full or not writable; older checkpoints are untouched.
    """
    target = run / f"{step:08d}"
    beside = run / f".{target.name}.tmp"
    try:
        remove(beside)
        beside.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        record = {"step": step, "model": model.config.model_dump(), **pack_state(state, "state", tensors)}
        record["optimizer"] = pack_state(optimizer_state, "optimizer", tensors)
        save_file({key: value.detach().contiguous() for key, value in model.state_dict().items()}, beside / WEIGHTS)
        save_file(tensors, beside / OPTIMIZER)
        write_state(beside, record, (WEIGHTS, OPTIMIZER))
        for file in beside.iterdir():
            file.chmod((beside / STATE).stat().st_mode)  # safetensors makes its files private
            sync(file)
        sync(beside)
        remove(target)  # only a broken one: a valid one is never written twice
        if os.path.lexists(target):
            raise OSError(errno.EEXIST, f"there is one that can be neither read nor removed{of_another(target)}")
        beside.rename(target)
        sync(run)
    except (OSError, SafetensorError) as error:
        remove(beside)
        older = newest(run)[0] if os.path.isdir(run) else None
        kept = f"{older} stays usable" if older else "there is no earlier one"
        raise (DiskFull if is_full(error) else PicoError)(
            f"cannot save checkpoint {target}: {reason(error)}; {kept}; free space or make it writable, then --resume"
        ) from None
    return target


def of_another(path: Path) -> str:
    """', because it belongs to user 1002', where it is not one's own."""
    user = os.stat(path, follow_symlinks=False).st_uid
    return f", because it belongs to user {user}" if user != getattr(os, "geteuid", lambda: user)() else ""


def prune(run: Path, keep_last: int, best: int | None = None, saved: int | None = None) -> list[str]:
    """Removes all but the newest `keep_last` valid checkpoints and those of steps `best` and `saved`.

    A damaged one is not counted. It is kept, in case it can be mended, until there is a newer valid one. What crashes
    left half-written goes as well. Returns what was wrong with each damaged one that was removed.
    """
    valid, damaged = 0, []
    for folder in reversed(checkpoints(run)):
        step, problem = int(folder.name), None
        if step != saved and valid < keep_last:
            problem = _checked(folder, _marks(folder))
        spare = valid >= keep_last or (valid and problem)
        valid += problem is None
        if spare and step not in (best, saved):
            damaged += [problem] if problem else []
            discard(folder)
    for leftover in run.glob(".????????.tmp"):
        remove(leftover)
    return damaged


def discard(folder: Path) -> None:
    """Removes a checkpoint; for whoever reads it meanwhile it is there whole or not at all."""
    aside = folder.with_name(f".{folder.name}.tmp")
    remove(aside)
    with suppress(OSError):
        folder.rename(aside)
    remove(aside)


@lru_cache(maxsize=64)
def _checked(folder: Path, marks: tuple) -> str | None:
    """`verify_checkpoint`, once while nothing is written to the files: a training prunes often."""
    return verify_checkpoint(folder)


def _marks(folder: Path) -> tuple:
    try:
        found = [os.stat(folder / name) for name in (WEIGHTS, OPTIMIZER, STATE)]
    except OSError as error:
        return (error.errno,)
    return tuple((x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for x in found)


# --- finding ----------------------------------------------------------------------------------------------------------


def newest(run: Path, weights_only: bool = False) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of a run (None if there is none) and what was wrong with each newer one."""
    for _ in range(TRIES):
        skipped, pruned = [], False
        for folder in reversed(checkpoints(run)):
            problem = verify_checkpoint(folder, weights_only)
            if problem is None:
                return folder, skipped
            if os.path.lexists(folder):
                skipped.append(problem)
            else:
                pruned = True  # by a training that has saved a newer one
        if not pruned:
            break
    return None, skipped


def find_checkpoint(run: Path, checkpoint: int | str = -1, weights_only: bool = True) -> Path:
    """The checkpoint folder meant: -1 the newest valid one (skipped ones are named on stderr), 'best', or a step."""
    if str(checkpoint) in ("-1", "best"):
        folder, skipped = newest(run, weights_only)
        if folder is None:
            raise PicoError(f"no valid checkpoint in {run} ({'; '.join(skipped) or 'it holds none'})")
        for problem in skipped:
            log(f"skipped checkpoint {problem}")
        if str(checkpoint) == "-1":
            return folder
        best = read_state(folder).get("best")
        if not isinstance(best, dict) or type(best.get("step")) is not int:
            raise PicoError(f"{run} has no best checkpoint yet: it was never validated; use --checkpoint -1")
        checkpoint = best["step"]
    if not re.fullmatch(r"[0-9]{1,8}", str(checkpoint)):
        problem = f"checkpoint {checkpoint!r}: expected -1 (newest), 'best' or a step number; {run} has"
    else:
        folder = run / f"{int(checkpoint):08d}"
        problem = verify_checkpoint(folder, weights_only)
        if problem is None:
            return folder
        missing = f"{run} has no checkpoint of step {checkpoint}; it has"
        problem = f"checkpoint {run}/{problem}; {run} has" if os.path.lexists(folder) else missing
    raise PicoError(f"{problem}: {', '.join(str(int(p.name)) for p in checkpoints(run)) or 'none'}")


def read_checkpoint(run: Path, checkpoint: int | str, read: Callable[[Path], T], weights_only: bool = True) -> T:
    """read(folder) of the checkpoint meant, looked for again where a training removes it before it is read."""
    tries = TRIES
    while True:
        folder, tries = None, tries - 1
        try:
            folder = find_checkpoint(run, checkpoint, weights_only)
            return read(folder)
        except PicoError:
            gone = not os.path.lexists(folder) if folder else str(checkpoint) == "best"
            if not gone or not tries:
                raise


# --- loading ----------------------------------------------------------------------------------------------------------


def saved_config(path: str | Path, folder: Path) -> Shape:
    """The shape of a checkpoint's model. Raises PicoError if it differs from model.json."""
    try:
        config = shape(read_state(folder)["model"])
    except PicoError as error:
        raise PicoError(f"{folder}: {error}") from None
    if difference := differences(read_config(path), config):
        raise PicoError(f"{folder} is of another architecture than {path}/model.json: {difference}")
    return config


def load_weights(model, folder: Path) -> None:
    """Copies a checkpoint's weights into the model. Raises PicoError when names, shapes or dtypes do not match."""
    if wrong := mismatches(shapes_of(model), tensors_in(folder / WEIGHTS)):
        raise PicoError(f"{folder / WEIGHTS} is of another architecture: {wrong}")
    model.load_state_dict(read_tensors(folder / WEIGHTS))


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises PicoError if it cannot be read."""
    try:
        return load_file(file)
    except UNREADABLE as error:
        raise PicoError(f"{file} cannot be read: {reason(error)}") from None


def load_training(folder: Path) -> tuple[Any, dict]:
    """(optimizer_state, state) as they were given to save. The folder must have been verified."""
    if not os.path.exists(folder / OPTIMIZER):
        raise PicoError(f"{folder} was exported without optimizer state: start a new run with --base-weights {folder}")
    tensors = read_tensors(folder / OPTIMIZER)
    try:
        record = unpack_state(read_state(folder), tensors)
        return record.pop("optimizer"), record
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise PicoError(f"{folder / STATE} does not describe what {OPTIMIZER} holds ({error!r})") from None


def load(
    path: str | Path,
    run: str = "",
    checkpoint: int | str = -1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention_backend: str | None = None,
):
    """A trained model in eval mode, of a folder or of hf://OWNER/NAME. `run` may be left out where there is only one.

    checkpoint: -1 the newest valid, 'best', or a step number; dtype: that of the activations (weights stay fp32).
    Raises PicoError for anything missing, broken or of another architecture, and says what there is instead.
    """
    from pico.model.build import Model, build_model

    path = local_folder(path)

    def read(folder: Path) -> Model:
        config = saved_config(path, folder)
        require_weights(config, device)
        with torch.random.fork_rng(devices=[]):  # building draws random weights that are overwritten at once
            model = build_model(config, attention_backend, dtype)
        load_weights(model, folder)
        model.alphabet = read_alphabet(path, config)
        return model

    return read_checkpoint(run_folder(path, run), checkpoint, read).to(device).eval()
