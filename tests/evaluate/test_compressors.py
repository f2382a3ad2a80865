"""Compressors as yardsticks: real sizes, and a history that helps only what resembles it."""

import importlib.util
import lzma
import random

import numpy as np
import pytest

from pico.data.documents import Documents
from pico.evaluate import compressors as module
from pico.evaluate.compressors import last_bytes, yardsticks

TEXT = " ".join(random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "quietly"], k=600)).encode()


def test_bits_per_byte_are_those_of_the_compressed_files():
    found = yardsticks(TEXT)
    assert found["xz"] == {"alone": 8 * len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME)) / len(TEXT)}
    assert 0.5 < found["zstd"]["alone"] < 3
    assert ("ppmd" in found) == bool(importlib.util.find_spec("pyppmd"))
    noise = random.Random(1).randbytes(4000)
    assert all(sizes["alone"] >= 8 for sizes in yardsticks(noise).values())


def test_a_history_of_the_same_text_makes_it_nearly_free_and_noise_does_not_help():
    for sizes in yardsticks(TEXT, TEXT).values():
        assert sizes["after_training_text"] < 0.3 * sizes["alone"]
    for sizes in yardsticks(TEXT, random.Random(1).randbytes(4000)).values():
        assert sizes["after_training_text"] > 0.7 * sizes["alone"]


def test_the_history_is_cut_to_its_end(monkeypatch):
    monkeypatch.setattr(module, "HISTORY_BYTES", len(TEXT))
    assert yardsticks(TEXT, b"x" * 100_000 + TEXT) == yardsticks(TEXT, TEXT)


@pytest.mark.parametrize("limit, expected", [(100, b"aabbbbc"), (5, b"bbbbc"), (4, b"c"), (1, b"c")])
def test_last_bytes_takes_whole_documents_from_the_end(limit, expected):
    documents = Documents(b"aabbbbc", np.array([0, 2, 6]), np.array([2, 4, 1]))
    assert last_bytes(documents, limit) == expected


def test_last_bytes_cuts_a_single_large_document_at_its_start():
    assert last_bytes(Documents(b"aabbbb", np.array([0]), np.array([6])), 3) == b"bbb"
