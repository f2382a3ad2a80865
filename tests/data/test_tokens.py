"""Tokens as training data: nothing is lost, bytes are counted right, the cache is found again, runs resume exactly."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import same_batch
from hypothesis import given
from hypothesis import strategies as st

from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import DataError
from pico.data import bpe, storage, tokens
from pico.data.corpus import Endless
from pico.data.documents import Documents, collect, open_file
from pico.data.open import open_data
from pico.data.packing import Batches, OnDevice
from pico.data.prefetch import Prefetch
from pico.data.reading import training_plan
from pico.data.tokens import tokenized

TEXT = b"the cat sat on the mat, and the dog sat on the cat. caf\xc3\xa9 \xff\xfe\n" * 20
texts = st.lists(st.binary(min_size=1, max_size=40), max_size=6).map(lambda some: [*some, TEXT[:90], b"the cat"])


def alphabet_of(size=400):
    return bpe.BPE("t.json", json.loads(bpe.train_tokenizer(collect([TEXT]), size)), f"fingerprint {size}")


ALPHABET = alphabet_of()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(tokens, "SMALL", 0)


def make(documents, context_len=5, next_tokens=1, batch_size=4, seed=0, rank=0, world=1):
    return Batches(tokenized(collect(documents), ALPHABET), context_len, next_tokens, batch_size, seed, rank, world)


def read_back(string):
    """Ids -> the documents between bos and eos, which nothing else is."""
    documents, current = [], None
    for token in string:
        if current is None:
            assert token == ALPHABET.bos
            current = []
        elif token == ALPHABET.eos:
            documents.append(ALPHABET.decode(current))
            current = None
        else:
            assert ALPHABET.lengths[token]
            current.append(token)
    assert current is None
    return documents


@given(texts, st.integers(1, 9), st.integers(1, 4), st.sampled_from([0, 1 << 20]))
def test_an_epoch_holds_every_document_and_counts_its_bytes(documents, context_len, batch_size, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SMALL", small)
        batches = make(documents, context_len, batch_size=batch_size)
    chunks = batches._read(np.arange(batches.chunks))
    string = chunks[:, :context_len].ravel()
    string = np.append(string, chunks[-1, context_len:])
    assert sorted(read_back(string[string >= 0].tolist())) == sorted(documents)
    assert batches.documents.size == batches.counted(chunks[:, 1:]) == sum(map(len, documents))  # law 6


@given(texts, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]), st.integers(0, 9), st.integers(0, 3))
def test_resumes_anywhere_and_processes_share_the_work(documents, world, new_world, step, seed):
    whole = list(islice(make(documents, batch_size=6, seed=seed), step + 3))

    def on(world, steps, state=None):
        shards = [make(documents, batch_size=6, seed=seed, rank=rank, world=world) for rank in range(world)]
        for shard in shards if state else ():
            shard.load_state_dict(json.loads(json.dumps(state)))
        return [[torch.cat(part) for part in zip(*parts)] for parts in islice(zip(*shards), steps)], shards

    before, shards = on(world, step)
    after, _ = on(new_world, 3, shards[0].state_dict())
    assert all(same_batch(a, b) for a, b in zip(whole, before + after, strict=True))


def test_what_a_device_and_a_thread_make_is_the_same():
    host, other, third = (make([TEXT, b"the mat", TEXT[7:]], next_tokens=2) for _ in range(3))
    device = OnDevice(other, torch.device("cpu"), 10**9)
    with Prefetch(third, torch.device("cpu")) as ahead:
        for inputs, targets in islice(host, 3 * host.chunks):
            count = sum(ALPHABET.lengths[id] for id in targets[:, :5].ravel().tolist() if id >= 0)
            (batch,) = next(ahead)
            made = next(device)
            assert same_batch(made[:2], (inputs, targets)) and same_batch(batch[:2], (inputs, targets))
            assert made[2] == batch.bytes == count and other.state_dict() == host.state_dict() == batch.position


def test_tokens_are_made_once_and_found_again(on_disk, cache, monkeypatch):
    documents, said = collect([TEXT, b"the cat"]), []
    monkeypatch.setattr(tokens, "QUICK", 100)
    first = tokenized(documents, ALPHABET, said.append)
    assert said == ["tokenizing 1,227 bytes, once: the tokens are kept in the cache"]
    with monkeypatch.context() as patch:
        patch.setattr(bpe.BPE, "encode_documents", None)
        again = tokenized(collect([TEXT, b"the cat"]), ALPHABET, said.append)
    assert len(said) == 1 and again.fingerprint == first.fingerprint
    assert (again.take(np.arange(50)) == first.take(np.arange(50))).all()
    assert (again.lengths == first.lengths).all() and len(list(cache.glob("*.bytes"))) == 1
    others = [
        (collect([TEXT, b"the caz"]), ALPHABET),
        (collect([TEXT + b"the cat"]), ALPHABET),
        (documents, alphabet_of(300)),
    ]
    prints = {tokenized(*other).fingerprint for other in others} | {first.fingerprint}
    assert len(prints) == 4 and len(list(cache.glob("*.bytes"))) == 4


@pytest.mark.slow
def test_a_large_text_is_known_by_all_of_it(on_disk, monkeypatch):
    """Its fingerprint is made of samples; tokens of another text are never taken for its own."""
    monkeypatch.setattr(storage, "SMALL", 1000)
    text = bytearray(TEXT * 2000)
    one = collect([bytes(text)])
    text[6000] ^= 1  # 4096 bytes are looked at, and then again from 9562 on
    other = collect([bytes(text)])
    assert one.fingerprint == other.fingerprint
    both = [tokenized(documents, ALPHABET) for documents in (one, other)]
    texts = [ALPHABET.decode(made.take(np.arange(9000))) for made in both]
    assert texts[0] != texts[1] and texts[1] == text[: len(texts[1])]


def test_damaged_tokens_are_made_anew(on_disk, cache, caplog):
    documents = collect([TEXT])
    wanted = tokenized(documents, ALPHABET).take(np.arange(40))
    (file,) = cache.glob("*.bytes")
    file.write_bytes(file.read_bytes()[:-2] + b"zz")
    assert (tokenized(documents, ALPHABET).take(np.arange(40)) == wanted).all() and "damaged" in caplog.text


def test_a_file_that_changes_is_an_error(on_disk, cache, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT)
    documents = open_file(file)
    made = tokenized(documents, ALPHABET)
    file.write_bytes(TEXT + b"more")
    with pytest.raises(DataError, match=r"text\.txt changed while it was being read"):
        tokenized(documents, alphabet_of(300))
    batches = Batches(made, 5, 1, 4, 0)  # what is tokenized needs the text no more
    next(batches)
    (tokens_file,) = cache.glob("*.bytes")
    tokens_file.write_bytes(b"")
    with pytest.raises(DataError, match="changed while it was being read"):
        next(batches)


def test_large_vocabularies_take_four_bytes():
    large = alphabet_of()
    large.table = large.table[:-6] + [b""] * (70_000 - large.size) + large.table[-6:]
    large.size = len(large.table)
    made = tokenized(collect([TEXT]), large)
    assert made.dtype == np.uint32 and tokenized(collect([TEXT]), ALPHABET).dtype == np.uint16
    assert large.decode(made.take(np.arange(len(large.encode(TEXT))))) == TEXT


def test_stories_are_tokenized_epoch_by_epoch(monkeypatch):
    monkeypatch.setattr("pico.data.corpus.PER_EPOCH", 20)
    endless = tokenized(Endless(DataConfig(), seed=1), ALPHABET)
    batches = Batches(endless, 64, 1, 2, seed=0)
    for _ in range(batches.chunks // 2 + 1):
        next(batches)
    assert batches.number == 1 and batches.epoch > 1 and not endless.repeats and batches.state_dict()["place"] is None
    wanted = sorted(Endless(DataConfig(), seed=1).block(1))
    chunks = batches._read(np.arange(batches.chunks))
    string = np.append(chunks[:, :64].ravel(), chunks[-1, 64:])
    assert sorted(read_back(string[string >= 0].tolist())) == wanted
    other = Batches(tokenized(Endless(DataConfig(), seed=1), ALPHABET), 64, 1, 2, seed=0)
    other.load_state_dict(batches.state_dict())
    assert same_batch(next(other), next(batches))


class Blocks:
    """A stream of numbered blocks, as pico.data.hub.Stream tells it."""

    repeats, fingerprint = False, "blocks"

    def __init__(self):
        self.place = {"pass": 0, "row": 0}

    def block(self, number, place=None):
        if place is not None:
            self.place = place
        row = self.place["row"] if place is not None or not number else self.place["row"] + 1
        self.place = {"pass": row // 3, "row": row}
        return collect([b"the cat %d " % row * (row % 3 + 2), b"the dog"])


def test_streams_are_tokenized_block_by_block():
    whole = Batches(tokenized(Blocks(), ALPHABET), 4, 1, 3, seed=0)
    wanted = []
    for _ in range(30):
        state = json.loads(json.dumps(whole.state_dict()))
        wanted.append((state, next(whole)))
    assert whole.epoch >= 1 and whole.chunks_per_epoch is None
    for state, batch in wanted[::7]:
        other = Batches(tokenized(Blocks(), ALPHABET), 4, 1, 3, seed=0)
        other.load_state_dict(state)
        assert same_batch(next(other), batch)


def test_what_is_told(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    train, _ = open_data(DataConfig(dataset=str(tmp_path / "text.txt")), seed=0)
    made = tokenized(train, ALPHABET)
    count = len(ALPHABET.encode(bytes(train[0])))
    assert made.notes() == [f"{count:,} of {ALPHABET.size} kinds", f"{train.size / count:.2f} bytes each"]
    assert "as the text comes" in tokenized(Endless(DataConfig(), 0), ALPHABET).notes()[0]
    assert training_plan(TrainConfig(max_steps=3), 3, None, "token")[0] == "3 steps of 4,096 tokens"


def test_bytes_are_left_as_they_are():
    documents = collect([b"abc"])
    assert isinstance(documents, Documents) and documents.alphabet.unit == "byte" and documents.place is None
