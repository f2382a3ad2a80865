"""How fast `picolm.py serve` is: one stream against eight at once, and how soon an answer to a long prompt begins.

    python scripts/bench_server.py [PATH RUN] [--rounds 5] [--bytes 400]

Starts the server on a free port, asks it as several users would, each over a connection of its own, and prints medians
with their quartiles as JSON. Whatever else runs on the machine is in these figures: alone and together take turns, and
beside the bytes a second stand those a second of the server's CPU time.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def ask(port: int, **fields) -> tuple[float, float, int]:
    """Seconds to the first byte of text, seconds in all, bytes that came."""
    body = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    said, first, start = [], 0.0, time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while piece := connection.recv(65536):
            said.append(piece)
            if not first and b"data: " in piece:
                first = time.perf_counter() - start
    whole = b"".join(said)
    found = re.search(rb'"completion_tokens":(\d+)', whole)
    assert found, whole[:500]
    return first, time.perf_counter() - start, int(found[1])


def together(port: int, streams: int, **fields) -> float:
    """Bytes a second of all streams, from the first request to the last byte."""
    made = []
    threads = [
        threading.Thread(target=lambda seed=seed: made.append(ask(port, seed=seed, **fields)))
        for seed in range(streams)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == streams
    return sum(count for *_, count in made) / (time.perf_counter() - start)


def busy(process: int) -> float:
    """Seconds of CPU that a process has used."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?", default=str(ROOT / "models" / "tinystories"))
    parser.add_argument("run", nargs="?", default="best")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=400)
    given = parser.parse_args()
    command = [sys.executable, ROOT / "picolm.py", "serve", given.path, given.run, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            said = process.stderr.readline()
            found = re.search(r"127.0.0.1:(\d+)/ ", said)
            assert found, said
            port, model = int(found[1]), Path(given.path).resolve().name
            fields = dict(model=model, prompt="Once upon a time, there was a", max_tokens=given.bytes, temperature=0.8)
            together(port, 8, **fields)
            speed: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
            work: dict[int, list[float]] = {streams: [] for streams in speed}
            first = []
            for number in range(given.rounds):
                for streams, taken in speed.items():
                    before, start = busy(process.pid), time.perf_counter()
                    taken.append(together(port, streams, **fields))
                    seconds = time.perf_counter() - start
                    work[streams].append(taken[-1] * seconds / (busy(process.pid) - before))
                prompt = (f"{number} " + "The cat and the dog went to the park to play with a red ball. " * 33)[:2048]
                first.append(ask(port, **{**fields, "prompt": prompt, "max_tokens": 1})[0])
        finally:
            process.terminate()
    ratios = {n: [many / one for many, one in zip(taken, speed[1])] for n, taken in speed.items() if n > 1}
    print(
        json.dumps(
            {
                "bytes_per_second": {n: spread(taken) for n, taken in speed.items()},
                "bytes_per_cpu_second": {n: spread(taken) for n, taken in work.items()},
                "against_one": {n: spread(values) for n, values in ratios.items()},
                "seconds_to_first_byte_of_2kB": spread(first),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
