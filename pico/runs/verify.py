"""Whether a checkpoint is whole: state.json and the checksums in it, and tensors that fit the model they are of."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pico.base.errors import PicoError
from pico.base.files import open_regular, read_json, reason
from pico.base.memory import require_weights
from pico.base.shapes import Shape, shape

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
FLOATS = {"F16", "BF16", "F32", "F64"}  # dtypes of weights, as safetensors names them
UNREADABLE = SafetensorError, OSError, RuntimeError  # the last by torch, which opens the file once more to map it
LARGE = 20_000_000  # weights: to draw them takes longer than to import what a meta device needs


def write_state(folder: Path, record: dict, files) -> None:
    """state.json: the record, and the SHA-256 of the folder's other files and of itself."""
    record = {**record, "files": {name: _sha256(folder / name) for name in files}}
    record["checksum"] = _checksum(record)
    (folder / STATE).write_bytes(json.dumps(record, indent=1).encode())


def read_state(folder: Path) -> dict:
    """state.json of a checkpoint, still packed. Raises PicoError if it is missing, damaged or lacks what all have."""
    file = folder / STATE
    try:
        record = read_json(file)
    except FileNotFoundError:
        raise PicoError(f"{folder.name}: {STATE} is missing") from None
    except PicoError as error:
        raise PicoError(f"{folder.name}: {STATE}{str(error).removeprefix(str(file))}") from None
    if record.get("checksum") != _checksum(record):
        raise PicoError(f"{folder.name}: {STATE} does not match its checksum")
    kinds = {"step": int, "model": dict, "files": dict}
    if missing := [key for key, kind in kinds.items() if type(record.get(key)) is not kind]:
        raise PicoError(f"{folder.name}: {STATE} has no {' and no '.join(missing)}")
    if WEIGHTS not in record["files"] or not record["files"].keys() <= {WEIGHTS, OPTIMIZER}:
        raise PicoError(f"{folder.name}: {STATE} has other files than {WEIGHTS} and {OPTIMIZER}")
    return record


def verify_checkpoint(folder: Path, weights_only: bool = False) -> str | None:
    """None for a whole checkpoint, else what is wrong with it in one line."""
    try:
        record = read_state(folder)
        if record["step"] != int(folder.name):
            return f"{folder.name}: {STATE} is of step {record['step']}"
        for name, digest in record["files"].items():
            if not weights_only or name == WEIGHTS:
                if _sha256(folder / name) != digest:
                    return f"{folder.name}: {name} does not match its checksum"
                found = tensors_in(folder / name)
                if name == WEIGHTS and (wrong := mismatches(_shapes(shape(record["model"])), found)):
                    return f"{folder.name}: {name} is not of its model: {wrong}"
    except FileNotFoundError as error:
        return f"{folder.name}: {Path(error.filename).name} is missing"
    except OSError as error:
        return f"{folder.name}: {Path(error.filename or folder).name} cannot be read ({reason(error)})"
    except PicoError as error:
        return str(error) if str(error).startswith(f"{folder.name}: ") else f"{folder.name}: {STATE}: {error}"
    return None


def tensors_in(file: Path) -> dict[str, tuple[list[int], str]]:
    """{name: (shape, dtype as safetensors names it)} of a safetensors file. Raises PicoError if it is none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118, it is no dict
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except UNREADABLE as error:
        raise PicoError(f"{file.parent.name}: {file.name} cannot be read ({reason(error)})") from None


def mismatches(shapes: dict[str, list[int]], found: dict[str, tuple[list[int], str]]) -> str:
    """In what tensors differ from a model's weights, the first three differences; '' where they fit."""
    wrong = [f"no {name}" for name in shapes if name not in found]
    wrong += [f"unknown {name}" for name in found if name not in shapes]
    for name in shapes.keys() & found.keys():
        shape, dtype = found[name]
        if shape != shapes[name]:
            wrong.append(f"{name} is {shape} instead of {shapes[name]}")
        elif dtype not in FLOATS:
            wrong.append(f"{name} is {dtype} instead of a float")
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def shapes_of(model) -> dict[str, list[int]]:
    """{name: shape} of a model's weights."""
    return {name: list(x.shape) for name, x in model.state_dict().items()}


@lru_cache(maxsize=8)
def _shapes(config: Shape) -> dict[str, list[int]]:
    from pico.model.build import build_model

    require_weights(config)
    small = sum(config.parameters.values()) < LARGE
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if small else "meta"):
            return shapes_of(build_model(config))
    except (RuntimeError, MemoryError, ValueError) as error:
        raise PicoError(f"its model cannot be built ({str(error).splitlines()[0]})") from None


def _sha256(file: Path) -> str:
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(record: dict) -> str:
    """SHA-256 of a state.json record without its own checksum, in canonical form."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
