"""The units of each kind of bytes, on examples made by hand; texts that were cut are no error."""

import shutil

import numpy as np
import pytest

from pico.lab.atlas_units import COMPLEMENT, UNITS, genes

MIDI = b"MThd" + bytes([0, 0, 0, 6, 0, 1, 0, 1, 4, 0]) + b"MTrk" + bytes([0, 0, 0, 24])
TRACK = [
    (0, 0xFF, 3, 1, 65),
    (0, 0x90, 60, 90),
    (0, 64, 90),
    (0x81, 0x00, 0xC0, 5),
    (0, 0x80, 60, 0),
    (0, 0xFF, 0x2F, 0),
]


@pytest.mark.parametrize(
    "unit, name, marked",  # with § before each first byte
    [
        ("words", "words", "§It §didn'§t, §did §it? §42"),
        ("lines", "lines", "§one\n§\n§two\n"),
        ("python", "tokens", "§def §f§(§x§)§:\n    §return §x §** §2  §# square\n"),
        ("python", "tokens", "§x §= '''never closed\n"),
        ("c", "tokens", '§int §a§[§3§] §= §{§0x1f§, §.5f§}§; §/* b; c */ §p§->§q §>>= §"a\\"b"§; §// end\n'),
        ("cells", "cells", '§a,§"b,c",,§d\n§1,§2\n'),
        ("cells", "cells", "§a,§b\r\n§c,\r\n"),
        ("cells", "cells", "§a,§b,§c"),
        ("cells", "cells", "§a b\t§1,5\n§c\t§2,5\n"),
        ("cells", "cells", '{§"a": §1.5, §"b": [§true, §"x"]}'),
        ("fields", "fields", "§Dec §10 §sshd[§24539]: §user=§root"),
        ("moves", "moves", "1. §e4 §c5 2. §Nxd4+ §O-O-O 3. §e8=Q# 1-0"),
        ("abc", "notes", "X:1\nK:D\n'Am'§^f2 |§_B,|§c [§e§f]".replace("'", '"')),
        ("abc", "bars", "K:D\nde §|fg §|§|\n"),
    ],
)
def test_text(unit, name, marked):
    data = marked.replace("§", "").encode()
    mask = UNITS[unit](data)[name]
    assert mask.dtype == bool and "".join("§" * int(flag) + chr(byte) for byte, flag in zip(data, mask)) == marked


def test_characters_of_utf8():
    assert UNITS["characters"]("aж中".encode())["characters"].tolist() == [1, 1, 0, 1, 0, 0]


def test_python_columns_count_bytes():
    latin = UNITS["python"]("x = 'é'\ny = 1\n".encode("latin-1"))["tokens"]
    assert np.flatnonzero(latin).tolist() == [0, 2, 4, 8, 10, 12]
    assert np.flatnonzero(UNITS["python"]("é = 'ж' + x".encode())["tokens"]).tolist() == [0, 3, 5, 10, 12]


def test_midi_events_with_running_status():
    events = [bytes(event) for event in TRACK]
    data = MIDI + b"".join(events)
    found = UNITS["midi"](data)
    begins = len(MIDI) + np.cumsum([0] + [len(event) for event in events[:-1]])
    assert np.flatnonzero(found["events"]).tolist() == begins.tolist()
    assert np.flatnonzero(found["notes"]).tolist() == [begins[1] + 2, begins[2] + 1]
    for cut in range(len(data)):
        assert UNITS["midi"](data[:cut])["events"].shape == (cut,)


def test_codons_on_either_strand():
    gene = b"ATG" + b"GCT" * 120 + b"TAA"
    assert genes(b"C" + gene) == [(1, 1 + 3 * 121)] and genes(b"ATG" + b"GCT" * 90 + b"TAA") == []
    forward = UNITS["codons"](b"C" + gene)
    assert [np.flatnonzero(forward[f"codon base {base}, forward"])[0] for base in (1, 2, 3)] == [1, 2, 3]
    back = UNITS["codons"]((b"C" + gene).translate(COMPLEMENT)[::-1])
    whole = 3 * 121
    assert [int(back[f"codon base {base}, reverse"].sum()) for base in (1, 2, 3)] == [whole // 3] * 3
    assert back["codon base 3, reverse"][3] and back["codon base 1, reverse"][5]  # read from its end, behind TAA


def test_sound_begins():
    data = bytes([128] * 800 + [200, 60] * 400)
    found = UNITS["sound"](data)
    assert found["onsets"].nonzero()[0].tolist() == [*range(800, 880)] and found["loud"].sum() == 800
    assert not UNITS["sound"](bytes([128]) * 100)["onsets"].any()


def test_pixels():
    assert UNITS["rgb"](bytes(192))["green"].nonzero()[0][:3].tolist() == [1, 4, 7]
    assert UNITS["rgb"](bytes(192))["rows"].nonzero()[0].tolist() == [0, 1, 2, 96, 97, 98]
    assert UNITS["gray"](bytes(56))["rows"].nonzero()[0].tolist() == [0, 28]


@pytest.mark.skipif(not shutil.which("objdump"), reason="no disassembler")
def test_instructions():
    data = bytes.fromhex("4889ef e868701f00 85c0 0f84f3feffff") + bytes(64)  # zeros are instructions, too
    assert UNITS["x86"](data)["instructions"].nonzero()[0].tolist() == [0, 3, 8, 10, *range(16, 80, 2)]
