"""Packing: no byte is dropped or repeated, processes share the work exactly, and training resumes anywhere."""

import json
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from helpers import same_batch
from hypothesis import given
from hypothesis import strategies as st

from pico.base.errors import PicoError
from pico.base.symbols import BOS, EOS
from pico.data.documents import Documents, collect
from pico.data.packing import Batches, OnDevice, shuffled

texts = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)
seeds = st.integers(0, 3)


def make(documents, context_len=5, next_tokens=3, batch_size=4, seed=0, rank=0, world=1):
    return Batches(collect(documents), context_len, next_tokens, batch_size, seed, rank, world)


def enough(documents, context_len):
    """At least one whole chunk."""
    return [*documents, b"x" * context_len]


def tokens(inputs, targets):
    """The chunks of a batch as they lie in the epoch's string, -100 past its end: (B, T + N)."""
    known = targets[:, : inputs.shape[1] - 1]  # of the inputs, all but the first
    assert (inputs[:, 1:] == known.clamp(min=0)).all() and (inputs >= 0).all()
    return torch.cat([inputs[:, :1], targets], dim=1).numpy()


def read(batches, chunks):
    """Chunks of plain text as they lie in the epoch's string, -100 past its end: (R, T + N)."""
    found = batches._read(chunks)
    return np.where(found == ~0, -100, found)


def read_back(string):
    """Token ids -> the documents between BOS and EOS. Fails on anything that is not such a string."""
    documents, current = [], None
    for token in string:
        if current is None:
            assert token == BOS
            current = []
        elif token == EOS:
            documents.append(bytes(current))
            current = None
        else:
            current.append(token)
    assert current is None
    return documents


@given(texts, st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), seeds)
def test_an_epoch_holds_every_byte_once(documents, context_len, next_tokens, batch_size, seed):
    documents = enough(documents, context_len)
    batches = make(documents, context_len, next_tokens, batch_size, seed)
    rows = np.concatenate([tokens(*batch) for batch in islice(batches, 2 * batches.chunks)])[: 2 * batches.chunks]
    first, second = rows[: batches.chunks], rows[batches.chunks :]
    in_order = read(make(documents, context_len, next_tokens, batch_size, seed), np.arange(batches.chunks))
    assert sorted(map(bytes, first)) == sorted(map(bytes, in_order))  # the epoch is these chunks in another order
    for chunks in (in_order, second):
        inputs, targets = chunks[:, :context_len], chunks[:, 1 : context_len + 1]
        assert (targets != -100).sum() == sum(len(d) + 2 for d in documents) - 1  # all but the first BOS
        assert ((inputs != -100) | (targets == -100)).all()
    string = np.append(in_order[:, :context_len].ravel(), in_order[-1, context_len:])
    string = string[string != -100].tolist()
    assert sorted(read_back(string)) == sorted(documents)


@given(texts, st.integers(1, 9), st.integers(1, 4))
def test_chunks_overlap_by_their_targets_and_only_the_end_is_padded(documents, context_len, next_tokens):
    batches = make(enough(documents, context_len), context_len, next_tokens)
    chunks = read(batches, np.arange(batches.chunks))
    total = batches.length
    for j, chunk in enumerate(chunks):
        real = min(context_len + next_tokens, total - j * context_len)
        assert (chunk[:real] >= 0).all() and (chunk[real:] == -100).all()
        if j:
            shared = min(next_tokens, context_len, real)
            assert (chunks[j - 1, context_len : context_len + shared] == chunk[:shared]).all()


@given(texts, st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6]), st.integers(0, 20), seeds)
def test_resumes_anywhere_on_any_number_of_processes(documents, world, new_world, step, seed):
    documents = enough(documents, 5)
    whole = list(islice(make(documents, batch_size=6, seed=seed), step + 4))

    def on(world, steps, state=None):
        shards = [make(documents, batch_size=6, seed=seed, rank=rank, world=world) for rank in range(world)]
        if state:
            for shard in shards:
                shard.load_state_dict(json.loads(json.dumps(state)))
        batches = [[torch.cat(part) for part in zip(*parts)] for parts in islice(zip(*shards, strict=True), steps)]
        return batches, shards

    before, shards = on(world, step)
    states = [shard.state_dict() for shard in shards]
    assert all(state == states[0] for state in states)
    after, _ = on(new_world, 4, states[0])
    assert all(same_batch(a, b) for a, b in zip(whole, before + after, strict=True))


def counted(batch):
    """A batch and its raw bytes among the next-byte targets."""
    inputs, targets = batch
    following = targets[:, : inputs.shape[1]]
    return inputs, targets, int(((following >= 0) & (following < 256)).sum())


def same(one, other):
    return same_batch(one[:2], other[:2]) and one[2] == other[2]


@given(texts, st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 2]), st.integers(0, 20), seeds)
def test_a_device_gathers_the_batches_of_the_host(documents, context_len, next_tokens, world, step, seed):
    """Over several epochs, from anywhere, on any rank, from a text that fits and one that does not."""
    for rank in range(world):
        parts = enough(documents, context_len), context_len, next_tokens, 4, seed, rank, world
        host = make(*parts)
        wanted = [(*counted(batch), host.state_dict()) for batch in islice(host, step + 8)]
        for limit in (0, 10**9):
            batches = make(*parts)
            if step:
                batches.load_state_dict(wanted[step - 1][3])
            device = OnDevice(batches, torch.device("cpu"), limit)
            for batch in wanted[step:]:
                assert same(next(device), batch) and batches.state_dict() == batch[3]
            assert (device.text is None) == (limit == 0)


class Endless(Documents):
    """New documents in every epoch."""

    def block(self, number, place=None):
        return collect(bytes([97 + number]) * size for size in (5 + number, 3, 9))


def test_a_device_takes_the_documents_of_each_epoch():
    host, other = (Batches(Endless(b"", np.zeros(0), np.zeros(0)), 4, 3, 7, seed=1) for _ in range(2))
    device, texts = OnDevice(other, torch.device("cpu"), 10**9), set()
    for batch in islice(host, 8):
        assert same(next(device), counted(batch))
        texts.add(bytes(device.text.numpy()))
    assert len(texts) >= 5


def test_epochs_and_seeds_reshuffle_documents_and_chunks():
    documents = [f"document {i} ".encode() * (i + 1) for i in range(30)]

    def epochs(seed):
        batches = make(documents, context_len=16, batch_size=1, seed=seed)
        out = [np.concatenate([tokens(*batch) for batch in islice(batches, batches.chunks)]) for _ in range(2)]
        assert batches.epoch == 2
        return out

    first, second = epochs(0)
    again, other = epochs(0)[0], epochs(1)[0]
    assert (first == again).all()
    assert (first != second).any() and (first != other).any()
    in_order = read(make(documents, context_len=16), np.arange(len(first)))
    assert (first != in_order).any()
    assert set(map(bytes, first)) != set(map(bytes, second))  # documents have other neighbours


def test_each_row_knows_how_often_its_text_was_read():
    """Also in a batch that begins in one epoch and ends in the next, and in each process."""
    whole = make([b"abcdefgh"] * 4, batch_size=6)  # 8 chunks
    parts = [make([b"abcdefgh"] * 4, batch_size=6, rank=rank, world=2) for rank in (0, 1)]
    for wanted in ([0] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]):
        next(whole)
        for part in parts:
            next(part)
        assert whole.epochs.tolist() == wanted == [*parts[0].epochs, *parts[1].epochs]


def test_epoch_counts_passes():
    batches = make([b"abcdefgh"] * 4, batch_size=2)
    assert batches.epoch == 0 and batches.chunks_per_epoch == 8  # 40 tokens, 39 targets, 5 at a time
    next(batches)
    assert batches.epoch == 2 / 8
    for _ in range(4):
        next(batches)
    assert batches.epoch == 10 / 8


def test_last_token_starts_no_chunk():
    chunks = read(make([b"abcd"], context_len=5, next_tokens=2), np.arange(1))
    assert chunks.tolist() == [[BOS, *b"abcd", EOS, -100]]
    assert make([b"abcd"], context_len=5).chunks == 1
    inputs, targets = next(make([b"abcd"], context_len=5, next_tokens=2, batch_size=1))
    assert inputs.tolist() == [[BOS, *b"abcd"]] and targets.tolist() == [[*b"abcd", EOS, -100]]


@given(st.integers(1, 3000), seeds, seeds)
def test_shuffled_is_a_permutation(size, seed, epoch):
    order = shuffled(np.arange(size), size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    assert (shuffled(np.arange(size)[size // 2 :], size, seed, epoch) == order[size // 2 :]).all()


def test_shuffled_is_well_mixed():
    size = 5000
    orders = [shuffled(np.arange(size), size, seed) for seed in range(20)]
    assert max(abs(np.corrcoef(order, np.arange(size))[0, 1]) for order in orders) < 0.06  # 4 sigma
    assert np.mean([np.mean(np.diff(order) == 1) for order in orders]) < 0.002
    assert all((a != b).mean() > 0.99 for a, b in pairwise(orders))


def test_order_is_drawn_in_pieces_without_gaps():
    batches = make([b"z" * 30_000], context_len=3, batch_size=7)
    batches.load_state_dict({"epoch": 0, "chunk": 4000, "place": None})
    turns = np.arange(4000, 4000 + 210).reshape(30, 7)
    drawn = np.concatenate([batches._order(turn) for turn in turns])
    assert (drawn == shuffled(turns.ravel(), batches.chunks, 0, 0, 1)).all()


def test_too_little_data_for_one_chunk():
    with pytest.raises(PicoError, match=r"--context-len 64 is longer .* \(13 bytes.*use 6 or less"):
        make([b"hello", b"worl"], context_len=64)
    make([b"x" * 63], context_len=64)  # 65 tokens: 64 inputs and their targets


def test_batch_must_divide_over_processes():
    with pytest.raises(PicoError, match="--batch-size 4 does not divide over 3 processes"):
        make([b"hello"] * 9, world=3)
