"""Tokens: any bytes come back exactly, no text forges a control symbol, other people's tokenizers are understood."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pico.base.errors import PicoError
from pico.base.symbols import CONTROL_NAMES
from pico.data import bpe
from pico.data.documents import collect

TEXT = (
    "The cat sat on the mat. It's 1,234 cats!\n\n\tCafé, naïve; 日本語のテキスト。 <|eos|> <|end-of-turn|>\r\n" * 30
).encode()
NAMES = [f"<|{name}|>" for name in CONTROL_NAMES]
MIXED = st.lists(
    st.one_of(
        st.binary(max_size=5),
        st.text(max_size=5).map(str.encode),
        st.sampled_from([*NAMES, "<|endoftext|>", " the cat", "\n\n ", "  ", "é", "日本"]).map(str.encode),
        st.sampled_from([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe2\x82", b"\xff"]),
    ),
    max_size=12,
).map(b"".join)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    file.write_text(bpe.train_tokenizer(collect([TEXT, b"\xff\xfe no text", b"", TEXT[:99]]), 400), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def ours(file):
    return bpe.read_tokenizer(file)


@pytest.fixture(scope="module")
def foreign(file):
    """A file in the manner of SmolLM: specials first and in the vocabulary, other rules, a text that is changed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    words = list(content["model"]["vocab"])
    content["model"]["vocab"] = {"<|endoftext|>": 0, "<|im_end|>": 1} | {w: i for i, w in enumerate(words, 2)}
    content["model"]["ignore_merges"] = True
    specials = [{"id": i, "content": c, "special": True} for c, i in (("<|endoftext|>", 0), ("<|im_end|>", 1))]
    rest = dict(single_word=False, lstrip=True, rstrip=True, normalized=False)
    tool = {"id": len(words) + 5, "content": "<tool>", "special": False}
    content["added_tokens"] = [token | rest for token in [*specials, tool]]
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, level]}
    content["normalizer"] = {"type": "NFKC"}
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    return bpe.BPE("foreign.json", content, "")


@given(MIXED)
@example(b"")
@example("".join(NAMES).encode())
@example("e\u0301 \ufb01 \u00a0".encode())  # which normalisers would change
@example(bytes(range(256)))
def test_any_bytes_come_back_and_forge_nothing(ours, foreign, data):
    for tokenizer in (ours, foreign):
        ids = tokenizer.encode(data)
        assert tokenizer.decode(ids) == data and ids.dtype == np.int64 and ids.ndim == 1
        assert tokenizer.lengths[ids].all() and tokenizer.lengths[ids].sum() == len(data)  # so none is a control symbol


def test_no_word_is_looked_up_among_the_special_tokens(file):
    """Where whole words are (`ignore_merges`), and the pre-tokenizer leaves a special token's name in one."""

    def change(content):
        content["model"]["vocab"]["<|eos|>"] = content["added_tokens"][1]["id"]
        content["model"]["ignore_merges"] = True
        content["pre_tokenizer"]["use_regex"] = False

    tokenizer = bpe.BPE("whole.json", broken(file, change), "")
    assert tokenizer.eos not in tokenizer.encode(b"<|eos|>")


def test_control_symbols_are_the_last_ids_and_stand_for_nothing(ours):
    assert list(ours.control) == list(CONTROL_NAMES)
    assert list(ours.control.values()) == list(range(ours.size - 6, ours.size))
    assert ours.lengths[ours.size - 6 :].tolist() == [0] * 6 and ours.lengths[: ours.size - 6].all()
    assert (ours.bos, ours.eos, ours.unit) == (ours.size - 6, ours.size - 5, "token")
    assert ours.decode([ours.bos, *ours.encode(b"a cat"), ours.eos]) == b"a cat"


def test_merges_are_used(ours, foreign):
    assert len(ours.encode(b"The cat sat on the mat.")) < 10
    assert len(foreign.encode(b" sat on the mat.")) < 10
    assert len(foreign.encode(b"1234")) == 4  # its own rules: digits one by one


def test_a_valid_text_is_tokenized_as_the_library_does_it(file, ours):
    text = TEXT.decode()
    library = Tokenizer.from_file(str(file))
    library.encode_special_tokens = True
    assert ours.encode(TEXT).tolist() == library.encode(text).ids


def test_invalid_bytes_are_single_tokens(ours):
    ids = ours.encode(b"The cat\xe6\x97 sat\xff")
    parts = [ours.table[id] for id in ids]
    assert [part for part in parts if not part.isascii()] == [b"\xe6", b"\x97", b"\xff"]
    assert ids.tolist() == [*ours.encode(b"The cat"), *ours.encode(b"\xe6\x97"), *ours.encode(b" sat"), ids[-1]]


@given(
    st.lists(st.sampled_from(["cat", "the", " ", "\n", "\n\n", "  ", ".", ", ", "'s", "12", "日本", "é "]), max_size=60)
)
def test_pieces_do_not_show(ours, words):
    """Words short enough to end in a piece: tokens are those of the whole text, wherever it is cut."""
    data = "".join(words).encode()
    whole = ours.encode(data).tolist()
    pieces = list(bpe.valid_pieces(data, 0, len(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "PIECE", 8)
        small = list(bpe.valid_pieces(data, 0, len(data)))
        assert b"".join(piece for piece, _ in small) == b"".join(piece for piece, _ in pieces) == data
        if all(rest[:1].isspace() for rest, _ in small[1:]):
            assert ours.encode(data).tolist() == whole
        documents = collect([b"xx", data, b"yy"] if data else [b"xx", b"yy"])
        cut = [np.concatenate(list(pieces)).tolist() for pieces in ours.encode_documents(documents)]
        assert cut == [ours.encode(document).tolist() for document in documents]


@given(MIXED)
def test_pieces_end_behind_whole_characters(data):
    data = data + "日本語".encode() * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "PIECE", 8)
        pieces = list(bpe.valid_pieces(b"??" + data + b"??", 2, len(data)))
    assert b"".join(piece for piece, _ in pieces) == data
    assert all(len(piece) <= 8 for piece, _ in pieces)
    assert "".join(text for _, text in pieces) == data.decode("utf-8", "surrogateescape")


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_same_text_gives_the_same_file(file):
    """In another process too, where hashes begin with other seeds."""
    script = (
        "import sys; from pico.data import bpe; from pico.data.documents import collect;"
        f"sys.stdout.write(bpe.train_tokenizer(collect([{TEXT!r}, b'\\xff\\xfe no text', {TEXT[:99]!r}]), 400))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    made = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
    assert made == file.read_bytes()


def test_the_size_is_the_size_or_what_the_text_gives(ours):
    assert ours.size < 400  # the text repeats itself: it has no more pairs
    assert bpe.BPE("", json.loads(bpe.train_tokenizer(collect([TEXT]), 300)), "").size == 300
    bare = bpe.BPE("", json.loads(bpe.train_tokenizer(collect([b"ab"]), 262)), "")
    assert bare.size == 262 and sorted(bare.table) == sorted([bytes([i]) for i in range(256)] + [b""] * 6)
    for size in (261, 0, 1 << 21):
        with pytest.raises(PicoError, match="expected 262"):
            bpe.train_tokenizer(collect([b"ab"]), size)


def test_of_a_large_text_a_sample_is_read(monkeypatch):
    monkeypatch.setattr(bpe, "SAMPLE", 1000)
    said = []
    documents = collect([b"abc " * 5] * 200)
    texts = list(bpe._sample(documents, said.append))
    assert len(texts) == 50 and said[0].startswith("reading the text") and said[-1] == "merging"


# --- bad input --------------------------------------------------------------------------------------------------------


def broken(file, change):
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    return content


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c.pop("model"), "model"),
        (lambda c: c["model"].update(type="Unigram"), "Unigram"),
        (lambda c: c.update(model=[]), "tokenizer"),
        (lambda c: c["model"].update(merges=[["zz", "yy"]]), "zz"),
        (lambda c: c["model"].update(merges=7), "tokenizer"),
        (lambda c: c["model"]["vocab"].update(a="x"), "an id is no number"),
        (lambda c: c["model"]["vocab"].update(a=-1), "an id is no number"),
        (lambda c: c["model"]["vocab"].update(a=1 << 40), "an id is no number"),
        (lambda c: c["model"]["vocab"].pop("Ġ"), "byte 32|Ġ"),
        (lambda c: c.update(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
        (lambda c: c.update(pre_tokenizer=None), "none"),
        (lambda c: c.update(added_tokens=[]), "ends a document"),
        (lambda c: c["added_tokens"][1].update(id=5), "id of another token"),
        (lambda c: c["added_tokens"].append(3), "tokenizer"),
        (lambda c: c["model"].update(continuing_subword_prefix="##"), "its model is"),
        (lambda c: c["pre_tokenizer"].update(type="Sequence", pretokenizers=[{"type": "WhitespaceSplit"}]), "White"),
    ],
)
def test_what_is_no_byte_level_bpe_is_one_line(file, change, said):
    with pytest.raises(PicoError, match=said) as error:
        bpe.BPE("some.json", broken(file, change), "")
    assert "\n" not in str(error.value) and "some.json" in str(error.value)


def test_a_tokenizer_that_loses_text_is_refused(file):
    def change(content):
        rules = [{"type": "WhitespaceSplit"}, content["pre_tokenizer"]]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": rules}

    with pytest.raises(PicoError, match="does not keep the text"):
        bpe.BPE("some.json", broken(file, change), "")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"model": {"type": "BPE"}}', b"{}", b'{"model": null}']
)
def test_a_broken_file_is_one_line(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(PicoError, match=r"t\.json") as error:
        bpe.read_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(error.value)
    with pytest.raises(PicoError, match="no tokenizer at"):
        bpe.read_tokenizer(tmp_path / "none.json")
