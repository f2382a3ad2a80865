"""Small files, written whole or not at all."""

import json
import os
from pathlib import Path


def write_json(file: Path, value) -> None:
    """Writes a JSON file, synced, in one step: a reader sees the old file or the new one, whoever else writes it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(beside, "w") as stream:
        stream.write(json.dumps(value, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


def sync(path: Path) -> None:
    """fsync of a file or, where the system knows such a thing, of a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
