"""Where a text ends: its length, EOS, stop texts, stop symbols; alone, in a batch, amid a draft or a token."""

from itertools import accumulate

import pytest
from helpers import texts, use_tables
from hypothesis import example, given
from hypothesis import strategies as st

from pico.base.symbols import BOS, END_OF_TURN, EOS, USER
from pico.decode.generation import Continuation, Step, generate
from pico.decode.sampling import Sampling


def test_the_end_of_one_text_does_not_stop_the_others(monkeypatch):
    """A text ends at EOS, drafted or not, and what follows it in the same forward is dropped."""
    table = {i: {i + 1: 1} for i in range(65, 90)} | {70: {EOS: 1}, EOS: {200: 1}, 200: {200: 1}, BOS: {65: 1}}
    drafts = {i: {i + 2: 1} for i in range(65, 90)} | {69: {EOS: 1}, 70: {200: 1}, EOS: {200: 1}, 200: {200: 1}}
    drafts[BOS] = {66: 1}
    for speculative in (True, False):
        model, readers = use_tables(monkeypatch, table, drafts)
        run = generate(model, [b"", b"G", b"F", b"E"], max_bytes=9, temperature=1.0, speculative=speculative)
        assert texts(run) == [b"ABCDEF", b"HIJKLMNOP", b"", b"F"]
        assert run.stats["bytes"] == 16
        assert len(readers[0].reads) == 2 + (5 if speculative else 9)


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 4, 5, 17])
def test_max_bytes_is_exact(max_bytes, monkeypatch):
    model, _ = use_tables(monkeypatch, *[{i: {(i + k) % 256: 1} for i in [*range(256), BOS]} for k in range(1, 5)])
    assert list(map(len, texts(generate(model, ["a", "bc"], max_bytes=max_bytes)))) == [max_bytes] * 2


def cut(text: bytes, stops: list[bytes]) -> tuple[bytes, bool]:
    """The text before the stop text that is complete first, the longest of those that end there; whether it has one."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.lists(st.binary(min_size=1, max_size=3).map(lambda b: bytes(97 + x % 3 for x in b)), min_size=1, max_size=3),
    st.integers(0, 9),
    st.sampled_from([0, 1.0]),
    st.booleans(),
)
@example([b"ab", b"aab"], 0, 1.0, True)
@example([b"abc", b"b"], 1, 1.0, True)
def test_a_text_ends_before_its_stop_text(stops, seed, temperature, speculative):
    """What the same seed writes without it, cut: over the edges of drafts, in a batch as alone."""
    a, b, c = b"abc"
    right = {i: {a: 0.4, b: 0.3, c: 0.25, EOS: 0.05} for i in (BOS, a, b, c, EOS)}
    wrong = {i: {a: 0.1, b: 0.3, c: 0.5, EOS: 0.1} for i in right}
    options = dict(max_bytes=30, seed=seed, temperature=temperature, speculative=speculative)
    with pytest.MonkeyPatch.context() as patch:
        model, _ = use_tables(patch, right, right, wrong)
        for prompts in ([b"ab"], [b"", b"a", b"bc"]):
            whole = generate(model, prompts, **options)
            wanted = [cut(text, stops) for text in texts(whole)]
            stopped = generate(model, prompts, stop=stops, **options)
            assert texts(stopped) == [text for text, _ in wanted]
            assert stopped.ended == ["stop" if found else end for (_, found), end in zip(wanted, whole.ended)]
            assert stopped.stats["bytes"] == sum(len(text) for text, _ in wanted)
            assert stopped.stats["forwards"] <= whole.stats["forwards"]


def test_stop_texts_are_seen_in_any_draft(monkeypatch):
    """A stop text that begins in one forward and ends in another, with right drafts and with wrong ones."""
    ring = [{i: {(i + k) % 256: 1} for i in range(256)} | {BOS: {64 + k: 1}} for k in range(1, 5)]
    for tables in (ring, [ring[0], ring[2], ring[1], ring[3]]):
        for stop in (b"E", b"DE", b"BCDEFGHIJ", b"H"):
            model, _ = use_tables(monkeypatch, *tables)
            run = generate(model, [b"", b"@"], max_bytes=40, temperature=1.0, stop=[b"no", stop])
            assert texts(run) == [bytes(range(65, stop[0]))] * 2 and run.ended == ["stop"] * 2
    model, _ = use_tables(monkeypatch, *ring)
    run = generate(model, b"", max_bytes=5, temperature=1.0, stop="EFG")  # held back, then out of bytes
    assert texts(run) == [b"ABCDE"] and run.ended == ["length"]
    run = generate(model, b"AB", max_bytes=3, temperature=1.0, stop="BC", echo=True)  # the prompt is no part of it
    assert b"".join(step.bytes for step in run) == b"ABCDE"


@given(
    st.lists(st.text("abc", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=3),
    st.integers(1, 25),
)
@example([b"ab", b"cab", b"c"], [b"bca"], 25)
@example([b"abcab"], [b"cab", b"b"], 2)
def test_a_text_of_tokens_ends_at_a_byte(tokens, stops, max_bytes):
    """As the same text byte by byte, whatever tokens it comes in: the last one is cut."""
    text = Continuation(Sampling(stop=stops, max_bytes=max_bytes), {EOS})
    written, ends = b"", list(accumulate(map(len, tokens)))
    for i, token in enumerate(tokens):
        if not text.ended:
            sure = text.add(Step(0, 1000 + i, token, False, 0.0, False))
            written += b"".join(step.bytes for step in sure)
            assert all(step.bytes for step in sure)
            if text.ended is None:  # and no token is held back that is not needed
                begun = max(
                    (n for s in stops for n in range(len(s)) if b"".join(tokens[: i + 1]).endswith(s[:n])), default=0
                )
                assert len(written) == max(end for end in [0, *ends] if end <= ends[i] - begun)
    whole, found = cut(b"".join(tokens)[:max_bytes], stops)
    if text.ended is None:
        assert not found and ends[-1] < max_bytes
        written += b"".join(step.bytes for step in text.add(Step(0, EOS, b"", False, 0.0, False)))
        assert text.ended == "end"
    else:
        assert text.ended == ("stop" if found else "length")
    assert written == whole


def test_how_texts_ended(monkeypatch):
    table = {i: {i + 1: 1} for i in range(65, 90)} | {70: {EOS: 1}, EOS: {65: 1}, BOS: {65: 1}}
    model, _ = use_tables(monkeypatch, table, table)
    run = generate(model, [b"", b"G", b"J"], max_bytes=7, temperature=1.0, stop=["NO"])
    assert run.ended == [None] * 3
    assert texts(run) == [b"ABCDEF", b"HIJKLMN", b"KLM"] and run.ended == ["end", "length", "stop"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_text_ends_with_any_of_its_stop_symbols_and_writes_no_other(monkeypatch, batch):
    """The control symbols that may be drawn are those that end a text."""
    a, b, c = b"abc"
    odd = {EOS: 0.2, END_OF_TURN: 0.3, USER: 0.4}
    table = {BOS: {a: 1}, a: {b: 0.1, **odd}, b: {c: 0.1, **odd}, c: {a: 0.1, **odd}}
    table |= {i: {a: 1} for i in (EOS, USER, END_OF_TURN)}
    model, _ = use_tables(monkeypatch, table, table)

    def ends(*symbols):
        run = generate(model, [b""] * batch, max_bytes=6, temperature=0, stop_symbols=symbols)
        return texts(run), run.ended

    assert ends() == ([b"abcabc"] * batch, ["length"] * batch)
    for symbols in ([EOS], [END_OF_TURN], [EOS, END_OF_TURN, USER]):
        assert ends(*symbols) == ([b"a"] * batch, ["end"] * batch)
