"""Same results on every machine: one thread (unless OMP_NUM_THREADS says more) and the same hypothesis examples.

Also what test_train.py, test_resume.py and test_parallel.py start from: a model and a text.
"""

import gc
import json
import os
import shutil

import pytest
import torch
from hypothesis import settings
from training import SMALL, go, shorten

from pico import DataConfig, preset
from pico.base.threads import blas
from pico.runs.folder import create

for pool in torch, blas():
    pool.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
settings.register_profile("pico", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("pico")


def pytest_collection_finish():
    """What is imported by now is there to stay: each training collects garbage, and need not look through all of it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Libraries in C++ count what is left of them at the end."""
    gc.unfreeze()


def cats(folder, documents=30) -> DataConfig:
    """A corpus; 12 steps of 4 x 32 bytes read 30 documents about once and a half."""
    file = folder / "data.jsonl"
    lines = [{"text": f"{i} cats sat on {i * 7 % 13} mats, purring."} for i in range(documents)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(dataset=str(file), validation_size=0.1)


@pytest.fixture
def short_samples(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture
def data(tmp_path):
    return cats(tmp_path)


@pytest.fixture
def path(tmp_path, short_samples):
    return create(tmp_path / "m", preset("tiny", **SMALL))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The run folder of `go(path, "whole", data)`, trained once for all tests that compare with it."""
    home = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return go(create(home / "m", preset("tiny", **SMALL)), "whole", cats(home)).folder


@pytest.fixture
def whole(path, uninterrupted):
    """The run `whole` of the model at `path`, which nothing has interrupted."""
    shutil.copytree(uninterrupted, path / "whole")
