"""A model that begins where another one ended: `init models/mine --from models/tinystories`.

The new model has the other's shape, except what no weight depends on, such as the windows of attention. Its weights, in
fp16, lie in models/mine/pretrained, a run like any other, and every new run of models/mine starts from them.
"""

from pathlib import Path

import torch

from pico.base.errors import PicoError
from pico.base.shapes import shape
from pico.model.build import build_model
from pico.runs import checkpoint
from pico.runs.export import export_run
from pico.runs.folder import checkpoints, read_config, run_folder

PRETRAINED = "pretrained"


def derive(source: str | Path, target: str | Path, **changes) -> Path:
    """Writes the new model and returns the folder of the checkpoint with its first weights.

    changes: fields of the config that are to be others.

    source: a model with one run, a run's folder, or a checkpoint's; the best checkpoint where there is a choice, the
    newest of a run that was never validated. Raises PicoError where there is none, `target` is a model already, or the
    weights do not fit the changes.
    """
    path, run, step = find_source(source)
    old = read_config(path)
    config = shape({**old.model_dump(), **changes})
    with torch.device("meta"):
        before, after = (
            {name: x.shape for name, x in build_model(each).state_dict().items()} for each in (old, config)
        )
    if before != after:
        what = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
        raise PicoError(
            f"--from keeps the weights of {source}, which do not fit {what}: leave out what changes their sizes"
        )
    made = export_run(path, run, target, step, config)
    return made.parent.rename(Path(target) / PRETRAINED) / made.name


def find_source(source: str | Path) -> tuple[Path, str, str]:
    """(model's folder, run, step) of a model, a run or a checkpoint."""
    source = Path(source)
    for path in source, *source.parents[:2]:
        if (path / "model.json").is_file():
            run, step = (*source.relative_to(path).parts, "", "")[:2]
            folder = run_folder(path, run)
            if not step:
                newest = checkpoint.find_checkpoint(folder)
                step = "best" if checkpoint.read_state(newest).get("best") else newest.name
            return path, folder.name, step
    raise PicoError(f"no model at --from {source}: give the folder of a model, of its run or of a checkpoint")


def pretrained(path: str | Path) -> str | None:
    """The run that new runs of a model start from, if it has one."""
    folder = Path(path) / PRETRAINED
    return PRETRAINED if folder.is_dir() and checkpoints(folder) else None
