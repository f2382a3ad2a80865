"""A trained model, loaded to be judged."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pico.base.config import TrainConfig
from pico.base.device import pick_device
from pico.base.errors import PicoError
from pico.base.log import log
from pico.base.shapes import check_context
from pico.base.threads import pick_threads
from pico.runs import checkpoint
from pico.runs.folder import read_config, read_record, run_folder


class OpenedRun(NamedTuple):
    """A run's model, how it was trained as far as that is known, and where it lies."""

    model: Any
    training: TrainConfig
    record: dict
    folder: Path


def open_run(path, run: str, step="-1", context_len: int | None = None, device=None) -> OpenedRun:
    """A run's checkpoint to be judged; context_len: that of the training unless given."""
    folder = run_folder(path, run)
    try:
        record = read_record(folder)
    except PicoError as error:
        if context_len is None:
            raise PicoError(f"{error}, or give --context-len") from None
        log(f"{error}; what is held out for validation may be other text than in training")
        record = {}
    known = {key: value for key, value in record.get("train", {}).items() if key in ("context_len", "seed")}
    training = TrainConfig.build(**known | ({} if context_len is None else {"context_len": context_len}))
    check_context(read_config(path), training.context_len)
    where = pick_device(device)
    model = checkpoint.load(path, folder.name, step, device=where)
    if where.type == "cpu":
        piece = torch.zeros(4, training.context_len, dtype=torch.long)
        pick_threads(torch.inference_mode()(lambda: model(piece)), log)
    return OpenedRun(model, training, record, folder)
