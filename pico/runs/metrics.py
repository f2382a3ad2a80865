"""What a run writes line by line, read, and cut back where the run is resumed: metrics.jsonl and samples.txt."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from pico.base.errors import PicoError
from pico.base.files import cut, open_regular, reason, write_whole
from pico.runs.folder import checkpoints, run_folder

LONGEST = 1 << 20  # bytes of a line


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The steps in a metrics.jsonl; [] if there is no such file. Raises PicoError where it cannot be read.

    Passed over is what is no step, as a line cut short by a crash, and of a step what is no finite number.
    """
    return [step for _, step in _steps(Path(path))]


def cut_back(folder: Path, step: int, sample_bytes: int | None) -> None:
    """Keeps of metrics.jsonl and samples.txt what was written up to a step: the rest will be, again.

    sample_bytes: size of samples.txt then; None where that is not known, and the file is left alone.
    """
    file = folder / "metrics.jsonl"
    if file.exists():
        write_whole(file, b"".join(line for line, found in _steps(file) if found["step"] <= step))
    if sample_bytes is not None:
        cut(folder / "samples.txt", sample_bytes)


def _steps(file: Path) -> Iterator[tuple[bytes, dict[str, float]]]:
    """(line, its numbers) of each step."""
    try:
        with open_regular(file) as stream:
            for line in iter(lambda: stream.readline(LONGEST), b""):
                try:
                    found = json.loads(line.decode())
                except (ValueError, RecursionError):
                    continue
                if isinstance(found, dict):
                    found = {key: value for key, value in found.items() if _is_number(value)}
                    if isinstance(found.get("step"), int):
                        yield line.rstrip(b"\r\n") + b"\n", found
    except FileNotFoundError:
        return
    except OSError as error:
        raise PicoError(f"{file} cannot be read: {reason(error)}") from None


def _is_number(value) -> bool:
    return (type(value) is int and abs(value) < 1 << 63) or (type(value) is float and math.isfinite(value))


def run_facts(path: str | Path, run: str) -> dict:
    """What is known of a run without loading it: its checkpoints, best and last bpb, bytes seen, settings."""
    folder = run_folder(path, run)
    facts = {"run": folder.name, "checkpoints": [int(p.name) for p in checkpoints(folder)]}
    metrics = read_metrics(folder / "metrics.jsonl")
    scored = [line for line in metrics if "validation_bpb" in line]
    best = min(scored, key=lambda line: line["validation_bpb"], default={})
    return facts | {
        "best_bpb": best.get("validation_bpb"),
        "best_step": best.get("step"),
        "steps": metrics[-1]["step"] if metrics else None,
        "bytes_seen": metrics[-1].get("bytes") if metrics else None,
    }
