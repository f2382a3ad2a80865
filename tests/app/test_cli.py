"""The command line: its help, and its flags, which are the fields of the configs."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from command_line import COMMANDS, ROOT, TRAIN, options_of, refused

import pico
from pico.app.flags import DATA, MODEL, TRAINING
from pico.base.config import DataConfig, TrainConfig
from pico.base.presets import preset
from pico.runs.folder import checkpoints, read_config, read_record


def test_version(cli):
    assert cli("--version").out == f"picolm {pico.__version__}\n"


# --- help -------------------------------------------------------------------------------------------------------------


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
    assert max(map(len, out.splitlines())) <= 100 and out.count("\n") <= 70


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
    "chat": "checkpoint system temperature top-k top-p min-p repetition-penalty max-bytes seed disable-latent "
    "show-router-decisions device",
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
    cli("train chat r text.txt --learning-rate 0.5")
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
