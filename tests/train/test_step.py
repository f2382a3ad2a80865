"""One optimizer step against the plain way of taking it."""

import copy
import math
from functools import partial

import pytest
import torch
from helpers import first_fast, random_tokens, tiny, tiny_config
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pico.base.graphs
import pico.model.kernels
import pico.train.optimizers
import pico.train.step
from pico import Pico, TrainConfig
from pico.base.graphs import WARM_UP
from pico.base.routers import ROUTERS, TopK
from pico.base.shapes import HEADS_FROM
from pico.data.prefetch import Batch
from pico.model.attention import alibi_slopes
from pico.model.casts import cast_together
from pico.train.optimizers import GatedAdamW, build_optimizers
from pico.train.soap import SOAP
from pico.train.step import optimizer_step, step_graphs

CONFIG = TrainConfig(
    context_len=24, batch_size=2, optimizer="adamw", gradient_clip=0.5, schedule="linear", warmup_steps=0
)


def batches(count, epoch=0):
    tokens = [random_tokens(2, 24 + 4, seed=i) for i in range(count)]
    return [Batch(x[:, :24], x[:, 1:], 48, {}, [epoch] * 2) for x in tokens]


def step(model, read, config=CONFIG, **options):
    optimizers = build_optimizers(model, config)
    return optimizer_step(model, model, optimizers, config, read, **{"step": 0, "progress": 0.25} | options)


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_a_step_moves_the_weights_by_the_mean_clipped_gradient(router):
    model = tiny(router).train()
    plain, read, losses, nats = copy.deepcopy(model), batches(3), [], []
    plain.begin_step(0.25)
    for batch in read:
        out = plain(batch.inputs, targets=batch.targets)
        (0.9 * out.loss + 0.1 * out.router_loss).div(3).backward()
        losses.append(out.loss.item())
        nats.append(out.head_nll[0].item())
    norm = nn.utils.clip_grad_norm_(plain.dense_parameters(), 0.5)
    for optimizer in build_optimizers(plain, CONFIG):
        for group in optimizer.param_groups:
            group["lr"] = 0.75 * 1e-2 * group.get("rate", 1.0)
        optimizer.step()
    plain.end_step()

    parts = []
    result = step(model, read, to_share=lambda: [3.0, 4.0], mark=parts.append).get()
    for (name, moved), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(moved, expected), name
    assert result.finite and result.shared == [3.0, 4.0] and result.bytes == 3 * 48
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert result.bits_per_byte == pytest.approx(sum(nats) / 3 / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(sum(nats) / 3))
    assert result.grad_norm == pytest.approx(norm.item()) and norm > 0.5
    assert result.learning_rate == pytest.approx(0.75e-2)
    assert parts == ["forward", "backward"] * 3 + ["optimizer"]
    assert all(p.grad is None for p in model.parameters())


def test_where_the_run_is_decides_the_rule_and_what_is_left_out():
    model, again = tiny("topk").train(), batches(1, epoch=1)
    model.ngrams.count([read.inputs for read in again], 48)
    for progress, numbers, read in (
        (0.5, 2, batches(1)),
        (0.5, 0, again),
        (0.5, 0.9, again),
        (TopK.causal_from, 2, again),
    ):
        step(model, read, progress=progress, numbers_per_byte=numbers)
        assert model.router.causal == (progress == TopK.causal_from)
        assert model.heads_trained == (4 if progress >= HEADS_FROM else 1)
        times = model.ngrams.times
        assert (times is not None and times.tolist() == [1, 1]) == (numbers > 0 and read is again)
        dropped = numbers > 1 and read is again
        assert {block.dropout for block in (*model.local_in, *model.latent)} == {CONFIG.dropout * dropped}


def test_a_step_that_is_not_finite_moves_nothing():
    model = tiny("threshold").train()
    before = copy.deepcopy(model.state_dict())

    def forward(tokens, targets):
        out = model(tokens, targets)
        return out._replace(loss=out.loss * math.nan)

    result = optimizer_step(model, forward, build_optimizers(model, CONFIG), CONFIG, batches(1), 0, 0.0).get()
    assert not result.finite
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not model.router.seen.any() and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["soap", "adamw"])
def test_a_gate_keeps_a_step_that_is_not_finite_from_weights_and_state(optimizer, monkeypatch):
    """As on a GPU, where the host does not look: steps 1 and 3 of four are not finite."""
    monkeypatch.setattr(pico.train.step, "gated", lambda *_: True)
    monkeypatch.setattr(pico.train.optimizers, "adamw", lambda *a, **o: GatedAdamW(*a, **o, fused=True))
    model = tiny("threshold").train()
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    optimizers = build_optimizers(model, config)

    def forward(tokens, targets):
        out = model(tokens, targets)
        return out._replace(loss=out.loss * math.nan)

    def everything():
        return copy.deepcopy([model.state_dict(), [list(o.state_dict()["state"].values()) for o in optimizers]])

    for number in range(4):
        before, bad = everything(), number % 2
        called = forward if bad else model
        result = optimizer_step(model, called, optimizers, config, batches(1), number, 0.0).get()
        assert result.finite == (not bad)
        pairs = list(zip(tree_leaves(before), tree_leaves(everything())))
        same = [torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor)]
        assert all(same) if bad else not all(same)
        assert not model.router.seen.any()


class Replayed:
    """In place of `Graphed`, on a CPU: what was captured runs on the tensors of its capture, whatever comes later."""

    failing = False

    def __init__(self, device, pool):
        self.warm_up, self.graph, self.replays = WARM_UP, None, 0

    def __call__(self, function, *arguments):
        if self.warm_up:
            self.warm_up -= 1
            return function(*arguments)
        if self.failing:
            raise RuntimeError("operation not permitted\nmore")
        self.replays += self.graph is not None
        self.graph = self.graph or partial(function, *arguments)
        return self.graph()


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Gates, SOAP's refreshes all together, and graphs that are replayed without a GPU."""
    monkeypatch.setattr(pico.train.step, "gated", lambda *_: True)
    monkeypatch.setattr(pico.train.optimizers, "adamw", lambda *a, **o: GatedAdamW(*a, **o, fused=True))
    monkeypatch.setattr(pico.train.optimizers, "SOAP", partial(SOAP, schedule="together"))
    monkeypatch.setattr(pico.base.graphs, "Graphed", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("optimizer", first_fast("adamw", "soap"))
def test_replayed_steps_are_the_steps_themselves(optimizer, failing, like_a_gpu, monkeypatch):
    """Over refreshes, dropout, another rule and learning rates that no graph may have kept; or where no capture works.

    The rates are powers of two and eighths of them, which fp32 holds.
    """
    advanced, said = [], []
    monkeypatch.setattr(SOAP, "advance", lambda self: advanced.append(1))  # a replay here has counted
    monkeypatch.setattr(Replayed, "failing", failing)
    config = CONFIG.model_copy(update={"optimizer": optimizer, "learning_rate": 2**-7})
    results = []
    for replayed in (False, True):
        torch.manual_seed(0)
        model = tiny("topk").train()
        model.ngrams.table.sparse = True
        model.ngrams.count([random_tokens(2, 24, seed=step) for step in range(40)], 40 * 48)
        optimizers = build_optimizers(model, config)
        graphs = step_graphs(model, optimizers, config, said.append) if replayed else None
        numbers = []
        for step in range(40):
            tokens = random_tokens(2, 28, seed=step)
            read = [Batch(tokens[:, :24], tokens[:, 1:], 48, {}, [int(20 <= step < 30)] * len(tokens))]
            options = dict(step=step, progress=step // 5 / 8, numbers_per_byte=2.0, graphs=graphs)
            numbers.append(optimizer_step(model, model, optimizers, config, read, **options).get()[:7])
        results.append([torch.tensor(numbers), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    replays = sum(run.replays for run in graphs.runs.values())
    assert len(said) == failing and (replays == 0 if failing else replays > 15)
    assert len(advanced) == (replays if optimizer == "soap" else 0)
    assert {type(group["lr"]) for group in graphs.groups} == {float}


class Blind(TorchDispatchMode):
    """Refuses to tell the host a value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in READS, function
        return function(*args, **(kwargs or {}))


READS = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal


@pytest.mark.parametrize("router", [router for router in ROUTERS if router not in ("space", "random")])
def test_no_backward_pass_reads_a_value(router):
    model, (batch,) = tiny(router).train(), batches(1)
    model.ngrams.table.sparse = True
    model.ngrams.count([batch.inputs], 48)
    model.set_dropout(0.1, torch.tensor(1))
    out = model(batch.inputs, targets=batch.targets)
    with Blind():
        (out.loss + out.router_loss).backward()


def without_backward(model):
    """In place of Tensor.backward, which finds no device to run on: what it would leave behind."""

    def backward(loss):
        assert loss.is_cuda and loss.ndim == 0
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        table = model.ngrams.table.weight
        rows = torch.zeros(1, 2 * 24 * 3, dtype=torch.long, device="cuda")
        values = torch.empty(rows.shape[1], table.shape[1], device="cuda")
        table.grad = torch.sparse_coo_tensor(rows, values, table.shape, check_invariants=False)

    return backward


@pytest.mark.parametrize(
    "router, optimizer, captured",
    first_fast(("topk", "soap", True), ("topk", "soap", False), *((router, "adamw", True) for router in ROUTERS)),
)
def test_nothing_in_a_step_waits_for_the_gpu(router, optimizer, captured, monkeypatch):
    """A fake tensor has a shape and a device but no values: whatever needs one of them raises."""
    monkeypatch.setattr(pico.base.graphs, "Graphed", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(pico.model.kernels, "available", lambda: True)
    monkeypatch.setattr(pico.train.step, "Pending", lambda numbers, _: numbers)  # its wait comes a step later
    alibi_slopes.cache_clear()
    with FakeTensorMode():
        with torch.device("cuda"):
            model = Pico(tiny_config(router), "triton", torch.bfloat16).train()
        monkeypatch.setattr(torch.Tensor, "backward", without_backward(model))
        model.router.share = 0.4  # the first batch told
        model.ngrams.counts = torch.ones(1024, dtype=torch.uint8, device="cuda")
        cast_together(model)
        config = CONFIG.model_copy(update={"optimizer": optimizer})
        optimizers = build_optimizers(model, config)
        graphs = step_graphs(model, optimizers, config) if captured else None
        for number in range(12):
            options = dict(step=number, progress=number / 12, numbers_per_byte=2.0, graphs=graphs)
            numbers = optimizer_step(model, model, optimizers, config, batches(2, epoch=number % 2), **options)
            assert numbers.is_cuda and numbers.shape == (10,)
    alibi_slopes.cache_clear()  # it keeps the fake ones
