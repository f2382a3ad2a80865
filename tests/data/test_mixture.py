"""Mixtures: shares that are exact, an order that goes on anywhere, and files that are wrong in several ways."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers import same_batch, tiny, write

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.base.files import read_json
from pico.base.symbols import BYTES
from pico.data import bpe, corpus
from pico.data.chat import lay_out, unpack_turns
from pico.data.documents import Packed, collect
from pico.data.encoding import encoded
from pico.data.mixture import MixtureFile, holds_chats, is_mixture
from pico.data.open import open_data, open_evaluation
from pico.data.packing import Batches
from pico.data.reading import Reading
from pico.evaluate.score import score

TOKENS = bpe.BPE("t.json", json.loads(bpe.train_tokenizer(collect([b"the cat and 12 + 1? " * 30]), 280)), "f")
ALPHABETS = pytest.mark.parametrize("alphabet", [BYTES, TOKENS], ids=["bytes", "tokens"])


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 30)
    monkeypatch.setattr(corpus, "VALIDATION", 20)


@pytest.fixture
def data(tmp_path):
    """A folder with 40 texts and 50 questions, and a mixture of both with conversations on spelling."""
    (tmp_path / "qa").mkdir()
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(50)]
    write(tmp_path / "qa" / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": f"text number {i}, {'x' * i}"} for i in range(40)]
    write(tmp_path / "text.jsonl", "".join(json.dumps(row) + "\n" for row in texts))
    parts = [
        {"dataset": str(tmp_path / "text.jsonl"), "bytes": 600, "validation_size": 5},
        {"dataset": "nobody/qa", "format": "chat", "rows": 20, "repeats": 2, "folder": "qa", "validation_size": 4},
        {"dataset": "spelling", "rows": 12},
    ]
    return mixed(tmp_path, parts, folders=str(tmp_path))


def mixed(where: Path, parts: list[dict], **more) -> Path:
    return write(where / "mix.json", json.dumps({"mixture": parts, **more}))


def opened(file, seed=0):
    reading = Reading()
    return *open_data(DataConfig(dataset=str(file)), seed, reading), reading


def strings(block, batches) -> list[tuple]:
    """The documents of an epoch as they lie in its string, in order."""
    rows = batches._read(np.arange(batches.chunks))
    string = np.append(rows[:, : batches.context_len].ravel(), rows[-1, batches.context_len :])[: batches.length]
    begins = np.flatnonzero(np.isin(string, [batches.alphabet.bos, ~batches.alphabet.bos]))
    return [tuple(piece.tolist()) for piece in np.split(string, begins[1:])]


@ALPHABETS
def test_an_epoch_holds_every_part_whole(data, alphabet):
    train, _, _ = opened(data)
    batches = Batches(encoded(train, alphabet, 48), 48, 2, 4, seed=0)
    found = sorted(strings(batches._block, batches))
    wanted = []
    for part, times in zip(train.parts, train.times):
        for document in part:
            if isinstance(document, Packed):
                made = lay_out(unpack_turns(document), alphabet, 48)
            else:
                made = [np.concatenate([[alphabet.bos], alphabet.encode(document), [alphabet.eos]])]
            wanted += [tuple(piece.tolist()) for piece in made] * times
    assert found == sorted(wanted)
    assert len(train) == sum(len(part) * times for part, times in zip(train.parts, train.times)) < 35 + 40 + 12


def test_amounts_and_shares_are_exact_and_said(data):
    train, _, reading = opened(data)
    text, qa, spelling = train.parts
    assert text.size <= 600 and len(qa) == 20 and len(spelling) == 12 and train.times == [1, 2, 1]
    assert len(set(text)) == len(text) and len(set(qa)) == 20  # drawn, no one twice
    assert list(open_data(DataConfig(dataset=str(data)), 5)[0].parts[1]) == list(qa)  # whatever the seed
    said = sum(len(text) for talk in qa for _, text in unpack_turns(talk))
    sizes = [text.size, 2 * said, sum(len(text) for talk in spelling for _, text in unpack_turns(talk))]
    lines = {line[:12].strip(): line[12:] for line in reading.lines()}
    for number, size in enumerate(sizes, 1):
        assert lines[f"part {number}"].startswith(f"{size / sum(sizes):.2%}; ")
    assert f"20 documents, {said} bytes x 2; conversations of columns question, answer" in lines["part 2"]
    assert lines["training"].startswith(f"3 data sets, {len(train)} documents")
    assert train.fingerprint != opened(data, 1)[0].fingerprint  # other conversations on spelling


def test_validation_has_the_same_shares_and_is_never_trained_on(data):
    train, validation, _ = opened(data)
    assert not {bytes(x) for x in validation} & {bytes(x) for part in train.parts for x in part}
    assert list(open_evaluation(DataConfig(dataset=str(data)))) == list(validation)
    kinds = [isinstance(document, Packed) for document in validation]
    assert 0 < sum(kinds) < len(kinds)
    assert len(validation.first(100)) < len(validation)
    assert score(tiny(), validation, 64).bytes == sum(
        sum(len(t) for role, t in unpack_turns(d) if role == "assistant") if isinstance(d, Packed) else len(d)
        for d in validation
    )


@ALPHABETS
def test_batches_of_a_mixture_resume_anywhere(data, alphabet):
    def fresh():
        return Batches(encoded(opened(data)[0], alphabet, 32), 32, 2, 4, seed=3)

    whole = fresh()
    first = whole._block.parts[-1]
    while whole.number < 1 or whole.chunk < 9:
        next(whole)
    assert whole._block.parts[-1] is not first  # new conversations on spelling, the others are the same
    other = fresh()
    other.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for batch in islice(whole, 30):
        assert same_batch(batch, next(other))


def test_amounts_of_built_in_corpora(tmp_path):
    train, *_ = opened(mixed(tmp_path, [{"dataset": "stories", "bytes": 30_000}, {"dataset": "identity"}]))
    stories, identity = train.parts
    assert 27_000 < stories.size <= 30_000 and len(identity) == 30
    assert 25_000 < stories.block(1).size <= 30_000 and not set(stories) & set(stories.block(1))


def test_fewer_rows_than_asked_for_are_said(tmp_path, data):
    parts = [{"dataset": str(tmp_path / "qa"), "format": "chat", "rows": 1000}, {"dataset": "identity"}]
    train, _, reading = opened(mixed(tmp_path, parts))
    assert len(train.parts[0]) == 49
    assert "fewer than the 1,000 rows asked for" in reading.lines()[0]


def test_one_long_text_is_cut(tmp_path):
    write(tmp_path / "a.txt", "0123456789" * 100)
    train, *_ = opened(mixed(tmp_path, [{"dataset": str(tmp_path / "a.txt"), "bytes": 123}, {"dataset": "identity"}]))
    assert train.parts[0].size == 123 and len(train.parts[0]) == 1


def test_what_is_a_mixture(tmp_path, data):
    assert is_mixture(str(data))
    assert not is_mixture(str(tmp_path)) and not is_mixture(str(tmp_path / "text.jsonl")) and not is_mixture("stories")
    assert not is_mixture(str(write(tmp_path / "a.json", '[{"text": "mixture"}]')))
    assert is_mixture(str(write(tmp_path / "b.json", '{"mixture": [')))


def test_what_holds_conversations(tmp_path, data):
    texts = mixed(tmp_path / "qa", [{"dataset": str(tmp_path / "text.jsonl")}, {"dataset": "stories", "rows": 3}])
    talk = [holds_chats(DataConfig(**each)) for each in (
        {"dataset": str(data)}, {"dataset": "identity"}, {"dataset": "x.jsonl", "format": "chat"},
        {"dataset": str(texts)}, {"dataset": "stories"}, {"dataset": "x.jsonl"},
    )]  # fmt: skip
    assert talk == [True, True, True, False, False, False]


def test_all_problems_of_a_file_are_one_line(tmp_path):
    parts = [{"dataset": "stories", "rows": 0, "bites": 3}, {"rows": "many"}, {"dataset": "x", "rows": 1, "bytes": 1}]
    with pytest.raises(PicoError) as error:
        opened(mixed(tmp_path, parts, folder="x"))
    for problem in (
        "mixture.0.rows = 0",
        "unknown key 'mixture.0.bites': did you mean bytes?",
        "mixture.1.rows = 'many'",
        "x: rows and bytes were both given: choose one",
        "unknown key 'folder': did you mean folders?",
    ):
        assert problem in str(error.value)
    assert "\n" not in str(error.value)
    parts = [{"dataset": str(tmp_path / "no.jsonl")}, {"dataset": "spelling", "exclude_words": "no.txt"}]
    with pytest.raises(PicoError) as error:
        opened(mixed(tmp_path, parts))
    assert "no file or folder" in str(error.value) and "cannot read --exclude-words no.txt" in str(error.value)
    for broken in '{"mixture": [', '{"mixture": []}', '{"mixture": 3}', '{"mixture": [3]}':
        with pytest.raises(PicoError, match=r"mix.json.*"):
            opened(write(tmp_path / "mix.json", broken))


def test_flags_beside_a_mixture_are_warned_of(data):
    reading = Reading()
    open_data(DataConfig(dataset=str(data), format="chat"), 0, reading)
    assert reading.warnings == [f"{data} says how its data sets are read: of the flags of data, none counts"]


@pytest.mark.parametrize("name", ["base", "mid", "sft", "small-mid", "small-sft"])
def test_the_shipped_mixtures_are_valid(name):
    file = Path(__file__).parents[2] / "experiments" / "picochat" / f"{name}.json"
    assert is_mixture(str(file)) and MixtureFile.build(**read_json(file)).mixture
