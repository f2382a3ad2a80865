"""Signals of a training: Ctrl-C, SIGTERM and SIGHUP stop it with a checkpoint, SIGUSR1 saves one and goes on."""

import signal
import threading
from contextlib import contextmanager

STOPS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}  # and what they make of a run
SAVES = "SIGUSR1"
ENDING = "ending after this step, with a checkpoint; Ctrl-C again ends at once"


class Signals:
    """How often each signal came to this process, and what all processes have agreed to do about theirs."""

    def __init__(self):
        known = [name for name in (*STOPS, SAVES) if hasattr(signal, name)]  # Windows has not all of them
        self.counts = {getattr(signal, name): 0 for name in known}  # in this process
        self.stopped: str | None = None  # agreed: a word of STOPS
        self.saves = 0  # agreed: how often to save, so far

    def agree(self, totals: list[float]) -> None:
        """totals: the counts, summed over all processes."""
        received = dict(zip(self.counts, totals, strict=True))
        self.saves = received.pop(getattr(signal, SAVES, None), 0)
        self.stopped = next((STOPS[signal.Signals(number).name] for number, n in received.items() if n), None)

    @contextmanager
    def caught(self, log):
        """Counts signals instead of dying of them; a second Ctrl-C interrupts at once. nohup's SIGHUP stays off.

        log: for what the first Ctrl-C does.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number, _):
            self.counts[number] += 1
            if number == signal.SIGINT:
                if self.counts[number] > 1:
                    raise KeyboardInterrupt
                # by a thread: the signal may have come in the middle of a write, whose locks are taken
                threading.Thread(target=log, args=[ENDING], daemon=True).start()

        ignored = {number for number in self.counts if signal.getsignal(number) is signal.SIG_IGN} - {signal.SIGINT}
        before = {number: signal.signal(number, handle) for number in self.counts if number not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
