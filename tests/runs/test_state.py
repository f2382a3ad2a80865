"""Training state without pickle: trees of tensors and values come back exactly, through JSON and safetensors."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pico.runs.state import pack_state, rng_state, set_rng_state, unpack_state

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers() | st.just("$tensor")
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


@given(trees)
@settings(max_examples=100, deadline=None)
def test_pack_round_trips_through_json(tree):
    packed = json.loads(json.dumps(pack_state(tree, "t", {})))
    assert unpack_state(packed, {}) == tree


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_pack_keeps_tensors_their_dtype_and_memory_order(dtype):
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    variants = [base, base.permute(2, 0, 1), base[0], base[:, 1], base[0].T, torch.tensor(3).to(dtype), base[:0]]
    tensors = {}
    back = unpack_state(json.loads(json.dumps(pack_state(variants, "t", tensors))), tensors)
    for before, after in zip(variants, back):
        assert before.dtype == after.dtype and torch.equal(before, after)
        if before.numel() == before.untyped_storage().nbytes() // before.element_size():
            assert before.stride() == after.stride()
        assert after.data_ptr() % 64 == 0 or after.numel() == 0


def test_pack_refuses_what_would_need_pickle():
    with pytest.raises(TypeError, match="cannot be stored"):
        pack_state({"a": object()}, "t", {})


@pytest.mark.parametrize("name", ["AdamW", "Muon", "SGD"])
def test_optimizer_state_round_trips_exactly(tmp_path, name):
    def trained(steps, state=None):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)([weight], lr=0.1, **options)
        if state:
            weight.data.copy_(state[0])
            optimizer.load_state_dict(state[1])
        for _ in range(steps):
            optimizer.zero_grad()
            (weight**2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(7))).sum().backward()
            optimizer.step()
        return weight.data, optimizer.state_dict()

    half = trained(3)
    tensors = {}
    packed = json.loads(json.dumps(pack_state(half[1], "o", tensors)))
    assert torch.equal(trained(3, (half[0], unpack_state(packed, tensors)))[0], trained(6)[0])


def test_random_state_round_trips():
    tensors = {}
    packed = json.loads(json.dumps(pack_state(rng_state(), "rng", tensors)))
    first = torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist()
    set_rng_state(unpack_state(packed, tensors))
    assert first == (torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist())
