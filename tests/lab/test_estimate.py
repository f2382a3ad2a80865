"""The time a comparison will take: real steps are measured, what is done is not counted, nothing is left behind."""

import json

import pytest
from training import SMALL

from pico.lab import estimate as module
from pico.lab.compare import run_experiment
from pico.lab.estimate import Cost, estimate
from pico.lab.experiment import read_experiment


@pytest.fixture
def plan(tmp_path, data, short_samples, monkeypatch):
    """read(budget) -> an experiment of two configurations and three seeds on thirty short texts."""

    monkeypatch.setattr("pico.lab.results.WRITTEN", 4)
    monkeypatch.setattr("pico.lab.tables.plot_comparison", lambda *_: None)

    def read(**budget):
        train = dict(context_len=32, batch_size=4, precision="fp32")
        values = dict(budget=budget, data=data.model_dump(exclude_none=True), base=dict(model=SMALL, train=train))
        values["configurations"] = [{"name": "one"}, {"name": "two", "model": {"next_tokens": 1}}]
        (tmp_path / "plan.json").write_text(json.dumps(values))
        return read_experiment(tmp_path / "plan.json")

    return read


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]


def test_real_steps_are_measured_and_thrown_away(tmp_path, plan):
    said = []
    text, stopped = estimate(plan(steps=50), tmp_path / "out", "cpu", said.append)
    assert stopped == "finished" and not (tmp_path / "out").exists()
    assert said == ["one: measuring 16 steps", "two: measuring 16 steps"]
    for name, (row, steps, size, _, left, _) in zip(("one", "two"), rows(text), strict=True):
        assert (row, steps, left) == (name, "50", "3") and size.endswith("kB")
    assert "In all: 6 runs, " in text and "cpu, 1 threads" in text


@pytest.mark.parametrize(
    "budget, steps, minutes",  # a step of 2 s, 100 bytes, 1e6 FLOPs; 10 checks of 3 s on the way, or one; then a score
    [
        ({"steps": 100}, "100", 200 + 10 * 3),
        ({"flops": 1e8}, "100", 200 + 10 * 3),
        ({"minutes": 5}, "150", 300 + 3),
        ({"bytes": 128 * 60}, "60", 120 + 10 * 3),
    ],
)
def test_each_budget_is_turned_into_time(tmp_path, plan, monkeypatch, budget, steps, minutes):
    monkeypatch.setattr(module, "measure", lambda *_: Cost(2.0, 100.0, 1e6, 3.0))
    monkeypatch.setattr("pico.train.budget.step_flops", lambda *_, **__: 1e6)
    experiment = plan(**budget)
    text, _ = estimate(experiment, tmp_path / "out", "cpu", lambda _: None, experiment.plan("two", "2"))
    size = f"{int(steps) / 10:.3g} kB"
    assert rows(text) == [["two", steps, size, f"{(minutes + 3) / 60:.1f}", "2", f"{(minutes + 3) / 30:.1f}"]]
    assert f"In all: 2 runs, {(minutes + 3) / 30:.1f} minutes" in text


@pytest.mark.slow
def test_what_is_done_is_not_counted(tmp_path, plan, monkeypatch):
    experiment, folder, quiet = plan(steps=4), tmp_path / "out", lambda _: None
    run_experiment(experiment, folder, "cpu", True, quiet, experiment.plan("one"))
    run_experiment(experiment, folder, "cpu", True, quiet, experiment.plan("two", "1"))
    (folder / "two/seed-0/score.json").unlink()  # trained, but not scored
    before, measured = sorted(folder.rglob("*")), []
    monkeypatch.setattr(
        module, "measure", lambda _, each, *__: measured.append(each.name) or Cost(60.0, 100, 1e6, 30.0)
    )
    text, _ = estimate(experiment, folder, "cpu", quiet)
    assert measured == ["two"] and sorted(folder.rglob("*")) == before
    # four steps of a minute, four checks and one score of half a minute
    assert rows(text) == [["one", "", "", "", "0", "0"], ["two", "4", "400 B", "6.5", "3", "13.5"]]
    assert "In all: 3 runs, 13.5 minutes" in text


def test_a_stopped_measurement_says_so(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *_: "interrupted")
    assert estimate(plan(steps=4), tmp_path / "out", "cpu", lambda _: None) == ("", "interrupted")
