"""What the loop does in a step and when it ends: limits, learning, odd sizes."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import cats
from helpers import first_fast
from training import SMALL, assert_same_run, config, go, metrics, reroute, weights

from pico import DataConfig, PicoError, preset
from pico.base.errors import DataError
from pico.model.cost import flops_per_symbol
from pico.model.ngrams import NGrams
from pico.model.pico import Pico
from pico.runs import checkpoint
from pico.runs.folder import create, read_config
from pico.train import loop as module
from pico.train import parts
from pico.train.loop import Training, train


def test_later_heads_learn_at_the_end_of_a_run_which_routes_causally(path, data, monkeypatch):
    seen, original = [], Pico.forward

    def forward(self, tokens, targets=None, **options):
        if targets is not None:
            seen.append((self.router.causal, self.heads_trained))
        return original(self, tokens, targets, **options)

    monkeypatch.setattr(Pico, "forward", forward)
    go(path, "r", data, config(max_steps=10))
    assert seen == [(step >= 8, 2 if step >= 8 else 1) for step in range(10)]


@pytest.mark.parametrize("documents, again", first_fast((30, (True, 0.1)), (800, (True, 0.0)), (None, (False, 0.0))))
def test_what_is_left_out_when_a_text_is_read_again(documents, again, path, tmp_path, monkeypatch):
    """Lookups; and part of what blocks add, if these have more numbers than the text has bytes. None: of documents that
    are new in each epoch."""
    if documents is None:
        documents, reading = 30, parts.open_data

        def fresh(*settings):
            documents, validation = reading(*settings)
            documents.repeats = False
            return documents, validation

        monkeypatch.setattr(parts, "open_data", fresh)
    forward, step, used, seen = Pico.forward, Training.step, [], {}

    def noted(self, *args, **options):
        if self.training:
            used.append((self.ngrams.times is not None, *{block.dropout for block in (*self.local_in, *self.latent)}))
            assert (self.ngrams.counts is None) == (self.ngrams.times is None)
        return forward(self, *args, **options)

    monkeypatch.setattr(Pico, "forward", noted)

    def watched(self, prefetch):
        used.clear()
        line = step(self, prefetch)
        seen.setdefault(self.state.data["epoch"], set()).update(used)
        return line

    monkeypatch.setattr(Training, "step", watched)
    go(path, "r", cats(tmp_path, documents), config(max_steps=documents * 2 // 5))
    assert seen == {0: {(False, 0.0)}, 1: {again}}


@pytest.mark.parametrize("kind", ["file", "mixture", "chat"])
def test_n_grams_of_every_text_that_is_read_again_are_counted(kind, path, tmp_path, capfd):
    """A mixture of one file is learned as the file is; conversations are read again too."""
    data = cats(tmp_path, 30)
    if kind == "mixture":
        file = tmp_path / "mixture.json"
        file.write_text(json.dumps({"mixture": [data.model_dump(exclude_none=True)]}))
        data = DataConfig(dataset=str(file))
    elif kind == "chat":
        rows = [{"question": f"How many cats are {n}?", "answer": f"There are {n} cats."} for n in range(60)]
        file = tmp_path / "chat.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DataConfig(dataset=str(file), format="chat", validation_size=5)
    train(path, "r", data, config(max_steps=12 if kind != "chat" else 80), device="cpu")
    assert "to count its n-grams" in capfd.readouterr().err


def test_a_text_that_changes_while_it_is_counted_ends_the_run_saved(path, tmp_path, monkeypatch):
    def broken(*_):
        raise DataError("cats.jsonl changed while it was being read")

    monkeypatch.setattr(NGrams, "count", broken)
    with pytest.raises(DataError, match=r"changed while.*; step (\d+) is saved, --resume goes on from there") as said:
        go(path, "r", cats(tmp_path, 30), config(max_steps=12, checkpoint_interval=100))
    assert f"step {int(checkpoint.newest(path / 'r')[0].name)} is saved" in str(said.value)


def test_a_run_ends_on_its_last_weights_and_the_average_of_its_tail(path, data, monkeypatch):
    seen, original = [], Training.conclude

    def conclude(self, line):
        seen.append({name: p.detach().clone() for name, p in self.parts.model.named_parameters()})
        original(self, line)

    monkeypatch.setattr(Training, "conclude", conclude)
    go(path, "plain", data, config(max_steps=40))
    plain, seen = seen, []
    go(path, "averaged", data, config(max_steps=40, tail_average=0.6))
    final = weights(path, "averaged")
    for name, last in plain[-1].items():
        assert all(torch.equal(one[name], other[name]) for one, other in zip(plain[:-1], seen))
        average = plain[33][name]
        for step in range(34, 40):
            average = average + (plain[step][name] - average) / 2
        torch.testing.assert_close(final[name], 0.4 * last + 0.6 * average)
        assert torch.equal(final[name], seen[-1][name])  # before it was validated


def test_epochs_and_steps_whichever_ends_first(path, data):
    steps = go(path, "epoch", data, config(max_steps=None)).steps
    assert steps == go(path, "same", data, config(max_steps=1000, epochs=1)).steps
    assert go(path, "half", data, config(max_steps=None, epochs=0.5)).steps == math.ceil(steps / 2)
    text = sum(len(json.loads(line)["text"]) for line in Path(data.dataset).read_text().splitlines())
    assert 0.7 * text < metrics(path, "epoch")[-1]["bytes"] < 1.3 * text


@pytest.mark.parametrize(
    "router, changes",
    first_fast(
        ("topk", {"latent_capacity_start": 0.0625}),
        ("threshold", {"router_teacher": "last-letter"}),
        *((router, {}) for router in ("topk", "threshold", "space", "stride", "all", "none")),
    ),
)
def test_flops_are_charged_by_what_was_routed_and_end_a_run(router, changes, path, data, monkeypatch):
    """Over batches accumulated, over skipped bytes, and over a resume, which repeats the count exactly."""
    outputs, original = [], Pico.forward

    def forward(self, *arguments, **options):
        out = original(self, *arguments, **options)
        if out.loss is not None:
            outputs.append((out.routed.float().mean().item(), out.slots / out.routed.shape[1], len(out.head_nll)))
        return out

    monkeypatch.setattr(Pico, "forward", forward)
    reroute(path, router, **changes)
    shape = read_config(path)
    limit = 11.5 * 4 * 32 * flops_per_symbol(shape, 32)[1]
    settings = config(max_steps=None, max_flops=limit, batch_size=2, grad_accumulation_steps=2, schedule="linear")
    whole = go(path, "whole", data, settings)
    lines = metrics(path, "whole")
    flops = executed = 0
    for i, line in enumerate(lines):
        assert line["learning_rate"] == pytest.approx(0.01 * min(1, (i + 1) / 4) * (1 - flops / limit))
        pair = outputs[2 * i : 2 * i + 2]
        routed, slots, heads = (sum(column) / 2 for column in zip(*pair))
        charged, ran = (4 * 32 * flops_per_symbol(shape, 32, share, heads)[1] for share in (routed, slots))
        assert line["flops"] - flops == pytest.approx(charged, rel=1e-6)
        assert line["executed_flops"] - executed == pytest.approx(ran, rel=1e-6)
        flops, executed = line["flops"], line["executed_flops"]
    if changes.get("latent_capacity_start"):
        assert lines[0]["routed"] == 0.0625 < lines[len(lines) // 2]["routed"] < 0.25
    assert lines[-2]["flops"] < limit <= flops == whole.flops and executed == whole.executed_flops
    assert flops == executed if router in ("stride", "all", "none") else flops < executed
    if router in ("stride", "all", "none"):  # they route at the rate that they name
        steps = spent = 0
        while spent < limit:
            spent += 4 * 32 * flops_per_symbol(shape, 32, heads=shape.heads_at(spent / limit))[1]
            steps += 1
        assert len(lines) == steps > 12
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
    step = 4 * 32 * flops_per_symbol(read_config(path), 32, heads=1)[1]
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


def test_the_gradient_is_clipped(path, data):
    go(path, "r", data, config(max_steps=1, optimizer="adamw", gradient_clip=0.1))
    norm = metrics(path, "r")[0]["grad_norm"]
    state = checkpoint.load_training(path / "r" / "00000001")[0][0]["state"]
    clipped = math.sqrt(sum(float((s["exp_avg"] / 0.1).square().sum()) for s in state.values()))
    assert norm > 0.2 and math.isclose(clipped, 0.1, rel_tol=1e-3)


@pytest.mark.slow
def test_training_learns(path, data):
    go(path, "r", data, config(max_steps=60, learning_rate=1e-2))
    losses = [line["train_bpb"] for line in metrics(path, "r")]
    assert losses[0] > 7 and losses[-1] < 5


@pytest.mark.parametrize("seed", first_fast(2**63 - 1, 2**32 - 1, 2**32))
def test_any_seed(path, data, seed):
    go(path, "r", data, config(max_steps=3, seed=seed))
    go(path, "r", data, config(max_steps=5, seed=seed), resume=True)
    go(path, "whole", data, config(max_steps=5, seed=seed, checkpoint_interval=3))
    assert weights(path, "r", 5)["heads.weight"].isfinite().all()


@pytest.mark.parametrize("context_len, heads", [(1, 2), (1, 8), (2, 8), (4, 63)])
def test_a_context_shorter_than_the_heads_reach(path, data, context_len, heads):
    other = create(path.parent / "heads", preset("tiny", **SMALL | {"next_tokens": heads}))
    assert go(other, "r", data, config(context_len=context_len, max_steps=3)).steps == 3
