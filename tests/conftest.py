"""Same results on every machine: one thread (unless OMP_NUM_THREADS says more) and the same hypothesis examples.

Also what test_train.py, test_resume.py and test_parallel.py start from: a model and a text.
"""

import json
import os

import pytest
import torch
from hypothesis import settings
from training import SMALL

from pico import DataConfig, preset
from pico.base.threads import blas
from pico.runs.folder import create
from pico.train import intervals, loop

for pool in torch, blas():
    pool.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
settings.register_profile("pico", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("pico")


@pytest.fixture
def short_samples(monkeypatch):
    monkeypatch.setattr(intervals, "SAMPLE_BYTES", 8)
    monkeypatch.setattr(loop, "plot_losses", lambda *_: None)  # its own test is elsewhere; one of ours undoes this


@pytest.fixture
def data(tmp_path):
    """A corpus of 30 documents; 12 steps of 4 x 32 bytes read it about once and a half."""
    file = tmp_path / "data.jsonl"
    lines = [{"text": f"{i} cats sat on {i * 7 % 13} mats, purring."} for i in range(30)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(dataset=str(file), validation_size=0.1)


@pytest.fixture
def path(tmp_path, short_samples):
    return create(tmp_path / "m", preset("tiny", **SMALL))
