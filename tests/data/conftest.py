"""A folder laid out like a repository of the Hub, and caches of their own for what is read from it."""

import pytest
from helpers import write_parquet
from repositories import CARD, STORIES

from pico.data import hub


@pytest.fixture
def caches(tmp_path_factory, monkeypatch):
    import datasets.config

    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(hub, "BLOCK_DOCUMENTS", 16)


@pytest.fixture
def repository(tmp_path):
    """Two configs; the default has three shards of 40 rows for training and two rows for validation."""
    root = tmp_path / "owner" / "tales"
    (root / "main").mkdir(parents=True)
    (root / "other").mkdir()
    (root / "README.md").write_text(CARD)
    for shard in range(3):
        rows = STORIES[40 * shard : 40 * shard + 40]
        write_parquet(root / "main" / f"part-{shard}.parquet", id=list(range(40)), story=rows)
    write_parquet(root / "main" / "held.parquet", id=[1, 2], story=["held one", "held two"])
    write_parquet(root / "other" / "a.parquet", a=STORIES, b=["no"] * len(STORIES))
    return root
