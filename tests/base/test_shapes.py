"""The shape of the dense decoder: what it refuses, and sizes that are known before anything is built."""

import pytest

import picolm
from pico.base.errors import PicoError
from pico.base.presets import PRESETS, preset
from pico.base.shapes import GPTConfig, ModelConfig, check_context, shape
from pico.model.cost import cache_bytes, flops_per_symbol
from pico.runs.folder import read_config

BYTES_A_TOKEN = 4.1  # of TinyStories with a BPE of 4,096


def test_all_problems_are_one_line():
    bad = dict(
        dim=0, num_blocks=0, att_q_heads=4, att_kv_heads=3, head_dim=7, tokenizer="words", max_context=0, rope_theta=0,
        rope_fraction=1.5, qk_norm="both", mlp="gelu", gate="key", logit_softcap=-1, init="ones", ngram_max=1, depth=3,
    )  # fmt: skip
    with pytest.raises(PicoError) as error:
        GPTConfig.build(**bad)
    message = str(error.value)
    found = message.removeprefix("GPTConfig: ").split("; ")
    assert "\n" not in message and len(found) == len(bad) - 1  # four query heads alone are fine
    for name in bad.keys() - {"att_q_heads", "depth"}:
        assert sum(problem.startswith(f"{name} = ") for problem in found) == 1, name
    assert any("unknown key 'depth'" in problem for problem in found)


def test_a_vocabulary_of_bytes_has_one_size():
    with pytest.raises(PicoError, match="vocab_size = 300: expected 264, bytes and control symbols"):
        GPTConfig.build(vocab_size=300)
    assert GPTConfig.build(vocab_size=300, tokenizer="bpe").vocabulary == 300


def test_the_kind_picks_the_class():
    assert shape({"dim": 64}) == ModelConfig(dim=64)  # files from before there were two kinds
    assert shape({"kind": "gpt", "dim": 64}) == GPTConfig(dim=64)
    for config in (preset("tiny"), preset("gpt-tiny"), preset("simple-picolm")):
        assert shape(config.model_dump()) == config
    for kind in ("rnn", 3, None, ["gpt"]):
        with pytest.raises(PicoError, match=r"kind = .*: expected 'pico' or 'gpt'"):
            shape({"kind": kind})


@pytest.mark.parametrize(
    "line, message",
    [
        (["--preset", "gpt-tiny", "--fb-num-blocks", "2"], "error: --fb-num-blocks = 2: a gpt has none"),
        (["--num-blocks", "2", "--max-context", "9"], "--num-blocks = 2: a pico has none; --max-context = 9: a pico"),
        (["--preset", "gpt-tiny", "--router", "none"], "error: --router = 'none': a gpt has none"),
        (["--preset", "gpt-tiny", "--set", "chained_heads=0"], "chained_heads = '0': a gpt has none"),
        (["--preset", "gpt-bytes-tiny", "--vocab-size", "500"], "--vocab-size = 500: expected 264"),
    ],
)
def test_a_flag_of_the_other_kind_is_one_line(tmp_path, capsys, line, message):
    assert picolm.main(["init", str(tmp_path / "m"), *line]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "m").exists()


def test_init_and_info_know_both_kinds(tmp_path, capsys):
    flags = dict(dim=64, num_blocks=2, att_q_heads=2, att_kv_heads=1, head_dim=32, vocab_size=512, max_context=48)
    line = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert picolm.main(["init", str(tmp_path / "made"), "--preset", "gpt-tiny", *line, "--set", "gate=query"]) == 0
    assert read_config(tmp_path / "made") == preset("gpt-tiny", **flags, gate="query")
    shown = capsys.readouterr().out
    assert "2, every token, 2 query and 1 key/value heads of 32" in shown and "at 48 tokens of context" in shown
    for name in PRESETS:
        assert picolm.main(["init", str(tmp_path / name), "--preset", name]) == 0
        assert picolm.main(["info", str(tmp_path / name)]) == 0
    assert f"{sum(preset('picochat').parameters.values()):,}" in capsys.readouterr().out


def test_a_context_that_a_model_has_not():
    check_context(preset("tiny"), 10**6)
    check_context(preset("gpt-tiny"), 64)
    with pytest.raises(PicoError, match="--context-len 65: this model sees 64 tokens"):
        check_context(preset("gpt-tiny"), 65)


def test_the_parameters_of_simple_picolm_by_hand():
    """With gains on all norms: four of a block (before and after attention and MLP), those of queries and of keys, and
    the last one. The embedding has no norm; biases are on queries, keys and values; the gate is one 96 x 96 matrix.

    The hidden widths are 16 round(384 (1.5 + 2.5 l / 11) / 16). The original divides by 12 instead of 11 and begins a
    step late, 1.27 to 3.77 times dim, which makes 55,711,104.
    """
    widths = [576, 656, 752, 832, 928, 1008, 1104, 1184, 1280, 1360, 1456, 1536]
    config = preset("simple-picolm")
    assert config.mlp_dims == widths
    symbols = 2 * 49152 * 384  # embedding and head
    attention = 384 * (4 + 1 + 1) * 96 + (4 + 1 + 1) * 96 + 4 * 96 * 384 + 96 * 96  # q k v, their biases, out, gate
    gains = 4 * 384 + 2 * 96
    by_hand = symbols + 12 * (attention + gains) + 3 * 384 * sum(widths) + 384
    assert sum(config.parameters.values()) == by_hand == 56_909_184


def test_the_parameters_of_picochat_by_hand():
    block = 4 * 1024 * 1024 + 2 * 1024 * 4096  # q k v and out; up and down
    assert sum(preset("picochat").parameters.values()) == 2 * 65536 * 1024 + 16 * block == 335_544_320


def test_pyramid_of_one_block():
    assert GPTConfig(num_blocks=1, mlp_ratio=1.5, mlp_ratio_last=4).mlp_dims == [192]
    assert GPTConfig(dim=4, num_blocks=2, mlp_ratio=1).mlp_dims == [16, 16]


@pytest.mark.parametrize("name, size", [("gpt-tiny", BYTES_A_TOKEN), ("gpt-bytes-tiny", 1)])
def test_the_twins_of_tiny_train_at_about_its_cost(name, size):
    """The shape that learns most is not quite the one that costs the same, and budgets even it out."""
    config = preset(name)
    ours = flops_per_symbol(config, config.context_len)[1] / size
    assert 0.5 < ours / flops_per_symbol(preset("tiny"), 512)[1] < 2


@pytest.mark.parametrize(
    "changes", [{}, dict(gate="query", tied=True), dict(gate="input", ngram_max=3), dict(mlp="relu2"), dict(window=9)]
)
def test_the_cost_of_a_gpt_by_hand(changes):
    c = GPTConfig.build(dim=32, num_blocks=3, head_dim=8, max_context=40, mlp_ratio=1, mlp_ratio_last=2, **changes)
    seen = [min(i, c.window or i) + 1 for i in range(20)]
    per_token = 32 * c.vocab_size + c.ngram_orders * 16 * 32
    for width in (32, 48, 64):
        per_token += 32 * 8 * 8 + 32 * 32 + (2 if c.mlp == "relu2" else 3) * 32 * width
        per_token += {"none": 0, "query": 4 * 8 * 8, "input": 32 * 32}[c.gate] + 2 * 32 * sum(seen) / len(seen)
    assert flops_per_symbol(c, 20) == pytest.approx((2 * per_token, 6 * per_token))
    assert cache_bytes(c, feed=4) == 4 * 3 * ((c.window or 39) + 4) * 2 * 2 * 8
