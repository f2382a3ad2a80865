"""The token twin: every switch against a plain way of computing it, and the laws that hold for every model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import chunks, random_tokens, tiny_gpt, tiny_gpt_config
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import pico.model.gpt
from pico.base.config import MAX_FEED, TrainConfig
from pico.base.presets import PRESETS, preset
from pico.base.symbols import BOS, VOCABULARY, Alphabet
from pico.model.cost import cache_bytes
from pico.model.gpt import GPT
from pico.model.ngrams import keys
from pico.model.norm import EPS
from pico.model.regions import compile_regions
from pico.train.optimizers import build_optimizers

SIMPLE = dict(
    qk_norm="before", norm_gain=True, sandwich_norm=True, gate="query", qkv_bias=True, embedding_scale="sqrt",
    rope_fraction=0.5, rope_theta=1e5, mlp_ratio_last=4.0, att_kv_heads=1, init="depth",
)  # fmt: skip
PICOCHAT = dict(mlp="relu2", embedding_scale="norm", logit_softcap=2.0, att_kv_heads=4)
SWITCHES = [
    dict(),
    dict(rope_fraction=0.5),
    dict(rope_fraction=0.0),
    dict(rope_theta=3.0),
    dict(qk_norm="none"),
    dict(norm_gain=True),
    dict(norm_gain=True, qk_norm="before"),
    dict(sandwich_norm=True),
    dict(sandwich_norm=True, norm_gain=True),
    dict(mlp="relu2"),
    dict(mlp_ratio_last=4.0, num_blocks=3),
    dict(gate="query"),
    dict(gate="input"),
    dict(qkv_bias=True),
    dict(embedding_scale="sqrt"),
    dict(embedding_scale="norm"),
    dict(tied=True),
    dict(logit_softcap=1.5),
    dict(window=5),
    dict(att_kv_heads=1),
    dict(att_kv_heads=4),
    dict(ngram_max=3, ngram_rows=64, ngram_dim=8),
    SIMPLE,
    PICOCHAT,
]
CLOSE = dict(atol=2e-4, rtol=1e-3)
every_switch = pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))


def written_out(model, tokens):
    """Logits (T, V) of one text (T,) in fp64: position by position, head by head."""
    c, p = model.config, {name: x.detach().double() for name, x in model.named_parameters()}
    width, group, length = c.head_dim, c.att_q_heads // c.att_kv_heads, len(tokens)

    def rms(x, gain=""):
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * p.get(gain, 1.0)

    def turned(x, t):
        half = int(width * c.rope_fraction) // 2
        angle = t * c.rope_theta ** (-2 * torch.arange(half).double() / max(1, 2 * half))
        even, odd = x[0 : 2 * half : 2], x[1 : 2 * half : 2]
        y = x.clone()
        y[0 : 2 * half : 2], y[1 : 2 * half : 2] = (
            even * angle.cos() - odd * angle.sin(),
            even * angle.sin() + odd * angle.cos(),
        )
        return y

    def attention(x, name):
        qkv = x @ p[f"{name}.qkv.weight"].T + p.get(f"{name}.qkv.bias", 0.0)
        heads = qkv.view(length, -1, width)
        out = torch.zeros(length, c.att_q_heads, width).double()
        for h in range(c.att_q_heads):
            q, k, v = heads[:, h], heads[:, c.att_q_heads + h // group], heads[:, -c.att_kv_heads + h // group]
            if c.qk_norm == "before":
                q, k = rms(q, f"{name}.q_gain"), rms(k, f"{name}.k_gain")
            q, k = (torch.stack([turned(row, t) for t, row in enumerate(rows)]) for rows in (q, k))
            if c.qk_norm == "after":
                q, k = rms(q, f"{name}.q_gain"), rms(k, f"{name}.k_gain")
            for t in range(length):
                first = max(0, t - (c.window or c.max_context - 1))
                out[t, h] = (k[first : t + 1] @ q[t] / width**0.5).softmax(0) @ v[first : t + 1]
                if c.gate == "query":
                    out[t, h] *= torch.sigmoid(p[f"{name}.gate.weight"] @ q[t])
                elif c.gate == "input":
                    out[t, h] *= torch.sigmoid(p[f"{name}.gate.weight"][h * width : (h + 1) * width] @ x[t])
        return out.flatten(1) @ p[f"{name}.out.weight"].T

    def mlp(x, name):
        up, down = x @ p[f"{name}.up.weight"].T, p[f"{name}.down.weight"].T
        if c.mlp == "relu2":
            return up.clamp(min=0) ** 2 @ down
        gate, value = up[:, : len(down)], up[:, len(down) :]
        return gate * torch.sigmoid(gate) * value @ down

    x = p["embedding.weight"][tokens]
    if c.embedding_scale == "sqrt":
        x = x * c.dim**0.5
    if c.ngram_max:
        padded = [BOS] * (c.ngram_max - 1) + tokens.tolist()
        for t in range(length):
            text = padded[: t + c.ngram_max][::-1]
            rows = keys(text[0], text[1:], c.ngram_max, *c.ngram_tables)
            x[t] += p["ngrams.project.weight"] @ p["ngrams.table.weight"][rows].flatten()
    if c.embedding_scale == "norm":
        x = rms(x)
    for layer in range(c.num_blocks):
        for number, part in enumerate((attention, mlp)):
            name = f"blocks.{layer}."
            add = part(rms(x, f"{name}norms.{number}.gain"), name + part.__name__)
            x = x + (rms(add, f"{name}outer_norms.{number}.gain") if c.sandwich_norm else add)
    logits = rms(x, "norm.gain") @ p["embedding.weight" if c.tied else "head.weight"].T
    return c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


@every_switch
def test_every_switch_computes_what_its_formula_says(switch):
    """A text longer than the context: then every symbol sees the last ones alone."""
    model, tokens = tiny_gpt(**switch), random_tokens(2, 30)
    with torch.no_grad():
        logits = model(tokens).logits
    assert logits.shape == (2, 30, 1, VOCABULARY)
    for row in range(2):
        torch.testing.assert_close(logits[row, :, 0].double(), written_out(model, tokens[row]), **CLOSE)


@pytest.mark.parametrize("switch", [s for s in SWITCHES if s])
def test_every_switch_changes_something(switch):
    """The same weights, where both have them, and other logits."""
    model, base = tiny_gpt(**switch), tiny_gpt(**({"norm_gain": True} if "norm_gain" in switch else {}))
    if switch == dict(norm_gain=True):
        base = tiny_gpt()
    shared = {n: p for n, p in model.state_dict().items() if n in base.state_dict()}
    base.load_state_dict({n: p for n, p in shared.items() if p.shape == base.state_dict()[n].shape}, strict=False)
    with torch.no_grad():
        assert (base(random_tokens(1, 30)).logits - model(random_tokens(1, 30)).logits).abs().max() > 0.1


# Presets


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).kind == "gpt"])
def test_the_parts_are_as_large_as_the_shape_says(name):
    with torch.device("meta"):
        assert GPT(preset(name)).parts() == preset(name).parameters


def test_presets_have_the_parameters_of_their_models():
    """Counted by hand, matrix by matrix."""

    def simple(vocabulary, dim, heads, kv_heads, width, hidden):
        attention = (heads + 2 * kv_heads) * width * (dim + 1) + heads * width * dim + width**2
        block = attention + 4 * dim + 2 * width  # and the gains
        return 2 * vocabulary * dim + dim + sum(block + 3 * dim * h for h in hidden)

    hidden = [576, 656, 752, 832, 928, 1008, 1104, 1184, 1280, 1360, 1456, 1536]
    assert preset("simple-picolm").mlp_dims == hidden
    assert simple(49152, 384, 4, 1, 96, hidden) == 56_909_184
    assert sum(preset("simple-picolm").parameters.values()) == 56_909_184
    large = [16 * round(80 * (1.5 + 2.5 * layer / 31)) for layer in range(32)]
    assert sum(preset("simple-picolm-xl").parameters.values()) == simple(32768, 1280, 10, 5, 128, large)
    assert sum(preset("picochat").parameters.values()) == 2 * 65536 * 1024 + 16 * 12 * 1024**2 == 335_544_320


# Law 1


@pytest.mark.parametrize("training", [False, True])
@every_switch
def test_no_output_depends_on_a_later_symbol(switch, training):
    tokens = random_tokens(26)
    rows = tokens.repeat(27, 1)
    rows[torch.arange(26), torch.arange(26)] = (tokens + 101) % 256
    with torch.no_grad():
        logits = tiny_gpt(**switch).train(training)(rows).logits
    for t in range(26):
        torch.testing.assert_close(logits[t, :t], logits[-1, :t], **CLOSE)
        assert (logits[t, t] - logits[-1, t]).abs().max() > 0.02


@pytest.mark.parametrize("switch", [dict(max_context=300), dict(window=70, max_context=512), SIMPLE, PICOCHAT])
def test_no_gradient_comes_from_the_future_or_from_before_the_window(switch):
    """Exactly zero, in one block over several blocks of queries: all symbols of the text differ."""
    model = tiny_gpt(**(switch | dict(num_blocks=1)))
    tokens = torch.randperm(256, generator=torch.Generator().manual_seed(1))[:200]
    logits = model(tokens[None]).logits[0]
    for t in (0, 1, 62, 63, 64, 65, 128, 141, 199):
        grad = torch.autograd.grad(logits[t].sum(), model.embedding.weight, retain_graph=True)[0][tokens]
        first = max(0, t - model.config.reach)
        assert not grad[t + 1 :].any() and not grad[:first].any()
        assert grad[first : t + 1].any(1).all()


# Law 8


def third_backward_pass(model):
    optimizers = build_optimizers(model, TrainConfig(optimizer="adamw"))
    for step in range(3):
        tokens = random_tokens(4, 13, seed=step)
        model.zero_grad()
        model(tokens[:, :12], targets=tokens[:, 1:]).loss.backward()
        if step < 2:
            for optimizer in optimizers:
                optimizer.step()


@pytest.mark.parametrize("init", ["standard", "zero", "depth"])
@every_switch
def test_every_parameter_learns_and_is_in_one_group(switch, init):
    torch.manual_seed(0)
    model = GPT(tiny_gpt_config(**(switch | dict(init=init))))
    groups = model.parameter_groups()
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in model.parameters()}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in groups["matrices"]) and all(p.ndim == 1 for p in groups["undecayed"])
    third_backward_pass(model)
    assert [name for name, p in model.named_parameters() if not p.grad.to_dense().any()] == []


def test_without_its_floor_the_init_by_depth_kills_the_last_block(monkeypatch):
    monkeypatch.setattr(pico.model.gpt, "DEEPEST", 0.0)
    model = GPT(tiny_gpt_config(init="depth"))
    third_backward_pass(model)
    still = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert still == ["blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"]


# The loss


@every_switch
def test_the_loss_is_the_cross_entropy_of_the_logits(switch):
    """And so are its gradients; a target of -100 is not scored, and counted in the mean."""
    model, tokens = tiny_gpt(**switch), random_tokens(3, 20)
    targets = tokens[:, 1:].clone()
    targets[1, 7:] = -100
    out = model(tokens[:, :-1], targets=targets)
    logits = model(tokens[:, :-1]).logits[:, :, 0]
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(out.loss, nats / targets.numel())
    torch.testing.assert_close(out.head_nll, nats[None].detach() / (targets >= 0).sum())
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in (out.loss, nats / targets.numel()))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_what_has_no_router_says_so():
    model, tokens = tiny_gpt(), random_tokens(2, 9)
    out = model(tokens[:, :8], targets=tokens[:, 1:])
    assert out.slots == out.skipped == out.router_loss == 0
    assert out.routed.shape == out.router_weight.shape == (2, 8)
    assert not out.routed.any() and not out.router_weight.any()


# Law 2


def assert_cached(out, full, at):
    torch.testing.assert_close(out.logits, full.logits[:, at], **CLOSE)


@torch.no_grad()
def read(model, tokens, sizes, feed=MAX_FEED):
    full, cache = model(tokens), model.new_cache(len(tokens), feed)
    for start, end in chunks(tokens.shape[1], sizes):
        assert_cached(model(tokens[:, start:end], cache=cache), full, slice(start, end))
    assert cache.length.tolist() == [tokens.shape[1]] * len(tokens)


@every_switch
def test_cache_equals_full(switch):
    read(tiny_gpt(**switch), random_tokens(3, 100), [1, 7, 2, 30])


@given(
    st.sampled_from([dict(), SIMPLE, PICOCHAT, dict(window=3), dict(ngram_max=4, ngram_rows=64, ngram_dim=8)]),
    st.integers(1, 40),
    st.lists(st.integers(1, MAX_FEED), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 120),
)
def test_cache_equals_full_for_any_context_and_chunking(switch, context, sizes, batch, length):
    read(tiny_gpt(**(switch | dict(max_context=context))), random_tokens(batch, length), sizes)


def test_cached_decoding_is_within_a_rounding_of_the_full_forward():
    """In fp32 on one thread, symbol by symbol, far past the context: what README may say of it."""
    model, tokens = tiny_gpt(**SIMPLE), random_tokens(1, 200)
    with torch.no_grad():
        full, cache = model(tokens).logits, model.new_cache(1, 1)
        steps = torch.cat([model(tokens[:, t : t + 1], cache=cache).logits for t in range(200)], dim=1)
    assert (steps - full).abs().max() < 1e-5 * full.abs().max()


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(1, 8), st.lists(st.integers(0, 8), min_size=3, max_size=3)), min_size=1, max_size=9),
)
def test_what_is_rolled_back_leaves_nothing_behind(context, turns):
    """Rows keep different numbers of symbols; a prompt is read wide, then the cache is narrow."""
    model = tiny_gpt(max_context=context, ngram_max=3, ngram_rows=64, ngram_dim=8)
    texts, cache = [list(row) for row in random_tokens(3, 20)], model.new_cache(3, 20)
    with torch.no_grad():
        model(torch.tensor(texts), cache=cache)
        cache.narrow(8)
        for seed, (count, keep) in enumerate(turns):
            tokens, keep = random_tokens(3, count, seed=seed), [min(k, count) for k in keep]
            out = model(tokens, cache=cache)
            for row in range(3):
                recent = texts[row] + tokens[row].tolist()
                full = model(torch.tensor([recent])).logits[0, len(texts[row]) :]
                torch.testing.assert_close(out.logits[row], full, **CLOSE)
                texts[row] = recent[: len(texts[row]) + keep[row]]
            cache.rollback(torch.tensor(keep))
    assert cache.length.tolist() == [len(text) for text in texts]


def test_memory_is_that_of_the_context_however_long_the_text():
    model = tiny_gpt(**SIMPLE)
    c, cache = model.config, model.new_cache(2, 8)
    with torch.no_grad():
        for seed in range(10):
            model(random_tokens(2, 8, seed=seed), cache=cache)
    assert cache.memory_bytes() == 2 * c.num_blocks * (11 + 8) * 2 * c.att_kv_heads * c.head_dim * 4
    assert cache_bytes(c, feed=8) == cache.memory_bytes() // 2


def test_the_start_of_a_text_is_that_of_its_alphabet():
    """N-grams do not reach over it, and a cache begins with it."""
    model = tiny_gpt(tokenizer="bpe", vocab_size=64, ngram_max=3, ngram_rows=512, ngram_dim=8)
    model.alphabet = Alphabet([b"x"] * 62 + [b"", b""], {"bos": 62, "eos": 63})
    text, other = torch.tensor([[7, 5, 62, 9, 8]]), torch.tensor([[6, 4, 62, 9, 8]])
    with torch.no_grad():
        assert torch.equal(model.embed(text), model.embed(other))
        assert not torch.equal(*(model.embed(row.where(row != 62, 3)) for row in (text, other)))
        out = model(text, cache=model.new_cache(1, 8)).logits
        torch.testing.assert_close(out, model(text).logits, **CLOSE)


# Training


@pytest.mark.parametrize("switch", [SIMPLE, PICOCHAT, dict(ngram_max=3, ngram_rows=64, ngram_dim=8)])
def test_gradient_checkpointing_changes_no_bit(switch):
    model, tokens, found = tiny_gpt(**switch).train(), random_tokens(3, 13), []
    if model.ngrams:
        model.ngrams.count([tokens], tokens.numel())
    model.set_dropout(0.3, torch.tensor(1))
    for model.gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        loss = model(tokens[:, :12], targets=tokens[:, 1:]).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(map(torch.equal, *found))


def test_gradient_checkpointing_keeps_only_what_goes_into_each_block():
    def kept(model):
        sizes, tokens = [], random_tokens(2, 13)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(tokens[:, :12], targets=tokens[:, 1:])
        return sum(sizes)

    model = tiny_gpt(num_blocks=8).train()
    without = kept(model)
    model.gradient_checkpointing = True
    assert kept(model) < without / 5


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_close_in_bf16(switch):
    tokens = random_tokens(2, 31)
    exact, model = tiny_gpt(**switch), tiny_gpt(**switch, dtype=torch.bfloat16)
    wanted, out = exact(tokens).logits, model(tokens).logits
    assert out.dtype == torch.bfloat16 and (out.float() - wanted).norm() < 0.05 * wanted.norm()
    losses = [m(tokens[:, :30], targets=tokens[:, 1:]).loss for m in (exact, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    losses[1].backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.to_dense().any() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("switch", [dict(), SIMPLE | dict(num_blocks=10), PICOCHAT])
def test_blocks_compile_whole(switch):
    """No graph breaks, and blocks of ten widths are ten graphs."""
    torch._dynamo.reset()
    plain, tokens = tiny_gpt(**switch).train(), random_tokens(2, 13)
    model, counter = copy.deepcopy(plain), CompileCounterWithBackend("aot_eager")
    compile_regions(model, fullgraph=True, backend=counter)
    found = []
    for each in (plain, model):
        loss = each(tokens[:, :12], targets=tokens[:, 1:]).loss
        found.append([loss, *torch.autograd.grad(loss, list(each.parameters()))])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert counter.frame_count == len(set(model.config.mlp_dims))
    torch._dynamo.reset()
