"""Every command on the dense twin of Pico, through the command line; what only a Pico can do is one clear line."""

import json

import pytest
from command_line import refused

import picolm
from pico.runs.folder import read_config

SHAPE = "--preset gpt-bytes-tiny --dim 32 --num-blocks 2 --att-q-heads 2 --att-kv-heads 1 --head-dim 8 --max-context 32"
TRAIN = "--batch-size 4 --max-steps 4 --checkpoint-interval 2 --warmup-steps 1 --device cpu --quiet"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, a gpt of bytes and its run of four steps."""
    home = tmp_path_factory.mktemp("twins")
    (home / "text.txt").write_text("the cat sat on the mat and the dog sat on the cat; " * 40)
    assert picolm.main(["init", f"{home}/gpt", *SHAPE.split()]) == 0
    assert picolm.main(["train", f"{home}/gpt", "a", f"{home}/text.txt", *TRAIN.split()]) == 0
    return home


def test_a_training_reads_contexts_of_the_model(home):
    record = json.loads((home / "gpt/a/train.json").read_text())
    assert record["model"]["kind"] == "gpt" and record["train"]["context_len"] == 32


def test_run_and_eval(cli):
    line = "run gpt a --prompt the --max-bytes 8 --temperature 0 --device cpu"
    text = cli(f"{line} --stats")
    assert text.out.startswith("the") and json.loads(text.err)["routed_fraction"] == 0
    assert cli(f"{line} --no-speculative").out == text.out
    report = json.loads(cli("eval gpt a text.txt --json --device cpu").out)
    assert 0 < report["bits_per_byte"] < 8.1 and not report.keys() & {"routing", "disable_latent"}
    shown = cli("eval gpt a text.txt --report page.html --device cpu").out
    assert "The model needs" in shown and "rout" not in shown and "latent" not in shown


def test_export_derive_and_info(cli, home):
    assert cli("export gpt a given --checkpoint -1").code == 0
    assert cli("run given --prompt the --max-bytes 4 --device cpu").out.startswith("the")
    assert cli("init mine --from given").code == 0 and read_config(home / "mine") == read_config(home / "gpt")
    facts = json.loads(cli("info given --json").out)
    assert facts["config"]["kind"] == "gpt" and facts["unit"] == "byte"


def test_resume_and_gradient_checkpointing_leave_the_losses_alone(cli, home):
    line = f"text.txt {TRAIN} --set gradient_checkpointing=true"
    assert cli(f"train gpt b {line} --max-steps 2").code == cli(f"train gpt b {line} --resume").code == 0
    runs = [(home / "gpt" / run / "metrics.jsonl").read_text().splitlines() for run in ("a", "b")]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in runs]
    assert losses[0][:2] == losses[1][:2] and len(losses[0]) == len(losses[1]) == 4


@pytest.mark.parametrize(
    "line, words",
    [
        ("run gpt a --disable-latent", "--disable-latent is for a Pico"),
        ("run gpt a --show-router-decisions", "--show-router-decisions is for a Pico"),
        ("train gpt c text.txt --attention-backend dense", "--attention-backend is for a Pico"),
        ("train gpt c text.txt --context-len 33", "--context-len 33: this model sees 32 bytes"),
        ("eval gpt a text.txt --context-len 33", "--context-len 33: this model sees 32 bytes"),
        ("bench attention --preset gpt-bytes-tiny", "bench attention"),
        ("bench train --preset gpt-bytes-tiny --router none", "--router = 'none': a gpt has none"),
        ("init d --preset gpt-bytes-tiny --latent-num-blocks 3", "--latent-num-blocks = 3: a gpt has none"),
    ],
)
def test_what_a_twin_cannot_do_is_one_line(cli, home, line, words):
    refused(cli(line), words)
    assert not (home / "d").exists() and not (home / "gpt/c").exists()
