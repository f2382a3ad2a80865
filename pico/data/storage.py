"""Bytes that need not fit into memory: files read where they lie, and the cache that everything else is copied into.

No file is memory-mapped: one that is cut while it is mapped kills its reader with a signal. It is read by position, and
after each read its size and time are compared with those at the start: a change is an error that says what changed.
"""

import errno
import hashlib
import io
import logging
import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pico.base.errors import DataError, PicoError
from pico.base.files import hold, no_links, remove, sync

SMALL = 64 << 20  # bytes that are simply kept in memory
PIECE = 4 << 20  # bytes of a file held at once while all of it is read
MOST = 1 << 30  # bytes asked of the system at once: it gives 2 GB at most, or refuses more
PAGE = 4096  # bytes that are read together
SUM_NUMBERS = 4  # int64s of a checksum

log = logging.getLogger(__name__)


class File:
    """The bytes of an open file, used like a `bytes` object: len(file), file[start:stop], and file.take(places).

    Raises DataError from the first read on that finds it changed since it was opened. Threads may share it; it closes
    when nothing refers to it any more.
    """

    def __init__(self, file: BinaryIO, name: str | Path | None = None):
        self.name = str(name or file.name)
        self._descriptor, self._lock = file.fileno(), threading.Lock()
        self.close = weakref.finalize(self, file.close)
        self._was = stamp(os.fstat(self._descriptor))

    def __len__(self) -> int:
        return self._was[0]

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(len(self))
        return self._read([(start, max(0, stop - start))])

    def take(self, places: np.ndarray) -> np.ndarray:
        """The bytes at these places (n,) -> (n,) uint8. Places that follow each other are one read."""
        cuts = (np.flatnonzero(np.diff(places) != 1) + 1).tolist()
        spans = [(int(places[first]), end - first) for first, end in pairwise([0, *cuts, len(places)]) if first < end]
        return np.frombuffer(self._read(spans), np.uint8)

    def prefetch(self, places: np.ndarray) -> None:
        """Has the system read what lies at these places, all at once: 5x faster than one by one, from a cold disk."""
        if hasattr(os, "posix_fadvise"):
            for page in np.unique(places // PAGE).tolist():
                os.posix_fadvise(self._descriptor, page * PAGE, PAGE, os.POSIX_FADV_WILLNEED)

    def _read(self, spans: list[tuple[int, int]]) -> bytes:
        """The bytes of each (start, length), end to end."""
        try:
            data = b"".join(self._span(start, length) for start, length in spans)
            now = stamp(os.fstat(self._descriptor))
        except OSError as error:
            raise DataError(f"cannot read {self.name}: {error.strerror or error}") from None
        check_unchanged(self.name, self._was, now)
        if len(data) < sum(length for _, length in spans):
            raise DataError(f"cannot read {self.name}: it ends early")
        return data

    def _span(self, start: int, length: int) -> bytes:
        data = self._some(start, min(length, MOST))
        if len(data) in (0, length):
            return data
        return data + self._span(start + len(data), length - len(data))

    def _some(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, start)
        with self._lock:
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, length)


def opened(path: str | Path) -> File:
    """The bytes of a file, none of them in memory. Raises OSError."""
    return File(open(path, "rb", buffering=0))


def pieces(data: bytes | File) -> Iterator[bytes]:
    """All of it, a few megabytes at a time."""
    return (data[start : start + PIECE] for start in range(0, len(data), PIECE))


def stamp(stat: os.stat_result) -> tuple[int, int]:
    """(size, time of change in ns): what tells a file from itself rewritten."""
    return stat.st_size, stat.st_mtime_ns


def check_unchanged(name: str | Path, before: tuple[int, int], now: tuple[int, int]) -> None:
    """Raises DataError if two stamps of a file differ."""
    if before != now:
        what = f"{before[0]:,} bytes -> {now[0]:,}" if before[0] != now[0] else "as many bytes, written anew"
        raise DataError(
            f"{name} changed while it was being read: {what}; put it back as it was, or start anew with a file that "
            "nothing writes to"
        )


def unchanged(path: Path, before: tuple[int, int], documents: Iterable) -> Iterator:
    """The documents read from a file. Raises DataError at their end if the file has another stamp than before."""
    try:
        yield from documents
    except PicoError:  # which a file may well cause that is read half old, half new
        check_unchanged(path, before, stamp(path.stat()))
        raise
    check_unchanged(path, before, stamp(path.stat()))


# --- the cache -------------------------------------------------------------------------------------------------------


def store(
    documents: Iterable[bytes | Path | Iterator[bytes]], key: str | None = None, small: int | None = None
) -> tuple[bytes | File, np.ndarray]:
    """Copies documents end to end: (their bytes, in a file of the cache above `small`, 64 MB; lengths (n,) int64).

    A document is bytes, the Path of a file, or an iterator over its pieces. key: names the content, so that the file
    is found again the next time; it is checked then, and made anew if a single bit of it is wrong.
    Raises PicoError if there is no room for the file.
    """
    folder = cache_folder()
    name = hashlib.blake2b((key or "").encode(), digest_size=16).hexdigest()
    data, index = folder / f"{name}.bytes", folder / f"{name}.npy"
    if key and (found := _find(data, index)):
        return found
    parts = [file.with_name(f"{file.name}.{os.getpid()}.part") for file in (data, index)] if key else []
    lengths, out = array("q"), Spool(folder, parts[0] if key else None, SMALL if small is None else small)
    try:
        for document in documents:
            start = out.size
            if isinstance(document, Path):
                document = pieces(opened(document))
            for piece in [document] if isinstance(document, bytes) else document:
                out.write(piece)
            lengths.append(out.size - start)
        lengths = np.array(lengths, np.int64)
        if not out.on_disk:
            return out.memory.getvalue(), lengths
        with cache_errors(folder):
            if not key:
                out.file.flush()
                return File(out.file, "a stream's copy in the cache"), lengths
            out.digest.update(lengths.tobytes())
            out.file.flush()
            with open(parts[1], "wb") as file:
                np.save(file, np.append(_numbers(out.digest), lengths))
            for part in parts:
                sync(part)
            out.file.close()
            for part, file in zip(parts, (data, index), strict=True):
                os.replace(part, file)
            sync(folder)
            return opened(data), lengths
    except BaseException:
        out.close()
        raise
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


class Spool:
    """Where documents are copied: memory up to `small` bytes, then a file (nameless without a path)."""

    def __init__(self, folder: Path, path: Path | None, small: int):
        self.folder, self.path, self.small, self.size, self.on_disk = folder, path, small, 0, False
        self.memory = io.BytesIO()
        self.file: BinaryIO = self.memory

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if not self.on_disk and self.size > self.small:
            self._to_disk()
        if self.on_disk:
            self.digest.update(piece)
            with cache_errors(self.folder):
                self.file.write(piece)
        else:
            self.file.write(piece)

    def _to_disk(self) -> None:
        small = self.memory.getvalue()
        with cache_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
            self.file = create_held(self.path) if self.path else tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            self.on_disk, self.digest = True, hashlib.blake2b(small, digest_size=8 * SUM_NUMBERS)
            self.file.write(small)

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, again
            self.file.close()


def cache_folder() -> Path:
    """$PICO_CACHE, or ~/.cache/pico."""
    return Path(os.environ.get("PICO_CACHE") or Path.home() / ".cache" / "pico")


def create_held(file: Path) -> BinaryIO:
    """A new file in the cache, this process's own while it is open: no other sweeps it away."""
    stream = open(file, "wb")  # noqa: SIM115
    with suppress(OSError):  # a disk that knows no locks, where nothing can be swept either
        hold(stream.fileno())
    return stream


def remove_abandoned(folder: Path) -> None:
    """Removes from the cache what killed processes left there half-made: files that nobody holds."""
    for file in (*folder.glob("*.bytes.*.part"), *folder.glob("pipe-*/*")):
        with suppress(OSError):
            with open(file, "r+b", opener=no_links) as stream:
                hold(stream.fileno())
            remove(file if file.parent == folder else file.parent)
            remove(file.with_name(file.name.replace(".bytes.", ".npy.")))  # the index beside it


def _find(data: Path, index: Path) -> tuple[File, np.ndarray] | None:
    """What was stored before. None if there is nothing, or if it is damaged, which is said."""
    if not data.exists() and not index.exists():
        return None
    try:
        numbers = np.load(index, allow_pickle=False)
        file, lengths = opened(data), numbers[SUM_NUMBERS:]
        digest = hashlib.blake2b(digest_size=8 * SUM_NUMBERS)
        for piece in pieces(file):
            digest.update(piece)
        digest.update(lengths.tobytes())
        if numbers.dtype == np.int64 and np.array_equal(numbers[:SUM_NUMBERS], _numbers(digest)):
            return file, lengths
        file.close()
    except Exception:  # numpy has one of a dozen classes for each way in which a file can be broken
        pass
    log.warning("the copy of the data in the cache is damaged, it is made anew: %s", data)
    return None


def _numbers(digest) -> np.ndarray:
    return np.frombuffer(digest.digest(), np.int64)


@contextmanager
def cache_errors(folder: Path):
    """Turns a disk that is full or may not be written into a PicoError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PicoError(f"no room left in {folder}: set PICO_CACHE to a folder on a larger disk") from None
        reason = error.strerror or error
        raise PicoError(f"cannot write {folder} ({reason}): set PICO_CACHE to a folder with room") from None
