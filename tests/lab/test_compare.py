"""Comparisons: budgets are equal, nothing is trained twice, figures are those of the runs, mistakes are one line."""

import json
import math
from contextlib import ExitStack

import pytest
from training import shorten

from pico import PicoError
from pico.base.config import TrainConfig
from pico.base.files import writing
from pico.base.shapes import Shape
from pico.data.open import open_data
from pico.evaluate.score import score
from pico.lab import compare as module
from pico.lab import tables
from pico.lab.compare import run_experiment
from pico.lab.experiment import Budget, read_experiment
from pico.lab.tables import markdown
from pico.model.cost import flops_per_symbol
from pico.runs import checkpoint
from pico.runs.folder import create, lock, read_config
from pico.runs.metrics import read_metrics
from pico.runs.plots import mean_curve
from pico.train import loop as training

SMALL = dict(
    dim=16, next_tokens=1, att_q_heads=2, att_kv_heads=1, fb_num_blocks=1, fb_att_window_size=4,
    latent_num_blocks=1, latent_att_window_size=4, ngram_max=3, ngram_rows=64, ngram_dim=4,
)  # fmt: skip
QUICK = dict(context_len=32, batch_size=4, warmup_steps=2, precision="fp32")


@pytest.fixture(autouse=True)
def fast(monkeypatch, short_samples):
    monkeypatch.setattr("pico.lab.results.WRITTEN", 4)
    monkeypatch.setattr(tables, "plot_comparison", lambda *_: None)


def two_designs(folder):
    """An experiment of two configurations and two seeds on 40 short texts."""
    file = folder / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{i} cats sat on {i * 7 % 13} mats, purring."}) + "\n" for i in range(40))
    )
    return {
        "title": "Cats",
        "data": {"dataset": str(file), "validation_size": 0.25},
        "budget": {"steps": 4},
        "seeds": 2,
        "base": {"preset": "tiny", "model": SMALL, "train": QUICK},
        "configurations": [{"name": "threshold"}, {"name": "none", "model": {"router": "none"}}],
    }


@pytest.fixture
def values(tmp_path):
    return two_designs(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of that experiment, in one go, and the folder they are in."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr("pico.lab.results.WRITTEN", 4)
        return run(experiment(home, two_designs(home)), home / "out")[0], home


def experiment(tmp_path, values, **changes):
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps({**values, **changes}))
    return read_experiment(file)


def run(plan, folder, **settings):
    said = []
    found = run_experiment(plan, folder, device="cpu", quiet=True, log=said.append, **settings)
    return *found, said


@pytest.mark.slow
def test_a_full_disk_ends_it_at_once_and_the_same_command_goes_on(tmp_path, values, monkeypatch):
    """Whatever is left of the queue would train until its first checkpoint, and fail as well."""
    plan, save_file, full = experiment(tmp_path, values), checkpoint.save_file, True

    def save(tensors, file):
        if full and "seed-0" in str(file):
            raise OSError(28, "No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(PicoError, match=r"^\[1/4\] threshold seed-0: .*the disk is full.*give the same command again"):
        run(plan, tmp_path / "out")
    full = False
    results, stopped, _ = run(plan, tmp_path / "out")
    assert stopped == "finished" and not results["failed"] and not results["missing"]


def test_a_table_that_cannot_be_written_is_shown(tmp_path, values, monkeypatch):
    plan, said = experiment(tmp_path, values, seeds=1), []
    write = tables.write_json

    def full(file, value):
        with writing(file):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "write_json", full)
    with pytest.raises(PicoError, match=r"compare\.json: the disk is full"):
        run_experiment(plan, tmp_path / "out", device="cpu", quiet=True, log=said.append)
    assert "| threshold |" in said[-1] and "Verdict" in said[-1]
    monkeypatch.setattr(tables, "write_json", write)
    assert run(plan, tmp_path / "out")[1] == "finished"


def test_each_budget_becomes_the_limit_of_a_run():
    plain = {"context_len": 100, "batch_size": 5, "grad_accumulation_steps": 2}
    assert Budget(minutes=2).limit(plain) == {"max_minutes": 2}
    assert Budget(steps=7).limit(plain) == {"max_steps": 7}
    assert Budget(bytes=12_400).limit(plain) == {"max_steps": 12}
    assert Budget(flops=1e12).limit(plain) == {"max_flops": 1e12}


@pytest.mark.slow
def test_a_budget_of_flops_is_spent_by_what_each_run_routed(tmp_path, values):
    """`space` names another rate than it routes at, and is not charged for it."""
    routers = [{"name": name, "model": {"router": name}} for name in ("stride", "space", "none")]
    plan = experiment(tmp_path, values, budget={"flops": 8e7}, configurations=routers, seeds=1)
    results, stopped, _ = run(plan, tmp_path / "out")
    assert stopped == "finished" and not results["failed"]
    step, costs = 4 * 32, {}
    for row in results["configurations"]:
        (facts,), lines = row["runs"].values(), read_metrics(tmp_path / "out" / row["name"] / "seed-0/metrics.jsonl")
        assert lines[-2]["flops"] < 8e7 <= lines[-1]["flops"] == facts["flops"]
        assert facts["charged_flops_per_byte"] == lines[-1]["flops"] / len(lines) / step
        assert facts["executed_flops_per_byte"] == lines[-1]["executed_flops"] / len(lines) / step
        assert [check["flops"] for check in facts["curve"]] == [x["flops"] for x in lines if "validation_bpb" in x]
        assert 4 <= len(facts["curve"]) <= 12  # validations on the way
        costs[row["name"]] = facts["charged_flops_per_byte"], facts["executed_flops_per_byte"]
        shown = [f"{cost / 1e6:.2f}" for cost in costs[row["name"]]]
        assert f"| {' | '.join(shown)} |" in markdown(results)
    assert costs["none"][0] == costs["none"][1] < costs["stride"][0] == costs["stride"][1]
    assert costs["space"][0] < costs["space"][1]  # rows with fewer spaces leave slots empty
    settings = plan.settings(plan.configurations[0], 0)
    assert module.done(tmp_path / "out/stride/seed-0", settings) == 1
    dearer = settings.model_copy(update={"max_flops": 1e9})
    assert module.done(tmp_path / "out/stride/seed-0", dearer) < 0.2


def test_both_kinds_are_compared_at_equal_flops(tmp_path, values):
    shape = dict(dim=16, num_blocks=1, att_q_heads=2, att_kv_heads=1, head_dim=8, max_context=32, mlp_ratio_last=None)
    twins = [
        {"name": "pico", "preset": "tiny", "model": SMALL},
        {"name": "gpt", "preset": "gpt-bytes-tiny", "model": shape | {"gate": "query"}, "train": {"optimizer": "muon"}},
    ]
    plan = experiment(tmp_path, values, budget={"flops": 3e7}, base={"train": QUICK}, configurations=twins)
    results, stopped, _ = run(plan, tmp_path / "out")
    assert stopped == "finished" and not results["failed"] and not results["missing"]
    pico, gpt = results["configurations"]
    for row in (pico, gpt):
        assert all(3e7 <= facts["flops"] < 3.4e7 for facts in row["runs"].values())
    assert gpt["routed_fraction"]["mean"] == 0 and "p_holm" in gpt["against_first"]
    shape = plan.shape(plan.configurations[1])
    assert gpt["charged_flops_per_byte"]["mean"] == pytest.approx(flops_per_symbol(shape, 32)[1], rel=1e-6)
    assert read_config(tmp_path / "out/gpt") == shape and "| gpt |" in markdown(results)


@pytest.mark.parametrize(
    "twin, message",
    [
        ({"model": {"router": "none"}}, "router = 'none': a gpt has none"),
        ({"train": {"context_len": 999}}, "--context-len 999: this model sees 64 bytes"),
        ({"train": {"attention_backend": "dense"}}, "--attention-backend is for a Pico"),
    ],
)
def test_what_a_twin_has_not_is_said_before_anything_is_trained(tmp_path, values, twin, message):
    with pytest.raises(PicoError, match=f"b: .*{message}"):
        experiment(tmp_path, values, base={}, configurations=[{"name": "b", "preset": "gpt-bytes-tiny", **twin}])


def test_a_comparison_end_to_end(whole):
    results, home = whole
    plan, folder = read_experiment(home / "experiment.json"), home / "out"
    assert not results["failed"] and not results["missing"]
    assert results == json.loads(json.dumps(results)) | {"configurations": results["configurations"]}
    first, second = results["configurations"]
    assert first["runs"].keys() == second["runs"].keys() == {0, 1}
    assert second["parameters"] < first["parameters"]

    model = checkpoint.load(folder / "none", "seed-1")
    validation = open_data(plan.data_config(), 0)[1]
    bpb = score(model, validation, 32).bits_per_byte
    assert second["runs"][1]["bits_per_byte"] == pytest.approx(bpb)
    assert second["runs"][1]["bytes"] == checkpoint.read_state(folder / "none/seed-1/00000004")["bytes"]
    differences = [second["runs"][s]["bits_per_byte"] - first["runs"][s]["bits_per_byte"] for s in (0, 1)]
    against = second["against_first"]
    assert against["mean"] == pytest.approx(sum(differences) / 2) and 0 <= against["p"] <= 1
    low, high = against["document_interval"]
    assert low - 1e-3 <= against["mean"] <= high + 1e-3
    assert second["routed_fraction"]["mean"] == 0
    facts, lines = second["runs"][1], read_metrics(folder / "none/seed-1/metrics.jsonl")
    assert facts["training_bytes_per_second"] == facts["bytes"] / facts["seconds"]
    assert facts["peak_memory_mb"] == max(line["peak_memory_mb"] for line in lines if "peak_memory_mb" in line) > 50
    speeds = [run["generation_bytes_per_second"] for run in second["runs"].values()]
    assert second["generation_bytes_per_second"]["mean"] == pytest.approx(sum(speeds) / 2) and min(speeds) > 0
    assert second["table_parameters"] == math.prod(read_config(folder / "none").matrices["ngrams"][0])

    table = (folder / "compare.md").read_text()
    assert markdown(results) == table and f"{first['bits_per_byte']['mean']:.4f} ± " in table
    assert (folder / "compare.png").stat().st_size > 10_000
    assert json.loads((folder / "compare.json").read_text())["title"] == "Cats"


def test_models_of_tokens_share_a_tokenizer_made_from_the_training_text(tmp_path, values):
    small = dict(dim=16, num_blocks=1, head_dim=8, vocab_size=270, max_context=32)
    each = [{"name": name, "preset": "gpt-tiny", "model": small | {"mlp_ratio": x}} for name, x in (("a", 1), ("b", 2))]
    plan = experiment(tmp_path, values, base={"train": QUICK}, configurations=each, seeds=1)
    results, _, said = run(plan, tmp_path / "out")
    made = (tmp_path / "out" / "tokenizer-270.json").read_bytes()
    assert [(tmp_path / "out" / name / "tokenizer.json").read_bytes() for name in "ab"] == [made] * 2
    assert sum("tokenizer" in line for line in said) == 1
    model = checkpoint.load(tmp_path / "out" / "a", "seed-0")
    assert model.alphabet.size == 270 == model.config.vocabulary
    assert [row["runs"][0]["steps"] for row in results["configurations"]] == [4, 4]
    assert run(plan, tmp_path / "out")[0]["configurations"] == results["configurations"]  # nothing is trained again


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_a_stopped_one_goes_on(tmp_path, values, whole, monkeypatch):
    plan, folder, calls = experiment(tmp_path, values), tmp_path / "out", []
    real = training.train

    def stopping(path, name, data, config, resume, **rest):
        calls.append((path.name, name, resume))
        if len(calls) != 2:
            return real(path, name, data, config, resume=resume, **rest)
        with monkeypatch.context() as patch:  # a signal arrives in the second step
            step = training.Training.step

            def interrupted(self, prefetch):
                self.signals.counts[2] = int(self.state.step == 1)
                return step(self, prefetch)

            patch.setattr(training.Training, "step", interrupted)
            return real(path, name, data, config, resume=resume, **rest)

    monkeypatch.setattr(training, "train", stopping)
    assert run(plan, folder)[1] == "interrupted"
    assert calls == [("threshold", "seed-0", False), ("none", "seed-0", False)]
    assert checkpoint.newest(folder / "none/seed-0")[0].name == "00000002"
    results, stopped, _ = run(plan, folder)
    assert stopped == "finished"
    assert calls[2:] == [("none", "seed-0", True), ("threshold", "seed-1", False), ("none", "seed-1", False)]
    for ours, theirs in zip(results["configurations"], whole[0]["configurations"]):
        for seed in (0, 1):
            assert ours["runs"][seed]["bits_per_byte"] == theirs["runs"][seed]["bits_per_byte"]
    monkeypatch.setattr("pico.lab.results.traces", None)  # nor is it scored again
    assert run(plan, folder)[0]["configurations"] == results["configurations"]
    assert len(calls) == 5


def test_the_clock_ends_a_run_of_minutes(tmp_path, values):
    plan = experiment(tmp_path, values, budget={"minutes": 1})
    settings, folder = plan.settings(plan.configurations[0], 0), tmp_path / "m"
    assert settings.max_minutes == 1 and settings.max_steps is None
    create(folder, plan.shape(plan.configurations[0]))
    from pico.model.pico import Pico

    for step, seconds, done in ((5, 45.0, 0.75), (6, 60.1, 1)):
        spent = {"seconds": seconds, "flops": 0}
        checkpoint.save(folder / "r", step, Pico(read_config(folder)), [], spent)
        assert module.done(folder / "r", settings) == done
    assert module.done(folder / "other", settings) == 0


def test_a_failing_run_is_named_and_the_others_go_on(tmp_path, values, monkeypatch):
    real = training.train

    def failing(path, name, *rest, **settings):
        if (path.name, name) == ("none", "seed-0"):
            raise PicoError("10 steps in a row had a loss that is not finite")
        return real(path, name, *rest, **settings)

    monkeypatch.setattr(training, "train", failing)
    results, stopped, said = run(experiment(tmp_path, values), tmp_path / "out")
    assert stopped == "finished" and list(results["failed"]) == ["none/seed-0"]
    assert any("none seed-0: failed: 10 steps" in line for line in said)
    second = results["configurations"][1]
    assert list(second["runs"]) == [1] and second["against_first"]["p"] is None
    assert "failed: none/seed-0" in (tmp_path / "out/compare.md").read_text()


@pytest.mark.slow
def test_what_another_process_trains_is_left_to_it(tmp_path, values, whole, monkeypatch):
    """It holds the lock of the first run until the others are done, and a while longer; then it dies, untrained."""
    plan, folder, calls, held = experiment(tmp_path, values), tmp_path / "out", [], ExitStack()
    real = training.train
    held.enter_context(lock(folder / "threshold/seed-0"))

    def counted(path, name, *rest, **settings):
        calls.append((path.name, name))
        if len(calls) == 7:
            held.close()
        return real(path, name, *rest, **settings)

    monkeypatch.setattr(training, "train", counted)
    monkeypatch.setattr(module, "WAIT", 0)
    results, stopped, said = run(plan, folder)
    first, rest = ("threshold", "seed-0"), [("none", "seed-0"), ("threshold", "seed-1"), ("none", "seed-1")]
    assert stopped == "finished" and calls == [first, *rest, first, first, first]
    said = [line for line in said if line.startswith("[")]
    assert [line for line in said if "seed-0: another" in line or "threshold seed-0: training" in line] == said[:2]
    assert not results["failed"]
    for ours, theirs in zip(results["configurations"], whole[0]["configurations"]):
        for seed in (0, 1):
            assert ours["runs"][seed]["bits_per_byte"] == theirs["runs"][seed]["bits_per_byte"]


def test_runs_of_another_experiment_are_refused(tmp_path, values):
    folder = tmp_path / "out"
    run(experiment(tmp_path, values, seeds=1), folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(PicoError, match=r"another experiment \(max_steps 4 -> 5"):
        run(experiment(tmp_path, values, seeds=1, budget={"steps": 5}), folder)
    other = {**values["base"], "model": {**SMALL, "dim": 32}}
    with pytest.raises(PicoError, match=r"another experiment \(dim 16 -> 32"):
        run(experiment(tmp_path, values, seeds=1, base=other), folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"budget": {}}, "budget: .*one of minutes, flops, steps, bytes, not none"),
        ({"budget": {"minutes": 1, "steps": 2}}, r"not \['minutes', 'steps'\]"),
        ({"budget": {"hours": 1}}, "unknown key 'budget.hours'"),
        ({"colour": 1}, "unknown key 'colour': valid: title, data, budget, seeds,"),
        ({"seed": 1}, "unknown key 'seed': did you mean seeds\\? valid: title, "),
        ({"budget": {"minute": 1}}, "'budget.minute': did you mean minutes\\? valid: minutes, flops, steps, bytes"),
        (
            {"configurations": [{"name": "a"}, {"modell": {}}]},
            "'configurations.1.modell': did you mean model\\? valid: name, preset, model, train",
        ),
        ({"configurations": []}, "configurations"),
        (
            {"configurations": [{"name": "a", "model": {"width": 3}}]},
            "a: ModelConfig: unknown key 'width': valid: kind, dim, next_tokens, ",
        ),
        (
            {"configurations": [{"name": "a", "model": {"dims": 3}}]},
            "unknown key 'dims': did you mean dim\\? valid: kind, dim",
        ),
        ({"configurations": [{"name": "a", "train": {"lr": 3}}]}, "a: TrainConfig: unknown key 'lr'"),
        ({"configurations": [{"name": "a", "preset": "huge"}]}, "a: unknown preset 'huge'"),
        ({"configurations": [{"name": "a"}, {"name": "a"}]}, "same name"),
        ({"configurations": [{"name": "../a"}]}, "folder name"),
        ({"configurations": [{"name": "a", "train": {"max_steps": 3}}]}, "a: train sets max_steps"),
        ({"seeds": [1, 1]}, "expected different numbers"),
        (
            {"budget": {"bytes": 10**6}, "base": {}, "configurations": [{"name": "a", "preset": "gpt-tiny"}]},
            "a: a budget of bytes needs models of bytes",
        ),
        ({"data": {"file": "x"}}, "data: DataConfig: unknown key 'file'"),
        ({"base": {"model": {"dim": -4}}, "configurations": [{"name": "a"}, {"name": "b"}]}, "a: .*b: "),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(tmp_path, values, changes, message):
    with pytest.raises(PicoError, match=message) as caught:
        experiment(tmp_path, values, **changes)
    assert "\n" not in str(caught.value) and "experiment.json" in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(PicoError, match=r"cannot read .*: No such file"):
        read_experiment(tmp_path / "none.json")
    for text in ("{", "[]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PicoError, match="as JSON"):
            read_experiment(tmp_path / "bad.json")


def test_the_mean_curve_averages_what_all_seeds_have():
    def curve(score, *pairs):
        return {"bits_per_byte": score, "curve": [{"bytes": x, "bits_per_byte": y} for x, y in pairs]}

    runs = [curve(1.0, (10, 3.0), (20, 2.0), (30, 1.0)), curve(2.0, (12, 5.0), (30, 1.0))]
    assert mean_curve(runs, "bytes") == [(11.0, (3.0 + 2 * 5.0) / 2)]  # the second was scored on a harder text


def test_the_shipped_experiments_are_valid():
    from pathlib import Path

    experiments = Path(__file__).parents[2] / "experiments"
    files = [*experiments.glob("*/experiment.json"), *experiments.glob("twins/*.json")]
    assert len(files) >= 3
    for file in files:
        plan = read_experiment(file)
        for each in plan.configurations:
            shape, settings = plan.shape(each), plan.settings(each, 0)
            assert isinstance(shape, Shape) and isinstance(settings, TrainConfig)
            assert settings.max_flops == plan.budget.flops


@pytest.mark.slow
def test_the_floor_is_that_of_the_stories_that_are_scored(tmp_path, values):
    from pico.data.corpus import story_documents
    from pico.data.stories import entropy_floor

    values["configurations"] = values["configurations"][:1]
    data = {"dataset": "stories", "validation_size": 10}
    results, _, _ = run(experiment(tmp_path, values, data=data, seeds=1, validation_bytes=2000), tmp_path / "out")
    stories = story_documents(0, 0, 10).first(2000).stories
    assert 0 < len(stories) < 10 and results["entropy_floor"] == pytest.approx(entropy_floor(stories))
