"""What a program says beside its product."""

import sys
from contextlib import suppress


def log(line: str = "") -> None:
    """A line on stderr, where there is one."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
