"""Documents: one buffer, its slices, and the cache."""

import numpy as np
import pytest
from helpers import write
from hypothesis import given
from hypothesis import strategies as st

from pico.data import storage
from pico.data.documents import Documents, collect
from pico.data.sources import read_files


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PICO_CACHE", str(folder))
    return folder


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_collected_documents_read_back(texts):
    documents = collect(texts)
    kept = [text for text in texts if text]
    assert list(documents) == kept and len(documents) == len(kept)
    assert documents.size == sum(map(len, kept))
    with pytest.raises(IndexError):
        documents[len(kept)]


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([b"a", b"ab", b"aa", b"\n\n"]), st.data())
def test_split_is_bytes_split(texts, separator, data):
    texts = [data.draw(st.lists(st.sampled_from([text, separator, b"a", b"\n"]))) for text in texts]
    texts = [b"".join(parts) for parts in texts]
    pieces = [piece for text in texts for piece in text.split(separator) if piece]
    before, storage.PIECE = storage.PIECE, 7  # so that separators lie across the edge of what is scanned at once
    try:
        assert list(collect(texts).split(separator.decode())) == pieces
    finally:
        storage.PIECE = before


def test_split_understands_escapes_and_none():
    documents = collect([b"one\n\ntwo\tthree"])
    assert list(documents.split(r"\n\n")) == [b"one", b"two\tthree"]
    assert list(documents.split(r"\t")) == [b"one\n\ntwo", b"three"]
    assert documents.split(None) is documents


@pytest.mark.parametrize("small", [1, 1 << 20])
def test_fingerprint_depends_on_text_and_boundaries(small, monkeypatch):
    monkeypatch.setattr(storage, "SMALL", small)
    texts = [b"some text", b"more text " * 1000]
    prints = [
        collect(changed).fingerprint
        for changed in (texts, [b"other" + texts[0][5:], texts[1]], [b"".join(texts)], texts[::-1], texts[:1])
    ]
    assert len(set(prints)) == 5
    assert collect(texts).fingerprint == prints[0]


def test_text_file_is_read_where_it_lies(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(storage, "SMALL", 1)
    text = bytes(range(1, 256)) * 40
    documents = read_files([write(tmp_path / "a.txt", text)])
    assert list(documents) == [text] and not isinstance(documents.buffer, bytes)
    assert not list(cache.iterdir())


def test_documents_are_slices_of_one_buffer():
    documents = Documents(b"abcdefgh", np.array([1, 4, 5]), np.array([2, 0, 3]))
    assert list(documents) == [b"bc", b"fgh"]
    assert list(documents.select(np.array([1]))) == [b"fgh"]
    assert list(documents.select(np.array([True, False]))) == [b"bc"]
    assert documents.block(3) is documents
