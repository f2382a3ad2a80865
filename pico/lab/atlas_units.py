"""The units of each kind of bytes, found by rule: words, characters, code tokens, cells, moves, notes, codons ...

    UNITS["moves"](b"1. d4 Nf6")["moves"]  # a mask (n,): where each begins

What a router routes is compared with these masks. Each function takes a document, which may begin or end anywhere.
"""

import io
import re
import shutil
import subprocess
import tempfile
import tokenize
from collections.abc import Callable, Iterable

import numpy as np

from pico.evaluate.analysis import kinds

Masks = dict[str, np.ndarray]
C_TOKEN = re.compile(
    rb"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\w+|\.\d\w*|(?:<<|>>|[-+*/%&|^<>=!])=|"
    rb"->|\+\+|--|<<|>>|&&|\|\||\.\.\.|[^\s\w]",
    re.DOTALL,
)
JSON_VALUE = re.compile(rb'"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*|true|false|null')
LOG_FIELD = re.compile(rb"[^\s\[\](){}:=,;|\"'<>]+")
MOVE = re.compile(rb"(?<!\S)(?:O-O(?:-O)?|[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](?:=[QRBN])?)(?=[+#]?(?:\s|$))")
ABC = re.compile(rb'"[^"\n]*"|^[A-Za-z]:.*$|%.*$|![^!\n]*!|(?P<notes>[_^=]*[A-Ga-gxz])|(?P<bars>\|)', re.MULTILINE)
STOPS, START, LEAST_CODONS = {b"TAA", b"TAG", b"TGA"}, b"ATG", 100
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
FRAME, RISE = 80, 4.0  # 10 ms at 8 kHz; of energy, over the 30 ms before
LOUD, SILENT = (
    0.01,
    1e-6 * FRAME,
)  # energy of a loud frame: over so much of the loudest one's, and in any case over this


def mask(n: int, places: Iterable[int]) -> np.ndarray:
    """True at these places of n bytes."""
    out = np.zeros(n, bool)
    out[np.fromiter(places, np.int64)] = True
    return out


def matches(name: str, pattern: re.Pattern) -> Callable[[bytes], Masks]:
    """The first byte of whatever matches."""
    return lambda data: {name: mask(len(data), (found.start() for found in pattern.finditer(data)))}


def word_starts(data: bytes) -> Masks:
    return {"words": kinds(data)[0]}


def character_starts(data: bytes) -> Masks:
    """Of UTF-8: every byte but the continuation bytes."""
    return {"characters": np.frombuffer(data, np.uint8) & 0xC0 != 0x80}


def line_starts(data: bytes) -> Masks:
    return {"lines": np.frombuffer(b"\n" + data[:-1], np.uint8) == ord("\n")}


def python_tokens(data: bytes) -> Masks:
    """By `tokenize`, as far as it gets; line ends and indentation are no tokens. Bytes of no UTF-8 count as `?`."""
    lines = re.sub("[\udc80-\udcff]", "?", data.decode(errors="surrogateescape")).split("\n")
    begin = np.cumsum([0] + [len(line.encode()) + 1 for line in lines])
    layout, places = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}, []
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines), newline="\n").readline):
            row, column = token.start
            if token.type not in layout:
                places.append(int(begin[row - 1]) + len(lines[row - 1][:column].encode()))
    except (tokenize.TokenError, SyntaxError):  # the text was cut, or is of another version of Python
        pass
    return {"tokens": mask(len(data), (place for place in places if place < len(data)))}


def cell_starts(data: bytes) -> Masks:
    """Values of JSON, where four commas have a key or more; else cells, between tabs or ; where lines have some."""
    if 4 * data.count(b'":') > data.count(b","):
        return matches("cells", JSON_VALUE)(data)
    mark = next((each for each in (b"\t", b";") if data.count(each) >= max(1, data.count(b"\n"))), b",")
    return matches("cells", re.compile(rb'"(?:[^"]|"")*"|[^\r\n%b]+' % mark))(data)


def abc_notes(data: bytes) -> Masks:
    found = [match for match in ABC.finditer(data) if match.lastgroup]
    return {name: mask(len(data), (m.start() for m in found if m.lastgroup == name)) for name in ("notes", "bars")}


def midi_events(data: bytes) -> Masks:
    """Of a standard MIDI file: the first byte of each event (its delta time), and the key of each note that begins."""
    events, keys, place, status = [], [], data.find(b"MTrk"), 0

    def number(place: int) -> tuple[int, int]:
        """A number of variable length, and the place after it."""
        value = 0
        while place < len(data):
            value, place = value << 7 | data[place] & 0x7F, place + 1
            if data[place - 1] < 0x80:
                break
        return value, place

    while place >= 0:
        end, place = min(len(data), place + 8 + int.from_bytes(data[place + 4 : place + 8])), place + 8
        while place < end:
            events.append(place)
            _, place = number(place)
            if place < end and data[place] >= 0x80:
                status, place = data[place], place + 1
            if status >= 0xF0:  # meta and system: a type (of meta alone), a length, so many bytes
                length, place = number(place + (status == 0xFF))
                place += length
                continue
            if status >> 4 == 9 and place + 1 < end and data[place + 1]:
                keys.append(place)
            place += 1 if status >> 4 in (0xC, 0xD) else 2
        place = data.find(b"MTrk", end)
    return {"events": mask(len(data), events), "notes": mask(len(data), keys)}


def genes(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of open reading frames of this strand: from the first ATG after a stop to the next stop."""
    out = []
    for frame in range(3):
        start = -1
        for place in range(frame, len(data) - 2, 3):
            codon = data[place : place + 3]
            if codon in STOPS:
                if start >= 0 and place - start >= 3 * LEAST_CODONS:
                    out.append((start, place))
                start = -1
            elif codon == START and start < 0:
                start = place
    return out


def codon_phases(data: bytes) -> Masks:
    """First, second and third bases of codons in open reading frames of either strand; the longest where some overlap.

    On the reverse strand a codon is read from its third base to its first.
    """
    n, label = len(data), np.full(len(data), -1)
    reverse = data.translate(COMPLEMENT)[::-1]
    found = [(end - start, start, end, 0) for start, end in genes(data)]
    found += [(end - start, n - end, n - start, 1) for start, end in genes(reverse)]
    for length, start, end, back in sorted(found):
        phase = np.arange(length) % 3
        label[start:end] = 3 + phase[::-1] if back else phase
    names = [f"codon base {base}, {strand}" for strand in ("forward", "reverse") for base in (1, 2, 3)]
    return {name: label == i for i, name in enumerate(names)}


def sound_onsets(data: bytes) -> Masks:
    """Of mu-law: the frames of 10 ms whose energy rises over that of the three before, and all loud ones."""
    x = np.frombuffer(data, np.uint8) / 127.5 - 1
    energy = (np.sign(x) * (256.0 ** np.abs(x) - 1) / 255) ** 2
    frames = np.add.reduceat(energy, np.arange(0, len(data), FRAME))
    before = np.convolve(frames, [0, 1 / 3, 1 / 3, 1 / 3])[: len(frames)]
    loud = frames > max(SILENT, LOUD * frames.max())
    spread = {"onsets": loud & (frames > RISE * before), "loud": loud}
    return {name: np.repeat(where, FRAME)[: len(data)] for name, where in spread.items()}


def rgb_pixels(data: bytes) -> Masks:
    place = np.arange(len(data))
    return {name: place % 3 == i for i, name in enumerate(("red", "green", "blue"))} | {"rows": place % 96 < 3}


def gray_pixels(data: bytes) -> Masks:
    return {"rows": np.arange(len(data)) % 28 == 0, "ink": np.frombuffer(data, np.uint8) > 0}


def instructions(data: bytes) -> Masks:
    """Of x86-64, by objdump, from the first byte on; none where that program is not at hand."""
    if not shutil.which("objdump"):
        return {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = ["objdump", "-Dz", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", file.name]
        said = subprocess.run(command, capture_output=True, text=True).stdout
    places = (int(each, 16) for each in re.findall(r"^ *([0-9a-f]+):\t", said, re.MULTILINE))
    return {"instructions": mask(len(data), places)}


UNITS: dict[str, Callable[[bytes], Masks]] = {
    "words": word_starts,
    "characters": character_starts,
    "lines": line_starts,
    "python": python_tokens,
    "c": matches("tokens", C_TOKEN),
    "cells": cell_starts,
    "fields": matches("fields", LOG_FIELD),
    "moves": matches("moves", MOVE),
    "abc": abc_notes,
    "midi": midi_events,
    "codons": codon_phases,
    "sound": sound_onsets,
    "rgb": rgb_pixels,
    "gray": gray_pixels,
    "x86": instructions,
}
