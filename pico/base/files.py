"""Small files, read with care and written whole or not at all.

What lies in a run folder may be damaged, of another program, unreadable or no file at all. It is never waited for,
never followed without end, and a JSON file takes no more memory than `LIMIT`.
"""

import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from pico.base.errors import DiskFull, PicoError

if sys.platform == "win32":
    import msvcrt

    def hold(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text: what is locked there, no other may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def hold(descriptor: int) -> None:
        """Keeps an open file for this process until it is closed. Raises OSError where another has it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LIMIT = 1 << 28  # bytes of a JSON file
DEEPEST = 64  # levels of a JSON file
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in FULL or any(f"os error {code}" in str(error) for code in FULL)


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in a few words. safetensors has the number in its text alone."""
    if is_full(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def writing(file: str | Path) -> Generator[None]:
    """Raises PicoError, in one line, for whatever the system has against writing this file; DiskFull if it is that."""
    try:
        yield
    except OSError as error:
        way_out = "free space" if error.errno in FULL else "make it writable"
        problem = f"cannot write {file}: {reason(error)}; {way_out}, or choose another place"
        raise (DiskFull if error.errno in FULL else PicoError)(problem) from None


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(file: str | Path):
    """A file opened to read its bytes. Raises OSError for anything else: a FIFO, log, which open would wait for."""
    return open(file, "rb", opener=_regular)


def _regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(name))
    return descriptor


def read_json(file: str | Path) -> dict:
    """The object in a JSON file in UTF-8: of this project, the only way to read one.

    Raises FileNotFoundError where there is none, PicoError where it cannot be read or holds something else.
    """
    try:
        with open_regular(file) as stream:
            data = stream.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError(f"it has more than {LIMIT >> 20} MiB")
        value = json.loads(data.decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if not _shallow(value):
            raise RecursionError
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PicoError(f"{file} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise PicoError(f"{file} cannot be read as JSON ({error})") from None
    except RecursionError:
        raise PicoError(f"{file} cannot be read as JSON (nested more than {DEEPEST} deep)") from None
    return value


def _shallow(value) -> bool:
    """Whether a JSON value has at most DEEPEST levels, so that recursion through it has an end."""
    layer = [value]
    for _ in range(DEEPEST):
        layer = [x for outer in layer for x in (outer.values() if isinstance(outer, dict) else outer)]
        layer = [x for x in layer if isinstance(x, (dict, list))]
        if not layer:
            return True
    return False


def entries(folder: str | Path) -> list[Path]:
    """What lies in a folder, by name. Raises PicoError for a folder that cannot be read."""
    try:
        return sorted(Path(folder).iterdir())
    except OSError as error:
        raise PicoError(f"cannot read the folder {folder}: {reason(error)}") from None


# --- writing ----------------------------------------------------------------------------------------------------------


def write_whole(file: Path, data: bytes) -> None:
    """Writes a file, synced, in one step: a reader sees the old file or the new one, whoever else writes it.

    A link in its place is replaced, not written through. Raises PicoError where it cannot be written.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with writing(file):
        try:
            with open(beside, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(file)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def write_json(file: Path, value) -> None:
    """write_whole of a value as JSON."""
    write_whole(file, (json.dumps(value, indent=2) + "\n").encode())


def append(file: Path, text: str, durable: bool = False) -> None:
    """Adds to a text file. durable: it is on the disk when this returns.

    Raises PicoError where that fails, and for a link: what it leads to is not ours.
    """
    with writing(file), open(file, "a", encoding="utf-8", opener=no_links) as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def size_of(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def cut(file: Path, size: int) -> None:
    """Takes off a file what comes after its first `size` bytes. A file that is not there, or shorter, is left alone."""
    with writing(file), suppress(FileNotFoundError), open(file, "r+b", opener=no_links) as stream:
        if os.fstat(stream.fileno()).st_size > size:
            stream.truncate(size)


def no_links(name: str, flags: int) -> int:
    return os.open(name, flags | NO_LINKS, 0o666)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all in it, as far as that is possible."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync of a file or, where the system knows such a thing, of a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
