"""Opening datasets: which documents train and which validate, and what a user with a wrong dataset reads."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import same_batch
from hypothesis import given
from hypothesis import strategies as st

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import corpus
from pico.data.documents import collect
from pico.data.open import Batches, hold_out, open_data, open_evaluation


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))


def jsonl(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def opened(dataset, **flags):
    """(training, validation, evaluation) documents as lists."""
    config = DataConfig.build(dataset=str(dataset), **flags)
    return *(list(part) for part in open_data(config, seed=0)), list(open_evaluation(config))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_folder_with_train_and_valid_files(tmp_path):
    """The layout of a folder of stories, with the flag of the README's second command."""
    jsonl(tmp_path / "train.jsonl", "one", "two")
    jsonl(tmp_path / "valid.jsonl", "three")
    assert opened(tmp_path, column_name="text") == ([b"one", b"two"], [b"three"], [b"three"])


def test_test_files_validate_only_where_nothing_else_does(tmp_path):
    jsonl(tmp_path / "train.jsonl", "one")
    jsonl(tmp_path / "test.jsonl", "two")
    assert opened(tmp_path)[1] == [b"two"]
    jsonl(tmp_path / "dev.jsonl", "three")
    assert opened(tmp_path)[:2] == ([b"one"], [b"three"])
    assert opened(tmp_path, validation_split="test")[1:] == ([b"two"], [b"two"])
    assert opened(tmp_path, train_split="test")[:2] == ([b"two"], [b"three"])


def test_file_flags(tmp_path):
    files = [jsonl(tmp_path / f"part{i}.jsonl", f"text {i}") for i in range(4)]
    train, validation, evaluation = opened(tmp_path, validation_file="part3.jsonl")
    assert (train, validation, evaluation) == ([b"text 0", b"text 1", b"text 2"], [b"text 3"], [b"text 3"])
    assert opened(tmp_path, train_file="part[01].jsonl", validation_file=str(files[2]))[:2] == (
        [b"text 0", b"text 1"],
        [b"text 2"],
    )
    assert opened(files[0], validation_file="part1.jsonl")[:2] == ([b"text 0"], [b"text 1"])


def test_named_files_never_train_and_validate(tmp_path):
    jsonl(tmp_path / "train.jsonl", "one", "two")
    jsonl(tmp_path / "valid.jsonl", "three", "four")
    train, validation, _ = opened(tmp_path, train_file="valid.jsonl")
    assert sorted(train + validation) == [b"four", b"three"]
    for flags in (
        dict(train_file="train.jsonl", validation_file="train.jsonl"),
        dict(train_split="train", validation_split="train"),
        dict(train_split="valid", validation_split="validation"),
    ):
        with pytest.raises(PicoError, match="nothing to train on besides its validation part"):
            opened(tmp_path, **flags)
    one = DataConfig.build(dataset=str(tmp_path / "valid.jsonl"), validation_file="valid.jsonl")
    assert len(open_evaluation(one)) == 2
    with pytest.raises(PicoError, match="nothing to train on"):
        open_data(one, 0)


def test_one_percent_is_held_out(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    train, validation, evaluation = opened(jsonl(tmp_path / "a.jsonl", *texts))
    assert len(validation) == 3 and len(train) == 297 and len(evaluation) == 300
    assert sorted(train + validation) == sorted(text.encode() for text in texts)
    assert validation != [text.encode() for text in texts[-3:]]
    for flags, count in [(dict(validation_size=0.1), 30), (dict(validation_size=7), 7)]:
        train, validation, evaluation = opened(tmp_path / "a.jsonl", **flags)
        assert len(validation) == count and evaluation == validation and not set(train) & set(validation)
    config = DataConfig(dataset=str(tmp_path / "a.jsonl"))
    assert list(open_data(config, seed=1)[1]) == list(open_data(config, seed=2)[1])


def test_a_size_takes_precedence_over_a_validation_part_nobody_named(tmp_path):
    jsonl(tmp_path / "train.jsonl", "one", "two")
    jsonl(tmp_path / "valid.jsonl", "three")
    train, validation, _ = opened(tmp_path, validation_size=1)
    assert sorted(train + validation) == [b"one", b"two"]


def test_single_document_holds_out_its_end(tmp_path):
    """As tinyshakespeare is used: the last 10 % validate."""
    text = os.urandom(1000).replace(b"\0", b"0")
    (tmp_path / "input.txt").write_bytes(text)
    assert opened(tmp_path / "input.txt", validation_size=0.1) == ([text[:900]], [text[900:]], [text[900:]])
    assert opened(tmp_path) == ([text[:990]], [text[990:]], [text])


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_holding_out_loses_and_shares_nothing(texts, size):
    if len(texts) == 1 and len(texts[0]) == 1:
        texts = [b"ab"]
    documents = collect(texts)
    whole = len(texts) if len(texts) > 1 else documents.size
    if round(size * whole) == whole:
        with pytest.raises(PicoError, match=r"cannot hold out|leaves nothing to train on"):
            hold_out(documents, size)
        return
    train, validation = hold_out(documents, size)
    assert len(train) and len(validation) and train.size + validation.size == documents.size
    if len(texts) == 1:
        assert train[0] + validation[0] == texts[0]
    else:
        assert Counter(train) + Counter(validation) == Counter(texts)
        assert len(validation) == max(1, round(size * len(texts)))
        assert not set(train.starts) & set(validation.starts)


def test_separator_and_raw_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one<|end|>two<|end|>")
    assert opened(tmp_path / "a.txt", document_separator="<|end|>")[2] == [b"one", b"two"]
    jsonl(tmp_path / "b.jsonl", "x")
    raw = (tmp_path / "b.jsonl").read_bytes()
    assert opened(tmp_path / "b.jsonl", format="bytes")[2] == [raw]
    assert opened(tmp_path, format="bytes")[2] == [b"one<|end|>two<|end|>", raw]


def test_code_folder(tmp_path):
    for name in "train.py", "test/valid.py", "util.c":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"code of {name}")
    train, validation, evaluation = opened(tmp_path)
    assert len(train) == 2 and len(validation) == 1 and len(evaluation) == 3


# --- stories ---------------------------------------------------------------------------------------------------------


def test_stories_are_fresh_every_epoch_and_never_validated_on(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 40)
    monkeypatch.setattr(corpus, "VALIDATION", 30)
    config = DataConfig()
    train, validation = open_data(config, seed=0)
    other, same = open_data(config, seed=1)
    assert list(validation) == list(same) == list(open_evaluation(config)) and len(validation) == 30
    blocks = [list(train.block(number)) for number in range(3)] + [list(other), list(validation)]
    assert len(set().union(*blocks)) == 4 * 40 + 30
    assert blocks[0] == list(train) and train.fingerprint != other.fingerprint
    assert train.fingerprint == open_data(config, seed=0)[0].fingerprint
    assert len(open_data(DataConfig(validation_size=0.5), 0)[1]) == 20
    assert len(open_data(DataConfig(validation_size=5), 0)[1]) == 5


def test_stories_know_their_entropy_and_recalls(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 5)
    train, validation = open_data(DataConfig(validation_size=20), seed=0)
    assert validation.floor_bits == pytest.approx(sum(story.bits for story in validation.stories))
    assert 0.1 < validation.floor_bits / validation.size < 2
    for document, story in zip(validation, validation.stories, strict=True):
        assert document == story.text.encode()
    assert train.block(1).floor_bits > 0


def test_story_batches_resume_in_a_later_block(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 3)
    train, _ = open_data(DataConfig(), seed=0)
    whole = Batches(train, 64, 2, 8, seed=0)
    while whole.number < 2:
        next(whole)
    resumed = Batches(open_data(DataConfig(), seed=0)[0], 64, 2, 8, seed=0)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(12):
        assert same_batch(next(whole), next(resumed))
    assert whole.number > 2


# --- bad input -------------------------------------------------------------------------------------------------------


def test_errors(tmp_path):
    jsonl(tmp_path / "d" / "train.jsonl", "one", "two")
    jsonl(tmp_path / "d" / "valid.jsonl", "three")
    jsonl(tmp_path / "empty" / "a.jsonl", "", "")
    (tmp_path / "e.txt").write_text("")
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\0\1")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train.txt").write_text("one")
    (tmp_path / "half" / "valid.txt").write_text("")
    (tmp_path / "m" / "r").mkdir(parents=True)
    for name in "m/model.json", "m/r/train.json", "m/r/metrics.jsonl":
        (tmp_path / name).write_text('{"text": "no text to read"}')
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for dataset, flags, message in [
        ("missing.txt", {}, "no file or folder '.*missing.txt': give a path that exists"),
        ("missing/folder", {}, "no file or folder '.*missing/folder'"),
        ("e.txt", {}, r"no text in '.*e.txt' \(from e.txt\), expected at least one document; left out: empty files"),
        ("empty", {}, r"no text in '.*empty' \(from a.jsonl\), .*; left out: rows without text \(2\)"),
        ("half", {}, r"no text in '.*half' \(from valid.txt\)"),
        ("nothing", {}, "no text files in '.*nothing'"),
        ("pictures", {}, r"no text files in '.*pictures' \(left out: .png \(binary data.*--dataset-format bytes"),
        (
            "one.txt",
            {},
            "single document of 1 byte, and to validate on 0.01 leaves nothing to train on: give more text, a --doc",
        ),
        ("d", dict(column_name="body"), r"no column 'body' in .*train.jsonl, it has text \(text\)"),
        ("d", dict(train_split="all"), "no split 'all' in .*, it has train, validation: .*--dataset-train-split"),
        ("d", dict(validation_split="x"), "no split 'x' in .*--dataset-validation-split"),
        ("d", dict(train_file="x.jsonl"), "no file 'x.jsonl' in '.*d'"),
        ("d", dict(validation_file="/x*.jsonl"), "no file '/x"),
        ("d", dict(validation_size=2), "cannot hold out 2 of 2 documents"),
        ("d", dict(validation_size=1.5), "expected a fraction below 1 or a whole number"),
        ("one.txt", dict(validation_size=2e6), "on 2,000,000 documents leaves .*a --dataset-validation-size below 1"),
        ("gone.txt", {}, "'.*gone.txt' is a link that leads nowhere"),
        ("loop", {}, "'.*loop' is a link that leads nowhere"),
        ("m", {}, "'.*m' is the folder of a model or a run, expected text"),
        ("m/r", {}, "'.*r' is the folder of a model or a run, expected text"),
    ]:
        with pytest.raises(PicoError, match=message) as error:
            open_data(DataConfig.build(dataset=str(tmp_path / dataset), **flags), seed=0)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["https://example.org/a.txt", "file:///tmp/a.txt", "hf://datasets/a/b"])
def test_addresses_are_no_paths(address):
    with pytest.raises(PicoError, match="is an address, expected a path"):
        open_data(DataConfig(dataset=address), seed=0)


def test_unreadable_folder(tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text("x = 1")
    with pytest.raises(PicoError, match=r"cannot read .*: File name too long"):
        opened(tmp_path / ("x" * 5000))

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PicoError, match=r"cannot read .*code.py: Permission denied"):
        opened(tmp_path)


def test_which_split_trains_must_be_clear(tmp_path):
    jsonl(tmp_path / "valid.jsonl", "one")
    jsonl(tmp_path / "test.jsonl", "two")
    with pytest.raises(PicoError, match="which split of test, validation is for training"):
        opened(tmp_path)
    assert opened(tmp_path, train_split="test")[:2] == ([b"two"], [b"one"])
    assert opened(tmp_path, validation_file="valid.jsonl")[:2] == ([b"two"], [b"one"])


# --- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import os, resource, sys
from pico.base.config import DataConfig
from pico.data.open import Batches, open_data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
for separator in "<|end|>", None:
    documents, validation = open_data(DataConfig(dataset=sys.argv[1], format='bytes', document_separator=separator), 0)
    documents.fingerprint
    batches = Batches(documents, 512, 8, 8, seed=0)
    for _ in range(1000):
        next(batches)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="measures with getrusage")
def test_a_file_larger_than_memory_is_never_loaded(tmp_path):
    """300 MB read all over take less than 100 MB; 10 GB took 7 MB when it was tried."""
    file, size = tmp_path / "big.txt", 300_000_000
    with open(file, "wb") as out:
        out.truncate(size)
        for position in range(0, size, 3_000_000):
            out.seek(position)
            out.write(b"<|end|>")
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(file)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 100_000_000
