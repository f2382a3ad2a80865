"""The command line, in this process: exit codes, what goes to stdout and what to stderr, flags, bad input."""

import ast
import base64
import errno
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer.main

import pico
import picolm
from pico import generate, load
from pico.app import samples
from pico.app.flags import DATA, MODEL, TRAINING
from pico.base.config import DataConfig, TrainConfig
from pico.base.shapes import KINDS, preset
from pico.base.symbols import visible
from pico.decode import generation
from pico.runs import folder
from pico.runs.folder import checkpoints, read_config, read_record

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(picolm.app).commands
TEXT = "the cat sat on the mat and the dog sat on the cat; "
SMALL = "--dim 32 --next-tokens 3 --att-q-heads 2 --att-kv-heads 1 --fb-num-blocks 1 --fb-att-window-size 6 "
SMALL += "--latent-num-blocks 1 --latent-att-window-size 8 --router stride --ngram-max 3 --ngram-rows 64 --ngram-dim 4"
TRAIN = "--context-len 32 --batch-size 4 --max-steps 4 --checkpoint-interval 2 --warmup-steps 1 --precision fp32"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with text, a model and a run of four steps, made through the command line."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT * 40)
    (home / "rows.jsonl").write_text('{"n": 1, "story": "one"}\n{"n": 2, "story": "two"}\n')
    (home / "empty.txt").write_text("")
    assert picolm.main(["init", f"{home}/model", *SMALL.split()]) == 0
    assert picolm.main(["train", f"{home}/model", "a", f"{home}/text.txt", *TRAIN.split(), "--device", "cpu"]) == 0
    return home


@pytest.fixture
def cli(home, capsysbinary, monkeypatch):
    """cli("run model a --seed 1") -> its exit code, stdout (as text, and `raw`) and stderr; paths start at `home`."""
    monkeypatch.chdir(home)

    def call(line: str, *more: str):
        capsysbinary.readouterr()
        code = picolm.main([*line.split(), *more])
        raw, err = capsysbinary.readouterr()
        return SimpleNamespace(code=code, out=raw.decode(errors="replace"), raw=raw, err=err.decode())

    return call


def refused(result, *words: str) -> None:
    """One line on stderr that says these words, exit code 2, nothing on stdout."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.count("\n") == 1 and result.err.startswith("error: "), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, result.err


# --- help -------------------------------------------------------------------------------------------------------------


def options_of(command: str):
    return [p for p in COMMANDS[command].params if p.param_type_name == "option"]


def test_plain_help_lists_the_commands(cli):
    for line in ("", "--help", "-h"):
        result = cli(line)
        assert result.code == 0 and result.err == ""
        assert all(re.search(rf"│ {name} ", result.out) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_and_default(cli, command):
    out = cli(f"{command} --help").out
    plain = re.sub(r"[│\s]+", " ", out)
    assert "…" not in out
    for option in options_of(command):
        assert all(f"{name} " in plain for name in option.opts)
        assert option.help
        if option.default is not None and not isinstance(option.default, bool):
            assert f"[default: {option.default}]" in plain, option.name


def test_help_is_grouped(cli):
    assert {"Length", "Batch", "Optimizer", "Data", "Machine"} <= set(re.findall(r"╭─ (\w+)", cli("train --help").out))


def test_help_imports_nothing_slow():
    slow = {"torch", "numpy", "datasets", "pyarrow", "matplotlib", "accelerate"}
    code = "import sys, pico, picolm; picolm.main(['train', '--help']); "
    code += f"sys.exit(str({slow} & set(sys.modules)) * bool({slow} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_export_writes_a_model_that_runs(cli, home):
    result = cli("export model a given --checkpoint -1")
    assert result.code == 0 and "MB" in result.err and result.out == ""
    assert cli("run given a --prompt ab --max-bytes 4").out.startswith("ab")


# --- flags are the configs' fields ------------------------------------------------------------------------------------


def test_every_field_can_be_set():
    assert set(DATA.parameters) == set(DataConfig.model_fields) - {"dataset"}
    for command, options in (("init", MODEL), ("train", TRAINING)):
        (settings,) = [o for o in options_of(command) if "--set" in o.opts]
        named = set(re.findall(r"\w+", settings.help.partition(": ")[2]))
        assert named == set(options.fields) - set(options.parameters) > set()


def test_settings_without_a_flag_arrive(cli, home):
    assert cli("init set --preset tiny --set qk_norm=false --set dim=64 --latent-num-blocks 2").code == 0
    assert read_config(home / "set") == preset("tiny", qk_norm=False, dim=64, latent_num_blocks=2)
    line = "train model set text.txt --device cpu --quiet --set gradient_clip=0.5 --set soap_exact=true"
    assert cli(f"{line} {TRAIN} --max-steps 1").code == 0
    training = read_record(home / "model" / "set")["train"]
    assert (training["gradient_clip"], training["soap_exact"], training["max_steps"]) == (0.5, True, 1)
    shutil.rmtree(home / "model" / "set")


def test_the_help_of_train_fits_a_screen(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = cli("train --help").out
    assert max(map(len, out.splitlines())) <= 100 and out.count("\n") <= 72


SPECIFIED = {
    "init": "preset dim next-tokens att-q-heads att-kv-heads fb-num-blocks fb-att-window-size latent-capacity-factor "
    "latent-num-blocks latent-att-window-size router num-blocks head-dim vocab-size max-context set",
    "train": "dataset-column-name dataset-train-file dataset-validation-file dataset-train-split dataset-format "
    "dataset-validation-split dataset-validation-size streaming document-separator context-len batch-size "
    "learning-rate schedule weight-decay epochs max-steps max-minutes warmup-steps grad-accumulation-steps quiet "
    "validation-interval checkpoint-interval sample-interval keep-last seed resume base-weights optimizer "
    "tracker attention-backend set",
    "run": "checkpoint prompt prompt-file interactive temperature top-k top-p min-p repetition-penalty max-bytes "
    "num-samples seed speculative disable-latent show-router-decisions stats device",
    "eval": "dataset-column-name dataset-format dataset-validation-split checkpoint json",
    "info": "json",
    "demo": "minutes",
}


@pytest.mark.parametrize("command", SPECIFIED)
def test_the_flags_people_know(command):
    assert {f"--{name}" for name in SPECIFIED[command].split()} <= {n for o in options_of(command) for n in o.opts}


def test_a_typed_flag_beats_the_preset_even_with_its_own_default(cli, home):
    assert cli("init shape --preset s --dim 128").code == 0
    expected = preset("s", dim=128)
    assert expected != preset("s")
    assert read_config(home / "shape") == expected


def test_data_and_training_flags_arrive(cli, monkeypatch):
    import pico.train.loop

    seen = []
    finished = SimpleNamespace(exit_code=143)
    monkeypatch.setattr(pico.train.loop, "train", lambda *arguments: seen.append(arguments) or finished)
    line = "train model b text.txt --dataset-column-name story --document-separator X --streaming --epochs 2 "
    line += "--learning-rate 0.5 --base-weights a --device cpu --quiet --set compile=true"
    assert cli(line).code == 143
    path, run, data, training, *rest = seen[0]
    assert (str(path), run) == ("model", "b")
    assert data == DataConfig(dataset="text.txt", column_name="story", document_separator="X", streaming=True)
    assert training == TrainConfig(epochs=2, learning_rate=0.5, compile=True)
    assert rest == [False, "a", True, "cpu"]


def test_a_preset_brings_its_recipe_and_flags_win(cli, home, monkeypatch):
    import pico.train.loop

    seen = []
    monkeypatch.setattr(pico.train.loop, "train", lambda *args: seen.append(args[3]) or SimpleNamespace(exit_code=0))
    cli("init chat --preset picochat --dim 192 --num-blocks 1")
    said = cli("train chat r text.txt --learning-rate 0.5").err
    assert "of recipe.json: optimizer muon, muon_step original, embedding_rate 0.4" in said
    assert "learning_rate" not in said
    assert cli("train chat r text.txt --quiet --set head_rate=0.25").err == ""
    rates = [(each.learning_rate, each.embedding_rate, each.head_rate) for each in seen]
    assert rates == [(0.5, 0.4, 0.008), (0.02, 0.4, 0.25)]
    assert seen[0].schedule == "warmdown" and seen[0].context_len == 1024
    (home / "chat" / "recipe.json").write_text('{"rate": 1}')
    refused(cli("train chat r text.txt"), "chat/recipe.json: TrainConfig: unknown key 'rate'")
    cli("init plain --preset tiny")
    assert sorted(p.name for p in (home / "plain").iterdir()) == ["model.json"]


def test_resume_keeps_the_settings_of_the_run(cli, home):
    shown = cli("train model a text.txt --resume --max-steps 6")
    assert shown.code == 0, shown.err
    training = read_record(home / "model" / "a")["train"]
    assert (training["context_len"], training["batch_size"], training["max_steps"]) == (32, 4, 6)
    assert [int(p.name) for p in checkpoints(home / "model" / "a")][-1] == 6


# --- the commands -----------------------------------------------------------------------------------------------------


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

    settings = f"{TRAIN} --learning-rate 1e-12 --weight-decay 0 --max-steps 1 --device cpu"
    said = cli(f"train {new} own text.txt {settings}").err
    assert "starting from the weights of pretrained" in said
    assert read_record(new / "own")["base_weights"]["run"] == "pretrained"
    trained = load(new, "own").state_dict()
    assert all(torch.allclose(trained[n].float(), x.float(), atol=1e-6) for n, x in after.items() if "router" not in n)
    said = cli(f"train {new} other text.txt {settings} --base-weights own").err
    assert "starting from the weights of own" in said


def test_strict_json_and_a_report_that_can_be_written(cli, home, monkeypatch):
    import pico.evaluate.analysis

    monkeypatch.setattr(
        pico.evaluate.analysis, "evaluate_run", lambda *_: ({"a": [math.nan, 1.5], "b": {"c": math.inf}}, [])
    )
    assert json.loads(cli("eval model a text.txt --json").out) == {"a": [None, 1.5], "b": {"c": None}}
    monkeypatch.setattr(pico.evaluate.analysis, "evaluate_run", lambda *_: 1 / 0)  # refused before anything is scored
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

    monkeypatch.setattr(pico.evaluate.analysis, "evaluate_run", lambda *_: ({"bits_per_byte": 2.5}, []))
    monkeypatch.setattr(pico.evaluate.tables, "write_page", full)
    result = cli("eval model a text.txt --json --report page.html")
    assert (result.code, json.loads(result.out)) == (2, {"bits_per_byte": 2.5})
    assert result.err == "error: page.html: No space left on device\n"


def test_version(cli):
    assert cli("--version").out == f"picolm {pico.__version__}\n"


def test_stdout_is_the_prompt_and_the_text_and_nothing_else(cli, home):
    result = cli("run model a --max-bytes 40 --seed 3 --device cpu --prompt", "the dög")
    steps = list(generate(load(home / "model", "a"), "the dög", max_bytes=40, seed=3, echo=True))
    assert result.raw == b"".join(s.bytes for s in steps)
    assert result.out.startswith("the dög") and result.err == ""


def test_a_terminal_gets_pictures_and_a_pipe_the_bytes(cli, home, monkeypatch):
    data = b"\x1b[2J the \xff cat\r\n\t\xc2\x9b"
    (home / "odd.bin").write_bytes(data)
    line = "run model a --max-bytes 30 --device cpu --prompt-file odd.bin --temperature 2"
    piped = cli(line)
    assert piped.raw.startswith(data) and len(piped.raw) <= len(data) + 30
    marked = cli(line + " --show-router-decisions").raw
    assert marked.count(b"_") > piped.raw.count(b"_") and marked.replace(b"_", b"") == piped.raw.replace(b"_", b"")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = cli(line)
    assert shown.out.startswith("␛[2J the \ufffd cat␍\n\t␦") and shown.out.endswith("\n")
    assert shown.raw.decode() == visible(piped.raw.decode(errors="replace")) + "\n"  # and it is valid UTF-8


def test_samples_as_json(cli, home):
    (home / "odd.bin").write_bytes(b"the \xff")
    line = "run model a --max-bytes 20 --device cpu --num-samples 2 --json"
    steps = [[], []]
    for step in generate(load(home / "model", "a"), "the", num_samples=2, max_bytes=20):
        steps[step.row].append(step)
    objects = [json.loads(text) for text in cli(line, "--prompt", "the").out.splitlines()]
    for found, row in zip(objects, steps, strict=True):
        data = b"".join(step.bytes for step in row)
        assert found["prompt"] == "the" and "prompt_base64" not in found and len(found["prompt_routed"]) == 3
        assert found["text"] == data.decode(errors="replace")
        assert (
            base64.b64decode(found["text_base64"]) == data if "text_base64" in found else found["text"].encode() == data
        )
        assert found["text_routed"] == [step.routed for step in row]
        assert found["ended"] in ("end", "length") and found["stats"]["bytes"] == sum(map(len, steps))
    (odd, _) = (json.loads(text) for text in cli(line + " --prompt-file odd.bin").out.splitlines())
    assert odd["prompt"] == "the \ufffd" and base64.b64decode(odd["prompt_base64"]) == b"the \xff"


def test_a_text_ends_before_a_stop_text(cli):
    line = "run model a --max-bytes 60 --device cpu --temperature 0 --num-samples 2 --prompt the"
    whole = cli(line).raw.split(b"\n\n")[0].removeprefix(b"the")
    wanted = whole[: whole.index(whole[5:7])]
    stop = whole[5:7].decode("utf-8", "surrogateescape")  # as the system hands over bytes that are no UTF-8
    assert cli(line, "--stop", "nowhere", "--stop", stop).raw == b"\n\n".join([b"the" + wanted] * 2)
    assert cli(line, "--stop", r"\n\n", "--json", "--stop", stop).out.count('"ended": "stop"') == 2


def test_router_decisions_are_underscores(cli, home):
    marked = cli("run model a --max-bytes 40 --device cpu --show-router-decisions --prompt", "abc").out
    plain = cli("run model a --max-bytes 40 --device cpu --prompt", "abc").out
    steps = list(generate(load(home / "model", "a"), "abc", max_bytes=40, echo=True))
    assert marked.replace("_", "") == plain.replace("_", "")
    assert marked.count("_") - plain.count("_") == sum(s.routed for s in steps) > 0  # ASCII and lone bytes alike


def test_disable_latent_routes_nothing(cli):
    line = "run model a --max-bytes 30 --device cpu --disable-latent --show-router-decisions --temperature 0"
    assert "_" not in cli(line, "--prompt", "the ").out


def test_prompts_from_a_file_and_from_stdin_hold_any_bytes(cli, home, monkeypatch):
    data = b"the \xff cat\n"
    (home / "prompt.bin").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    a = cli("run model a --max-bytes 9 --device cpu --prompt-file prompt.bin").raw
    b = cli("run model a --max-bytes 9 --device cpu --prompt -").raw
    assert a == b and a.startswith(data)


def test_a_prompt_without_end_is_refused(cli, monkeypatch):
    monkeypatch.setattr(samples, "LONGEST_PROMPT", 1000)
    monkeypatch.setattr(generation, "LONGEST_PROMPT", 1000)
    for file in ("text.txt", "/dev/zero") if Path("/dev/zero").exists() else ("text.txt",):
        refused(cli(f"run model a --device cpu --prompt-file {file}"), "1,001 bytes or more, expected at most 1,000")


def test_samples_are_a_batch_with_an_empty_line_between(cli, home):
    raw = cli("run model a --num-samples 3 --max-bytes 20 --device cpu --prompt", "the").raw
    rows = [bytearray() for _ in range(3)]
    for step in generate(load(home / "model", "a"), "the", num_samples=3, max_bytes=20, echo=True):
        rows[step.row] += step.bytes
    assert len({bytes(row) for row in rows}) > 1
    assert raw == b"\n\n".join(rows)


def test_stats_are_one_json_object_on_stderr(cli):
    stats = json.loads(cli("run model a --max-bytes 25 --device cpu --stats --num-samples 2").err)
    names = "bytes symbols seconds bytes_per_second forwards bytes_per_forward acceptance routed_fraction"
    assert set(stats) == set(names.split())
    assert stats["bytes"] <= 50 and len(stats["acceptance"]) == 4  # two heads, and the last one twice more
    plain = json.loads(cli("run model a --max-bytes 25 --device cpu --stats --no-speculative").err)
    assert plain["acceptance"] == [] and plain["bytes_per_forward"] <= 1


def test_the_only_run_needs_no_name(cli):
    assert cli("run model --max-bytes 5 --device cpu").out == cli("run model a --max-bytes 5 --device cpu").out


def test_eval_reports_json_and_a_table(cli):
    line = "eval model a text.txt --max-bytes 600 --device cpu"
    report = json.loads(cli(line + " --json").out)
    wanted = "bits_per_byte bytes routed_fraction bits_per_byte_disable_latent context_len entropy_floor"
    assert set(wanted.split()) <= set(report)
    assert report["bytes"] == 600 and report["context_len"] == 32 and report["entropy_floor"] is None
    assert f"{report['bits_per_byte']:.4f}" in cli(line).out


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
    shown = facts["training_flops_per_symbol"] / 3 - facts["forward_flops_per_symbol"]
    assert shown == 2 * parts["chain"] > 0 < facts["kv_cache_bytes"]  # drafting needs the chain, one forward does not
    (run,) = facts["runs"]
    metrics = [json.loads(line) for line in (home / "model/a/metrics.jsonl").read_text().splitlines()]
    assert run["run"] == "a" and run["checkpoints"][:2] == [2, 4]
    assert run["best_bpb"] == min(line["validation_bpb"] for line in metrics if "validation_bpb" in line)
    shown = cli("info model a").out
    assert f"{run['best_bpb']:.4f}" in shown and f"{facts['parameters']:,}" in shown


@pytest.mark.parametrize("minutes, speed, said", [(3, 0.1, "about 17 steps"), (3, 5, ""), (40, 0.1, "about 239 steps")])
def test_a_training_too_short_to_learn_says_so_once(minutes, speed, said, capsys):
    from pico.app.demo import PaceDisplay

    pace = PaceDisplay(Path("models/demo"), minutes)
    line = dict(loss=1.0, train_bpb=1.0, perplexity=2.0, kB_per_s=1.0, routed=0.2)
    for step in range(1, int(minutes * 60 * speed)):
        pace.step({**line, "step": step, "seconds": 9 + step / speed}, 0.1, None, None)
    out = " ".join(capsys.readouterr().err.split())
    assert out.count("1,000 steps") == bool(said) == pace.short
    assert said in out and (not said or "demo models/demo --minutes 167" in out)


@pytest.mark.slow
def test_the_demo_trains_writes_and_explains(cli, home, monkeypatch):
    from pico.app import demo
    from pico.data import corpus

    monkeypatch.setattr(corpus, "PER_EPOCH", 20)
    monkeypatch.setattr(corpus, "VALIDATION", 5)
    monkeypatch.setattr(demo, "preset", lambda name: read_config(home / "model"))
    small = TrainConfig(max_steps=20, batch_size=2, context_len=32)  # however fast the machine is
    monkeypatch.setattr(demo, "TrainConfig", SimpleNamespace(build=lambda max_minutes: small))
    monkeypatch.setattr(demo, "ENOUGH", 10**6)
    for run, scored in (("run-1", 3000), ("run-2", 60)):  # a second demo adds a run; no story has 60 bytes
        monkeypatch.setattr(demo, "SCORED", scored)
        result = cli("demo shown --minutes 0.005")
        assert result.code == 0, result.err
        assert result.out.replace("_", "").count("Once upon a time") == 3 and "_" in result.out
        assert "1,000,000 steps" in result.err and "The model that comes with Pico" in result.err
        assert "bits per byte" in result.err and "train shown my-run" in result.err
        assert ("entropy of their grammar" in result.err) == (scored > 60)
        for name in ("loss.png", "report.html", "metrics.jsonl"):
            assert (home / "shown" / run / name).stat().st_size > 0


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    # folders
    "info nowhere": "no model at nowhere",
    "train nowhere b text.txt": "init nowhere",
    "run nowhere": "no model",
    "run model zzz": "there are: a",
    "eval model zzz text.txt": "no run 'zzz'",
    "init model": "already exists",
    "train model a text.txt": "--resume",
    "train model new text.txt --resume": "there are: a",
    "train model ../b text.txt": "one plain folder name",
    "train model model.json text.txt": "one plain folder name",
    "train model b/c text.txt --resume": "one plain folder name",
    "run model ../model": "one plain folder name",
    "eval model a/00000002 text.txt": "one plain folder name",
    "export model ./a out": "one plain folder name",
    "info model ..": "one plain folder name",
    "train model a text.txt --resume --base-weights a": "leave one of them out",
    "run model a --checkpoint 77": "it has: 2",
    "run model a --checkpoint x": "step number",
    "train model b text.txt --base-weights zzz": "zzz",
    # shapes
    "init b --preset huge": "xs, tiny, s, m",
    "init b --dim -3 --fb-att-window-size 0": "--fb-att-window-size = 0",
    "init b --att-q-heads 7": "--att-kv-heads = 3: --att-q-heads = 7 is not divisible by it",
    "init b --latent-capacity-factor 1.5": "less than or equal to 1",
    "init b --latent-capacity-factor 0": "error: --latent-capacity-factor = 0.0",
    "init b --router clever": "threshold",
    "init b --set breadth=1": "--set breadth=1: no 'breadth': valid: kind, dim, next_tokens, ",
    "init b --set qknorm=0": "did you mean qk_norm?",
    "init b --set qk_norm": "expected KEY=VALUE",
    "init b --set qk_norm=often": "qk_norm = 'often'",
    "init b --dim 64 --set dim=32": "dim was given before",
    "init b --set dim=64 --set dim=32": "dim was given before",
    "init b --from model --set dim=64": "leave out",
    "init b --no-qk-norm": "--no-qk-norm",
    "train model b text.txt --set gradient_clip=-1": "gradient_clip = '-1'",
    "train model b text.txt --set qk_norm=false": "valid: context_len, ",
    "train model b text.txt --router none": "--router",
    "train model b text.txt --set optimizer=soap-exact": "'adamw' or 'muon'",
    "bench optimizer --set speed=1": "valid: kind, dim, ",
    # data
    "train model b nothing.txt": "nothing.txt",
    "train model b text.txt --dataset-csv-separator ab": "error: --dataset-csv-separator = 'ab'",
    "train model b empty.txt": "empty",
    "train model b rows.jsonl --dataset-column-name prose": "story",
    "train model b rows.jsonl --dataset-column-name n": "n",
    "eval model a nothing.txt": "nothing.txt",
    # numbers
    "train model b text.txt --learning-rate -1": "error: --learning-rate = -1.0",
    "train model b text.txt --max-steps 0 --batch-size=0": "--batch-size = 0",
    "train model b text.txt --weight-decay nan": "--weight-decay = nan",
    "train model b text.txt --optimizer sgd": "'adamw' or 'muon'",
    "train model b text.txt --attention-backend fast": "dense",
    "run model a --temperature -1": "error: --temperature = ",
    "run model a --top-p 0": "error: --top-p = ",
    "run model a --top-p 1.5": "error: --top-p = ",
    "run model a --top-k -2": "error: --top-k = ",
    "run model a --max-bytes 0": "error: --max-bytes = ",
    "run model a --repetition-penalty 0.5": "error: --repetition-penalty = ",
    "run model a --interactive --prompt a": "error: --interactive asks for one prompt after the other",
    "run model a --num-samples 0": "error: --num-samples = ",
    "run model a --num-samples 100000000000": "error: --num-samples = ",
    "run model a --max-bytes 100000000000000000000": "error: --max-bytes = ",
    "run model a --temperature 1e308": "error: --temperature = ",
    "run model a --temperature nan": "error: --temperature = ",
    "run model a --top-k 99999999999": "error: --top-k = ",
    "run model a --json --show-router-decisions": "--show-router-decisions",
    "run model a --device meta": "meta",
    "eval model a text.txt --device meta": "meta",
    "train model b text.txt --device meta": "meta",
    "init b --ngram-dim 100000000000000000000000": "--ngram-dim",
    "init b --ngram-dim 1e23": "--ngram-dim",
    "init b --next-tokens 1000": "--next-tokens",
    "init b --router stride --latent-capacity-factor 0.4": "--latent-capacity-factor of 1/k, not 0.4: try 0.5 or",
    "eval model a text.txt --context-len 0": "--context-len = 0",
    "eval model a text.txt --report nowhere/page.html": "no folder nowhere",
    "compare nothing.json": "experiments/",
    "compare rows.jsonl": "JSON",
    "demo --minutes 0": "--minutes = 0",
    "export model nothing out": "nothing",
    "export model a model": "already exists",
    # prompts, devices
    "run model a --prompt x --prompt-file text.txt": "choose one",
    "run model a --prompt-file nothing.txt": "nothing.txt",
    "run model a --device abacus": "abacus",
    # words that mean nothing here
    "init": "path",
    "init b --dim wide": "--dim",
    "run model a --loud": "--loud",
    "train model b text.txt --learning-rat 1": "--learning-rate",
    "dance": "no such command 'dance' (see python picolm.py --help)",
    "trian model": "did you mean 'train'? (see python picolm.py --help)",
    "init b --from nowhere": "no model at --from nowhere",
    "init b --from rows.jsonl": "--from rows.jsonl",
    "init b --from model/zzz": "there are: a",
    "init b --from model --dim 64": "leave out",
    "init model --from model": "already exists",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_code_2(cli, home, line):
    before = sorted(home.rglob("*"))
    refused(cli(line), BAD[line])
    assert [p for p in sorted(home.rglob("*")) if p not in before and p.is_file() and p.name != ".lock"] == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"dim": 32, "depth": 9}', '{"dim": "wide"}'])
def test_a_broken_model_json_is_one_line(cli, home, content):
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "model.json").write_text(content)
    for line in ("info broken", "run broken", "train broken b text.txt"):
        refused(cli(line), "broken/model.json")


def test_a_broken_train_json_is_one_line(cli, home):
    (home / "model" / "torn").mkdir()
    (home / "model" / "torn" / "train.json").write_text("{")
    try:
        refused(cli("train model torn text.txt --resume"), "train.json")
    finally:
        (home / "model" / "torn" / "train.json").unlink()
        (home / "model" / "torn").rmdir()


def test_a_bad_value_in_train_json_has_the_name_it_has_there(cli, home):
    (home / "model" / "odd").mkdir()
    file = home / "model" / "odd" / "train.json"
    file.write_text(json.dumps({"train": {"batch_size": -1}}))
    try:
        refused(cli("train model odd text.txt --resume --max-steps 9"), "TrainConfig: batch_size = -1")
    finally:
        file.unlink()
        file.parent.rmdir()


def test_interruption_is_code_130(cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "read_config", interrupted)
    result = cli("info model")
    assert result.code == 130 and "Traceback" not in result.err


def test_messages_name_flags_not_fields():
    """As they are typed. Those about an experiment, in pico/lab, name the keys of its file; ConfigError translates."""
    configs = DataConfig, TrainConfig, *KINDS.values()
    fields = re.compile(rf"\b({'|'.join(name for c in configs for name in c.model_fields if '_' in name)})\b")

    def words(node):
        """Texts in a piece of code, without what stands in the braces of an f-string."""
        if isinstance(node, ast.Constant):
            yield str(node.value)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FormattedValue):
                yield from words(child)

    wrong = []
    for file in [ROOT / "picolm.py", *(ROOT / "pico").rglob("*.py")]:
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            name = isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1]
            if name in ("PicoError", "DataError", "warn", "log") and file.parent.name not in ("lab", "base"):
                wrong += [f"{file.name}: {text}" for text in words(call) if fields.search(text)]
    assert not wrong


def test_our_own_mistakes_are_not_hidden(cli, monkeypatch):
    monkeypatch.setattr(folder, "read_config", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("info model")


@pytest.mark.parametrize(
    "line",
    [
        "demo _",
        "init _",
        "init b --from _",
        "train _ b text.txt",
        "train model b _",
        "train model b text.txt --dataset-train-file _",
        "train model b text.txt --dataset-validation-file _",
        "run _ a",
        "run model a --prompt-file _",
        "eval _ a text.txt",
        "eval model a _",
        "eval model a text.txt --report _",
        "compare _",
        "compare small.json --out _",
        "compare small.json --dataset _",
        "export _ a given",
        "export model a _",
        "info _",
        "bench generate _",
    ],
)
def test_an_empty_path_is_not_the_current_folder(cli, home, line):
    """As an unset variable in quotes gives it. Here _ stands for it."""
    (home / "small.json").write_text('{"budget": {"steps": 1}, "configurations": [{"name": "a"}]}')
    before = sorted(home.rglob("*"))
    first, *rest = ["" if word == "_" else word for word in line.split()]
    refused(cli(first, *rest), "''", "current")
    assert [p for p in sorted(home.rglob("*")) if p not in before and p.name != ".lock"] == []
