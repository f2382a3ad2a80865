"""A model folder with checkpoints."""

import pytest
import torch
from checkpointed import SMALL

from pico import preset
from pico.model.pico import Pico
from pico.runs import checkpoint as ck
from pico.runs.folder import create, read_config


@pytest.fixture
def saved(tmp_path):
    """A model folder with run `r` and checkpoints of steps 1, 2 and 3, each with weights of its own."""
    path = create(tmp_path / "m", preset("tiny", **SMALL))
    config = read_config(path)
    for step in (1, 2, 3):
        torch.manual_seed(step)
        ck.save(path / "r", step, Pico(config), {"momentum": torch.ones(step)}, {"best": {"step": 2}, "seconds": 0.1})
    return path
