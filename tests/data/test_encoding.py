"""Conversations in batches: the layout symbol by symbol, of bytes and of tokens; what is not scored trains nothing."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import same_batch, tiny

from pico.base.config import DataConfig
from pico.base.symbols import BYTES
from pico.data import bpe, corpus, storage
from pico.data.chat import Turn, lay_out, pack_turns, unpack_turns
from pico.data.corpus import Endless
from pico.data.documents import collect
from pico.data.encoding import encoded
from pico.data.packing import Batches, OnDevice
from pico.data.prefetch import Prefetch
from pico.evaluate.analysis import analyse
from pico.evaluate.score import score, traces
from pico.evaluate.tables import _start

TALK = "Spell the word moon. m-o-o-n How many letters has it? The letter o occurs 2 times. " * 9
TOKENS = bpe.BPE("t.json", json.loads(bpe.train_tokenizer(collect([TALK.encode()]), 300)), "f")
ALPHABETS = pytest.mark.parametrize("alphabet", [BYTES, TOKENS], ids=["bytes", "tokens"])


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 12)


def talks(loss_on="assistant", **settings):
    return Endless(DataConfig(dataset="spelling", loss_on=loss_on, **settings), seed=0)


def make(documents, alphabet, context_len=32, next_tokens=3, batch_size=4, rank=0, world=1):
    documents = encoded(documents, alphabet, context_len)
    return Batches(documents, context_len, next_tokens, batch_size, 0, rank, world)


def pieces(documents, alphabet, context_len):
    """Every piece of every conversation, as the module of conversations lays it out."""
    return [
        piece for talk in documents for piece in lay_out(unpack_turns(talk), alphabet, context_len, documents.loss_on)
    ]


@ALPHABETS
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_epoch_is_all_pieces_end_to_end(alphabet, loss_on, on_disk, monkeypatch, tmp_path):
    if on_disk:
        monkeypatch.setenv("PICO_CACHE", str(tmp_path))
        monkeypatch.setattr(storage, "SMALL", 0)
    documents = talks(loss_on)
    batches = make(documents, alphabet)
    rows = batches._read(np.arange(batches.chunks))
    string = np.append(rows[:, : batches.context_len].ravel(), rows[-1, batches.context_len :])[: batches.length]
    found = []
    for piece in np.split(string, np.flatnonzero(np.isin(string, [alphabet.bos, ~alphabet.bos]))[1:]):
        found.append(tuple(piece.tolist()))
    assert sorted(found) == sorted(tuple(piece.tolist()) for piece in pieces(documents, alphabet, 32))
    assert (rows.ravel()[-1:] == ~0).all() or batches.length % 32 == 1


@ALPHABETS
def test_targets_of_every_head_are_scored_by_their_own_mask(alphabet):
    batches = make(talks(), alphabet)
    known = batches._read(batches._order(np.arange(4)))
    inputs, targets = next(batches)
    assert inputs.numpy().tolist() == np.where(known < 0, ~known, known)[:, :32].tolist()
    for head in range(3):
        theirs = known[:, head + 1 : head + 33]
        assert (targets[:, head : head + 32].numpy() == np.where(theirs < 0, -100, theirs)).all()
    scored = targets[targets >= 0].tolist()
    assert set(scored) & {alphabet.control["end-of-turn"]}
    assert not set(scored) & {alphabet.control[name] for name in ("bos", "eos", "user", "assistant", "system")}


@ALPHABETS
def test_only_scored_bytes_are_counted(alphabet):
    documents = talks()
    batches = make(documents, alphabet, batch_size=1)
    text = sum(len(text) for talk in documents for role, text in unpack_turns(talk) if role == "assistant")
    with Prefetch(batches, torch.device("cpu")) as prefetch:
        counted = sum(next(prefetch)[0].bytes for _ in range(batches.chunks))
    assert counted == text
    device = OnDevice(make(documents, alphabet, batch_size=1), torch.device("cpu"), 10**9)
    assert sum(next(device)[2] for _ in range(device.batches.chunks)) == text


@ALPHABETS
def test_batches_resume_and_divide_in_a_later_epoch(alphabet):
    whole = make(talks(), alphabet)
    while whole.number < 2:
        next(whole)
    state = json.loads(json.dumps(whole.state_dict()))
    halves = [make(talks(), alphabet, rank=rank, world=2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(state)
    for batch in islice(whole, 8):
        parts = [next(half) for half in halves]
        assert same_batch(batch, [torch.cat(both) for both in zip(*parts)])


def test_what_is_scored_and_the_tokenizer_belong_to_the_fingerprint():
    prints = {
        encoded(talks(on), alphabet, 32).fingerprint for on in ("assistant", "all") for alphabet in (BYTES, TOKENS)
    }
    assert len(prints) == 4


def test_a_block_is_encoded_once():
    documents = encoded(talks(), BYTES, 32)
    assert documents.block(0) is documents.block(0)


def batch_of(loss_on: str, other: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of four conversations; other: with capital letters in place of what the user says."""
    said = [(f"how do you spell {word}?", "-".join(word)) for word in ("moon", "sun", "cloud", "rain")] * 3
    turns = [[Turn("user", ask.upper() if other else ask), Turn("assistant", answer)] for ask, answer in said]
    documents = collect(map(pack_turns, turns))
    documents.loss_on = loss_on
    return next(make(documents, BYTES, 64))


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_what_the_user_says_is_no_target(router):
    """With other user bytes as targets no loss and no gradient changes; with other bytes of the assistant all do."""
    model = tiny(router, next_tokens=3).train()
    inputs, targets = batch_of("assistant", other=False)

    def learned(targets):
        torch.manual_seed(0)
        model.zero_grad()
        out = model(inputs, targets=targets)
        (out.loss + 0.1 * out.router_loss).backward()
        return [out.loss, out.router_loss, *(p.grad.clone() for p in model.parameters())]

    def alike(one, other):
        return all(map(torch.equal, learned(one), learned(other)))

    perturbed = batch_of("assistant", other=True)
    assert not torch.equal(perturbed[0], inputs) and alike(targets, perturbed[1])
    assert not alike(*(batch_of("all", other)[1] for other in (False, True)))
    changed = targets.clone()
    row, place = (targets >= 0).nonzero()[5].tolist()
    changed[row, place] = (changed[row, place] + 1) % 256
    assert not alike(targets, changed)


# --- scoring ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_bits_per_byte_of_conversations_by_hand():
    """Law 6 for conversations: the bits of what is scored, END too, over the bytes among it."""
    model = tiny()
    documents = talks(validation_size=3).first(300)
    bits = raw = 0
    for talk in documents:
        (ids,) = lay_out(unpack_turns(talk), BYTES)
        read = torch.from_numpy(np.where(ids < 0, ~ids, ids).astype(np.int64))[None]
        nats = -model(read).logits[0, :-1, 0].double().log_softmax(-1)
        for place, target in enumerate(ids[1:].tolist()):
            if target >= 0:
                bits += nats[place, target].item() / np.log(2)
                raw += target < 256
    result = score(model, documents, 4096)
    assert result.bytes == raw == sum(len(t) for d in documents for role, t in unpack_turns(d) if role == "assistant")
    assert result.bits_per_byte == pytest.approx(bits / raw, rel=1e-4)
    (trace,) = traces(model, documents.first(1), 16)
    ids = lay_out(unpack_turns(documents[0]), BYTES)[0]
    assert ((trace.bits > 0) == (ids[1:] >= 0)).all()


def test_loss_on_all_scores_every_symbol():
    model, documents = tiny(), talks("all").first(200)
    result = score(model, documents, 64)
    assert result.bytes == sum(len(text) for talk in documents for _, text in unpack_turns(talk))
    assert result.head_count[0] == sum(len(lay_out(unpack_turns(talk), BYTES)[0]) - 1 for talk in documents)


def test_the_report_on_conversations():
    documents = talks().select(np.arange(4))
    report, examples = analyse(tiny(), documents, 32)
    assert report["bits_per_byte"] == pytest.approx(score(tiny(), documents, 32).bits_per_byte)
    assert report["bytes"] == sum(len(t) for d in documents for role, t in unpack_turns(d) if role == "assistant")
    assert examples[0].data == b"".join(b"\n%s\n" % text for _, text in unpack_turns(documents[0]))
    symbols, _, _, bits = _start(examples[0], 10**6)  # what the page shows, each byte with its own bits
    assert b"".join(symbols) == examples[0].data
    ids = lay_out(unpack_turns(documents[0]), BYTES)[0][1:-1]
    assert [bool(x) for x in bits] == [bool(i >= 0) for i in ids] and len(symbols) == len(ids)
