"""A command in a terminal: what is on its screen, and what a person presses. Not on Windows."""

import os
import select
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Screen:
    """A command line of picolm.py in a terminal of its own, in the repository; it must end well."""

    def __init__(self, line: str):
        self.line, self.screen = line, b""

    def __enter__(self):
        import pty

        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "picolm.py", *shlex.split(self.line)])
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            os.kill(self.child, 9)
        _, status = os.waitpid(self.child, 0)
        os.close(self.terminal)
        assert kind is not None or os.waitstatus_to_exitcode(status) == 0

    def until(self, words: bytes, seconds=120) -> bytes:
        """Waits for the words: what comes before them."""
        end = time.monotonic() + seconds
        while words not in self.screen:
            assert time.monotonic() < end, self.screen
            if select.select([self.terminal], [], [], 1)[0]:
                self.screen += os.read(self.terminal, 4096)
        before, _, self.screen = self.screen.partition(words)
        return before

    def press(self, keys: bytes) -> None:
        time.sleep(0.3)  # a prompt is on the screen a moment before somebody listens
        os.write(self.terminal, keys)
