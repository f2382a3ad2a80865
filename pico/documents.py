"""Documents: byte strings lying in one memory-mapped file, whatever they were read from.

A text file is mapped where it lies. Rows of .jsonl, .json, .csv and .parquet files, and folders of many files, are
copied once: into memory up to 64 MB, else into a file under ~/.cache/pico (or $PICO_CACHE) that is mapped and reused.
Only index arrays are ever held in memory: 16 bytes a document.
"""

import errno
import hashlib
import io
import mmap
import os
import shutil
from array import array
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from pico.config import PicoError

SMALL = 64 << 20  # bytes that are simply kept in memory
PIECE = 64 << 20  # bytes scanned before their pages are given back


class Documents:
    """A sequence of documents, each a slice of `buffer` (bytes or a memory map). Empty ones are dropped.

    starts, lengths: (n,) int64. floor_bits: exact entropy of all of them, only known for stories. stories: the
    Story each was made from, or None.
    """

    floor_bits: float | None = None
    stories: list | None = None

    def __init__(self, buffer: bytes | mmap.mmap, starts: np.ndarray, lengths: np.ndarray):
        kept = np.asarray(lengths) > 0
        self.buffer = buffer
        self.data = np.frombuffer(buffer, np.uint8)
        self.starts = np.asarray(starts, np.int64)[kept]
        self.lengths = np.asarray(lengths, np.int64)[kept]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.starts[index])  # IndexError past the end, so that iteration stops
        return self.buffer[start : start + int(self.lengths[index])]

    @property
    def bytes(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the boundaries and of the text: all of it up to 64 MB, else 256 samples of 4 kB."""
        digest = hashlib.blake2b(self.lengths.tobytes(), digest_size=16)
        if self.bytes <= SMALL:
            for document in self:
                digest.update(document)
        else:
            ends = np.cumsum(self.lengths)
            for position in np.linspace(0, self.bytes - 1, 256).astype(np.int64):
                self.release()
                i = int(np.searchsorted(ends, position, side="right"))
                end = int(self.starts[i] + self.lengths[i])
                start = end - int(ends[i] - position)
                digest.update(self.buffer[start : min(end, start + 4096)])
        return digest.hexdigest()

    def block(self, number: int, place: dict | None = None) -> "Documents":
        """What is read in epoch `number`: always the same here, new documents for stories and streams."""
        return self

    def select(self, index: np.ndarray) -> "Documents":
        """The documents at these positions (or where a mask of (n,) bool is true), in this order."""
        return Documents(self.buffer, self.starts[index], self.lengths[index])

    def split(self, separator: str | None) -> "Documents":
        r"""Cuts every document at each separator, which belongs to neither side. \n and \t may be spelled out."""
        if not separator:
            return self
        separator = separator.replace("\\n", "\n").replace("\\t", "\t").encode()
        starts, lengths, scanned = array("q"), array("q"), 0
        _advise(self.buffer, "MADV_SEQUENTIAL")
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            position, end = start, start + length
            while position < end:
                reach = min(end, position + PIECE + len(separator) - 1)
                found = self.buffer.find(separator, position, reach)
                if found < 0 and reach < end:
                    position += PIECE
                    self.release()
                    continue
                stop = end if found < 0 else found
                starts.append(start)
                lengths.append(stop - start)
                start = position = stop + len(separator)
                if stop - scanned > PIECE:
                    scanned = stop
                    self.release()
        _advise(self.buffer, "MADV_RANDOM")
        return Documents(self.buffer, np.frombuffer(starts, np.int64), np.frombuffer(lengths, np.int64))

    def release(self) -> None:
        """Gives mapped pages back; they stay in the system's file cache but no longer count as our memory."""
        _advise(self.buffer, "MADV_DONTNEED")

    def expect(self, positions: np.ndarray) -> None:
        """Has the system read what lies at these places of a big file, all at once: 6x faster than one by one."""
        if len(self.data) > SMALL:
            for page in np.unique(np.clip(positions, 0, len(self.data) - 1) // mmap.PAGESIZE).tolist():
                _advise(self.buffer, "MADV_WILLNEED", page * mmap.PAGESIZE, mmap.PAGESIZE)


def open_file(path: Path) -> Documents:
    """The whole file as one document, mapped where it lies."""
    buffer = _map(path)
    return Documents(buffer, np.zeros(1), np.full(1, len(buffer)))


def collect(documents: Iterable[bytes | Path], key: str | None = None) -> Documents:
    """Copies documents (a Path stands for a file's content) into one buffer, on disk when it exceeds 64 MB.

    key: names the content, so that a buffer on disk is found again the next time.
    """
    folder = Path(os.environ.get("PICO_CACHE") or Path.home() / ".cache" / "pico")
    name = hashlib.blake2b((key or f"{os.getpid()} {id(documents)}").encode(), digest_size=16).hexdigest()
    data, index = folder / f"{name}.bytes", folder / f"{name}.npy"
    if key and data.exists() and index.exists():
        lengths = np.load(index, allow_pickle=False)
        if data.stat().st_size == lengths.sum():
            return _packed(_map(data), lengths)
    part = folder / f"{name}.{os.getpid()}.part"
    out, lengths = io.BytesIO(), array("q")
    try:
        for document in documents:
            start = out.tell()
            if isinstance(document, Path):
                with open(document, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
            else:
                out.write(document)
            lengths.append(out.tell() - start)
            if isinstance(out, io.BytesIO) and out.tell() > SMALL:
                out = _to_disk(out, part)
        lengths = np.frombuffer(lengths, np.int64) if lengths else np.zeros(0, np.int64)
        if isinstance(out, io.BytesIO):
            return _packed(out.getvalue(), lengths)
        out.close()
        if not key:
            return _packed(_map(part), lengths)
        with open(f"{part}.npy", "wb") as file:
            np.save(file, lengths)
        os.replace(part, data)
        os.replace(f"{part}.npy", index)
        return _packed(_map(data), lengths)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise PicoError(f"no room left in {folder}: set PICO_CACHE to a folder on a larger disk") from None
    finally:
        with suppress(OSError):  # of a full disk, again
            out.close()
        for leftover in part, Path(f"{part}.npy"):  # without a key the map keeps the nameless file alive
            if leftover.exists():
                leftover.unlink()


def _to_disk(small: io.BytesIO, path: Path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        out = open(path, "wb", buffering=1 << 20)  # noqa: SIM115, closed by collect
        out.write(small.getbuffer())
        return out
    except OSError as error:
        raise PicoError(
            f"cannot write {path.parent} ({error.strerror}): set PICO_CACHE to a folder with room"
        ) from None


def _packed(buffer, lengths: np.ndarray) -> Documents:
    return Documents(buffer, np.cumsum(lengths) - lengths, lengths)


def _map(path: Path) -> bytes | mmap.mmap:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return b""  # which cannot be mapped
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if size > SMALL:
        _advise(buffer, "MADV_RANDOM")  # chunks are read at random: reading ahead would read megabytes for each
    return buffer


def _advise(buffer: bytes | mmap.mmap, name: str, *where: int) -> None:
    if hasattr(buffer, "madvise") and hasattr(mmap, name):
        buffer.madvise(getattr(mmap, name), *where)
