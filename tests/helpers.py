"""Tiny models and the slow, plain ways of doing things that the tests compare with."""

import itertools
from typing import get_args

import torch

from pico.config import ModelConfig, RouterName
from pico.model import Pico
from pico.vocab import BOS, EOS, VOCABULARY

ROUTERS = list(get_args(RouterName))


def tiny_config(router="threshold", **changes) -> ModelConfig:
    """Windows and widths small enough that a hundred bytes exercise everything."""
    shape = dict(
        dim=32, next_tokens=4, att_q_heads=4, att_kv_heads=2, fb_num_blocks=1, fb_att_window_size=5,
        latent_num_blocks=2, latent_att_window_size=7, latent_capacity_factor=0.5, router=router,
    )  # fmt: skip
    return ModelConfig.build(**(shape | changes))


def tiny(router="threshold", seed=0, dtype=torch.float32, **changes) -> Pico:
    """A tiny model in eval mode whose gates are far from one half and whose outputs are far from uniform."""
    torch.manual_seed(seed)
    model = Pico(tiny_config(router, **changes), dtype=dtype).eval()
    with torch.no_grad():
        model.router.weight.mul_(15)
        model.heads.weight.mul_(20)
    return model


def agreeing(router="threshold", seed=0, noise=0.5, **changes) -> Pico:
    """A tiny model whose later heads predict about what head 0 does: some drafts are accepted, some are not."""
    model = tiny(router, seed, **changes)
    with torch.no_grad():
        heads = model.heads.weight.view(-1, VOCABULARY, model.config.dim)
        heads[1:] = heads[0] + noise * heads[1:]
    return model


def random_tokens(*shape, seed=0, high=256):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The plain way to a sampling distribution over one vector of logits, as {id: probability}."""
    allowed = {i: float(x) for i, x in enumerate(logits) if i < 256 or i == EOS}
    top = max(allowed.values())
    p = {i: 2.718281828459045 ** ((x - top) / temperature) for i, x in allowed.items()}

    def normalised(p):
        return {i: x / sum(p.values()) for i, x in p.items()}

    p = normalised(p)
    if top_k:
        p = normalised({i: p[i] for i in sorted(p, key=lambda i: -p[i])[:top_k]})
    if top_p < 1:
        kept, mass = {}, 0.0
        for i in sorted(p, key=lambda i: -p[i]):
            if mass < top_p:
                kept[i] = p[i]
            mass += p[i]
        p = normalised(kept)
    if min_p:
        p = normalised({i: x for i, x in p.items() if x >= min_p * max(p.values())})
    return p


@torch.no_grad()
def joint(model, prompt: bytes, length: int, **options) -> dict[tuple, float]:
    """Exact probability of every continuation of up to `length` ids (EOS ends it), by plain full forwards."""
    done, open_ = {}, {(): 1.0}
    for _ in range(length):
        following = {}
        for text, chance in open_.items():
            logits = model(torch.tensor([[BOS, *prompt, *text]])).logits[0, -1, 0]
            for i, p in filtered(logits, **options).items():
                (done if i == EOS else following)[(*text, i)] = chance * p
        open_ = following
    return done | open_


def chi_square(counts: dict, expected: dict, total: int) -> tuple[float, float]:
    """(statistic, its 99.9 % quantile): pools outcomes expected less than 5 times. All counts must be expected."""
    assert set(counts) <= set(expected), set(counts) - set(expected)
    assert abs(sum(expected.values()) - 1) < 1e-4
    rare = [k for k, p in expected.items() if p * total < 5]
    pairs = [(counts.get(k, 0), p * total) for k, p in expected.items() if p * total >= 5]
    if rare:
        pairs.append((sum(counts.get(k, 0) for k in rare), max(1e-9, sum(expected[k] for k in rare) * total)))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
    freedom = len(pairs) - 1  # Wilson and Hilferty's approximation of the quantile
    return statistic, freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def chunks(total: int, sizes):
    """(start, end) of consecutive pieces of the given sizes, repeated until total is reached."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= total:
            return
        yield start, min(start + size, total)
        start += size
