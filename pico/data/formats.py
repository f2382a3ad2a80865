"""Formats: what a file is, by its name and its first bytes, and its content without compression and BOM."""

import bz2
import gzip
import io
import lzma
import shlex
import zlib
from pathlib import Path
from typing import BinaryIO

from pico.base.errors import PicoError

TABLES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
DATA = TABLES | {".txt"}
BOM = b"\xef\xbb\xbf"  # of UTF-8: a mark before the text, dropped wherever text is read
HEAD_BYTES = 1024
ZEROS = "binary data, with zero bytes"
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
BUFFER = 1 << 20
WIDE = {  # the longer marks first: UTF-32's begins with UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
UNPACK, CONVERT = "unpack it and give the folder", "write its text to a .txt file"
BINARY = [  # (where, magic number, what it is, what to do)
    (0, b"PK\x03\x04", "a zip archive (or an office or epub document)", UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", UNPACK),
    (257, b"ustar\0", "a tar archive", UNPACK),
    (257, b"ustar  \0", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "lz4 data", "unpack it, or pack it with gzip"),
    (0, b"\x1f\x9d", "compress data", "unpack it, or pack it with gzip"),
    (0, b"ARROW1", "an arrow file", "write it as .parquet"),
    (0, b"\xff\xff\xff\xff", "an arrow stream", "write it as .parquet"),
    (0, b"PAR1", "a parquet file", "give it a name that ends in .parquet"),
    (0, b"Obj\x01", "an avro file", "write it as .parquet"),
    (0, b"%PDF-", "a PDF document", CONVERT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document", CONVERT),
    (0, b"SQLite format 3\0", "an SQLite database", "write its rows as .csv or .jsonl"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its text as .jsonl"),
    (0, b"\x93NUMPY", "a numpy array", "write its text as .jsonl"),
    (0, b"\x80\x04\x95", "a Python pickle, which is never opened", "write its text as .jsonl"),
    (0, b"\x89PNG\r\n\x1a\n", "a picture", CONVERT),
    (0, b"\xff\xd8\xff", "a picture", CONVERT),
    (0, b"GIF87a", "a picture", CONVERT),
    (0, b"GIF89a", "a picture", CONVERT),
    (4, b"ftyp", "a film", CONVERT),
    (0, b"OggS", "a sound file", CONVERT),
    (0, b"fLaC", "a sound file", CONVERT),
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer to the file", "fetch it with `git lfs pull`"),
    (0, b"\x7fELF", "a program", CONVERT),
]


def suffix(path: Path) -> str:
    """The ending that tells the format, beneath that of a compression: '.csv' of a.csv.gz, '.txt' of a.gz."""
    name = Path(path.name.lower())
    if name.suffix in COMPRESSED:
        return Path(name.stem).suffix or ".txt"
    return name.suffix


def compression(head: bytes) -> str | None:
    """'gz', 'bz2', 'xz' or 'zst' by the first bytes of a file; its name does not matter."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bz2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zst"
    return None


def read_head(path: Path, length: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file as they lie on disk."""
    with open(path, "rb") as file:
        return file.read(length)


def open_content(path: Path, expected: str = "text") -> BinaryIO:
    """The file, decompressed while it is read, from behind its BOM.

    expected: 'text', or 'parquet'. Raises PicoError if the content is in another encoding or a binary format, and,
    while it is read, if compressed data is broken or cut short.
    """
    packed = compression(read_head(path))
    file = _open(path, packed)
    head = file.read(HEAD_BYTES) if packed else read_head(path)
    if expected == "text":
        try:
            _refuse(path, head, bool(packed))
        except PicoError:
            file.close()
            raise
    if packed:  # which cannot be wound back
        file.close()
        file = _open(path, packed)
    if head.startswith(BOM):
        file.read(len(BOM))
    return file


def is_plain(path: Path) -> bool:
    """Whether the bytes on disk are the text itself. Raises PicoError as `open_content` does."""
    head = read_head(path)
    if compression(head):
        return False
    _refuse(path, head, False)
    return True


def foreign(head: bytes) -> str | None:
    """What a file that begins so is, if it is not text in UTF-8: 'a zip archive', 'UTF-16 text'; else None."""
    for mark, encoding in WIDE.items():
        if head.startswith(mark):
            return f"{encoding} text"
    known = next((name for where, magic, name, _ in BINARY if head.startswith(magic, where)), None)
    return known or (ZEROS if b"\0" in head else None)


def _refuse(path: Path, head: bytes, packed: bool) -> None:
    where = f"{path} (unpacked)" if packed else path
    if packed and compression(head):
        raise PicoError(f"{where} is compressed a second time: unpack it once, and give what comes out")
    name = foreign(head)
    if name is None:
        return
    if name.endswith(" text"):
        encoding = name.removesuffix(" text")
        file, made = shlex.quote(str(path)), shlex.quote(f"{path.stem}-utf8{path.suffix}")
        code = (
            f"from pathlib import Path; Path(r'{path.stem}-utf8{path.suffix}').write_bytes("
            f"Path(r'{path}').read_bytes().decode('{encoding.lower()}').encode())"
        )
        raise PicoError(
            f"{where} is {name}, expected UTF-8: {'unpack it, then ' if packed else ''}convert it with "
            f'`iconv -f {encoding} -t UTF-8 {file} > {made}`, or with `python -c "{code}"`; '
            "--dataset-format bytes reads it as it is"
        )
    advice = next((advice for _, _, known, advice in BINARY if known == name), CONVERT)
    raise PicoError(f"{where} is {name}, no text: {advice}, or read its bytes with --dataset-format bytes")


def _open(path: Path, packed: str | None) -> BinaryIO:
    if packed is None:
        return open(path, "rb", buffering=BUFFER)
    if packed == "zst":
        import pyarrow

        if not pyarrow.Codec.is_available("zstd"):
            raise PicoError(f"cannot read {path}: this pyarrow has no zstd; `pip install --upgrade pyarrow` brings it")
        inner = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    else:
        inner = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[packed](path, "rb")
    return io.BufferedReader(_Unpacked(path, inner), BUFFER)


class _Unpacked(io.RawIOBase):
    """A decompressor as a raw stream, whose errors name the file."""

    def __init__(self, path: Path, inner):
        self.path, self.inner = path, inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self.inner.read(len(buffer))
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise PicoError(f"cannot read {self.path}: its compressed data is broken or cut short ({error})") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()
