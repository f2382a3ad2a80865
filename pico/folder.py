"""The folder of a model: model.json, and its runs with their names, settings and lock.

    models/my-model/model.json                 ModelConfig
    models/my-model/my-run/train.json          how the run was started
    models/my-model/my-run/00001000/           a checkpoint, see pico/checkpoint.py

from pico.folder import read_config, runs
read_config("models/my-model"), runs("models/my-model")
"""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

from pico.config import ModelConfig, PicoError
from pico.files import write_json
from pico.hints import command

try:
    import fcntl
except ImportError:  # Windows has no flock; a run folder is not guarded there
    fcntl = None


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
        raise PicoError(f"no model at {path} ({have}); make one with: {command('init', path)}")
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


def differences(before, after, ignore=(), only=None) -> str:
    """'dim 128 -> 64; ...': fields in which two configs differ, or ''."""
    before, after = before.model_dump(), after.model_dump()
    return "; ".join(
        f"{key} {before.get(key)} -> {after.get(key)}"
        for key in only or {**before, **after}
        if key not in ignore and before.get(key) != after.get(key)
    )


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
    raise PicoError(f"{wrong}: it has no runs; start one with: {command('train', path, run or 'my-run', 'stories')}")


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, valid or not."""
    return sorted(p for p in Path(run).iterdir() if p.is_dir() and re.fullmatch(r"\d{8}", p.name))


def read_record(run: Path) -> dict:
    """train.json of a run, {} if it has none. Raises PicoError if it cannot be read."""
    try:
        return json.loads((run / "train.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PicoError(f"{run}/train.json cannot be read as JSON ({error}): mend it from another run's") from None


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
