"""Weights cast together: the same numbers as cast one by one, in one launch."""

import pytest
import torch
from helpers import random_tokens, tiny
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from pico.model.casts import cast_together
from pico.model.regions import compile_regions


def step(model, batches=2):
    """Gradients of some batches."""
    model.zero_grad()
    losses = []
    for seed in range(batches):
        tokens = random_tokens(2, 44, seed=seed)
        out = model(tokens[:, :40], targets=tokens[:, 1:44])
        (out.loss + out.router_loss).backward()
        losses.append(out.loss.item())
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("router", ["topk", "none"])
def test_loss_and_gradients_are_those_of_single_casts(router):
    """Of two batches that add up, in fp32, also where a chained head or a latent block has none."""
    plain, together = (tiny(router, dtype=torch.bfloat16).train() for _ in range(2))
    cast_together(together)
    (losses, grads), (others, ours) = step(plain), step(together)
    assert losses == others and list(grads) == list(ours)
    for name, grad in grads.items():
        assert ours[name].dtype == torch.float32
        if name == "heads.weight":  # of which the CPU's loss adds slices in the dtype of the weight
            torch.testing.assert_close(ours[name], grad, atol=1e-3, rtol=2e-2)
        else:
            assert torch.equal(ours[name], grad), name


def test_a_forward_sees_the_weights_of_now_and_leaves_nothing_behind():
    model, tokens = tiny(dtype=torch.bfloat16), random_tokens(1, 30)
    cast_together(model)
    before = model.train()(tokens).logits
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    after = model(tokens).logits
    assert not torch.equal(before, after)
    assert all(getattr(module, "cast", None) is None for module in model.modules())
    with pytest.raises(IndexError):
        model(tokens + 10_000)
    assert all(getattr(module, "cast", None) is None for module in model.modules())


class Casts(TorchDispatchMode):
    """Counts the casts between fp32 and bf16 of anything with two dimensions, by operator."""

    def __init__(self):
        super().__init__()
        self.single, self.together = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].ndim == 2:
            self.single += 1
        self.together += function is torch.ops.aten._foreach_copy_.default
        return function(*args, **(kwargs or {}))


def test_casts_are_one_launch_each_way():
    model = tiny(dtype=torch.bfloat16).train()
    with Casts() as plain:
        step(model, batches=1)
    cast_together(model)
    with Casts() as casts:
        step(model, batches=1)
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert casts.together == 2 and plain.single - casts.single >= 2 * linears - 1  # the CPU's loss casts its own way
    with Casts() as casts, torch.no_grad():
        model.eval()(random_tokens(1, 30))
    assert casts.together == 0 and casts.single > linears // 2


@pytest.mark.slow
def test_compiled_regions_take_the_casts():
    """Blocks of one shape still share a graph, and no later step is traced anew."""
    torch._dynamo.reset()
    model, counter = tiny("topk", dtype=torch.bfloat16, fb_num_blocks=2).train(), CompileCounterWithBackend("aot_eager")
    cast_together(model)
    (loss,), together = step(model, 1)
    compile_regions(model, fullgraph=True, backend=counter)
    for _ in range(2):
        (compiled,), grads = step(model, 1)
        assert counter.frame_count == 4  # the first local block (its stream is the embedding), others, latent, heads
        assert compiled == pytest.approx(loss, rel=1e-3)
        for name, grad in together.items():
            assert (grads[name] - grad).norm() <= 0.1 * grad.norm() + 1e-6, name
    torch._dynamo.reset()
