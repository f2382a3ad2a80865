"""`bench` measures what it says: fields, parts that add up, every kind. No test looks at how fast anything is."""

import json

import pytest
import torch

import picolm
from pico import Pico
from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.presets import preset
from pico.base.symbols import VOCABULARY
from pico.lab.bench import KINDS, bench_long, bench_spelling, run_benchmark, take_turns, written
from pico.model.gpt import GPT

pytestmark = pytest.mark.slow  # they time a model at work

SMALL = dict(dim=16, latent_num_blocks=1, fb_num_blocks=1, next_tokens=2, ngram_rows=64)
CPU = torch.device("cpu")


def run(kind):
    settings = TrainConfig(context_len=32, batch_size=2, precision="fp32")
    return run_benchmark(kind, preset("tiny", **SMALL), CPU, settings, seconds=0.1)


def test_train_fields_and_parts():
    result = run("train")
    step = result["ms_per_step"]
    assert {"data", "forward", "backward", "optimizer"} == set(step["parts"])
    assert step["repetitions"] >= 10 and step["spread"][0] <= step["median"] <= step["spread"][1]
    assert result["bytes_per_second"] == pytest.approx(64_000 / step["median"], rel=0.01)
    assert 0 < result["fraction_of_peak"] < 1 and 0 < result["optimizer_share"] < 1
    assert result["matmul_peak_tflops"] > 0 and result["peak_memory_mb"] > 0


def test_generate_fields():
    result = run("generate")
    for part in (result, result["greedy"]):
        assert part["plain_bytes_per_second"] > 0 and part["speculative_bytes_per_second"] > 0
        assert 1 <= part["bytes_per_forward"] <= 4 and len(part["acceptance"]) == 3
    assert result["weight_read_ms"] > 0 and result["ms_per_forward"] > 0


def test_a_gpt_is_measured_too():
    settings, shape = (
        TrainConfig(context_len=32, batch_size=2, precision="fp32"),
        dict(dim=16, num_blocks=1, head_dim=8),
    )
    result = run_benchmark("generate", preset("gpt-bytes-tiny", **shape), CPU, settings, seconds=0.1)
    assert result["plain_bytes_per_second"] > 0 and result["bytes_per_forward"] == 1 and result["acceptance"] == []
    with pytest.raises(PicoError, match="bench attention"):
        run_benchmark("attention", preset("gpt-bytes-tiny"), CPU, settings)


def test_training_of_a_gpt_counts_its_symbols():
    settings = TrainConfig(context_len=32, batch_size=2, precision="fp32")
    result = run_benchmark("train", preset("gpt-tiny", dim=16, num_blocks=1, head_dim=8), CPU, settings, seconds=0.1)
    assert result["tokens_per_second"] > 0 and result["training_mflops_per_token"] > 0
    assert "bytes_per_second" not in result


def test_a_long_text_of_tokens_is_counted_in_tokens():
    model = GPT(preset("gpt-tiny", dim=16, num_blocks=1, head_dim=8, vocab_size=VOCABULARY)).eval()
    assert bench_long(model, 0, block=8, least=12)["plain"]["tokens"] == 96


def test_the_loss_is_scaled_in_fp16_alone(monkeypatch):
    used = []

    def step(*_, scaler, mark, **__):
        used.append(scaler.is_enabled())
        mark("optimizer")

    monkeypatch.setattr("pico.train.step.optimizer_step", step)
    monkeypatch.setattr("pico.lab.bench.matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr("pico.data.prefetch.Prefetch.__next__", lambda self: [])
    for precision in ("fp16", "fp32"):
        settings = TrainConfig(precision=precision, context_len=32)
        run_benchmark("train", preset("tiny", **SMALL), CPU, settings, seconds=0)
    assert set(used[:15]) == {True} and set(used[15:]) == {False}


def test_a_long_text_is_measured_at_both_ends():
    result = bench_long(Pico(preset("tiny", **SMALL)).eval(), 0, block=8, least=12)
    for part in (result["plain"], result["speculative"]):
        assert part["bytes"] == 96 and part["ms_per_block"]["first"]["repetitions"] == 10
        assert part["last_over_first"] > 0 and part["memory_mb"] > 0


def test_words_count_that_the_training_text_has(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("the Cat")
    (tmp_path / "valid.txt").write_text("a dog")
    monkeypatch.setattr("pico.lab.bench.written", lambda *_: [b"The cat sat, cut", b"dog the"])
    result = bench_spelling(Pico(preset("tiny", **SMALL)), str(tmp_path))
    assert result["with_latent_blocks"] == {"words": 4, "known": 0.5}  # the last word of a text may be cut off


def test_texts_are_written_with_and_without_latent_blocks():
    model = Pico(preset("tiny", **SMALL)).eval()
    result = bench_spelling(model, "stories", texts=1, size=20)
    assert result["with_latent_blocks"].keys() == result["without_latent_blocks"].keys() == {"words", "known"}
    assert len(next(iter(written(model, 1, 20, True)))) <= 20


def test_attention_and_optimizer_rows():
    rows = run("attention")["forward_backward"]
    assert {row["backend"] for row in rows} >= {"dense", "blocked"} and all(row["ms"]["median"] > 0 for row in rows)
    assert set(run("optimizer")["ms_per_step"]) == {"soap", "adamw", "muon"}


def test_every_task_takes_its_turn():
    done = []
    times = take_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, CPU, 0, least=3)
    assert done == ["a", "b"] * 4 and times["a"]["repetitions"] == 3


def test_command_line(capsys):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    assert picolm.main(["bench", "optimizer", "--seconds=0.1", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark"] == "optimizer"
    assert picolm.main(["bench", "optimizer", "--seconds=0.1", *flags]) == 0
    assert "soap" in capsys.readouterr().out
    assert picolm.main(["bench", "speed"]) == 2
    assert "expected one of train, generate, long, spelling" in capsys.readouterr().err
    assert picolm.main(["bench", "train", "--seconds=-3"]) == 2
    assert "error: --seconds -3: expected how long" in capsys.readouterr().err
    with pytest.raises(PicoError):
        run("speed")
    assert set(KINDS) == {"train", "generate", "long", "spelling", "attention", "optimizer"}
