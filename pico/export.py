"""A trained model to give away: half-precision weights and what is known of them, without the optimizer's state.

python picolm.py export models/my-model my-run models/to-share
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from pico import checkpoint
from pico.config import PicoError
from pico.files import write_json
from pico.folder import create, read_record, run_folder
from pico.metrics import read_metrics


def export(path: str | Path, run: str, target: str | Path, step: int | str = "best") -> Path:
    """Writes target/model.json and target/<run>/, which `run`, `eval` and `--base-weights` read as any other run.

    Weights are fp16. Of the metrics the validations stay, of the dataset's path its last part. Returns the checkpoint's
    folder. Raises PicoError where there is a model already, or no such run or checkpoint.
    """
    folder, target = run_folder(path, run), Path(target)
    source = checkpoint.find(folder, step)
    state = checkpoint.read_state(source)
    config = checkpoint.saved_config(path, source)
    record = read_record(folder)
    if record:
        record["data"]["dataset"] = Path(record["data"]["dataset"]).name
    lines = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    weights = {name: x.half() for name, x in load_file(source / checkpoint.WEIGHTS).items()}
    if wrong := [name for name, x in weights.items() if not x.isfinite().all()]:
        raise PicoError(f"{source}: {', '.join(wrong[:3])} does not fit into fp16")

    create(target, config)
    made = target / folder.name / source.name
    made.mkdir(parents=True)
    save_file(weights, made / checkpoint.WEIGHTS)
    kept = {key: state[key] for key in ("step", "model", "seconds", "bytes", "best", "validation_bpb") if key in state}
    checkpoint.write_state(made, kept, [checkpoint.WEIGHTS])
    (made / checkpoint.WEIGHTS).chmod((made / checkpoint.STATE).stat().st_mode)  # safetensors makes its files private
    write_json(made.parent / "train.json", record)
    scored = [json.dumps(line) + "\n" for line in lines if line.get("validation_bpb") is not None]
    (made.parent / "metrics.jsonl").write_text("".join(scored))
    return made


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
