"""Which optimizer moves which parameter, and at which rate."""

import pytest
import torch
from helpers import random_tokens, tiny

from pico.base.config import TrainConfig
from pico.train.optimizers import TABLE_RATE, build_optimizers, set_learning_rate

OWN = dict(embedding_rate=0.5, head_rate=0.25, vector_rate=0.125)


def rates(model, **settings) -> dict[str, float]:
    """The learning rate of each parameter, halfway through a linear schedule."""
    settings = TrainConfig(learning_rate=1.0, warmup_steps=0, **settings)
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
