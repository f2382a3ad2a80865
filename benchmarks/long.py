"""Does a long text cost more than a short one? Time and memory of every thousand bytes of a generation.

    python benchmarks/long.py models/my-model my-run 100000 > long.json

The text never ends before that: the end of the document is not drawn. One JSON object on stdout.
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parent.parent)]  # not this folder: torch imports a package named cuda

from pico import generate, load
from pico.bench import peak_memory


def resident() -> float:
    """MB of memory that this process holds now (Linux), or has held at most (elsewhere)."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text("utf-8").splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return peak_memory() / 2**20


def measure(path: str, run: str, size: int, speculative: bool) -> dict:
    """Medians of the first and the last ten thousand bytes, and the growth after the second thousand."""
    generation = generate(load(path, run), "The", max_bytes=size, speculative=speculative, stop_symbols=())
    seconds, memory, last = [], [], time.perf_counter()
    for count, _ in enumerate(generation, start=1):
        if count % 1000 == 0:
            now = time.perf_counter()
            seconds.append(now - last)
            memory.append(resident())
            last = now
    first, end = statistics.median(seconds[1:11]), statistics.median(seconds[-10:])
    return {
        "bytes": 1000 * len(seconds),
        "ms_per_kB_first": round(1000 * first, 1),
        "ms_per_kB_last": round(1000 * end, 1),
        "last_over_first": round(end / first, 3),
        "memory_mb": round(memory[-1]),
        "memory_growth_mb": round(memory[-1] - memory[1], 2),
    }


if __name__ == "__main__":
    path, run, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100_000
    if size < 20_000:
        sys.exit("expected at least 20000 bytes, to compare the first ten thousand with the last")
    print(json.dumps({name: measure(path, run, size, name == "speculative") for name in ("plain", "speculative")}))
