"""Law 2: reading through the cache gives the logits of the full forward, whatever was read, rolled back or routed."""

import pytest
import torch
from helpers import chunks, first_fast, random_tokens, tiny, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from pico.base.routers import ROUTERS
from pico.model.cache import MAX_FEED, Cache
from pico.model.cost import cache_bytes

CLOSE = dict(atol=2e-4, rtol=1e-3)
COMPARED = "logits", "routed", "router_weight"


def assert_same(out, full, at=slice(None)):
    """A cached output against the positions `at` of a full one."""
    torch.testing.assert_close(out.logits, full.logits[:, at], **CLOSE)
    assert torch.equal(out.routed, full.routed[:, at])
    torch.testing.assert_close(out.router_weight, full.router_weight[:, at], **CLOSE)


@torch.no_grad()
def read(model, tokens, sizes, **options):
    """All of tokens through a cache in pieces of the given sizes, against one full forward."""
    full, cache = model(tokens, **options), Cache(model.config, len(tokens))
    for start, end in chunks(tokens.shape[1], sizes):
        assert_same(model(tokens[:, start:end], cache=cache, **options), full, slice(start, end))
    assert cache.length.tolist() == [tokens.shape[1]] * len(tokens)
    return full, cache


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_cache_equals_full_for_every_router_with_rows_that_route_differently(router, disable_latent):
    tokens = random_tokens(3, 100, seed=3)
    tokens[1] = torch.tensor([*b"Two rows, and one of them is text."] * 3)[:100]
    full, _ = read(tiny(router), tokens, [1, 7, 2, 30], disable_latent=disable_latent)
    if router in ("topk", "threshold", "random", "space") and not disable_latent:
        assert len({tuple(row) for row in full.routed.tolist()}) == 3  # or the test would say little
        assert len(set(full.routed.sum(1).tolist())) > 1


@given(
    st.sampled_from(["topk", "threshold", "space", "random"]),
    st.lists(st.integers(1, MAX_FEED), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 120),
    st.integers(0, 10**6),
)
def test_cache_equals_full_for_any_chunking(router, sizes, batch, length, seed):
    read(tiny(router), random_tokens(batch, length, seed=seed), sizes)


@given(
    st.sampled_from(["topk", "threshold", "space", "random"]),
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
    st.integers(65, 300),
    st.integers(0, 10**6),
)
def test_cache_equals_full_for_large_pieces_of_rows_of_different_lengths(router, lengths, feed, seed):
    """A prompt in pieces of any size, then narrow, and decoded: every row as in a full forward of its own."""
    model, tokens, more = tiny(router), random_tokens(3, 300, seed=seed), random_tokens(3, 30, seed=seed + 1)
    cache, read = Cache(model.config, 3, feed=feed), [0, 0, 0]
    with torch.no_grad():
        full = [model(torch.cat([tokens[i, :n], more[i]])[None]) for i, n in enumerate(lengths)]
        for start, end in chunks(300, [feed]):
            out = model(tokens[:, start:end], cache=cache)
            keep = [min(max(n - start, 0), end - start) for n in lengths]
            cache.rollback(torch.tensor(keep))
            for row, count in enumerate(keep):
                got = out._replace(**{k: getattr(out, k)[row : row + 1, :count] for k in COMPARED})
                assert_same(got, full[row], slice(read[row], read[row] + count))
                read[row] += count
        wide = cache.memory_bytes()
        cache.narrow()
        assert cache.memory_bytes() == 3 * cache_bytes(model.config) < wide == 3 * cache_bytes(model.config, feed=feed)
        for start, end in chunks(30, [4, 1, 7]):
            out = model(more[:, start:end], cache=cache)
            for row, length in enumerate(lengths):
                got = out._replace(**{k: getattr(out, k)[row : row + 1] for k in COMPARED})
                assert_same(got, full[row], slice(length + start, length + end))


@pytest.mark.parametrize("sizes", first_fast([3, 1], [1], [MAX_FEED]))
def test_cache_equals_full_after_several_turns_of_the_ring(sizes):
    """Local ring 5 + 64 slots, latent ring 7 + 64: 450 bytes are 6 turns of one and 3 of the other."""
    full, cache = read(tiny("threshold"), random_tokens(2, 450), sizes)
    assert full.routed.sum(1).min() > 2 * cache.latent.slots
    assert 6 * cache.local.slots < 450


@given(
    st.sampled_from(["topk", "threshold", "space", "stride", "random", "all"]),
    st.lists(st.tuples(st.integers(1, 9), st.tuples(*[st.floats(0, 1)] * 3)), min_size=1, max_size=25),
    st.integers(0, 10**6),
)
def test_cache_equals_full_after_rollbacks_with_a_keep_per_row(router, cycles, seed):
    """Each row keeps its own part of every forward (possibly nothing), and goes on with other bytes."""
    model, cache = tiny(router), Cache(tiny_config(), 3)
    kept, fresh = [[] for _ in range(3)], iter(random_tokens(100, 3, 9, seed=seed))
    with torch.no_grad():
        for count, parts in cycles:
            tokens = next(fresh)[:, :count]
            out = model(tokens, cache=cache)
            for row in range(3):  # rows have lengths of their own, so each needs a full forward of its own
                full = model(torch.tensor([kept[row] + tokens[row].tolist()]))
                torch.testing.assert_close(out.logits[row], full.logits[0, len(kept[row]) :], **CLOSE)
                assert torch.equal(out.routed[row], full.routed[0, len(kept[row]) :])
            keep = [round(part * count) for part in parts]
            cache.rollback(torch.tensor(keep))
            for row in range(3):
                kept[row] += tokens[row, : keep[row]].tolist()
    assert cache.length.tolist() == [len(k) for k in kept]


def test_long_rejected_drafts_leave_nothing_behind():
    """Full-sized forwards that are all but forgotten, over several turns of both rings."""
    for router in ("topk", "space"):
        model, cache = tiny(router), Cache(tiny_config(), 2)
        kept, keep = [[], []], torch.tensor([5, 0])
        with torch.no_grad():
            for turn in range(60):
                tokens = random_tokens(2, MAX_FEED, seed=turn)
                out = model(tokens, cache=cache)
                for row in range(2):
                    recent = kept[row] + tokens[row].tolist()
                    if turn % 10 == 9:
                        full = model(torch.tensor([recent])).logits[0, len(kept[row]) :]
                        torch.testing.assert_close(out.logits[row], full, **CLOSE)
                    kept[row] += tokens[row, : keep[row]].tolist()
                cache.rollback(keep)
                keep = keep.flip(0) if turn > 20 else keep
        assert cache.length.tolist() == [len(k) for k in kept]


def test_keep_nothing_restores_everything():
    """`space` also needs the byte before: rolled back, it must be the old one."""
    model, tokens = tiny("space"), torch.tensor([list(b"one two. three, four")])
    with torch.no_grad():
        full, cache = model(tokens), Cache(model.config, 1)
        for start in range(tokens.shape[1]):
            model(torch.tensor([list(b"  wrong  ")]), cache=cache)
            cache.rollback(torch.tensor([0]))
            assert_same(model(tokens[:, start : start + 1], cache=cache), full, slice(start, start + 1))


def test_a_rollback_can_be_revised():
    model, tokens, cache = tiny("topk"), random_tokens(2, 20), Cache(tiny_config(), 2)
    with torch.no_grad():
        full = model(tokens)
        model(tokens[:, :9], cache=cache)
        for keep in (0, 3, 9, 6):  # always counted from before the forward
            cache.rollback(torch.tensor([keep, keep]))
        assert_same(model(tokens[:, 6:], cache=cache), full, slice(6, 20))


@pytest.mark.parametrize("change", [dict(fb_num_blocks=0), dict(latent_num_blocks=0)])
def test_stacks_may_be_empty(change):
    """The original ran no latent cache at all with fb_num_blocks = 0, and said nothing."""
    model, tokens = tiny("topk", **change), random_tokens(3, 90)
    full, cache = read(model, tokens, [4, 1, 9])
    assert cache.latent.length.tolist() == full.routed.sum(1).tolist()
    if "fb_num_blocks" in change:  # the latent blocks matter, so the cache was needed
        assert (full.logits - model(tokens, disable_latent=True).logits).abs().max() > 0.1


def test_cache_in_bf16():
    model, tokens = tiny("stride", dtype=torch.bfloat16), random_tokens(2, 300)
    with torch.no_grad():
        full, cache = model(tokens).logits.float(), Cache(model.config, 2, torch.bfloat16)
        for start, end in chunks(300, [5, 1]):
            out = model(tokens[:, start:end], cache=cache).logits.float()
            assert (out - full[:, start:end]).norm() < 0.03 * full[:, start:end].norm()


def test_only_routed_bytes_enter_the_latent_cache():
    model, tokens = tiny("stride", latent_capacity_factor=0.25), random_tokens(2, 50)
    with torch.no_grad():
        cache = Cache(model.config, 2)
        model(tokens[:, :40], cache=cache)
        assert cache.latent.length.tolist() == [10, 10]
        cache.rollback(torch.tensor([40, 4]))
        assert cache.latent.length.tolist() == [10, 1]
        model(tokens[:, 40:], cache=cache, disable_latent=True)
        assert cache.latent.length.tolist() == [10, 1]


def test_memory_is_fixed_however_long_the_text():
    def held(x):  # bytes of every tensor that the cache keeps alive
        if isinstance(x, torch.Tensor):
            return x.untyped_storage().nbytes()
        parts = x if isinstance(x, tuple | list) else vars(x).values() if hasattr(x, "__dict__") else ()
        return sum(map(held, parts))

    model, sizes = tiny("topk"), []
    with torch.inference_mode():
        cache, tokens = Cache(model.config, 2), random_tokens(2, 4)
        before = cache.memory_bytes()
        for _ in range(3):
            for _ in range(80):
                model(tokens, cache=cache)
                cache.rollback(torch.tensor([4, 2]))
            sizes.append(held(cache))
    assert sizes[0] == sizes[1] == sizes[2] >= before
    assert cache.memory_bytes() == before == 2 * cache_bytes(model.config)
    assert cache.length.tolist() == [960, 480]


def test_cache_bytes_counts_keys_and_values():
    c = tiny_config()
    local, latent = 2 * c.fb_num_blocks * (5 + MAX_FEED), c.latent_num_blocks * (7 + MAX_FEED)
    assert cache_bytes(c) == (local + latent) * 2 * c.att_kv_heads * c.head_dim * 4
    assert cache_bytes(c, torch.bfloat16) == cache_bytes(c) // 2
    assert cache_bytes(tiny_config("none")) == local * 2 * c.att_kv_heads * c.head_dim * 4
