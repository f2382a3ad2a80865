"""How gpu.py measures: a section with a deadline that writes each figure as soon as it has it, and a GPU clock."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from pico.base.files import write_whole


@dataclass
class Section:
    """One section while it is measured. Times are of time.monotonic()."""

    name: str
    folder: Path  # report.json and the other files
    smoke: bool  # tiny shapes, to try the script
    deadline: float
    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds that may still be spent."""
        return self.deadline - time.monotonic()

    def note(self, **figures) -> None:
        """Adds figures to this section of report.json, at once."""
        update_report(self.folder, self.name, figures)
        for name, figure in figures.items():
            print(f"{self.name} {name}: {figure}", flush=True)

    def attempt(self, function: Callable, *arguments, needs: float = 5.0):
        """function(*arguments); or {"error": what went wrong, or that fewer than `needs` seconds are left}."""
        if self.left() < needs and not self.smoke:
            return {"error": "no time left"}
        try:
            return function(*arguments)
        except Exception as error:
            return {"error": explain(error)}

    def peak(self, name: str) -> float:
        """FLOPs or bytes a second that `machine` measured; without it, what an H100 is said to do."""
        return read_report(self.folder).get("machine", {}).get(name) or {"flops": 7.9e14, "bytes": 3.0e12}[name]


def explain(error: BaseException) -> str:
    """The exception in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def read_report(folder: Path) -> dict:
    """report.json so far: {section: figures}."""
    file = folder / "report.json"
    return json.loads(file.read_text()) if file.exists() else {}


def update_report(folder: Path, section: str, figures: dict) -> None:
    """Adds figures to a section of report.json. One process at a time writes it."""
    report = read_report(folder)
    report.setdefault(section, {}).update(figures)
    write_whole(folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())


def percentiles(seconds: list[float]) -> dict:
    """Milliseconds: median, 10th and 90th percentile."""
    ordered = sorted(s * 1e3 for s in seconds)
    tenth = len(ordered) // 10
    figures = {"ms": statistics.median(ordered), "p10": ordered[tenth], "p90": ordered[-1 - tenth]}
    return {name: float(f"{ms:.4g}") for name, ms in figures.items()}


def clock(section: Section, function: Callable, *arguments, calls: int = 20, graph: bool = True) -> dict:
    """`percentiles` of one call, after calls that warm it up.

    On a GPU calls are replayed from a CUDA graph, so the time that Python takes to launch them is left out. graph False
    is for what waits for the GPU and cannot be captured: then launches count.
    """
    if not section.cuda:
        began = time.perf_counter()
        function(*arguments)
        return percentiles([time.perf_counter() - began])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles
            function(*arguments)
        torch.cuda.synchronize()
        began = time.perf_counter()
        function(*arguments)
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        calls = max(1, min(calls, int(5e-3 / took)))
        rounds = max(3, min(20, int(1.0 / (took * calls))))
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=side):
                for _ in range(calls):
                    function(*arguments)
            again = recorded.replay
        else:
            calls = 1

            def again():
                function(*arguments)

        again()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            again()
            mark.record()
        torch.cuda.synchronize()
    return percentiles([a.elapsed_time(b) / 1e3 / calls for a, b in pairwise(marks)])
