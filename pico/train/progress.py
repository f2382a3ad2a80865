"""What a person sees while a model trains: one live line, samples with routed bytes marked, a table at the end.

All of it goes to stderr. On a terminal the line is redrawn in place; elsewhere a plain line comes every few seconds.
"""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pico.base.numbers import count
from pico.decode.text import routed_text, underscored

PLAIN_SECONDS = 10.0  # between plain lines
# of a training: Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) as a shell counts them
EXIT_CODES = {"finished": 0, "interrupted": 130, "terminated": 143, "hung up": 129}


def duration(seconds: float) -> str:
    """'7 s', '3:05' or '2:03:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


@dataclass
class Summary:
    """How a training ended. bpb and floor are bits per byte of the validation text (None where unknown)."""

    steps: int
    bpb: float | None
    floor: float | None
    seconds: float
    bytes: int
    flops: int  # charged by routed bytes
    executed_flops: int  # with the empty slots of the latent buffer
    folder: Path
    stopped: str = "finished"  # or a word of EXIT_CODES

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.stopped]


class Silence(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


class Unfailing:
    """A stream that goes silent when its reader is gone (a closed pipe, a dead terminal, a full disk)."""

    def __init__(self, stream):
        self.stream = stream or Silence()  # Python has no stderr if it was closed before the start

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError):
            self.stream = Silence()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = Silence()

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Display:
    """What one training says. `quiet`: nothing but warnings. Use as a context manager."""

    def __init__(self, quiet: bool = False):
        self.console = Console(file=cast(TextIO, Unfailing(sys.stderr)), highlight=False)
        self.quiet = quiet
        self._due = 0.0
        self._progress = None
        if not quiet and self.console.is_terminal:
            columns = BarColumn(bar_width=20), TextColumn("{task.fields[line]}")
            self._progress = Progress(*columns, console=self.console, transient=True, refresh_per_second=5)
            self._task = self._progress.add_task("", total=1.0, line="")

    def __enter__(self):
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._progress:
            self._progress.stop()

    def log(self, message: str) -> None:
        if not self.quiet:
            self.console.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Shown even when quiet."""
        self.console.print(message, style="yellow", markup=False, soft_wrap=True)

    def step(self, line: dict, done: float, remaining: float | None, floor: float | None) -> None:
        """One optimizer step: its metrics, the fraction done; seconds remaining and entropy floor where known."""
        if self.quiet or (not self._progress and time.monotonic() < self._due):
            return
        beside = f" (floor {floor:.3f})" if floor is not None else ""
        routed = f"  routed {line['routed']:.1%}" if line["routed"] else ""
        text = (
            f"step {line['step']}  loss {line['loss']:.3f}  bpb {line['train_bpb']:.3f}{beside}  "
            f"perplexity {line['perplexity']:.2f}  {line['kB_per_s']:.1f} kB/s{routed}"
            + (f"  ETA {duration(remaining)}" if remaining is not None else "")
        )
        if self._progress:
            self._progress.update(self._task, completed=done, line=text)
        else:
            self._due = time.monotonic() + PLAIN_SECONDS
            self.log(text)

    def sample(self, step: int, pieces: list[tuple[str, bool, float]]) -> None:
        """Generated text, its routed characters underlined on a terminal and behind a _ elsewhere."""
        self.log(f"sample at step {step}")
        if not self.quiet:
            terminal = self.console.is_terminal
            self.console.print(routed_text(pieces) if terminal else Text(underscored(pieces)), soft_wrap=True)

    def summary(self, end: Summary, best: dict | None, saved: int) -> None:
        """The table at the end. best: step and bits per byte of the best validation; saved: step of the checkpoint."""
        if self.quiet:
            return
        executed = f", {count(end.executed_flops, 'FLOP')} with empty slots"
        slots = executed if end.executed_flops != end.flops else ""  # a dense model has none
        rows = {
            "steps": f"{end.steps:,}",
            "text seen": f"{end.bytes / 1e6:,.2f} MB in {duration(end.seconds)}",
            "training cost": count(end.flops, "FLOP") + slots,
            "validation": f"{end.bpb:.4f} bits per byte" if end.bpb is not None else "none",
            "best": f"{best['bits_per_byte']:.4f} at step {best['step']}" if best else "none",
            "entropy floor": f"{end.floor:.4f}" if end.floor is not None else "unknown",
            "checkpoint": str(end.folder / f"{saved:08d}"),
            "loss plot": str(end.folder / "loss.png"),
        }
        table = Table(title=f"Training {end.stopped}", show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, Text(value, overflow="fold"))
        self.console.print(table)
