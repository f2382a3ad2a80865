"""Experiment files: what --dataset keeps, which runs are chosen, and the form that --help shows."""

import json

import pytest

from pico import PicoError
from pico.base.config import DataConfig, TrainConfig
from pico.base.shapes import GPTConfig, ModelConfig
from pico.lab.experiment import BY_BUDGET, Budget, Configuration, Experiment, experiment_name, form, read_experiment

VALUES = {"budget": {"steps": 4}, "seeds": 3, "configurations": [{"name": "one"}, {"name": "two"}, {"name": "three"}]}


@pytest.mark.parametrize("path", ["routers", "routers/experiment.json", "routers.json"])
def test_a_folder_names_its_experiment(tmp_path, path, monkeypatch):
    file = tmp_path / (path if path.endswith(".json") else "routers/experiment.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(VALUES))
    assert experiment_name(tmp_path / path) == "routers"
    assert len(read_experiment(tmp_path / path).configurations) == 3
    monkeypatch.chdir(file.parent)
    assert experiment_name("." if file.name == "experiment.json" else file.name) == "routers"


@pytest.fixture
def read(tmp_path):
    """read(dataset, **changes of the file) -> the experiment, and what was said."""

    def read(dataset=None, **changes):
        said, file = [], tmp_path / "experiment.json"
        file.write_text(json.dumps({**VALUES, **changes}))
        return read_experiment(file, dataset, said.append), said

    return read


def test_another_dataset_keeps_the_other_data_settings(read):
    data = {"dataset": "a.csv", "column_name": "prose", "validation_size": 0.2, "document_separator": "\n\n"}
    plan, said = read("b.csv", data=data)
    assert plan.data_config() == DataConfig(**{**data, "dataset": "b.csv"}) and not said
    assert read("b.csv")[0].data_config() == DataConfig(dataset="b.csv")


def test_settings_that_another_dataset_has_no_use_for_are_said_or_refused(read):
    plan, said = read("stories", data={"dataset": "a.csv", "column_name": "prose", "validation_size": 50})
    assert plan.data_config().validation_size == 50
    assert len(said) == 1 and said[0].startswith("warning: ") and "column_name" in said[0]
    assert "validation_size" not in said[0]
    data = {"dataset": "a", "train_file": "x.txt", "validation_file": "y.txt"}
    assert read("a.csv")[0] and read(data=data)[0]
    with pytest.raises(PicoError, match=r"train_file 'x.txt' and validation_file 'y.txt' belong to its own dataset"):
        read("b", data=data)


def test_runs_are_chosen_by_configuration_and_seed(read):
    def names(*choice):
        return [f"{each.name}{seed}" for each, seed in read()[0].plan(*choice)]

    assert names() == ["one0", "two0", "three0", "one1", "two1", "three1", "one2", "two2", "three2"]
    assert names("three, one", "2") == ["one0", "three0", "one1", "three1"]  # in the file's order
    assert names("two", "7,5") == ["two5", "two7"]
    assert names("two", "5,") == ["two5"]
    assert len(names("two", "4")) == 4


@pytest.mark.parametrize(
    "only, seeds, message",
    [
        ("two,tree", None, "no configuration 'tree': did you mean three\\? valid: one, two, three"),
        ("", None, "no configuration ''"),
        (None, "a few", "--seeds 'afew': expected how many"),
        (None, "-1", "expected how many"),
        (None, ",", "expected how many"),
        (None, "0", "--seeds 0: expected 1 to"),
        (None, "1000000000000", "expected 1 to"),
    ],
)
def test_a_choice_that_means_nothing_is_one_line(read, only, seeds, message):
    with pytest.raises(PicoError, match=message):
        read()[0].plan(only, seeds)


@pytest.mark.parametrize("text", ["[" * 100_000, "\xff", '{"cls": 1}', '{"budget": {"steps": 1}, "seeds": 1e12}'])
def test_odd_files_are_one_line(tmp_path, text):
    (tmp_path / "odd.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PicoError, match=r"odd\.json"):
        read_experiment(tmp_path / "odd.json")


def test_a_mistake_of_all_shapes_is_told_once(read):
    with pytest.raises(PicoError) as caught:
        read(budget={"flops": 1e12}, base={"model": {"dim": -4}}, configurations=[{"name": "a"}])
    assert str(caught.value).count("dim = -4") == 1


def test_the_form_of_the_file_names_every_key_there_is():
    text = form()
    keys = [*Experiment.model_fields, *Budget.model_fields, *Configuration.model_fields, *ModelConfig.model_fields]
    keys += [*DataConfig.model_fields, *(key for key in TrainConfig.model_fields if key not in BY_BUDGET)]
    keys += GPTConfig.model_fields
    words = text.replace(",", " ").replace(":", " ").split()
    assert not set(keys) - set(words)
    assert all(len(line) <= 76 for line in text.splitlines())
    assert "seeds: whole number or list of whole numbers, default 3" in text
    assert "configurations: list of objects, required" in text and "\n  minutes: number; " in text
