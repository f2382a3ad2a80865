"""torch.compile of a model's regions: no graph break, a graph a shape, and the gradients of the plain model.

The first backward pass of a compiled region traces that too, so aot_eager shows all but the code generator.
"""

import copy

import pytest
import torch
from helpers import random_tokens, tiny
from torch._dynamo.testing import CompileCounterWithBackend

from pico.model.regions import compile_regions

LENGTH = 64
pytestmark = pytest.mark.slow  # it compiles


@pytest.fixture(autouse=True)
def no_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model):
    tokens, heads = random_tokens(2, LENGTH + model.config.next_tokens), model.config.next_tokens
    torch.manual_seed(0)
    out = model(tokens[:, :LENGTH], targets=tokens[:, 1 : LENGTH + heads])
    model.zero_grad()
    (0.9 * out.loss + 0.1 * out.router_loss).backward()
    return [out.loss.detach(), *(p.grad.to_dense() for p in model.parameters() if p.grad is not None)]


def pair(router, sparse=False, **shape):
    """The same model twice: plain, and compiled with a counter of its graphs."""
    plain = tiny(router, **shape).train()
    plain.ngrams.table.sparse = sparse
    model, counter = copy.deepcopy(plain), CompileCounterWithBackend("aot_eager")
    compile_regions(model, fullgraph=True, backend=counter)
    return plain, model, counter


@pytest.mark.parametrize("router", ["topk", "threshold", "stride", "all", "none"])
def test_compiled_regions_compute_what_the_plain_model_does(router):
    plain, model, counter = pair(router, sparse=True)
    assert list(model.state_dict()) == list(plain.state_dict())
    for a, b in zip(gradients(plain), gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert counter.frame_count > 2


def test_blocks_of_one_shape_share_a_graph():
    counts = []
    for number in (2, 3):
        torch._dynamo.reset()
        _, model, counter = pair("topk", fb_num_blocks=number, latent_num_blocks=number)
        gradients(model)
        counts.append(counter.frame_count)
    assert counts == [4, 4]  # the first local block (its stream is the embedding), others, latent, head inputs


def test_what_a_training_does_traces_each_block_a_few_times():
    """Steps, causal routing, dropout, evaluation in between: only the first of each kind makes a graph."""
    _, model, counter = pair("topk")
    seen = []
    for _ in range(4):
        gradients(model)
    seen.append(counter.frame_count)
    model.router.causal = True
    for _ in range(2):
        gradients(model)
    seen.append(counter.frame_count - seen[0])
    with torch.no_grad():
        for length in (3, 9, 17):
            model.eval()(random_tokens(1, length))
    model.train()
    assert seen[1] == 1 and counter.frame_count == sum(seen)
    model.ngrams.count([random_tokens(2, 40)], 80)
    for number in range(6):  # the epochs come and go
        model.set_dropout(0.1 * (number % 2), torch.tensor(number) if number % 2 else None)
        gradients(model)
    assert counter.frame_count <= sum(seen) + 3
