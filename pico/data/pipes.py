"""Pipes as data: `/dev/stdin`, `<(command)` or a named pipe, read once to the end into a copy that is then a file."""

import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pico.base.errors import PicoError
from pico.data.storage import PIECE, cache_errors, cache_folder, create_held, remove_abandoned

WAIT = 10  # seconds for somebody to write

_copies: dict[tuple, tuple[tempfile.TemporaryDirectory, BinaryIO]] = {}  # a pipe is read once, data often


def as_file(path: Path) -> Path:
    """The path itself where it is a file or a folder, else that of a copy in the cache, of the same name.

    The copy goes when the process ends. Raises PicoError for a device or a socket, a pipe that nobody writes to, one
    that several processes would share, and where there is no room for a copy.
    """
    found = path.stat()
    if stat.S_ISREG(found.st_mode) and not found.st_size and _has_content(path):
        raise PicoError(
            f"{path} has no size, though there is something in it, as in /proc: write it to a file (cat {path} > "
            "copy.txt), and give that"
        )
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return path
    if not stat.S_ISFIFO(found.st_mode):
        kind = "a socket" if stat.S_ISSOCK(found.st_mode) else "a device"
        raise PicoError(f"{path} is {kind}: expected a file, a folder or a pipe, whose text has an end")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise PicoError(f"{path} is a pipe, which several processes cannot share: write it to a file, and give that")
    key = str(path), found.st_dev, found.st_ino
    if key not in _copies:
        _copies[key] = _copied(path)
    return Path(_copies[key][1].name)


def _has_content(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _copied(path: Path) -> tuple[tempfile.TemporaryDirectory, BinaryIO]:
    """The copy, held open for as long as this process lives, and its folder."""
    with _opened(path) as pipe:
        cache = cache_folder()
        with cache_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            remove_abandoned(cache)
            folder = tempfile.TemporaryDirectory(prefix="pipe-", dir=cache)
        copy = Path(folder.name) / path.name
        try:
            with cache_errors(cache):
                file = create_held(copy)
                for piece in iter(partial(pipe.read, PIECE), b""):
                    file.write(piece)
                file.flush()
            return folder, file
        except BaseException:
            folder.cleanup()
            raise


def _opened(path: Path):
    """The pipe, once somebody has opened it to write; until then the system lets no reader in."""
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open, path, "rb", buffering=0)
        try:
            return opening.result(WAIT)
        except BaseException as error:
            with suppress(OSError):  # a writer, at last: the thread goes on and ends
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                opening.result().close()
            if isinstance(error, TimeoutError):
                raise PicoError(f"nobody writes to the pipe {path}, for {WAIT} s now: start what fills it") from None
            raise
