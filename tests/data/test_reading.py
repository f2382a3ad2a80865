"""What was read is said: every part, how it was split, what was left out, and what cannot have been meant."""

import json

import pytest
from helpers import write
from training import SMALL, config

from pico import ModelConfig
from pico.base.config import DataConfig
from pico.data import corpus
from pico.data.open import open_data, open_evaluation
from pico.data.reading import Reading, byte_size, training_plan
from pico.lab.compare import run_experiment
from pico.lab.experiment import read_experiment
from pico.runs.folder import create
from pico.train.loop import train


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))


def jsonl(path, *texts):
    path.parent.mkdir(exist_ok=True)
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def opened(dataset, reads=open_data, **flags):
    """The Reading of a dataset: {heading: text}, and its warnings."""
    reading = Reading()
    reads(DataConfig.build(dataset=str(dataset), **flags), 0, reading=reading)
    lines = [line.split(maxsplit=1) for line in reading.lines()]
    return {heading: text.removeprefix("out").strip() for heading, text in lines}, reading.warnings


def evaluated(dataset, **flags):
    return opened(dataset, open_evaluation, **flags)


def test_a_folder_with_splits(tmp_path):
    jsonl(tmp_path / "d" / "train.jsonl", "one", "two", "", None)
    jsonl(tmp_path / "d" / "valid.jsonl", "three", None)
    for name in "test.jsonl", "README.md", "a.png":
        write(tmp_path / "d" / name, "x")
    assert opened(tmp_path / "d")[0] == {
        "tables": "column 'text'",
        "training": "2 documents, 6 bytes; from train.jsonl",
        "validation": "1 document, 5 bytes; from valid.jsonl; by its name",
        "left": "README.md, .png, split 'test' from test.jsonl, rows without text (3)",
    }
    said, _ = evaluated(tmp_path / "d")
    assert said["text"] == "1 document, 5 bytes; from valid.jsonl; by its name"
    assert {"split 'train' from train.jsonl", "split 'test' from test.jsonl"} < set(said["left"].split(", "))


@pytest.mark.slow
def test_flags_that_change_nothing_are_said(tmp_path):
    file = write(tmp_path / "a.txt", "one\r\ntwo\r\nthree")
    assert opened(file, column_name="text")[1] == [
        "--dataset-column-name changes nothing from a.txt: no table is among these files"
    ]
    assert opened(file, csv_separator=";")[1][0].startswith("--dataset-csv-separator changes nothing")
    assert opened(file, streaming=True)[1] == [
        "--streaming changes nothing: files on this disk are read where they lie"
    ]
    table = jsonl(tmp_path / "a.jsonl", "one", "two")
    assert opened(table, column_name="text")[1] == opened("stories", validation_size=2)[1] == []
    for reads in open_data, open_evaluation:
        assert opened("stories", reads, validation_size=2, column_name="text")[1][0].startswith("the built-in stories")
    assert opened(file, document_separator="\\r\\n")[0]["training"].startswith("2 documents, ")


def test_what_was_said_once_is_said_again_when_the_cache_has_it(tmp_path, monkeypatch):
    from pico.data import storage

    monkeypatch.setattr(storage, "SMALL", 1)
    write(tmp_path / "a.csv", "text;id\nsome words;1\n;2\nmore words;3\n")
    first = opened(tmp_path)
    assert first == opened(tmp_path) and first[0]["tables"] == "cells separated by ';'; column 'text'"
    assert first[0]["left"] == "rows without text"


def test_what_is_held_out(tmp_path):
    write(tmp_path / "a.txt", "x" * 1000)
    assert opened(tmp_path / "a.txt", validation_size=0.1)[0] == {
        "training": "1 document, 900 bytes; from a.txt",
        "validation": "1 document, 100 bytes; the last 10 % of the one document",
    }
    assert evaluated(tmp_path / "a.txt")[0] == {"text": "1 document, 1,000 bytes; from a.txt; all of it"}
    for name in "bcde":
        write(tmp_path / f"{name}.txt", "x" * 100_000 if name != "e" else "")
    assert opened(tmp_path, validation_size=1)[0] == {
        "training": "3 documents, 201.0 kB; from 5 files, a.txt to e.txt",
        "validation": "1 document, 100.0 kB; held out of the training documents at random",
        "left": "empty files",
    }
    assert opened(tmp_path, train_file="a.txt", validation_file="b.txt")[0] == {
        "training": "1 document, 1,000 bytes; from a.txt",
        "validation": "1 document, 100.0 kB; from b.txt; by --dataset-validation-file",
        "left": "files not named (3)",
    }


def test_stories(monkeypatch):
    monkeypatch.setattr(corpus, "PER_EPOCH", 40)
    said, _ = opened("stories", validation_size=3)
    assert said["training"] == "stories without end, new ones every epoch of 40"
    assert said["validation"].startswith("3 documents, ") and said["validation"].endswith("never trained on")
    assert "never trained on" in evaluated("stories", validation_size=3)[0]["text"]


def test_a_separator_that_never_occurs_is_warned_of(tmp_path):
    file = write(tmp_path / "a.txt", "one<|end|>two<|end|>three")
    assert opened(file, document_separator="<|end|>")[1] == []
    for reads in open_data, open_evaluation:
        _, (warning,) = opened(file, reads, document_separator="<|endoftext|>")
        assert warning == "--document-separator '<|endoftext|>' never occurs in 1 document, 25 bytes of text"


def test_sizes_and_what_is_to_come():
    sizes = ["1 byte", "9,999 bytes", "10.0 kB", "12.3 MB", "10.0 GB"]
    assert [byte_size(n) for n in (1, 9999, 10_000, 12_345_678, 10**10)] == sizes
    settings = config(batch_size=4, grad_accumulation_steps=2, context_len=32, max_minutes=3, max_flops=1e12)
    assert training_plan(settings, 100, 400) == [
        "100 steps of 256 bytes",
        "2 epochs",
        "at most 3 min",
        "at most 1e+12 FLOP",
    ]
    assert training_plan(settings, None, 399)[0] == "an epoch is 50 steps"


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    create(tmp_path / "model", ModelConfig.build(**SMALL))
    jsonl(tmp_path / "texts.jsonl", *(f"cat {i} sat on mat {i * 7}" for i in range(50)))
    return tmp_path


def trained(home, run, capsys, settings, quiet=False, **options):
    """What a training said on stderr."""
    capsys.readouterr()
    data = DataConfig(dataset=str(home / "texts.jsonl"), document_separator=options.pop("document_separator", None))
    train(home / "model", run, data, settings, quiet=quiet, device="cpu", **options)
    return " ".join(capsys.readouterr().err.split())


def test_training_begins_with_what_it_read(home, capsys):
    said = trained(home, "run", capsys, config(max_steps=6, warmup_steps=2), document_separator="||")
    begin = "tables column 'text' training 49 documents, "
    assert said.startswith(begin) and "to come 6 steps of 128 bytes" in said
    assert said.index("to come") < said.index("step 6:") and "recipe" not in said
    (home / "model" / "recipe.json").write_text('{"batch_size": 4, "learning_rate": 0.5}')
    assert "recipe batch_size 4 to come" in trained(home, "own", capsys, config(max_steps=6, warmup_steps=2))
    assert "warm-up" not in said and "--document-separator '||' never occurs" in said
    said = trained(home, "quiet", capsys, config(max_steps=6, warmup_steps=2), True, document_separator="||")
    assert said == "--document-separator '||' never occurs in 50 documents, 1,023 bytes of text"
    assert trained(home, "headless", capsys, config(max_steps=6, warmup_steps=2), True, head=False) == ""


def test_runs_shorter_than_their_warmup_are_warned_of(home, capsys):
    for steps, warns in (4, True), (5, False):
        said = trained(home, f"steps-{steps}", capsys, config(max_steps=steps, warmup_steps=4), True)
        assert ("a run of 4 steps ends in its warm-up of 4 steps" in said) == warns
    said = trained(home, "clock", capsys, config(max_steps=None, max_minutes=1e-6, warmup_steps=4), True)
    assert "a run of 1 step ends in its warm-up of 4 steps" in said


def test_a_resumed_run_whose_limit_is_used_up_is_warned_of(home, capsys):
    for limit in dict(max_steps=6), dict(max_steps=None, max_minutes=1e-6):
        run = "-".join(limit)
        trained(home, run, capsys, config(warmup_steps=0, **limit), True)
        said = trained(home, run, capsys, config(warmup_steps=0, **limit), True, resume=True)
        assert "nothing is left to train at step" in said and "give more to go on" in said
    said = trained(home, "max_steps", capsys, config(warmup_steps=0, max_steps=7), True, resume=True)
    assert "nothing is left" not in said


def test_evaluation_says_what_it_scores(home, capsys):
    from picolm import main

    trained(home, "run", capsys, config(max_steps=1), True)
    assert main(["eval", str(home / "model"), "run", str(home / "texts.jsonl"), "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["documents"] == 50
    assert "tables      column 'text'\ntext        50 documents, 1,023 bytes; from texts.jsonl; all of it\n" in err


def test_a_comparison_says_it_once(home):
    values = {
        "data": {"dataset": str(home / "texts.jsonl"), "validation_size": 9}, "budget": {"steps": 1}, "seeds": 2,
        "base": {"model": SMALL, "train": dict(context_len=32, batch_size=2, warmup_steps=0, precision="fp32")},
        "configurations": [{"name": "only"}],
    }  # fmt: skip
    said = []
    plan = read_experiment(write(home / "experiment.json", json.dumps(values)))
    run_experiment(plan, home / "out", device="cpu", quiet=True, log=said.append)
    assert said[0] == "tables      column 'text'" and said[1].startswith("training    41 documents, ")
    assert sum("documents" in line for line in said) == 2
