"""Fetches the texts behind RESULTS.md: `python scripts/fetch_data.py enwik8 tinyshakespeare tinystories --to data`.

enwik8 and tinyshakespeare are the exact bytes, checked by SHA-256. TinyStories is another sample of the same size,
drawn by --seed, no story twice and none in both parts, so its figures differ a little from those in RESULTS.md. A file
that is there and right is left alone; one that was cut short is fetched again.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

ENWIK8 = "https://mattmahoney.net/dc/enwik8.zip"  # 36 MB
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
STORIES = "roneneldan/TinyStories"  # on the Hub; a streamed part of its first files
SHUFFLED = 50_000  # stories held at a time while drawing

EXACT = {  # file: (address, first byte, last byte + 1, SHA-256)
    "enwik8/train.txt": (ENWIK8, 0, 9_000_000, "bdcb06cdf726261507199eae80153e35ec733eb21757e2f71180b3bbc7afd524"),
    "enwik8/valid.txt": (
        ENWIK8,
        9_500_000,
        10_000_000,
        "8c939ae5301c5b301c2b7cf6e0f5258b4f5f555729899527a4e2d6e8ddf1f3af",
    ),
    "tinyshakespeare/input.txt": (
        SHAKESPEARE,
        0,
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
DRAWN = {"tinystories/valid.jsonl": ("validation", 797_069), "tinystories/train.jsonl": ("train", 13_229_060)}
NAMES = sorted({file.partition("/")[0] for file in (*EXACT, *DRAWN)})


def fetch(name: str, folder: Path, seed: int, opener=urlopen, stories: Callable | None = None) -> None:
    """Makes the files of one data set below `folder`.

    opener: an address -> a binary stream; stories: (split, seed) -> texts in random order, without end or with one.
    Raises SystemExit with one line if what came is not what was expected.
    """
    exact = {file: what for file, what in EXACT.items() if file.startswith(name) and not right(folder / file, what[3])}
    for address in {what[0] for what in exact.values()}:
        with tempfile.TemporaryFile() as download:
            copy(opener(address), download, address)
            for file, (source, start, end, digest) in exact.items():
                if source == address:
                    write(folder / file, part(download, start, end), digest)
    seen: set[bytes] = set()
    for file, (split, size) in DRAWN.items():
        if file.startswith(name):
            texts = draw((stories or stream)(split, seed), size, seen)
            write(folder / file, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())


def right(file: Path, digest: str) -> bool:
    """Whether a file is already there, whole."""
    there = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest
    if there:
        log(f"{file} is there and right")
    return there


def copy(source: BinaryIO, target: BinaryIO, name: str) -> None:
    """All of a stream, with a word every 10 MB."""
    total = told = 0
    with source:
        while block := source.read(1 << 16):
            total += target.write(block)
            if total - told >= 10_000_000:
                told = total
                log(f"{name}: {total / 1e6:.0f} MB")
    log(f"{name}: {total:,} bytes")


def part(download: BinaryIO, start: int, end: int) -> bytes:
    """Bytes start to end of what was fetched, out of the zip archive if it is one."""
    download.seek(0)
    if not zipfile.is_zipfile(download):
        download.seek(start)
        return download.read(end - start)
    with zipfile.ZipFile(download) as archive, archive.open(archive.namelist()[0]) as text:
        text.seek(start)
        return text.read(end - start)


def stream(split: str, seed: int) -> Iterator[str]:
    """Stories of the Hub's data set in an order of the seed's, read as they are needed."""
    from datasets import load_dataset

    rows = load_dataset(STORIES, split=split, streaming=True).shuffle(seed=seed, buffer_size=SHUFFLED)
    return (row["text"] for row in rows)


def draw(texts: Iterable[str], size: int, seen: set[bytes]) -> list[str]:
    """The first texts that make up `size` bytes; one that was seen, white space aside, is passed over."""
    taken, total = [], 0
    for text in texts:
        text = text.strip()
        key = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if text and key not in seen:
            seen.add(key)
            taken.append(text)
            total += len(text.encode())
        if total >= size:
            return taken
    raise SystemExit(f"error: {total:,} bytes of different stories came, {size:,} were expected: try again")


def write(file: Path, data: bytes, digest: str | None = None) -> None:
    """The file, whole or not at all."""
    made = hashlib.sha256(data).hexdigest()
    if digest not in (None, made):
        raise SystemExit(f"error: {file}: SHA-256 {made} instead of {digest}: the source has changed or was cut short")
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    log(f"wrote {file}: {len(data):,} bytes, SHA-256 {made}")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--to", type=Path, default=Path("data"), help="folder to write to (default: data)")
    parser.add_argument("--seed", type=int, default=0, help="which sample of TinyStories (default: 0)")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(NAMES)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in chosen.names:
        try:
            fetch(name, chosen.to, chosen.seed)
        except OSError as error:  # no network, a full disk
            raise SystemExit(f"error: {name}: {error}; what is whole stays, the same command goes on") from None


if __name__ == "__main__":
    main()
