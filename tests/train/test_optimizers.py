"""Which optimizer moves which parameter, and at which rate."""

import pytest
import torch
from helpers import random_tokens, tiny
from training import SMALL

from pico.base.config import TrainConfig
from pico.base.presets import preset
from pico.model.pico import Pico
from pico.train.optimizers import TABLE_RATE, TailAverage, build_optimizers, set_learning_rate

OWN = dict(embedding_rate=0.5, head_rate=0.25, vector_rate=0.125)


def rates(model, **settings) -> dict[str, float]:
    """The learning rate of each parameter, halfway through a linear schedule."""
    settings = TrainConfig(learning_rate=1.0, warmup_steps=0, schedule="linear", **settings)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = build_optimizers(model, settings)
    assert set_learning_rate(optimizers, settings, 9, 0.5) == 0.5
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
def test_embedding_heads_and_vectors_may_have_rates_of_their_own(optimizer):
    model = tiny()
    own = {"embedding.weight": 0.5, "heads.weight": 0.25}
    own |= {name: 0.125 for name, p in model.named_parameters() if p.ndim < 2 or name.startswith("router")}
    tables = {"ngrams.table.weight": TABLE_RATE}
    names = [name for name, _ in model.named_parameters()]
    assert rates(model, optimizer=optimizer, **OWN) == {n: 0.5 * (own | tables).get(n, 1.0) for n in names}
    assert rates(model, optimizer=optimizer) == {n: 0.5 * tables.get(n, 1.0) for n in names}


@pytest.mark.parametrize(
    "optimizer, plain, own", [("soap", [3, 1], [4, 1]), ("adamw", [2, 1], [4, 1]), ("muon", [1, 2, 1], [1, 3, 1])]
)
def test_what_is_stepped_alike_is_one_group(optimizer, plain, own):
    """As before there were rates of their own: SOAP's stacks, and checkpoints, depend on it."""
    for rates, groups in (({}, plain), (OWN, own), (dict(embedding_rate=0.5), None)):
        built = build_optimizers(tiny(), TrainConfig(optimizer=optimizer, **rates))
        assert groups is None or [len(each.param_groups) for each in built] == groups
        assert all(group["params"] for each in built for group in each.param_groups)


def test_muons_step_is_as_long_as_adamws_or_its_authors():
    """Of a matrix (r, c): .2 sqrt(max(r, c)) times the orthogonalised momentum, or sqrt(max(1, r / c)) times it."""
    moved = {}
    for muon_step in ("rms", "original"):
        model = tiny().train()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        tokens = random_tokens(2, 40)
        model(tokens[:, :36], targets=tokens[:, 1:]).loss.backward()
        muon = build_optimizers(model, TrainConfig(optimizer="muon", muon_step=muon_step, weight_decay=0.0))[0]
        muon.step()
        matrices = {id(p) for p in muon.param_groups[0]["params"]}
        after = {name: p.detach() for name, p in model.named_parameters() if id(p) in matrices}
        moved[muon_step] = {name: p - before[name] for name, p in after.items()}
    for name, step in moved["rms"].items():
        rows, columns = step.shape
        ratio = max(1, rows / columns) ** 0.5 / (0.2 * max(rows, columns) ** 0.5)
        torch.testing.assert_close(moved["original"][name], step * ratio, rtol=1e-3, atol=1e-5)
        assert step.any()


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=10, schedule="linear")
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


def test_the_tail_of_a_run_is_averaged_and_given_back_in_part():
    """Over a memory of five steps of a hundred, from step 85 on; the end is .4 of the last weights and .6 of it."""
    p, average = torch.nn.Parameter(torch.zeros(3)), None
    tail = TailAverage([p], 0.6)
    for step in range(1, 101):
        with torch.no_grad():
            p.copy_(torch.randn(3))
        last = p.detach().clone()
        if step >= 85:
            average = last if average is None else average + (last - average) / 5
        tail.follow(step, step / 100)
        assert torch.equal(p, last) or step == 100
    torch.testing.assert_close(p.detach(), 0.4 * last + 0.6 * average)


def test_settings_of_soap_reach_it():
    settings = TrainConfig(soap_beta2=0.99, soap_cautious=True, tail_average=0.6)
    soap, _, tail = build_optimizers(tiny(), settings)
    for group in soap.param_groups:
        assert (group["betas"], group["gram_beta"], group["cautious"]) == ((0.95, 0.99), 0.95, True)
    assert isinstance(tail, TailAverage) and tail.param_groups[0]["share"] == 0.6
    assert sum(map(len, (g["params"] for g in tail.param_groups))) == len(list(tiny().parameters()))
