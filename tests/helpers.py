"""Tiny models and the slow, plain ways of doing things that the tests compare with."""

import itertools
import json
from contextlib import nullcontext
from functools import lru_cache
from math import exp
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pico.decode.generation
from pico.base.shapes import GPTConfig, ModelConfig
from pico.base.symbols import BOS, BYTES, EOS, VOCABULARY
from pico.decode.numpy_reader import NumpyDecoder
from pico.decode.torch_reader import TorchReader
from pico.model.gpt import GPT
from pico.model.pico import Pico


def first_fast(*cases) -> list:
    """Cases for `parametrize`, of which the first is a fast test and the others are slow, for there are many."""
    first, *others = cases

    def slow(case):
        values = case.values if hasattr(case, "marks") else case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=[*getattr(case, "marks", ()), pytest.mark.slow])

    return [first, *map(slow, others)]


def tiny_config(router="threshold", **changes) -> ModelConfig:
    """Windows and widths small enough that a hundred bytes exercise everything."""
    shape = dict(
        dim=32, next_tokens=4, att_q_heads=4, att_kv_heads=2, fb_num_blocks=1, fb_att_window_size=5,
        latent_num_blocks=2, latent_att_window_size=7, latent_capacity_factor=0.5, router=router,
        ngram_max=4, ngram_rows=64, ngram_dim=8,
    )  # fmt: skip
    return ModelConfig.build(**(shape | changes))


def awake(model: Pico) -> Pico:
    """The model with something in place of every zero: a new one's blocks do nothing, so they would prove nothing."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("mix"):
                p.copy_(torch.tensor([0.9, 0.4]))
            elif p.ndim == 2 and not p.any():
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def tiny(router="threshold", seed=0, dtype=torch.float32, **changes) -> Pico:
    """A tiny model in eval mode: gates far from one half, outputs far from uniform, nothing left at zero."""
    torch.manual_seed(seed)
    model = awake(Pico(tiny_config(router, **changes), dtype=dtype)).eval()
    with torch.no_grad():
        model.router.weight.mul_(15)
        model.heads.weight.mul_(20)
        if router == "entropy":  # as sure of some bytes as of others it is not
            model.router.guess.weight.mul_(20)
            model.router.threshold.fill_(2.5)
    return model


def tiny_gpt_config(**changes) -> GPTConfig:
    """A context small enough that a hundred symbols exercise everything."""
    shape = dict(dim=32, num_blocks=2, att_q_heads=4, att_kv_heads=2, head_dim=8, max_context=12, mlp_ratio=1.5)
    return GPTConfig.build(**(shape | changes))


def tiny_gpt(seed=0, dtype=torch.float32, **changes) -> GPT:
    """A tiny twin in eval mode: nothing left at zero or one, outputs far from uniform."""
    torch.manual_seed(seed)
    model = GPT(tiny_gpt_config(**changes), dtype=dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
            else:
                p += 0.4 * torch.randn_like(p)
        if model.head:
            model.head.weight.mul_(3)
    return model


@lru_cache(maxsize=32)
def trained(router="threshold", **changes) -> Pico:
    """A tiny model after a second of training on random words: its drafts are often right and often wrong."""
    generator = torch.Generator().manual_seed(0)
    words = [b"one ", b"two ", b"three ", b"onward! "]
    text = b"".join(words[i] for i in torch.randint(4, (4000,), generator=generator))
    text = torch.tensor(list(text))
    model = tiny(router, **changes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-2, fused=True)
    heads = model.config.next_tokens
    for _ in range(60):
        at = torch.randint(len(text) - 100, (8,), generator=generator)
        tokens = torch.stack([text[i : i + 48 + heads] for i in at])
        tokens[at % 4 == 0, 0] = BOS
        tokens[at % 4 == 1, 30] = EOS
        out = model(tokens[:, :48], targets=tokens[:, 1:])
        optimizer.zero_grad()
        (out.loss + 0.22 * out.router_loss).backward()
        optimizer.step()
        model.end_step()
    return model.eval()


def random_tokens(*shape, seed=0, high=256):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The plain way to a sampling distribution over one vector of logits, as {id: probability}."""

    def normalised(p):
        total = sum(p.values())
        return {i: x / total for i, x in p.items()}

    allowed = {i: x for i, x in enumerate(logits.tolist()) if i < 256 or i == EOS}
    top = max(allowed.values())
    p = normalised({i: exp((x - top) / temperature) for i, x in allowed.items()})
    order = sorted(p, key=lambda i: -p[i])
    if top_k:
        p = normalised({i: p[i] for i in order[:top_k]})
    if top_p < 1:
        kept, mass = {}, 0.0
        for i in order[: len(p)]:
            if mass < top_p:
                kept[i] = p[i]
            mass += p[i]
        p = normalised(kept)
    if min_p:
        p = normalised({i: x for i, x in p.items() if x >= min_p * max(p.values())})
    return p


def penalised(logits, ids: list[int], penalty: float, window: int):
    """One vector of logits after `ids`, as CTRL's rule is written."""
    out = logits.clone()
    for i in {i for i in ids[-window:] if i < 256}:
        out[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
    return out


@torch.no_grad()
def joint(model, prompt: bytes, length: int, penalty=1.0, window=1, **options) -> dict[bytes, float]:
    """Exact probability of every continuation of up to `length` bytes (EOS ends it), by plain full forwards."""
    done, open_ = {}, {b"": 1.0}
    for _ in range(length):
        tokens = torch.tensor([[BOS, *prompt, *text] for text in open_])
        following = {}
        for (text, chance), logits in zip(open_.items(), model(tokens).logits[:, -1, 0]):
            for i, p in filtered(penalised(logits, [*prompt, *text], penalty, window), **options).items():
                if i == EOS:
                    done[text] = chance * p
                else:
                    following[text + bytes([i])] = chance * p
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


def texts(generation) -> list[bytes]:
    """The generated bytes of each row."""
    rows = [bytearray() for _ in generation.prompts]
    for step in generation:
        if not step.prompt:
            rows[step.row] += step.bytes
    return [bytes(row) for row in rows]


class Bigram:
    """In place of a model's reader: head k's distribution depends on the byte read alone, by table[k][byte]."""

    alphabet = BYTES

    def __init__(self, tables):
        self.reads = []  # bytes of each forward
        self.table = torch.full((VOCABULARY, len(tables), VOCABULARY), -torch.inf)
        for k, table in enumerate(tables):
            for byte, chances in table.items():
                for following, p in chances.items():
                    self.table[byte, k, following] = torch.tensor(float(p)).log()

    def read(self, tokens):
        self.reads.append(tokens.shape[1])
        self.tokens = tokens
        return np.zeros(tokens.shape), np.zeros(tokens.shape, bool)

    def logits(self):
        return self.table[self.tokens[0], 0].numpy()

    def draft_logits(self, row, drawn):
        return self.table[self.tokens[0, row], len(drawn)].numpy().copy()

    def keep(self, count):
        pass

    def decoder(self, *args):
        return nullcontext(NumpyDecoder(self, *args))


class BatchBigram(Bigram, TorchReader):
    device, cuda_graph = torch.device("cpu"), False
    decoder = TorchReader.decoder

    def __init__(self, tables):
        super().__init__(tables)
        self.cache = SimpleNamespace(rollback=self.keep, history=None, narrow=lambda: None)
        self.model = SimpleNamespace(draft_logits=lambda read, drawn, _: self.table[read, drawn.shape[1]])

    def forward(self, tokens):
        weight, routed = map(torch.from_numpy, self.read(tokens))
        return SimpleNamespace(logits=self.table[tokens], stream=tokens, router_weight=weight, routed=routed)


def use_tables(monkeypatch, *tables):
    """Makes `generate` read from tables, one a head; returns a model to pass and the list of readers made."""
    made = []

    def reader(model, batch, *_, **__):
        made.append((Bigram if batch == 1 else BatchBigram)(tables))
        return made[-1]

    monkeypatch.setattr(pico.decode.generation, "reader", reader)
    return tiny(next_tokens=len(tables), chained_heads=False), made


def chunks(total: int, sizes):
    """(start, end) of consecutive pieces of the given sizes, repeated until total is reached."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= total:
            return
        yield start, min(start + size, total)
        start += size


def same_batch(one, other) -> bool:
    """Whether two (inputs, targets) are equal."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_parquet(path, **columns):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def write_metrics(path: Path, steps=200, validation=True) -> Path:
    """A metrics.jsonl of a training that gets better."""
    with path.open("w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "bytes": 4096 * step, "train_bpb": 1 + 7 / step}
            if validation and step % 50 == 0:
                line["validation_bpb"] = 1.1 + 7 / step
            file.write(json.dumps(line) + "\n")
    return path


class OneDevice(TorchDispatchMode):
    """Refuses operators that touch another device than the GPU: a copy from the host cannot be captured."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        assert devices <= {"cuda"}, function
        return out
