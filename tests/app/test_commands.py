"""What init, eval, compare, info and export say of a model, on a screen, as JSON and as a page."""

import errno
import json
import math
import re

import pytest
import torch
from command_line import TRAIN, refused

from pico import load
from pico.runs.folder import read_config, read_record


def test_export_writes_a_model_that_runs(cli, home):
    result = cli("export model a given --checkpoint -1")
    assert result.code == 0 and "MB" in result.err and result.out == ""
    assert cli("run given a --prompt ab --max-bytes 4").out.startswith("ab")


def test_init_says_what_it_made(cli, home):
    result = cli("init sized --preset tiny")
    sizes = {name: int(n.replace(",", "")) for name, n in re.findall(r"^(\w+) +([\d,]+)(?: |$)", result.out, re.M)}
    total = sizes.pop("parameters")
    parts = "embedding", "ngrams", "local_in", "router", "latent", "local_out", "heads", "chain"
    assert total == sum(sizes[p] for p in parts)
    assert all(word in result.out for word in ("forward", "training", "FLOP", "cache"))
    assert "picolm.py train sized" in result.err


@pytest.mark.parametrize("source", ["model", "model/a", "model/a/00000004", "./model/a/"])
def test_init_from_a_trained_model_begins_with_its_shape_and_weights(cli, home, tmp_path, source):
    new = tmp_path / "new"
    result = cli(f"init {new} --from {source}")
    assert result.code == 0 and f"{new}/pretrained" in result.err and f"train {new} my-run my-text.txt" in result.err
    assert read_config(new) == read_config(home / "model")
    before, after = (
        load(home / "model", "a", 4 if source.endswith("4") else "best").state_dict(),
        load(new).state_dict(),
    )
    assert all(torch.equal(x.half().float(), after[name].float()) for name, x in before.items())
    assert cli(f"run {new} --max-bytes 5 --device cpu --prompt", "the").out.startswith("the")


def test_a_training_begins_with_the_weights_that_its_model_came_with(cli, home, tmp_path):
    new = tmp_path / "new"
    assert cli(f"init {new} --from model/a").code == 0
    after = load(new).state_dict()
    settings = f"{TRAIN} --learning-rate 1e-12 --weight-decay 0 --max-steps 1 --device cpu"
    said = cli(f"train {new} own text.txt {settings}").err
    assert "starting from the weights of pretrained" in said
    assert read_record(new / "own")["base_weights"]["run"] == "pretrained"
    trained = load(new, "own").state_dict()
    assert all(torch.allclose(trained[n].float(), x.float(), atol=1e-6) for n, x in after.items() if "router" not in n)
    said = cli(f"train {new} other text.txt {settings} --base-weights own").err
    assert "starting from the weights of own" in said


def test_init_from_a_trained_model_may_change_what_no_weight_depends_on(cli, home, tmp_path):
    new = tmp_path / "new"
    assert cli(f"init {new} --from model --fb-att-window-size 7").code == 0
    assert read_config(new) == read_config(home / "model").model_copy(update={"fb_att_window_size": 7})
    before, after = load(home / "model", "a").state_dict(), load(new).state_dict()
    assert all(torch.equal(x.half().float(), after[name].float()) for name, x in before.items())


def test_strict_json_and_a_report_that_can_be_written(cli, home, monkeypatch):
    import pico.evaluate.analysis

    monkeypatch.setattr(
        pico.evaluate.analysis, "evaluate_run", lambda *_, **__: ({"a": [math.nan, 1.5], "b": {"c": math.inf}}, [])
    )
    assert json.loads(cli("eval model a text.txt --json").out) == {"a": [None, 1.5], "b": {"c": None}}
    monkeypatch.setattr(pico.evaluate.analysis, "evaluate_run", lambda *_, **__: 1 / 0)  # refused before scoring
    refused(cli("eval model a text.txt --report model"), "--report model: Is a directory")
    refused(cli("eval model a text.txt --report text.txt/page.html"), "no folder text.txt")
    (home / "page.html").unlink(missing_ok=True)
    with pytest.raises(ZeroDivisionError):
        cli("eval model a text.txt --report page.html")
    assert not (home / "page.html").exists()


def test_figures_are_shown_though_the_page_cannot_be_written(cli, monkeypatch):
    import pico.evaluate.analysis
    import pico.evaluate.tables

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    monkeypatch.setattr(pico.evaluate.analysis, "evaluate_run", lambda *_, **__: ({"bits_per_byte": 2.5}, []))
    monkeypatch.setattr(pico.evaluate.tables, "write_page", full)
    result = cli("eval model a text.txt --json --report page.html")
    assert (result.code, json.loads(result.out)) == (2, {"bits_per_byte": 2.5})
    assert result.err == "error: page.html: No space left on device\n"


def test_eval_reports_json_and_a_table(cli):
    line = "eval model a text.txt --max-bytes 600 --device cpu"
    report = json.loads(cli(line + " --json").out)
    wanted = "bits_per_byte bytes routed_fraction bits_per_byte_disable_latent context_len entropy_floor"
    assert set(wanted.split()) <= set(report)
    assert report["bytes"] == 600 and report["context_len"] == 32 and report["entropy_floor"] is None
    assert f"{report['bits_per_byte']:.4f}" in cli(line).out


def test_eval_shows_the_mixture_beside_the_models_own_figure(cli, home):
    (home / "talk.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. So. So. So."}]}\n' * 3
    )
    for text in "text.txt", "talk.jsonl --dataset-format chat":
        line = f"eval model a {text} --max-bytes 600 --device cpu"
        plain, both = json.loads(cli(f"{line} --json").out), json.loads(cli(f"{line} --json --mix-online").out)
        mixed = both.pop("mix_online")
        assert both == plain and mixed["difference"] == mixed["bits_per_byte"] - plain["bits_per_byte"] < 0
    shown = cli(f"{line} --mix-online").out
    assert f"{plain['bits_per_byte']:.4f}" in shown and f"mixed online {mixed['bits_per_byte']:.4f}" in " ".join(
        shown.split()
    )


def test_eval_runs_tasks_beside_a_text_or_alone(cli, home):
    (home / "talk.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}\n' * 6
    )
    line = "eval model a --tasks spelling=talk.jsonl --device cpu"
    row = {"exact_match": 0.0, "chance": 1.0, "questions": 2}
    assert json.loads(cli(f"{line} --json").out) == {"tasks": {"spelling": {"all": row, "questions": row}}}
    shown = cli(line).out
    assert "exact match" in shown and "bits per byte" not in shown
    found = json.loads(cli(f"{line} --json text.txt --max-bytes 200 --report page.html").out)
    assert found["tasks"]["spelling"]["all"] == row and found["bytes"] == 200
    assert "spelling: exact match, chance, questions" in (home / "page.html").read_text()


@pytest.mark.slow
def test_eval_writes_a_page_and_compare_a_table(cli, home):
    result = cli("eval model a text.txt --max-bytes 300 --device cpu --report page.html")
    assert "xz" in result.out and "page.html" in result.err
    assert "<html" in (home / "page.html").read_text()
    shape = json.loads((home / "model/model.json").read_text())
    plan = {"budget": {"steps": 1}, "seeds": 1, "validation_bytes": 100, "base": {"train": {"context_len": 32}}}
    plan["base"]["model"] = shape
    plan["configurations"] = [{"name": "one"}, {"name": "two", "train": {"learning_rate": 1e-3}}]
    (home / "plan.json").write_text(json.dumps(plan))
    result = cli("compare plan.json --dataset text.txt --out results --device cpu --quiet")
    assert result.code == 0 and "| two |" in result.out and "results/compare.md" in result.err
    assert result.out == (home / "results/compare.md").read_text()
    again = "compare plan.json --dataset text.txt --out results --device cpu --quiet"
    assert cli(again).out == cli(f"{again} --only two --seeds 1").out == result.out
    result = cli(f"{again} --dry-run")
    assert result.code == 0 and "In all: 0 runs, 0.0 minutes" in result.out
    refused(cli(f"{again} --only tow"), "did you mean two?")
    refused(cli(f"{again} --seeds none"), "--seeds", "expected how many")


def test_help_of_compare_shows_the_form_of_its_file(cli):
    text = " ".join(cli("compare --help").out.split())
    assert "validation_bytes: whole number; scored, from the start" in text
    assert "configurations: list of objects, required" in text


def test_info_knows_sizes_and_runs(cli, home):
    facts = json.loads(cli("info model --json").out)
    parts = load(home / "model", "a").parts()
    assert facts["parts"] == parts and facts["parameters"] == sum(parts.values())
    assert 0 < facts["training_flops_per_symbol"] < 3 * facts["forward_flops_per_symbol"]  # most steps teach one head
    assert facts["kv_cache_bytes"] > 0
    (run,) = facts["runs"]
    metrics = [json.loads(line) for line in (home / "model/a/metrics.jsonl").read_text().splitlines()]
    assert run["run"] == "a" and run["checkpoints"][:2] == [2, 4]
    assert run["best_bpb"] == min(line["validation_bpb"] for line in metrics if "validation_bpb" in line)
    shown = cli("info model a").out
    assert f"{run['best_bpb']:.4f}" in shown and f"{facts['parameters']:,}" in shown
