"""A trained model to give away: half-precision weights and what is known of them, without the optimizer's state.

python picolm.py export models/my-model my-run models/to-share
"""

import json
import os
from contextlib import suppress
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import PicoError
from pico.base.files import reason, remove, write_json, write_whole, writing
from pico.base.shapes import Shape, shape
from pico.runs import checkpoint
from pico.runs.folder import TOKENIZER, create, read_record, run_folder
from pico.runs.metrics import read_metrics

KNOWN = ("step", "model", "seconds", "bytes", "best", "validation_bpb")  # of a checkpoint's state, what is told


def export_run(
    path: str | Path,
    run: str,
    target: str | Path,
    step: int | str = "best",
    config: Shape | None = None,
    exact: bool = False,
) -> Path:
    """Writes target/model.json and target/<run>/, which `run`, `eval` and `--base-weights` read as any other run.

    config: of the new model, where it is another than the run's. A tokenizer goes with it. Weights are fp16; if
    `exact`, only where that changes none of them. Of the metrics the validations stay, of paths the last part. Returns
    the checkpoint's folder. Raises PicoError where there is a model already, no such run or checkpoint, or no room;
    then nothing is written.
    """
    source, target = run_folder(path, run), Path(target)
    if os.path.lexists(target / "model.json") or os.path.lexists(target / source.name):
        raise PicoError(f"{target} already exists and holds a model: choose another path, or remove that folder first")
    record = public_record(read_record(source))
    scored = [line for line in read_metrics(source / "metrics.jsonl") if "validation_bpb" in line]
    own, state, weights = checkpoint.read_checkpoint(source, step, lambda folder: _read(path, folder, exact))
    config = config or own
    state["model"] = config.model_dump()

    new = [folder for folder in (target, *target.parents) if not os.path.lexists(folder)]
    beside = target / f".{source.name}.tmp"
    made = beside / f"{state['step']:08d}"
    try:
        with writing(target):
            made.mkdir(parents=True)
            save_file(weights, made / checkpoint.WEIGHTS, {"format": "pt"})  # so transformers reads it too
            checkpoint.write_state(made, {key: state[key] for key in KNOWN if key in state}, [checkpoint.WEIGHTS])
            mode = (made / checkpoint.STATE).stat().st_mode
            (made / checkpoint.WEIGHTS).chmod(mode)  # safetensors makes its files private
            write_json(beside / "train.json", record)
            write_whole(beside / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in scored).encode())
            beside.rename(target / source.name)
        create(target, config, None if config.unit == "byte" else Path(path) / TOKENIZER)
    except BaseException as error:
        remove(beside)
        remove(target / source.name)
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, SafetensorError):
            raise PicoError(f"cannot write {target}: {reason(error)}") from None
        raise
    return target / source.name / made.name


def _read(path: str | Path, folder: Path, exact: bool) -> tuple[Shape, dict, dict[str, torch.Tensor]]:
    """(config, state, weights) of a checkpoint."""
    weights = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    halves = {name: x.half() for name, x in weights.items()}
    if exact and any(not torch.equal(x, halves[name].to(x.dtype)) for name, x in weights.items()):
        halves = weights
    if wrong := [name for name, x in halves.items() if not x.isfinite().all()]:
        raise PicoError(f"{folder}: {', '.join(wrong[:3])} {'is not finite' if exact else 'does not fit into fp16'}")
    return checkpoint.saved_config(path, folder), checkpoint.read_state(folder), halves


def public_record(record: dict) -> dict:
    """What of train.json is told to others: how the run was made, and nothing of the machine's folders and accounts."""
    if not record:
        return {}
    data = DataConfig.build(**record.get("data", {})).model_dump()
    for key in ("dataset", "train_file", "validation_file"):
        data[key] = data[key] and last_part(data[key])
    train = TrainConfig.build(**record.get("train", {})).model_dump(exclude={"tracker", "tracker_project_name"})
    model = shape(record.get("model", {})).model_dump()
    out = {"train": train, "data": data, "model": model}
    out |= only(record, "fingerprint", "chat", "processes", "device", "git_revision")
    out["device"] = str(out.get("device", "")).split(":")[0]
    out["versions"] = only(record.get("versions"), "python", "torch")
    if base := only(record.get("base_weights"), "run", "step", "sha256"):
        out["base_weights"] = {**base, "run": last_part(str(base.get("run", "")))}
    return out


def only(record, *keys: str) -> dict:
    """Of a part of train.json, the plain values of these keys."""
    record = record if isinstance(record, dict) else {}
    return {key: record[key] for key in keys if isinstance(record.get(key), (str, int))}


def last_part(path: str) -> str:
    """The name of a file or folder, with either system's separators."""
    return PureWindowsPath(path).name or path


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
