import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import PicoError
from pico.base.presets import PRESETS, preset
from pico.base.shapes import ModelConfig


def problems(config, **values):
    with pytest.raises(PicoError) as error:
        config.build(**values)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{config.__name__}: ").split("; ")


def test_all_problems_are_reported_at_once():
    """Those of single fields, those between fields, and unknown names, in one line."""
    found = problems(
        ModelConfig, dim=30, next_tokens=0, att_q_heads=9, att_kv_heads=2, mlp_ratio=-1, fb_num_blocks=0,
        fb_att_window_size=0, latent_capacity_factor=1.5, latent_num_blocks=0, latent_att_window_size=-3,
        router="best", depth=3,
    )  # fmt: skip
    for name in (
        "dim = 30", "next_tokens = 0", "att_kv_heads = 2", "mlp_ratio = -1", "fb_att_window_size = 0",
        "latent_capacity_factor = 1.5", "latent_num_blocks = 0", "latent_att_window_size = -3", "router = 'best'",
        "unknown key 'depth'",
    ):  # fmt: skip
        assert sum(problem.startswith(name) for problem in found) == 1, name
    assert len(found) == 10


def test_problems_say_what_was_expected():
    assert problems(ModelConfig, dim=30) == ["dim = 30: expected a multiple of 4 (try 32)"]
    assert problems(ModelConfig, att_q_heads=4) == ["att_kv_heads = 3: att_q_heads = 4 is not divisible by it"]
    assert problems(ModelConfig, att_q_heads=0) == ["att_q_heads = 0: input should be greater than or equal to 1"]
    assert "at least 1 when fb_num_blocks = 0" in problems(ModelConfig, fb_num_blocks=0, latent_num_blocks=0)[0]
    assert "'topk', 'threshold', 'space'" in problems(ModelConfig, router="x")[0]


@pytest.mark.parametrize(
    "config,bad",
    [
        (ModelConfig, dict(dim="wide")),
        (ModelConfig, dict(dim=12.5)),
        (ModelConfig, dict(latent_capacity_factor=0)),
        (ModelConfig, dict(latent_capacity_factor=float("nan"))),
        (ModelConfig, dict(mlp_ratio=float("inf"))),
        (ModelConfig, dict(fb_num_blocks=-1)),
        (ModelConfig, dict(latent_num_blocks=10**9)),
        (ModelConfig, dict(fb_num_blocks=10**9)),
        (ModelConfig, dict(dim=10**9)),
        (ModelConfig, dict(next_tokens=1000)),
        (ModelConfig, dict(att_q_heads=10**6, att_kv_heads=1)),
        (ModelConfig, dict(ngram_rows=10**23)),
        (ModelConfig, dict(ngram_dim=10**23)),
        (ModelConfig, dict(mlp_ratio=1e300)),
        (ModelConfig, dict(fb_att_window_size=10**12)),
        (ModelConfig, dict(latent_att_window_size=10**12)),
        (ModelConfig, dict(latent_capacity_factor=1e-300)),
        (TrainConfig, dict(learning_rate=-1e-3)),
        (TrainConfig, dict(learning_rate=0)),
        (TrainConfig, dict(learning_rate=float("nan"))),
        (TrainConfig, dict(weight_decay=-0.1)),
        (TrainConfig, dict(gradient_clip=0)),
        (TrainConfig, dict(router_loss_weight=1)),
        (TrainConfig, dict(router_loss_weight=float("nan"))),
        (TrainConfig, dict(context_len=0)),
        (TrainConfig, dict(batch_size=0)),
        (TrainConfig, dict(epochs=0)),
        (TrainConfig, dict(max_steps=0)),
        (TrainConfig, dict(max_minutes=-1)),
        (TrainConfig, dict(optimizer="sgd")),
        (TrainConfig, dict(precision="fp64")),
        (TrainConfig, dict(tracker="mlflow")),
        (TrainConfig, dict(seed=-1)),
        (DataConfig, dict(format="xml")),
        (DataConfig, dict(validation_size=0)),
        (DataConfig, dict(colum_name="text")),
    ],
)
def test_impossible_values_are_refused_by_name(config, bad):
    found = problems(config, **bad)
    assert len(found) == 1 and next(iter(bad)) in found[0]


def test_edges_that_are_allowed():
    for good in (dict(latent_capacity_factor=1), dict(fb_num_blocks=0), dict(latent_num_blocks=0), dict(dim=4)):
        ModelConfig.build(**good)
    TrainConfig.build(weight_decay=0, router_loss_weight=0, warmup_steps=0, epochs=0.1)
    DataConfig.build(validation_size=0.5)


@pytest.mark.parametrize("fraction", [1, 0.5, 1 / 3, 0.3333, 0.333, 0.25, 0.167, 0.143, 1e-3])
def test_a_stride_routes_the_fraction_it_is_given(fraction):
    """1/k, or what three figures of it say."""
    config = ModelConfig.build(router="stride", latent_capacity_factor=fraction)
    assert 1 / round(1 / config.latent_capacity_factor) == pytest.approx(fraction, rel=5e-3)


@pytest.mark.parametrize("fraction, near", [(0.4, "0.5 or 0.3333"), (0.7, "1 or 0.5"), (0.33, "0.3333 or 0.25")])
def test_a_stride_that_cannot_be_met_names_the_nearest(fraction, near):
    found = problems(ModelConfig, router="stride", latent_capacity_factor=fraction)
    assert len(found) == 1 and f"not {fraction}: try {near}" in found[0]
    ModelConfig.build(router="topk", latent_capacity_factor=fraction)


def test_only_a_rule_that_learns_can_be_taught():
    assert (
        "taught: expected topk or threshold or space+topk"
        in problems(ModelConfig, router="space", router_teacher="stride")[0]
    )
    assert "router = 'random' cannot be taught" in problems(ModelConfig, router="random", latent_capacity_start=0.1)[0]
    assert "try 0.5 or" in problems(ModelConfig, router_teacher="stride", latent_capacity_factor=0.4)[0]
    ModelConfig.build(router="threshold", router_teacher="last-letter", latent_capacity_start=0.1)


@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from([(4, 2), (9, 3), (1, 1)]),
    st.sampled_from([0, 2, 6]),
    st.sampled_from(["topk", "none", "space"]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.integers(1, 3), st.integers(0, 3)),
)
def test_sizes_are_known_before_a_model_is_built(quarter, heads, attention, longest, router, switches, blocks):
    import torch

    from pico.model.pico import Pico

    config = ModelConfig(
        dim=4 * quarter, next_tokens=heads, att_q_heads=attention[0], att_kv_heads=attention[1], ngram_max=longest,
        ngram_rows=50, ngram_dim=12, router=router, qk_norm=switches[0], embedding_skip=switches[1],
        chained_heads=switches[2], fb_num_blocks=blocks[0], latent_num_blocks=blocks[1], mlp_ratio=8 / 3,
    )  # fmt: skip
    with torch.device("meta"):
        model = Pico(config)
    assert config.parameters == model.parts()
    shapes = [s for part in config.matrices.values() for n, *s in part for _ in range(n)]
    assert sorted(shapes) == sorted([1] * (2 - p.ndim) + list(p.shape) for p in model.parameters())


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(PicoError, match="unknown preset 'xl': expected one of xs, tiny, s, m"):
        preset("xl")
    with pytest.raises(PicoError, match="dim = -4"):
        preset("tiny", dim=-4)


def test_presets():
    """original-xs is the seed's model, original-10m that of its README."""
    assert list(PRESETS)[:6] == ["xs", "tiny", "s", "m", "original-xs", "original-10m"]
    xs = preset("original-xs")
    assert (xs.dim, xs.next_tokens, xs.att_q_heads, xs.att_kv_heads) == (128, 8, 9, 3)
    assert (xs.fb_num_blocks, xs.fb_att_window_size, xs.latent_num_blocks) == (2, 16, 12)
    assert (xs.latent_att_window_size, xs.latent_capacity_factor) == (512, 0.25)
    s = preset("original-10m")
    assert xs.ngram_max == s.ngram_max == 0
    assert (s.dim, s.latent_num_blocks, s.fb_att_window_size) == (372, 8, 32)
    assert preset("tiny", dim=64).dim == 64


@pytest.mark.parametrize("name", ["s", "m"])
def test_widths_fill_the_tiles_of_a_gpu(name):
    c = preset(name)
    widths = [c.dim, c.head_dim, c.mlp_dim, (c.att_q_heads + 2 * c.att_kv_heads) * c.head_dim]
    assert not any(width % 64 for width in widths) and c.att_q_heads * c.head_dim == c.dim


@given(st.integers(1, 500), st.integers(1, 32), st.floats(0.1, 4))
def test_derived_widths(quarter, heads, ratio):
    c = ModelConfig(dim=4 * quarter, att_q_heads=heads, att_kv_heads=1, mlp_ratio=ratio)
    assert c.head_dim % 8 == 0 and c.head_dim >= 8
    assert abs(c.head_dim - c.dim / heads) <= 4 or c.head_dim == 8
    assert c.mlp_dim % 8 == 0 and 0 <= c.mlp_dim - c.dim * ratio < 8


def test_configs_are_frozen_and_survive_json():
    for config in (preset("m"), TrainConfig(max_minutes=1.5), DataConfig(dataset="a b")):
        assert type(config).model_validate_json(config.model_dump_json()) == config
        with pytest.raises(ValidationError):
            setattr(config, next(iter(type(config).model_fields)), 8)


def test_importing_pico_and_its_config_does_not_import_torch():
    code = (
        "import sys, pico, pico.base.config, pico.base.symbols; pico.preset('tiny'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_pico_offers_its_names():
    import pico

    assert {"ModelConfig", "Pico", "load", "generate"} <= set(pico.__all__)
    assert pico.ModelConfig is ModelConfig and pico.preset("xs") == ModelConfig()
    with pytest.raises(AttributeError, match="no attribute 'Gpt'"):
        _ = pico.Gpt


@pytest.mark.parametrize(
    "name, most",
    [("context_len", 2**20), ("batch_size", 2**20), ("grad_accumulation_steps", 2**20), ("max_steps", 10**8 - 1),
     ("warmup_steps", 10**8 - 1), ("validation_interval", 10**9), ("checkpoint_interval", 10**9),
     ("sample_interval", 10**9), ("keep_last", 10**9), ("seed", 2**63 - 1), ("learning_rate", 1e6),
     ("weight_decay", 1e6), ("gradient_clip", 1e12), ("epochs", 1e6), ("max_minutes", 1e7), ("max_flops", 1e30)],
)  # fmt: skip
def test_every_size_of_a_training_has_a_bound_that_is_named(name, most):
    assert getattr(TrainConfig.build(**{name: most}), name) == most
    for value in (2 * most + 1, 1e38):
        with pytest.raises(PicoError, match=f"{name} = .* (less than|integer)"):
            TrainConfig.build(**{name: value})
