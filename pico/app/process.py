"""Around a command: Ctrl-C at any moment, and standard streams that are closed or cannot be written.

Nothing slow is imported here, because `guard` comes before everything else that is.
"""

import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def guard() -> None:
    """Makes this process end without a traceback on Ctrl-C, a full disk behind stdout, a closed stdout or stderr."""
    signal.signal(signal.SIGINT, interrupt)
    if "LOCAL_RANK" in os.environ:  # one of several: of a lost one torch tells in fifty lines, and we in one
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if hasattr(signal, "SIGUSR1"):  # asks a training to save: nothing to one that only starts, or has ended
        signal.signal(signal.SIGUSR1, lambda *_: None)
    for number in range(3):  # a stream that is closed: the next file opened would take its number, and what it is sent
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR if number == 2 else os.O_RDONLY)
    sys.stdout = stream(sys.stdout, Stdout, 1)
    sys.stderr = stream(sys.stderr, Stderr, 2)


busy: bool = False  # a command is at work


def interrupt(_, frame) -> None:
    """SIGINT. In a command it is a KeyboardInterrupt, after which the command may tidy up. While modules load, and
    before and after a command, there is nothing to tidy up, and an exception could come out as anything."""
    loading = False
    while frame:
        loading |= frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    if loading or not busy:
        os._exit(130)
    raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Ends this process. One of several, that failed, ends at once: as the interpreter ends step by step, the threads
    that torch's process group left in C++ abort it now and then, and its exit code would be that of the abort."""
    if code and "LOCAL_RANK" in os.environ:
        with suppress(Exception):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class StdoutFailed(Exception):
    """stdout took no more. `quiet` if its reader just left, as `head` does."""

    def __init__(self, error: OSError):
        self.quiet = error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)
        super().__init__(f"cannot write to stdout: {error.strerror}")


class Stdout(io.FileIO):
    """File 1. The first write that fails raises StdoutFailed, whoever made it; what follows is dropped."""

    failed = False

    def write(self, data) -> int:
        if self.failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            raise StdoutFailed(error) from None


class Stderr(io.FileIO):
    """File 2. Talk that nobody can hear ends nothing."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def stream(present, kind: type[io.FileIO], number: int) -> io.TextIOBase:
    """A text stream on a file number with the ways of the present one, which is None if the file was closed."""
    if os.name == "nt" and present and present.isatty():
        return present  # a console, which takes text, not bytes
    raw = kind(number, "w", closefd=False)
    encoding, errors = (present.encoding, present.errors) if present else ("utf-8", "replace")
    lines = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=lines)
