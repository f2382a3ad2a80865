"""Law 3, speculation changes nothing, and law 4: one forward a cycle, and no drawn byte is thrown away."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import chi_square, first_fast, joint, penalised, texts, trained, use_tables

import pico.decode.generation
from pico.base.routers import ROUTERS
from pico.base.symbols import BOS, EOS, VOCABULARY
from pico.decode.generation import generate
from pico.decode.sampling import Noise, Sampling, numpy_draw, torch_accept_drafts, torch_draw
from pico.model.pico import plain_generate

RAGGED = [b"", b"A", b"Once upon a time", bytes(range(256)), b"\xff\x00\xfe" * 40]

# At temperature 0: byte for byte


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("router", first_fast("topk", *(name for name in ROUTERS if name != "topk")))
def test_greedy_speculation_is_greedy_decoding_in_a_ragged_batch(router, disable_latent):
    model = trained(router)
    options = dict(max_bytes=20, temperature=0, disable_latent=disable_latent)
    fast, slow = generate(model, RAGGED, **options), generate(model, RAGGED, speculative=False, **options)
    together = texts(fast)
    assert together == texts(slow)
    for prompt, text in zip(RAGGED, together):
        assert list(text) == plain_generate(model, [BOS, *prompt], 20, disable_latent=disable_latent)
        assert texts(generate(model, prompt, **options)) == [text]  # alone, it is read by other code
    assert (
        1.1 < fast.stats["bytes_per_forward"] < 1 + model.config.drafts and slow.stats["bytes_per_forward"] == 1
    )  # it did speculate
    assert 0.05 < fast.stats["acceptance"][0] < 1  # and was wrong at times


@pytest.mark.parametrize("change", first_fast(dict(fb_num_blocks=0), dict(latent_num_blocks=0), dict(next_tokens=1)))
def test_greedy_speculation_with_parts_left_out(change):
    model = trained("topk", **change)
    for prompts in (RAGGED, RAGGED[3:4]):
        for prompt, text in zip(prompts, texts(generate(model, prompts, max_bytes=20, temperature=0))):
            assert list(text) == plain_generate(model, [BOS, *prompt], 20)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_penalty_for_repetition_sees_drafts_as_it_sees_text(window):
    """Greedy with drafts, without, in a batch and alone: all as by the formula after every single byte."""
    model, penalty = trained("topk"), 4.0
    options = dict(max_bytes=30, temperature=0, repetition_penalty=penalty, repetition_window=window)
    fast, free = generate(model, RAGGED, **options), generate(model, RAGGED, max_bytes=30, temperature=0)
    together = texts(fast)
    assert together == texts(generate(model, RAGGED, speculative=False, **options))
    assert window == 1 or together != texts(free)  # the words have few double letters
    assert fast.stats["bytes_per_forward"] > 1.02
    for prompt, text in zip(RAGGED, together):
        assert texts(generate(model, prompt, **options)) == [text]
        logits = model(torch.tensor([[BOS, *prompt, *text]])).logits[0, len(prompt) :, 0]
        for i, byte in enumerate(text):
            rest = penalised(logits[i], [*prompt, *text[:i]], penalty, window)[: EOS + 1]
            rest[BOS] = -torch.inf
            assert byte == rest.argmax()


# At temperature > 0: of one text on a CPU byte for byte, of a batch in distribution


@pytest.mark.parametrize(
    "sampling", [dict(temperature=0.9), dict(temperature=1.4, top_p=0.9, repetition_penalty=1.3, repetition_window=5)]
)
def test_a_text_is_the_same_however_much_is_drafted(sampling):
    model = trained("topk")
    plain = texts(generate(model, b"one ", speculative=False, max_bytes=120, seed=3, **sampling))
    assert texts(generate(model, b"one ", max_bytes=120, seed=4, **sampling)) != plain
    for drafts in range(1, 1 + model.config.drafts):
        fast = generate(model, b"one ", max_bytes=120, seed=3, **sampling)
        fast.drafts = drafts
        assert texts(fast) == plain
        # with noise of another byte a single draft is never kept
        assert 1.1 < fast.stats["bytes_per_forward"] < 1 + drafts and 0.1 < fast.stats["acceptance"][0] < 1


def spread(*chances):
    p = np.zeros(VOCABULARY, np.float32)
    p[: len(chances)] = chances
    return p / p.sum()


@pytest.mark.parametrize("q", [(0.1, 0.3, 0.6), (0.6, 0.3, 0.1), (0, 0, 1), (1, 1, 1), (0.3, 0.7, 0), (0, 0, 0, 1)])
@pytest.mark.parametrize("p", [(0.6, 0.3, 0.1), (0, 1), (0.5, 0, 0.5)])
def test_verified_bytes_are_distributed_as_the_model(p, q):
    """Whatever drafted them. The original turned .6/.3/.1 into .75/.19/.06."""
    total, generator = 10000, np.random.default_rng(0)
    p = np.stack([spread(*p), spread(0.2, 0.8), spread(0.5, 0.25, 0.25)])  # after no, one, two drafts
    q = np.stack([spread(*q), spread(0.7, 0.2, 0.1)])
    p_rows, q_rows = (np.repeat(x[None], total, 0) for x in (p, q))
    u = generator.random((total, 5))
    drafts = torch_draw(*map(torch.from_numpy, (q_rows, u[:, :2]))).numpy()
    arguments = p_rows, drafts, q_rows, u[:, 2:]
    accepted, following = map(np.asarray, torch_accept_drafts(*map(torch.from_numpy, arguments)))
    out = np.where(
        np.arange(3) < accepted[:, None], np.append(drafts, following, 1), following
    )  # what follows the accepted drafts
    for i in range(3):  # byte i exists in rows that accepted i drafts; there it is drawn from p[i]
        there = out[accepted >= i, i].tolist()
        expected = {k: v for k, v in enumerate(p[i].tolist()) if v > 0}
        if len(there) < 100:
            assert i > 0 and (accepted >= 1).mean() < 0.1  # drafts that cannot be
        elif len(expected) == 1:
            assert set(there) == set(expected)
        else:
            statistic, limit = chi_square(Counter(there), expected, len(there))
            assert statistic < limit
    overlap = np.minimum(p[0], q[0]).sum()  # and no draft is refused without need
    assert (accepted > 0).mean() == pytest.approx(overlap, abs=0.02)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_generated_texts_have_the_joint_distribution_of_the_model(temperature, monkeypatch):
    """Three bytes of a bigram model, drafted by tables of another kind, ended by EOS now and then."""
    a, b, c = b"abc"
    head0 = {BOS: {a: 0.6, b: 0.3, c: 0.1}, a: {a: 0.2, b: 0.7, EOS: 0.1}, b: {a: 0.5, c: 0.5}, c: {b: 1}, EOS: {a: 1}}
    head1 = {i: {a: 0.2, b: 0.2, c: 0.6} for i in head0}
    head2 = {i: {a: 0.1, b: 0.8, EOS: 0.1} for i in head0}
    model, _ = use_tables(monkeypatch, head0, head1, head2)
    ended, open_ = {}, {b"": 1.0}
    for _ in range(3):
        longer = {}
        for text, chance in open_.items():
            row = {k: p ** (1 / temperature) for k, p in head0[text[-1] if text else BOS].items()}
            for k, p in row.items():
                if k == EOS:
                    ended[text] = chance * p / sum(row.values())
                else:
                    longer[text + bytes([k])] = chance * p / sum(row.values())
        open_ = longer
    run = generate(model, max_bytes=3, temperature=temperature, num_samples=6000, seed=5)
    statistic, limit = chi_square(Counter(texts(run)), ended | open_, 6000)
    assert statistic < limit
    assert 0 < run.stats["acceptance"][1] < run.stats["acceptance"][0] < 1


@pytest.mark.parametrize(
    "router, options, speculative",
    first_fast(
        ("threshold", dict(temperature=1.5, top_k=3), True),
        ("topk", dict(temperature=2.5, top_k=6, top_p=0.9), True),
        ("topk", dict(temperature=2.5, top_k=6, top_p=0.9), False),
        ("space", dict(temperature=1.4, top_p=0.9), True),
        ("all", dict(temperature=1.3, min_p=0.01), True),
        ("topk", dict(temperature=1.5, top_k=4, penalty=1.6, window=2), True),
        ("topk", dict(temperature=1.5, top_k=4, penalty=1.6, window=2), False),
    ),
)
def test_pico_generates_from_its_own_joint_distribution(router, options, speculative):
    """Against exact probabilities of every continuation, multiplied up from plain full forwards."""
    model = trained(router)
    expected = joint(model, b"tt", 3, **options)
    assert 8 <= len(expected) < 600
    options = {
        {"penalty": "repetition_penalty", "window": "repetition_window"}.get(k, k): v for k, v in options.items()
    }
    run = generate(model, b"tt", max_bytes=3, num_samples=2000, seed=1, speculative=speculative, **options)
    statistic, limit = chi_square(Counter(texts(run)), expected, 2000)
    assert statistic < limit
    if speculative:
        assert 0 < run.stats["acceptance"][0] < 1


def test_draw_gives_only_what_is_possible():
    p, chances = np.tile([0, 0, 2.0, 0, 6.0, 0, 0], (20000, 1)), {2: 0.25, 4: 0.75}  # need not sum to one
    u = np.random.default_rng(0).random(20000)
    statistic, limit = chi_square(
        Counter(torch_draw(torch.from_numpy(p), torch.from_numpy(u)).tolist()), chances, 20000
    )
    assert statistic < limit


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draw_with_noise_is_the_softmax(temperature):
    p, banned = np.array([0, 0.1, 0.2, 0.3, 0.3, 0.1], np.float32), np.arange(6) == 4
    noise, total = Noise(Sampling(temperature=temperature), 6), 20000
    with np.errstate(divide="ignore"):
        logits = np.tile(np.log(p), (total, 1))
    pieces = [noise(at, 500)[:400] for at in range(0, total, 400)]  # as it is asked for while a text grows
    drawn = numpy_draw(logits, np.concatenate(pieces), banned).tolist()
    chances = np.where(banned, 0, p) ** (1 / temperature)
    expected = {i: x for i, x in enumerate((chances / chances.sum()).tolist()) if x}
    statistic, limit = chi_square(Counter(drawn), expected, total)
    assert statistic < limit
    assert np.array_equal(Noise(Sampling(temperature=temperature), 6)(0, 400), pieces[0])


def test_a_rejection_by_rounding_alone_still_draws_from_the_model():
    """p below q at every byte can only be rounding; then max(p - q, 0) has nothing to draw from."""
    q = np.tile(spread(0.5, 0.5), (50, 1, 1))
    p = np.tile(np.stack([spread(0.5, 0.5) * 1e-6, spread(1)]), (50, 1, 1))
    arguments = p, np.zeros((50, 1), int), q, np.random.default_rng(0).random((50, 2))
    accepted, following = torch_accept_drafts(*map(torch.from_numpy, arguments))
    assert set(accepted.tolist()) == {0} and set(following[:, 0].tolist()) == {0, 1}


# One forward a cycle


def ahead(steps, wrong=0):
    """A table that is right about the byte `steps` further on in A B C .., or off by `wrong`."""
    return {i: {(i + steps + wrong) % 256: 1} for i in range(256)} | {BOS: {(64 + steps + wrong) % 256: 1}}


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_right_drafts_give_n_bytes_a_forward(temperature, monkeypatch):
    model, readers = use_tables(monkeypatch, ahead(1), ahead(2), ahead(3), ahead(4))
    run = generate(model, max_bytes=40, temperature=temperature)
    assert texts(run) == [bytes(range(65, 105))]
    assert readers[0].reads == [1] + [4] * 10  # the prompt, then 4 bytes with every single forward
    assert run.stats["forwards"] == 11
    assert run.stats["bytes_per_forward"] == 4 and run.stats["acceptance"] == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_wrong_drafts_still_give_one_byte_a_forward(temperature, monkeypatch):
    """The byte drawn on rejection is emitted, so the worst case is plain decoding."""
    model, readers = use_tables(monkeypatch, ahead(1), ahead(2, wrong=7), ahead(3), ahead(4))
    run = generate(model, max_bytes=40, temperature=temperature)
    assert texts(run) == [bytes(range(65, 105))]
    assert readers[0].reads == [1] + [4] * 40
    assert run.stats["bytes_per_forward"] == 1 and run.stats["acceptance"] == [0, 0, 0]


def test_rejected_draws_are_emitted_with_the_models_frequencies(monkeypatch):
    """Every draft is rejected, so every byte is one drawn on rejection: .6/.3/.1 must come out .6/.3/.1."""
    a, b, c, d = b"abcd"
    model, readers = use_tables(
        monkeypatch,
        {i: {a: 0.6, b: 0.3, c: 0.1} for i in (BOS, a, b, c, d)},
        {i: {d: 1} for i in (BOS, a, b, c, d)},
    )
    text = texts(generate(model, max_bytes=1500, temperature=1.0))[0]
    assert len(readers[0].reads) == 1501
    statistic, limit = chi_square(Counter(text), {a: 0.6, b: 0.3, c: 0.1}, 1500)
    assert statistic < limit


@pytest.mark.parametrize("batch", [1, 3])
def test_forwards_are_counted_honestly(batch, monkeypatch):
    """`forwards` is what the model ran, whichever code reads."""
    calls, make = [], pico.decode.generation.reader

    def counted(*args, **options):
        reader = make(*args, **options)
        read = reader.read
        reader.read = lambda *args: calls.append(1) or read(*args)
        return reader

    monkeypatch.setattr(pico.decode.generation, "reader", counted)
    model = trained("topk")
    hook = model.register_forward_hook(lambda *_: calls.append(0))
    run = generate(model, [b"x" * 150] * batch, max_bytes=30, temperature=0)
    texts(run)
    hook.remove()
    assert run.stats["forwards"] == (calls.count(0) if batch > 1 else sum(calls))  # one text is read without the model
    decodes = run.stats["forwards"] - 1 - 1  # 150 bytes and BOS: all but the last in one forward, and the last
    assert run.stats["bytes"] == 30 * batch
    assert run.stats["bytes_per_forward"] == pytest.approx(30 / decodes)
