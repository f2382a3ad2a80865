"""A model folder with checkpoints, what is done to them, and what they tell."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from pico import preset
from pico.model.pico import Pico
from pico.runs.checkpoint import save
from pico.runs.folder import create

SMALL = dict(
    dim=16, next_tokens=2, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=64, ngram_dim=4,
)  # fmt: skip


def embedding(step):
    torch.manual_seed(step)
    return Pico(preset("tiny", **SMALL)).embedding.weight


def flip(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def write_run(path: Path, model, tokenizer: Path | None = None) -> Path:
    """A new model folder with the run r, whose one checkpoint is of step 7."""
    create(path, model.config, tokenizer)
    (path / "r").mkdir()
    (path / "r" / "train.json").write_text('{"data": {"dataset": "stories"}, "train": {"seed": 3}}')
    save(path / "r", 7, model, {}, {"bytes": 1000, "seconds": 60.5, "validation_bpb": 1.25})
    return path


def private(value, place, words):
    """Every text in a tree of JSON that holds one of the words, or looks like a path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from private(key, place, words)
            yield from private(inner, place, words)
    elif isinstance(value, list):
        for inner in value:
            yield from private(inner, place, words)
    elif isinstance(value, str) and (any(word in value for word in words) or "/" in value or "\\" in value):
        yield f"{place}: {value}"


def told(folder, words=()):
    """What an exported folder tells of its maker's machine."""
    found = []
    for file in sorted(folder.rglob("*.json*")):
        for line in file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            found += private(json.loads(line), file.name, words)
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found += private(tensors.metadata() or {}, file.name, words)
    return found
