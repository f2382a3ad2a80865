import unicodedata
from itertools import accumulate, pairwise
from types import SimpleNamespace

from hypothesis import example, given
from hypothesis import strategies as st

from pico.base import symbols as vocab
from pico.base.symbols import BYTES, CONTROL_NAMES, VOCABULARY, Utf8Stream, characters, visible

MIXED = st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=3).map(str.encode)), max_size=8).map(b"".join)


def test_control_symbols_lie_beyond_all_bytes():
    ids = [vocab.BOS, vocab.EOS, vocab.SYSTEM, vocab.USER, vocab.ASSISTANT, vocab.END_OF_TURN]
    assert ids == list(range(256, 256 + len(CONTROL_NAMES)))  # so no text can forge one
    assert max(ids) + 1 <= VOCABULARY and VOCABULARY % 8 == 0


@given(st.binary())
def test_the_alphabet_of_bytes_is_the_bytes_themselves(data):
    ids = BYTES.encode(data)
    assert ids.tolist() == list(data) and BYTES.decode(ids) == data
    assert BYTES.lengths.tolist() == [1] * 256 + [0] * 8 and BYTES.size == VOCABULARY
    assert BYTES.decode([vocab.BOS, 97, vocab.EOS, 263]) == b"a"
    assert list(BYTES.control.items()) == list(zip(CONTROL_NAMES, range(256, 262)))


@given(st.text(), st.integers(1, 5))
def test_text_survives_any_cutting(text, size):
    stream, data = Utf8Stream(), text.encode()
    assert "".join(stream.push(data[i : i + size]) for i in range(0, len(data), size)) + stream.flush() == text


@given(MIXED)
@example("é€😀".encode())
@example(b"\xf0\x9f\x98A\xff\xc3\xc3\xa9\xe1\x80\xed\xa0\x80\xf4\x90\x80\x80")
@example(b"\xf0\x9f\x98")
def test_invalid_bytes_become_replacement_characters(data):
    stream = Utf8Stream()
    out = "".join(stream.push(bytes([b])) for b in data) + stream.flush()
    assert out == data.decode(errors="replace")


def test_characters_appear_with_their_last_byte():
    stream = Utf8Stream()
    pushed = [stream.push(bytes([b])) for b in "aé€😀".encode()]
    assert pushed == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert stream.push(b"\xe2\x82") == "" and stream.pending == 2
    assert stream.flush() == "�"


@given(MIXED)
@example(b"\xf0\x9f\x98A\xff\xc3\xc3\xa9\xe1\x80\xed\xa0\x80\xf4\x90\x80\x80")
@example(b"\xc3")
def test_every_step_belongs_to_one_character(data):
    steps = [SimpleNamespace(bytes=bytes([byte])) for byte in data]
    found = list(characters(iter(steps)))
    assert "".join(text for text, _ in found) == data.decode(errors="replace")
    assert [step for _, part in found for step in part] == steps
    for text, part in found:
        assert len(text) == 1 and part
        assert b"".join(step.bytes for step in part).decode(errors="replace") == text


@given(MIXED, st.lists(st.integers(1, 5)))
@example("é€😀 aé".encode(), [1, 1, 1, 3, 4])
def test_characters_that_share_a_step_come_together(data, sizes):
    """As soon as characters and steps end at one place, and not before."""
    cuts = [0, *accumulate(sizes), len(data)]
    steps = [SimpleNamespace(bytes=data[a:b]) for a, b in pairwise(cuts) if data[a:b]]
    found = list(characters(iter(steps)))
    assert "".join(text for text, _ in found) == data.decode(errors="replace")
    assert [step for _, part in found for step in part] == steps
    single = [SimpleNamespace(bytes=bytes([byte])) for byte in data]
    ends = set(accumulate(sum(len(step.bytes) for step in part) for _, part in characters(single)))
    wanted = sorted(ends & set(accumulate(len(step.bytes) for step in steps)))
    assert list(accumulate(sum(len(step.bytes) for step in part) for _, part in found)) == wanted


TURNS = "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"


def test_a_terminal_gets_pictures_of_what_it_would_obey():
    assert visible("a\tb\n\x1b[2J\x07\r\x00\x7f") == "a\tb\n␛[2J␇␍␀␡"
    assert visible("\x9b2J\u202eevil\u2066") == "␦2J␦evil␦"
    for code in range(0x110000):
        character = chr(code)
        obeyed = unicodedata.category(character) == "Cc" and character not in "\n\t"
        obeyed |= unicodedata.bidirectional(character) in [
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        ]
        assert (visible(character) != character) == obeyed, hex(code)
