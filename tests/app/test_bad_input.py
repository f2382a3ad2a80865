"""What a user may get wrong on the command line: one clear line each, exit code 2, nothing made."""

import ast
import json
import re

import pytest
from command_line import ROOT, refused

from pico.base.config import DataConfig, TrainConfig
from pico.base.shapes import KINDS
from pico.runs import folder

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
    "eval model a": "give a DATASET, or --tasks",
    "eval model a --tasks utf8 --full": "need a text",
    "eval model a text.txt --limit 3": "name some with --tasks",
    "eval model a --tasks noise": "eval PATH RUN DATASET --tasks noise",
    "eval model a --tasks cute": "cute=FILE",
    "eval model a --tasks spelling=nothing.jsonl": "there is no file 'nothing.jsonl'",
    "eval model a --tasks utf8 --tasks-folder nowhere": "no such folder",
    "eval model a --tasks utf8 --limit 0": "--limit = 0",
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
