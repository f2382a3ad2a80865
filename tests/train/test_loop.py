"""The training loop: its limits, what a run leaves, and how it stops."""

import itertools
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import SMALL, assert_same_run, config, go, metrics, reroute, weights

from pico import DataConfig, PicoError, TrainConfig, preset
from pico.data.corpus import story_documents
from pico.data.stories import entropy_floor
from pico.evaluate.score import Score
from pico.model.cost import flops_per_symbol
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import checkpoints, create, read_config
from pico.train import loop as module
from pico.train import parts
from pico.train.loop import Training, train
from pico.train.optimizers import build_optimizers, set_learning_rate
from pico.train.signals import ENDING


def test_heads_look_ahead_less_and_less_and_the_end_of_a_run_routes_causally(path, data, monkeypatch):
    seen, original = [], Pico.forward

    def forward(self, tokens, targets=None, **options):
        if targets is not None:
            seen.append((self.router.causal, round(self.lookahead.item(), 3)))
        return original(self, tokens, targets, **options)

    monkeypatch.setattr(Pico, "forward", forward)
    go(path, "r", data, config(max_steps=10))
    assert seen == [(step >= 8, round(1 - step / 10, 3)) for step in range(10)]


@pytest.mark.parametrize("rows,again", [(256, (0.7, 0.1)), (16, (0.0, 0.0)), (None, (0.0, 0.0))])
def test_there_is_dropout_when_a_short_text_is_read_again(rows, again, path, data, monkeypatch):
    """Short: of fewer bytes than the n-gram tables have numbers. None: of documents that are new in each epoch."""
    if rows is None:
        rows, reading = 256, parts.open_data

        def fresh(*settings):
            documents, validation = reading(*settings)
            documents.repeats = False
            return documents, validation

        monkeypatch.setattr(parts, "open_data", fresh)
    forward, step, used, seen = Pico.forward, Training.step, [], {}

    def noted(self, *args, **options):
        if self.training:
            used.append((self.ngrams.dropout, *{block.dropout for block in (*self.local_in, *self.latent)}))
        return forward(self, *args, **options)

    monkeypatch.setattr(Pico, "forward", noted)

    def watched(self, prefetch):
        used.clear()
        line = step(self, prefetch)
        seen.setdefault(self.state.data["epoch"], set()).update(used)
        return line

    monkeypatch.setattr(Training, "step", watched)
    go(create(path.parent / "other", preset("tiny", **SMALL | {"ngram_rows": rows})), "r", data)
    assert seen == {0: {(0.0, 0.0)}, 1: {again}}


def test_epochs_and_steps_whichever_ends_first(path, data):
    steps = go(path, "epoch", data, config(max_steps=None)).steps
    assert steps == go(path, "same", data, config(max_steps=1000, epochs=1)).steps
    assert go(path, "half", data, config(max_steps=None, epochs=0.5)).steps == math.ceil(steps / 2)
    text = sum(len(json.loads(line)["text"]) for line in Path(data.dataset).read_text().splitlines())
    assert 0.7 * text < metrics(path, "epoch")[-1]["bytes"] < 1.3 * text


@pytest.mark.parametrize("router", ["topk", "threshold", "space", "stride", "all", "none"])
def test_flops_are_charged_by_what_was_routed_and_end_a_run(router, path, data, monkeypatch):
    """Over batches accumulated, over skipped bytes, and over a resume, which repeats the count exactly."""
    outputs, original = [], Pico.forward

    def forward(self, *arguments, **options):
        out = original(self, *arguments, **options)
        if out.loss is not None:
            outputs.append((out.routed.float().mean().item(), out.slots / out.routed.shape[1]))
        return out

    monkeypatch.setattr(Pico, "forward", forward)
    reroute(path, router)
    shape = read_config(path)
    limit = 11.5 * 4 * 32 * flops_per_symbol(shape, 32)[1]
    settings = config(max_steps=None, max_flops=limit, batch_size=2, grad_accumulation_steps=2)
    whole = go(path, "whole", data, settings)
    lines = metrics(path, "whole")
    flops = executed = 0
    for i, line in enumerate(lines):
        assert line["learning_rate"] == pytest.approx(0.01 * min(1, (i + 1) / 4) * (1 - flops / limit))
        pair = outputs[2 * i : 2 * i + 2]
        routed, slots = (sum(column) / 2 for column in zip(*pair))
        assert line["flops"] - flops == pytest.approx(4 * 32 * flops_per_symbol(shape, 32, routed)[1], rel=1e-6)
        assert line["executed_flops"] - executed == pytest.approx(
            4 * 32 * flops_per_symbol(shape, 32, slots)[1], rel=1e-6
        )
        flops, executed = line["flops"], line["executed_flops"]
    assert lines[-2]["flops"] < limit <= flops == whole.flops and executed == whole.executed_flops
    assert flops == executed if router in ("stride", "all", "none") else flops < executed
    if router in ("stride", "all", "none"):
        assert len(lines) == 12  # they route at the rate that they name
    with monkeypatch.context() as patch:
        step = Training.step
        patch.setattr(
            Training, "step", lambda self, p: self.signals.counts.update({2: self.state.step == 6}) or step(self, p)
        )
        assert go(path, "r", data, settings).stopped == "interrupted"
    go(path, "r", data, settings, resume=True)
    assert_same_run(path, "whole", "r")
    state = checkpoint.read_state(checkpoint.newest(path / "r")[0])
    assert (state["flops"], state["executed_flops"]) == (flops, executed)


def test_the_limit_that_is_furthest_rules(path, data):
    step = 4 * 32 * flops_per_symbol(read_config(path), 32)[1]
    assert go(path, "steps", data, config(max_steps=3, max_flops=100 * step)).steps == 3
    assert go(path, "flops", data, config(max_steps=100, max_minutes=60, max_flops=2.9 * step)).steps == 3


@pytest.mark.parametrize("limits", [dict(max_steps=None), dict(epochs=1)])
def test_a_stream_needs_a_limit_that_can_be_counted(path, tmp_path, limits):
    from pyarrow import parquet, table

    folder = tmp_path / "stream"
    folder.mkdir()
    parquet.write_table(table({"text": ["a cat sat on a mat"] * 40}), folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n")
    data = DataConfig(dataset=str(folder), streaming=True)
    with pytest.raises(PicoError, match="--max-steps, --max-minutes or --max-flops, not --epochs"):
        go(path, "r", data, config(**limits))
    assert go(path, "r", data, config(max_steps=2)).steps == 2


def test_the_clock_is_part_of_the_run(path, data, monkeypatch):
    readings = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.02 * next(readings)))  # 20 ms each
    settings = config(max_steps=None, max_minutes=0.01, checkpoint_interval=1000)
    first = go(path, "r", data, settings)
    assert first.seconds >= 0.6 and first.stopped == "finished"
    rates = [line["learning_rate"] for line in metrics(path, "r")]
    assert rates[-1] < max(rates)
    again = go(path, "r", data, settings, resume=True)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    more = go(path, "r", data, config(max_steps=None, max_minutes=0.015), resume=True)
    assert more.seconds >= 0.9 and more.steps > first.steps


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=10)
    p = torch.zeros(1)
    optimizer = torch.optim.SGD([{"params": [p]}, {"params": [p.clone()], "rate": 2.0}], lr=7.0)
    rates = [set_learning_rate([optimizer], settings, step, 0.0) for step in (0, 4, 9, 50)]
    assert rates == [0.1, 0.5, 1.0, 1.0]
    assert set_learning_rate([optimizer], settings, 50, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    assert set_learning_rate([optimizer], settings, 50, 1.0) == 0.0
    assert set_learning_rate([], TrainConfig(learning_rate=1.0, warmup_steps=0), 0, 0.0) == 1.0


def test_a_schedule_replaces_the_line_and_may_bring_its_own_warm_up():
    def rates(schedule, *moments):
        settings = TrainConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule)
        return [set_learning_rate([], settings, step, progress) for step, progress in moments]

    assert rates("warmdown", (4, 0.1), (50, 0.7), (50, 0.9)) == pytest.approx([1.0, 2.0, 1.0])
    assert rates("steps", (4, 0.1), (0, 0.03), (0, 0.85)) == pytest.approx([2.0, 1.0, 0.632])


@pytest.mark.parametrize("name", ["soap", "adamw", "muon"])
def test_every_parameter_is_moved_once_and_only_matrices_decay(name):
    """But for the router's, and the tables', whose rows move only when they are looked up."""
    model = Pico(preset("tiny", **SMALL))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decay = {}
    for optimizer in build_optimizers(model, TrainConfig(optimizer=name, weight_decay=0.5)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[id(parameter)] not in decay
                decay[names[id(parameter)]] = group.get("weight_decay", 0.0)
    assert set(decay) == set(names.values())
    for key, value in decay.items():
        still = key.endswith(("mix", "sharpness", "table.weight")) or "router" in key
        assert value == (0.0 if still else 0.5), key


def test_the_gradient_is_clipped(path, data):
    go(path, "r", data, config(max_steps=1, optimizer="adamw", gradient_clip=0.1))
    norm = metrics(path, "r")[0]["grad_norm"]
    state = checkpoint.load_training(path / "r" / "00000001")[0][0]["state"]
    clipped = math.sqrt(sum(float((s["exp_avg"] / 0.1).square().sum()) for s in state.values()))
    assert norm > 0.2 and math.isclose(clipped, 0.1, rel_tol=1e-3)


def test_training_learns(path, data):
    go(path, "r", data, config(max_steps=60, learning_rate=1e-2))
    losses = [line["train_bpb"] for line in metrics(path, "r")]
    assert losses[0] > 7 and losses[-1] < 5


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_run_folder(path, data, monkeypatch):
    from pico.runs.plots import plot_losses

    monkeypatch.setattr(module, "plot_losses", plot_losses)
    summary = go(path, "r", data)
    folder = path / "r"
    assert summary.folder == folder and (summary.steps, summary.stopped, summary.exit_code) == (12, "finished", 0)
    visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert visible == ["00000008", "00000012", "loss.png", "metrics.jsonl", "samples.txt", "train.json"]
    record = json.loads((folder / "train.json").read_text())
    assert TrainConfig(**record["train"]) == config() and DataConfig(**record["data"]) == data
    assert {"fingerprint", "versions", "git_revision", "model"} <= set(record)
    lines = metrics(path, "r")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_bpb" in line] == [6, 12]
    for line in lines:
        assert 1 < line["perplexity"] < 1000 and line["loss"] > 0
        assert ("validation_perplexity" in line) == ("validation_bpb" in line)
    assert math.exp(lines[-1]["validation_loss"]) == pytest.approx(lines[-1]["validation_perplexity"])
    assert 0 < lines[-1]["validation_accuracy"] < 1
    assert summary.bpb == lines[-1]["validation_bpb"] and summary.bytes == lines[-1]["bytes"]
    text = (folder / "samples.txt").read_text()
    assert "step 8\n" in text and "step 12\n" in text
    state = checkpoint.read_state(folder / "00000012")
    best = min((line for line in lines if "validation_bpb" in line), key=lambda line: line["validation_bpb"])
    assert state["best"] == {"step": best["step"], "bits_per_byte": best["validation_bpb"]}


def fake_score(bpb: float):
    return SimpleNamespace(bits_per_byte=bpb, loss=bpb, perplexity=2.0, accuracy=0.5)


def test_the_best_checkpoint_is_kept(path, data, monkeypatch):
    """Over a resume, too."""
    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(module, "score", lambda *_, **__: fake_score(next(values)))
    settings = dict(validation_interval=3, checkpoint_interval=2, keep_last=1)
    go(path, "r", data, config(**settings, max_steps=8))
    assert [p.name for p in checkpoints(path / "r")] == ["00000006", "00000008"]
    go(path, "r", data, config(**settings), resume=True)
    assert [p.name for p in checkpoints(path / "r")] == ["00000006", "00000012"]
    assert torch.equal(weights(path, "r", "best")["heads.weight"], weights(path, "r", 6)["heads.weight"])


def test_validation_is_causal_and_training_mode_returns(path, data, monkeypatch):
    modes = []
    original = Pico.forward

    def forward(self, *arguments, **options):
        modes.append((self.training, options.get("targets") is not None))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Pico, "forward", forward)
    go(path, "r", data)
    assert all(training == loss for training, loss in modes)
    assert (False, False) in modes and modes[-1] == (False, False)


def test_talk_goes_to_stderr_and_quiet_is_quiet(path, data, capfd, monkeypatch):
    train(path, "loud", data, config(), device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("step 1  loss", "kB/s", "routed", "validation", "sample at step 8", "Training finished", "next: "):
        assert words in err
    go(path, "quiet", data)
    assert capfd.readouterr() == ("", "")
    assert_same_run(path, "loud", "quiet")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal: one line, redrawn
    train(path, "terminal", data, config(), device="cpu")
    out, err = capfd.readouterr()
    assert out == "" and "\x1b[" in err


def test_the_floor_of_stories_is_known_and_printed(path, capfd):
    summary = train(path, "r", DataConfig(dataset="stories", validation_size=20), config(max_steps=2), device="cpu")
    err = capfd.readouterr().err
    assert 0 < summary.floor < 2 < summary.bpb
    stories = story_documents(0, 0, 20).stories
    assert summary.floor == pytest.approx(entropy_floor(stories))
    assert f"(floor {summary.floor:.3f})" in err and f"the floor is {summary.floor:.4f}" in err


def test_the_floor_is_that_of_the_stories_that_are_scored(path, monkeypatch):
    texts = []
    monkeypatch.setattr(parts, "VALIDATION_BYTES", 4000)
    monkeypatch.setattr(
        module,
        "score",
        lambda model, documents, *_, **__: texts.extend(documents) or Score(32, 16, [1.0], [1], 0, 1, *np.ones((3, 1))),
    )
    summary = go(path, "r", DataConfig(dataset="stories", validation_size=20), config(max_steps=1))
    stories = story_documents(0, 0, len(texts)).stories
    assert texts == [story.text.encode() for story in stories] and 0 < len(texts) < 20
    assert sum(map(len, texts)) <= 4000 and summary.floor == pytest.approx(entropy_floor(stories))


def test_stories_and_streams_are_never_read_again():
    from pico.data.corpus import Endless
    from pico.data.documents import Documents
    from pico.data.hub import Stream

    assert (Documents.repeats, Endless.repeats, Stream.repeats) == (True, False, False)


# --- stopping ---------------------------------------------------------------------------------------------------------


def kill_at_step(monkeypatch, number, step):
    original = Training.step

    def and_kill(self, prefetch):
        if self.state.step == step:
            os.kill(os.getpid(), number)
        return original(self, prefetch)

    monkeypatch.setattr(Training, "step", and_kill)


unix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")


@pytest.mark.parametrize(
    "number, stopped, code",
    [
        ("SIGINT", "interrupted", 130),
        ("SIGTERM", "terminated", 143),
        pytest.param("SIGHUP", "hung up", 129, marks=unix),
    ],
)
def test_a_signal_stops_with_a_checkpoint(path, data, monkeypatch, number, stopped, code):
    go(path, "whole", data)
    number = getattr(signal, number)
    if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
        signal.signal(number, signal.SIG_DFL)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(number)
    with monkeypatch.context() as patch:
        kill_at_step(patch, number, 4)
        summary = go(path, "r", data)
    assert (summary.steps, summary.stopped, summary.exit_code) == (5, stopped, code)
    assert checkpoint.newest(path / "r")[0].name == "00000005"
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(number))
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


PLACES = {  # in the middle of what follows a step: the first call of this function at or after step 6
    "validation": (module, "score"),
    "sample": (module, "generate"),
    "weights": (checkpoint, "save_file"),
    "renaming": (checkpoint, "sync"),
}


def signal_within(monkeypatch, place, *numbers):
    owner, name = PLACES[place]
    inner, conclude, to_come, armed = getattr(owner, name), Training.conclude, list(numbers), []

    def and_signal(*arguments, **options):
        while armed and to_come:
            os.kill(os.getpid(), to_come.pop(0))
        return inner(*arguments, **options)

    def watched(self, line):
        armed.extend([True] * (self.state.step >= 6))
        return conclude(self, line)

    monkeypatch.setattr(owner, name, and_signal)
    monkeypatch.setattr(Training, "conclude", watched)
    return to_come


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGTERM", 143), pytest.param("SIGHUP", 129, marks=unix)])
def test_a_signal_amid_validation_or_saving_loses_nothing(path, data, monkeypatch, place, number, code):
    go(path, "whole", data)
    number = getattr(signal, number)
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with monkeypatch.context() as patch:
        left = signal_within(patch, place, number)
        summary = go(path, "r", data)
    signal.signal(number, before)
    assert not left and summary.exit_code == code and summary.steps < 12
    assert checkpoint.newest(path / "r") == (path / "r" / f"{summary.steps:08d}", [])
    assert go(path, "r", data, resume=True).exit_code == 0
    assert_same_run(path, "whole", "r")


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_twice_amid_validation_or_saving_leaves_whole_checkpoints(path, data, monkeypatch, place):
    go(path, "whole", data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signal_within(patch, place, signal.SIGINT, signal.SIGINT)
        go(path, "r", data)
    assert checkpoint.newest(path / "r")[1] == []
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")
    assert not list((path / "r").glob(".*.tmp"))


def test_ctrl_c_says_what_it_does_and_again_ends_at_once(path, data, monkeypatch, capfd):
    """During a step, whose text it does not wait for."""
    go(path, "whole", data)
    original = Training.step

    def interrupted(self, prefetch):
        if self.state.step == 6:
            for said in (ENDING, None):
                os.kill(os.getpid(), signal.SIGINT)
                while said and said not in capfd.readouterr().err:
                    pass
        return original(self, prefetch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "step", interrupted)
        go(path, "r", data)
    assert f"ended at once; --resume goes on from {path / 'r' / '00000006'}\n" in capfd.readouterr().err
    go(path, "r", data, resume=True)
    assert_same_run(path, "whole", "r")


@unix
def test_a_signal_saves_and_goes_on(path, data, monkeypatch):
    go(path, "whole", data, config(keep_last=9))
    kill_at_step(monkeypatch, signal.SIGUSR1, 4)
    assert go(path, "r", data, config(keep_last=9)).stopped == "finished"
    assert [int(p.name) for p in checkpoints(path / "whole")] == [4, 6, 8, 12]
    assert [int(p.name) for p in checkpoints(path / "r")] == [4, 5, 6, 8, 12]
    assert_same_run(path, "whole", "r")


@unix
def test_a_hangup_that_nohup_ignores_stays_ignored(path, data, monkeypatch):
    kill_at_step(monkeypatch, signal.SIGHUP, 4)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert go(path, "r", data).stopped == "finished"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Gone:
    """A terminal that died, or a pipe whose reader left, after a few lines."""

    encoding, lines = "utf-8", 2

    def __init__(self, error, terminal):
        self.error, self.isatty = error, lambda: terminal

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise self.error

    def flush(self):
        self.write("")

    def fileno(self):
        return 2


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), OSError(28, "ENOSPC"), ValueError("closed")])
def test_nobody_listening_ends_no_training(path, data, monkeypatch, error, terminal):
    go(path, "whole", data)
    monkeypatch.setattr("sys.stderr", Gone(error, terminal))
    monkeypatch.setattr("sys.stdout", Gone(error, terminal))
    assert train(path, "r", data, config(), device="cpu").stopped == "finished"
    assert_same_run(path, "whole", "r")
    assert (path / "r/samples.txt").read_text() == (path / "whole/samples.txt").read_text()


def test_without_any_stderr(path, data, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert train(path, "r", data, config(), device="cpu").stopped == "finished"


# --- numbers out of hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_a_diverging_run_is_one_line_and_leaves_sound_weights(path, data, optimizer, rate):
    settings = dict(optimizer=optimizer, learning_rate=rate, warmup_steps=0, max_steps=40)
    often = dict(checkpoint_interval=1, validation_interval=2, sample_interval=3, keep_last=99)
    with pytest.raises(PicoError, match=r"finite.*--learning-rate below") as error:
        go(path, "r", data, config(**settings, **often))
    assert "\n" not in str(error.value)
    saved = checkpoints(path / "r")
    assert ("--resume from there" in str(error.value)) == bool(saved)
    assert ("start again" in str(error.value)) == (not saved)
    for folder in saved:
        assert all(x.isfinite().all() for x in weights(path, "r", int(folder.name)).values())
    for line in metrics(path, "r"):
        assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize("interval", ["validation_interval", "sample_interval", "checkpoint_interval"])
def test_weights_are_looked_at_before_they_are_used(path, data, monkeypatch, interval):
    conclude = Training.conclude

    def broken(self, line):
        if line["step"] == 3:
            with torch.no_grad():
                self.parts.model.local_in[0].mlp.up.weight[0, 0] = math.inf
        conclude(self, line)

    monkeypatch.setattr(Training, "conclude", broken)
    monkeypatch.setattr(module, "score", lambda *_, **__: pytest.fail("scored"))
    monkeypatch.setattr(module, "generate", lambda *_, **__: pytest.fail("sampled"))
    never = dict.fromkeys(("validation_interval", "sample_interval", "checkpoint_interval"), 1000)
    with pytest.raises(PicoError, match=r"weights of step 3 are not finite.*nothing is saved: start again"):
        go(path, "r", data, config(**never | {interval: 3}))
    assert not checkpoints(path / "r")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_not_finite_ends_the_run(path, data, monkeypatch, value):
    monkeypatch.setattr(module, "score", lambda *_, **__: Score(32, 16, [value], [1], 0, 1, *np.ones((3, 1))))
    with pytest.raises(PicoError, match=r"validation of step 6 is not finite.*00000004: --resume from there"):
        go(path, "r", data)
    assert all("validation_bpb" not in line for line in metrics(path, "r"))


# --- what the machine refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["samples.txt", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(path, data, monkeypatch, name):
    append = module.append

    def full(file, text):
        append(file, text)
        if file.name == name and "8" in text[:10]:  # of step 8
            raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(module, "append", full)
    with pytest.raises(PicoError, match=rf"cannot use .*{name}: the disk is full; mend that, then --resume"):
        go(path, "r", data)
    assert [int(p.name) for p in checkpoints(path / "r")] == [4, 6]


def test_a_plot_that_cannot_be_written_is_said_only(path, data, monkeypatch, capfd):
    def full(*_):
        raise PicoError("loss.png cannot be written: No space left on device")

    monkeypatch.setattr(module, "plot_losses", full)
    assert train(path, "r", data, config(), device="cpu").exit_code == 0
    assert "loss.png cannot be written: No space left" in capfd.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_one_line(path, data):
    (path / "r").write_text("a file")
    with pytest.raises(PicoError, match=r"cannot .*r: .*exists"):
        go(path, "r", data)


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32, 2**63 - 1])
def test_any_seed(path, data, seed):
    go(path, "r", data, config(max_steps=3, seed=seed))
    go(path, "r", data, config(max_steps=5, seed=seed), resume=True)
    go(path, "whole", data, config(max_steps=5, seed=seed, checkpoint_interval=3))
    assert weights(path, "r", 5)["heads.weight"].isfinite().all()


@pytest.mark.parametrize("context_len, heads", [(1, 2), (1, 8), (2, 8), (4, 63)])
def test_a_context_shorter_than_the_heads_reach(path, data, context_len, heads):
    other = create(path.parent / "heads", preset("tiny", **SMALL | {"next_tokens": heads}))
    assert go(other, "r", data, config(context_len=context_len, max_steps=3)).steps == 3


def broken_loss(monkeypatch, calls):
    """Pico whose training loss is not a number in these of its training forwards."""
    count, original = iter(range(1000)), Pico.forward

    def forward(self, *arguments, **options):
        out = original(self, *arguments, **options)
        if out.loss is None or next(count) not in calls:
            return out
        self.router.seen += math.nan  # what a forward with such scores would have left
        return out._replace(loss=out.loss * math.nan)

    monkeypatch.setattr(Pico, "forward", forward)


def lag(monkeypatch) -> list[int]:
    """Reads the numbers of a step when the next one is queued, as on a GPU. Returns how many steps wait, at each."""
    made, queue, waiting = Training.__init__, Training.queue, []

    def lagging(self, parts):
        made(self, parts)
        self.lags = True

    def counted(self, prefetch):
        queue(self, prefetch)
        waiting.append(len(self.queued))

    monkeypatch.setattr(Training, "__init__", lagging)
    monkeypatch.setattr(Training, "queue", counted)
    return waiting


def test_a_step_is_read_one_late_with_the_same_end(path, data, monkeypatch):
    """Lines, checkpoints, validations and samples are those of a run that reads at once."""
    go(path, "plain", data)
    waiting = lag(monkeypatch)
    go(path, "late", data)
    assert waiting == [1, 2, 2, 2, 1, 2, 1, 2, 1, 2, 2, 2]  # alone after 4, 6 and 8, when something is due
    assert_same_run(path, "plain", "late")
    assert [p.name for p in checkpoints(path / "plain")] == [p.name for p in checkpoints(path / "late")]
    assert (path / "plain" / "samples.txt").read_text() == (path / "late" / "samples.txt").read_text()


def test_a_step_in_flight_that_is_not_finite_moves_nothing(path, data, monkeypatch, capfd):
    lag(monkeypatch)
    broken_loss(monkeypatch, [3, 4, 9])
    assert go(path, "late", data).steps == 12
    assert [line["step"] for line in metrics(path, "late")] == list(range(1, 13))
    assert capfd.readouterr().err.count("skipped") == 3
    broken_loss(monkeypatch, range(6, 1000))
    with pytest.raises(PicoError, match=r"10 steps in a row.*last good checkpoint is .*00000006"):
        go(path, "bad", data)


@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
def test_a_signal_with_a_step_in_flight_saves_what_is_told(path, data, monkeypatch, number):
    go(path, "plain", data)
    settings = config(keep_last=20)
    with monkeypatch.context() as patch:
        lag(patch)
        kill_at_step(patch, getattr(signal, number), 2)
        summary = go(path, "late", data, settings)
    if number == "SIGINT":
        assert summary.stopped == "interrupted" and summary.steps == 4  # one was queued already
        go(path, "late", data, settings, resume=True)
    else:
        assert 4 in {int(p.name) for p in checkpoints(path / "late")}
    assert_same_run(path, "plain", "late")


def test_a_step_that_is_not_finite_is_skipped_and_said(path, data, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        broken_loss(patch, [3, 4])
        summary = go(path, "r", data)
    assert summary.steps == 12 and math.isfinite(summary.bpb)
    err = capfd.readouterr().err
    assert err.count("step 4 skipped") == 2 and "(2 in a row)" in err
    assert all(torch.isfinite(value).all() for value in weights(path, "r").values())


def test_ten_bad_steps_in_a_row_end_the_run(path, data, monkeypatch):
    broken_loss(monkeypatch, range(6, 1000))
    with pytest.raises(PicoError, match=r"10 steps in a row.*last good checkpoint is .*00000006"):
        go(path, "r", data)
    assert checkpoint.newest(path / "r")[0].name == "00000006"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
     RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(path, data, monkeypatch, error):
    def forward(*_, **__):
        raise error

    monkeypatch.setattr(Pico, "forward", forward)
    with pytest.raises(PicoError, match="out of memory: lower --batch-size 4") as raised:
        go(path, "r", data)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    go(path, "r", data, config(max_steps=1, batch_size=2))  # nothing was trained, so nothing stands in the way


def test_other_errors_are_not_hidden(path, data, monkeypatch):
    def forward(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Pico, "forward", forward)
    with pytest.raises(RuntimeError, match="a bug"):
        go(path, "r", data)


def test_an_error_while_making_batches_is_raised(path, data, monkeypatch):
    def broken(self):
        raise PicoError("the dataset went away")

    monkeypatch.setattr(parts.Batches, "__next__", broken)
    with pytest.raises(PicoError, match="went away"):
        go(path, "r", data)
