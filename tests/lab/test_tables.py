"""What a comparison says: part of the runs, corrected p values, doubts, one sentence of verdict."""

import json
import shutil

import pytest
from training import SMALL, shorten

from pico.base.config import TrainConfig
from pico.base.presets import preset
from pico.evaluate.statistics import holm
from pico.lab import tables as compare_report
from pico.lab.compare import run_experiment
from pico.lab.experiment import read_experiment
from pico.lab.results import doubts
from pico.lab.tables import markdown, verdict


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of runs of three configurations and three seeds, and the results they gave."""
    home = tmp_path_factory.mktemp("whole")
    lines = [{"text": f"{i} cats sat on {i * 7 % 13} mats, purring."} for i in range(30)]
    (home / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "title": "Cats",
        "data": {"dataset": str(home / "data.jsonl"), "validation_size": 0.2},
        "budget": {"steps": 4},
        "base": {"model": SMALL, "train": dict(context_len=32, batch_size=4, warmup_steps=1, precision="fp32")},
        "configurations": [
            {"name": "first"},
            {"name": "worse", "train": {"learning_rate": 1e-4}},
            {"name": "other", "model": {"next_tokens": 1}},
        ],
    }
    (home / "plan.json").write_text(json.dumps(values))
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr("pico.lab.results.WRITTEN", 4)
        patch.setattr(compare_report, "plot_comparison", lambda *_: None)
        experiment = read_experiment(home / "plan.json")
        results, _ = run_experiment(experiment, home / "out", "cpu", True, lambda _: None)
        yield experiment, home / "out", results


@pytest.fixture
def make(whole, tmp_path):
    """make(only, seeds) compares in a copy of the folder -> the results, the table and what was said."""
    experiment, out, _ = whole
    shutil.copytree(out, tmp_path / "out")

    def make(only=None, seeds=None):
        said, folder = [], tmp_path / "out"
        results, _ = run_experiment(experiment, folder, "cpu", True, said.append, experiment.plan(only, seeds))
        return results, (folder / "compare.md").read_text(), said

    return make


@pytest.mark.slow
def test_part_of_the_runs_leaves_the_others_in_the_table(make, whole, tmp_path):
    _, complete, expected = whole
    out = tmp_path / "out"
    for gone in "first", "other", "worse/seed-1":
        shutil.rmtree(out / gone)
    results, table, _ = make("worse", "0,2")
    missing = {name: [f"{name}/seed-{n}" for n in range(3)] for name in ("first", "other")}
    assert results["missing"] == [*missing["first"], "worse/seed-1", *missing["other"]]
    assert table.count("| no run |") == 2 and "- missing: first/seed-0, first/seed-1, " in table
    assert table.splitlines()[-1].startswith("Verdict so far: nothing can be said, because first, ")

    for back in "first", "other":
        shutil.copytree(complete / back, out / back)
    results, table, _ = make("worse", "1,")
    assert not results["missing"] and "missing" not in table
    for ours, theirs in zip(results["configurations"], expected["configurations"], strict=True):
        assert ours["bits_per_byte"] == theirs["bits_per_byte"] and ours["flops"] == theirs["flops"]
    assert make("first", "1,")[:2] == (results, table)  # nothing new, nothing lost


def test_a_seed_that_the_file_does_not_have_stays_in_the_table(make):
    results, _, _ = make("first", "5,")
    assert results["seeds"] == [0, 1, 2, 5] and results["missing"] == ["worse/seed-5", "other/seed-5"]
    assert make("worse", "1")[0]["seeds"] == [0, 1, 2, 5]


def test_p_values_are_corrected_and_shown(make):
    results, table, said = make()
    _, *others = results["configurations"]
    ps = [row["against_first"]["p"] for row in others]
    assert [row["against_first"]["p_holm"] for row in others] == holm(ps) != ps
    assert "| p | p (Holm) | by documents |" in table
    assert table.splitlines()[-1] == verdict(results) and table == markdown(results)
    assert not [line for line in said if "seeds" in line]
    heads, lines = [[len(line.split("|")) for line in table.splitlines() if line[:1] == "|"][i:] for i in (0, 1)]
    assert {*heads} == {*lines} and len(heads) == 5


def test_two_seeds_are_too_few_and_it_is_said(make, tmp_path):
    for name in "first", "worse", "other":
        shutil.rmtree(tmp_path / f"out/{name}/seed-2")
    results, table, said = make(seeds="2")
    assert results["missing"] == ["first/seed-2", "worse/seed-2", "other/seed-2"]
    text = "first, worse, other: fewer than 3 seeds, too few to tell a difference from chance: raise seeds"
    assert f"warning: {text}" in said and f"- warning: {text}" in table


def test_odd_files_of_a_run_are_mended_or_named(make, tmp_path):
    scored = tmp_path / "out/first/seed-0/score.json"

    def read() -> dict:  # all but what the clock says
        return {**json.loads(scored.read_text()), "generation_bytes_per_second": 0}

    whole = found = read()
    odd = [{"rule": found["rule"]}, {**found, "bits_per_byte": "much"}, {**found, "unit_bits": [1, "x"]}]
    for text in ("[", "[]", "{}", "[" * 100_000, *map(json.dumps, odd)):
        scored.write_text(text)
        make()
        assert read() == whole
    (tmp_path / "out/worse/seed-1/metrics.jsonl").write_text('3\n{"step": 4}\n')
    results, table, _ = make()
    assert list(results["failed"]) == ["worse/seed-1"] and "metrics.jsonl does not say" in table
    assert results["configurations"][1]["runs"].keys() == {0, 2}


@pytest.mark.parametrize(
    "routed, steps, expected",
    [
        (0.25, 150, []),
        (0.226, 150, []),
        (0.274, 151, []),
        (0.224, 150, ["routed 22.4% of the bytes where latent_capacity_factor asks for 25.0%"]),
        (0.276, 150, ["routed 27.6%"]),
        (0.25, 149, ["50 of 149 steps are warm-up"]),
        (0.25, 50, ["all 50 steps are warm-up: lower warmup_steps, 50, or raise the budget"]),
        (0.1, 20, ["routed 10.0%", "all 20 steps are warm-up"]),
    ],
)
def test_doubts(routed, steps, expected):
    row = {"runs": {seed: {"steps": steps} for seed in range(3)}, "routed_fraction": {"mean": routed}}
    found = list(doubts(row, preset("tiny", latent_capacity_factor=0.25), TrainConfig()))
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))
    for router in ("all", "none"):  # which have no rate to miss
        assert not any("routed" in text for text in doubts(row, preset("tiny", router=router), TrainConfig()))


def results(*others, missing=()):
    """Results as `verdict` reads them; each of the others is (name, mean difference, corrected p or None)."""
    rows = [{"name": "base", "runs": {0: {}}}]
    for name, mean, p in others:
        rows.append({"name": name, "runs": {0: {}}, "against_first": {"mean": mean, "p": p}})
        if p is not None:
            rows[-1]["against_first"]["p_holm"] = p
    return {"configurations": rows, "missing": list(missing), "failed": {}}


@pytest.mark.parametrize(
    "found, sentence",
    [
        (results(), "Verdict: there is nothing to compare base with."),
        (results(("a", 0.1, None)), "Verdict: nothing can be said, because a difference needs two seeds at least."),
        (
            results(("a", 0.1, 0.06), ("b", -0.2, 0.05)),
            "Verdict: no difference to base survives Holm's correction for 2 comparisons.",
        ),
        (
            results(("a", 0.1, 0.01), ("b", -0.25, 0.049), ("c", 0.3, 0.5)),
            "Verdict: against base, after Holm's correction for 3 comparisons, a is worse by 0.1000, b is better by "
            "0.2500 bits per byte; the other one may be chance.",
        ),
        (
            results(("a", 0.1, 0.001), missing=["a/seed-2"]),
            "Verdict so far: against base, after Holm's correction for 1 comparison, a is worse by 0.1000 bits per "
            "byte.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(found, sentence):
    assert verdict(found) == sentence
