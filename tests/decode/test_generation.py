"""What a user asks of `generate`: settings, prompts, seeds, where it stops. Laws 3 and 4 are in test_speculation.py."""

import math
import os
import subprocess
import sys
from itertools import accumulate

import numpy as np
import pytest
import torch
from helpers import filtered, penalised, random_tokens, texts, tiny, trained, use_tables
from hypothesis import example, given
from hypothesis import strategies as st

import pico.decode.generation
import pico.decode.numpy_reader
from pico.base.config import LONGEST_PROMPT, MAX_FEED, PREFILL
from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, BYTES, END_OF_TURN, EOS, USER, VOCABULARY
from pico.decode.generation import Continuation, Step, generate
from pico.decode.sampling import Sampling, numpy_distribution, numpy_penalised, torch_distribution, torch_penalised


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 2, 5, 40, 1000]),
    st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_filters_equal_a_plain_reference(seed, temperature, top_k, top_p, min_p):
    logits = 3 * torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = Sampling(**options)
    p = numpy_distribution(logits.numpy().copy(), sampling, sampling.banned(BYTES))
    on_device = torch_distribution(logits, sampling, torch.from_numpy(sampling.banned(BYTES))).numpy()
    np.testing.assert_allclose(on_device, p, atol=1e-6, rtol=1e-4)
    for row in range(2):
        wanted = torch.zeros(VOCABULARY)
        for i, x in filtered(logits[row].double(), **options).items():
            wanted[i] = x
        torch.testing.assert_close(torch.from_numpy(p[row]), wanted, atol=1e-5, rtol=1e-3)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.3, 4.0]), st.integers(1, 9), st.integers(1, 3))
def test_the_penalty_for_repetition_equals_its_formula(seed, penalty, window, n):
    """After each of the last n symbols, what stands among the last W: of a short text, and of control symbols, none."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, n, VOCABULARY)).astype(np.float32)
    texts = [rng.choice([5, 6, 7, 8, EOS, BOS], size).tolist() for size in (12, 2)]
    tokens = rng.choice([5, 6, 7, 8], (2, n + 1))
    sampling = Sampling(repetition_penalty=penalty, repetition_window=window)
    recent = np.array([sampling.recent(text, BYTES) for text in texts], int)
    assert recent.shape == (2, window)
    together = torch_penalised(*map(torch.from_numpy, (logits, recent, tokens)), sampling).numpy()
    for row, text in enumerate(texts):
        one = numpy_penalised(logits[row].copy(), recent[row].tolist(), tokens[row].tolist(), sampling)
        for i in range(n):
            ids = [*text, *tokens[row, : i + 2].tolist()]
            wanted = penalised(torch.from_numpy(logits[row, i]), ids, penalty, window).numpy()
            np.testing.assert_allclose(one[i], wanted, rtol=1e-6)
            np.testing.assert_allclose(together[row, i], wanted, rtol=1e-6)


def test_temperature_divides_and_vanishes_into_greedy():
    logits = torch.full((1, VOCABULARY), -1e9)
    logits[0, 65], logits[0, 66] = 1.0, 0.0
    banned = Sampling().banned(BYTES)
    for temperature in (0.5, 1.0, 3.0):
        p = numpy_distribution(logits.numpy().copy(), Sampling(temperature=temperature), banned)
        assert math.log(p[0, 65] / p[0, 66]) == pytest.approx(1 / temperature, rel=1e-4)
    for temperature in (0, 1e-6, 1e-45):
        assert numpy_distribution(logits.numpy().copy(), Sampling(temperature=temperature), banned)[0, 65] == 1


def test_control_symbols_are_never_emitted():
    """Not even by a model that wants nothing else."""
    model = tiny()
    with torch.no_grad():
        model.heads.weight.view(4, VOCABULARY, -1)[:, [BOS, *range(EOS + 1, VOCABULARY)]] *= 50
    for temperature in (0, 1.0, 3.0):
        steps = list(generate(model, [b"", b"x"], max_bytes=60, temperature=temperature))
        assert len(steps) > 20 and all(0 <= step.id < 256 for step in steps)


def test_the_end_of_one_text_does_not_stop_the_others(monkeypatch):
    """A text ends at EOS, drafted or not, and what follows it in the same forward is dropped."""
    table = {i: {i + 1: 1} for i in range(65, 90)} | {70: {EOS: 1}, EOS: {200: 1}, 200: {200: 1}, BOS: {65: 1}}
    drafts = {i: {i + 2: 1} for i in range(65, 90)} | {69: {EOS: 1}, 70: {200: 1}, EOS: {200: 1}, 200: {200: 1}}
    drafts[BOS] = {66: 1}
    for speculative in (True, False):
        model, readers = use_tables(monkeypatch, table, drafts)
        run = generate(model, [b"", b"G", b"F", b"E"], max_bytes=9, temperature=1.0, speculative=speculative)
        assert texts(run) == [b"ABCDEF", b"HIJKLMNOP", b"", b"F"]
        assert run.stats["bytes"] == 16
        assert len(readers[0].reads) == 2 + (5 if speculative else 9)


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 4, 5, 17])
def test_max_bytes_is_exact(max_bytes, monkeypatch):
    model, _ = use_tables(monkeypatch, *[{i: {(i + k) % 256: 1} for i in [*range(256), BOS]} for k in range(1, 5)])
    assert list(map(len, texts(generate(model, ["a", "bc"], max_bytes=max_bytes)))) == [max_bytes] * 2


def test_seeds_reproduce_and_samples_differ():
    model = tiny()
    options = dict(max_bytes=30, temperature=1.0, num_samples=3)
    first = generate(model, "a", seed=3, **options)
    one = texts(first)
    assert one == texts(generate(model, "a", seed=3, **options)) == texts(first)  # read again: generated again
    assert len(set(one)) == 3
    assert set(one).isdisjoint(texts(generate(model, "a", seed=4, **options)))
    assert texts(generate(model, seed=None, **options)) != texts(generate(model, seed=None, **options))


def test_generation_is_independent_of_the_global_random_state():
    model = tiny()
    torch.manual_seed(1)
    state, one = torch.get_rng_state(), texts(generate(model, "a", max_bytes=20))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert one == texts(generate(model, "a", max_bytes=20))


@pytest.mark.parametrize("prompt", [b"", b"\x00", bytes(range(256)), b"\xf0\x9f" * 200, b"q" * (MAX_FEED - 1)])
def test_prompts_may_hold_any_bytes_at_any_length(prompt):
    """Echoed unchanged, and routed and weighed as in one full forward; so is what follows."""
    model = tiny("topk")
    for batch in ([prompt], [prompt, b"other"]):
        steps = [s for s in generate(model, batch, max_bytes=20, temperature=0, echo=True) if s.row == 0]
        assert b"".join(s.bytes for s in steps if s.prompt) == prompt
        assert [s.prompt for s in steps] == [True] * len(prompt) + [False] * (len(steps) - len(prompt))
        assert len(prompt) + 2 <= len(steps) <= len(prompt) + 20
        with torch.no_grad():
            full = model(torch.tensor([[BOS, *(s.id for s in steps)]]))
        assert [s.routed for s in steps] == full.routed[0, 1:].tolist()
        assert [s.weight for s in steps] == pytest.approx(full.router_weight[0, 1:].tolist(), abs=1e-4)


@pytest.mark.parametrize("batch, most", [(1, 4), (2, 6), (100, 34)])
def test_prompts_are_read_in_large_pieces(batch, most, monkeypatch):
    """2 kB in two forwards, then one for the last byte and one for the byte drawn; many texts share the room."""
    ring = {i: {i: 1} for i in [*range(256), BOS]}
    model, _ = use_tables(monkeypatch, ring, ring)
    run = generate(model, [b"a" * 2047] * batch, max_bytes=1, temperature=0)
    assert texts(run) == [b"a"] * batch and run.stats["forwards"] == most


@pytest.mark.parametrize("router", ["topk", "space"])
def test_a_long_prompt_is_read_as_in_one_forward(router):
    """Longer than a piece, alone (numpy) and beside a shorter one (torch): the cache gives what the model does."""
    model = tiny(router)
    prompt = bytes(random_tokens(PREFILL + 300).tolist())
    for batch in ([prompt], [prompt, prompt[:700]]):
        steps = [s for s in generate(model, batch, max_bytes=9, temperature=0, echo=True) if s.row == 0]
        with torch.no_grad():
            full = model(torch.tensor([[BOS, *(s.id for s in steps)]]))
        assert [s.routed for s in steps] == full.routed[0, 1:].tolist()
        assert [s.weight for s in steps] == pytest.approx(full.router_weight[0, 1:].tolist(), abs=1e-4)


def test_prompts_are_bytes_or_text_and_are_not_echoed_unless_asked():
    model = tiny()
    assert texts(generate(model, "é")) == texts(generate(model, "é".encode()))
    assert not any(step.prompt for step in generate(model, "hello", max_bytes=3))
    one = generate(model, [b"a", "b"], num_samples=2, max_bytes=5)
    assert one.prompts == [b"a", b"a", b"b", b"b"] and len(texts(one)) == 4


def test_a_model_in_training_generates_as_in_evaluation_and_goes_on_training():
    """The routing of training must not leak into what is generated."""
    model = tiny("topk")
    expected = texts(generate(model, [b"", "a b", b"c" * 99], max_bytes=20, temperature=0))
    model.train()
    steps = generate(model, [b"", "a b", b"c" * 99], max_bytes=20, temperature=0)
    assert texts(steps) == expected
    assert model.training
    next(iter(steps))  # abandoned half-way
    assert model.training
    model(random_tokens(2, 100)).logits.sum().backward()


def cut(text: bytes, stops: list[bytes]) -> tuple[bytes, bool]:
    """The text before the stop text that is complete first, the longest of those that end there; whether it has one."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.lists(st.binary(min_size=1, max_size=3).map(lambda b: bytes(97 + x % 3 for x in b)), min_size=1, max_size=3),
    st.integers(0, 9),
    st.sampled_from([0, 1.0]),
    st.booleans(),
)
@example([b"ab", b"aab"], 0, 1.0, True)
@example([b"abc", b"b"], 1, 1.0, True)
def test_a_text_ends_before_its_stop_text(stops, seed, temperature, speculative):
    """What the same seed writes without it, cut: over the edges of drafts, in a batch as alone."""
    a, b, c = b"abc"
    right = {i: {a: 0.4, b: 0.3, c: 0.25, EOS: 0.05} for i in (BOS, a, b, c, EOS)}
    wrong = {i: {a: 0.1, b: 0.3, c: 0.5, EOS: 0.1} for i in right}
    options = dict(max_bytes=30, seed=seed, temperature=temperature, speculative=speculative)
    with pytest.MonkeyPatch.context() as patch:
        model, _ = use_tables(patch, right, right, wrong)
        for prompts in ([b"ab"], [b"", b"a", b"bc"]):
            whole = generate(model, prompts, **options)
            wanted = [cut(text, stops) for text in texts(whole)]
            stopped = generate(model, prompts, stop=stops, **options)
            assert texts(stopped) == [text for text, _ in wanted]
            assert stopped.ended == ["stop" if found else end for (_, found), end in zip(wanted, whole.ended)]
            assert stopped.stats["bytes"] == sum(len(text) for text, _ in wanted)
            assert stopped.stats["forwards"] <= whole.stats["forwards"]


def test_stop_texts_are_seen_in_any_draft(monkeypatch):
    """A stop text that begins in one forward and ends in another, with right drafts and with wrong ones."""
    ring = [{i: {(i + k) % 256: 1} for i in range(256)} | {BOS: {64 + k: 1}} for k in range(1, 5)]
    for tables in (ring, [ring[0], ring[2], ring[1], ring[3]]):
        for stop in (b"E", b"DE", b"BCDEFGHIJ", b"H"):
            model, _ = use_tables(monkeypatch, *tables)
            run = generate(model, [b"", b"@"], max_bytes=40, temperature=1.0, stop=[b"no", stop])
            assert texts(run) == [bytes(range(65, stop[0]))] * 2 and run.ended == ["stop"] * 2
    model, _ = use_tables(monkeypatch, *ring)
    run = generate(model, b"", max_bytes=5, temperature=1.0, stop="EFG")  # held back, then out of bytes
    assert texts(run) == [b"ABCDE"] and run.ended == ["length"]
    run = generate(model, b"AB", max_bytes=3, temperature=1.0, stop="BC", echo=True)  # the prompt is no part of it
    assert b"".join(step.bytes for step in run) == b"ABCDE"


@given(
    st.lists(st.text("abc", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=3),
    st.integers(1, 25),
)
@example([b"ab", b"cab", b"c"], [b"bca"], 25)
@example([b"abcab"], [b"cab", b"b"], 2)
def test_a_text_of_tokens_ends_at_a_byte(tokens, stops, max_bytes):
    """As the same text byte by byte, whatever tokens it comes in: the last one is cut."""
    text = Continuation(Sampling(stop=stops, max_bytes=max_bytes), {EOS})
    written, ends = b"", list(accumulate(map(len, tokens)))
    for i, token in enumerate(tokens):
        if not text.ended:
            sure = text.add(Step(0, 1000 + i, token, False, 0.0, False))
            written += b"".join(step.bytes for step in sure)
            assert all(step.bytes for step in sure)
            if text.ended is None:  # and no token is held back that is not needed
                begun = max(
                    (n for s in stops for n in range(len(s)) if b"".join(tokens[: i + 1]).endswith(s[:n])), default=0
                )
                assert len(written) == max(end for end in [0, *ends] if end <= ends[i] - begun)
    whole, found = cut(b"".join(tokens)[:max_bytes], stops)
    if text.ended is None:
        assert not found and ends[-1] < max_bytes
        written += b"".join(step.bytes for step in text.add(Step(0, EOS, b"", False, 0.0, False)))
        assert text.ended == "end"
    else:
        assert text.ended == ("stop" if found else "length")
    assert written == whole


def test_how_texts_ended(monkeypatch):
    table = {i: {i + 1: 1} for i in range(65, 90)} | {70: {EOS: 1}, EOS: {65: 1}, BOS: {65: 1}}
    model, _ = use_tables(monkeypatch, table, table)
    run = generate(model, [b"", b"G", b"J"], max_bytes=7, temperature=1.0, stop=["NO"])
    assert run.ended == [None] * 3
    assert texts(run) == [b"ABCDEF", b"HIJKLMN", b"KLM"] and run.ended == ["end", "length", "stop"]


def test_seconds_are_those_of_generation(monkeypatch):
    """A slow reader of the steps does not make the model slow."""
    now = [0.0]
    monkeypatch.setattr(pico.decode.generation.time, "perf_counter", lambda: now[0])
    model = trained("topk")
    forward = pico.decode.numpy_reader.NumpyReader.read

    def read(*args):
        now[0] += 1
        return forward(*args)

    monkeypatch.setattr(pico.decode.numpy_reader.NumpyReader, "read", read)
    run = generate(model, "a", max_bytes=20)
    for _ in run:
        now[0] += 1000
    assert run.stats["seconds"] == run.stats["forwards"]


def test_stats_are_complete():
    run = generate(trained("all"), ["a", "b"], max_bytes=25, temperature=0)
    texts(run)
    assert set(run.stats) == {
        "bytes", "symbols", "seconds", "bytes_per_second", "forwards", "bytes_per_forward", "acceptance",
        "routed_fraction",
    }  # fmt: skip
    assert run.stats["bytes"] == run.stats["symbols"] == 50 and run.stats["routed_fraction"] == 1
    assert len(run.stats["acceptance"]) == 5  # three heads, and the last one twice more
    assert run.stats["acceptance"] == sorted(run.stats["acceptance"], reverse=True)


def test_impossible_settings_are_all_named():
    bad = dict(max_bytes=0, temperature=-1, top_k=-1, top_p=0, min_p=2, num_samples=0, seed=-1, repetition_penalty=0.5)
    with pytest.raises(PicoError) as error:
        generate(tiny(), **bad)
    assert all(f"{name} = {value}: input should be" in str(error.value) for name, value in bad.items())


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=1e308), dict(temperature=math.inf), dict(temperature=math.nan), dict(top_k=10**30),
        dict(top_p=math.nan), dict(top_p=1.5), dict(min_p=-0.1), dict(max_bytes=10**30), dict(num_samples=10**30),
        dict(seed=2**64), dict(stop=[""]), dict(stop=["x" * 1000]), dict(stop=["x"] * 100), dict(stop_symbols=[65]),
        dict(prompt=[]), dict(prompt=["a"] * 300, num_samples=300), dict(prompt=bytes(LONGEST_PROMPT + 1)),
        dict(prompt=[-1]), dict(prompt=[1, VOCABULARY]), dict(prompt=[1, "a"]), dict(warmth=1),
    ],
)  # fmt: skip
def test_no_setting_is_without_bounds(bad):
    with pytest.raises(PicoError, match=next(iter(bad))):
        generate(tiny(), **bad)


def test_settings_are_one_object_that_keywords_change():
    model, sampling = tiny(), Sampling(max_bytes=9, temperature=1.0, stop="q")
    assert sampling == Sampling(max_bytes=9, temperature=1, stop=[b"q"]) and hash(sampling)
    one = texts(generate(model, "a", sampling))
    assert one == texts(generate(model, "a", max_bytes=9, temperature=1.0, stop="q"))
    assert texts(generate(model, "a", sampling, max_bytes=4)) == [one[0][:4]]


def test_prompts_may_be_ids(monkeypatch):
    """What no bytes can say: control symbols. BOS comes first in any case."""
    model = tiny()
    options = dict(max_bytes=9, temperature=0)
    as_bytes = texts(generate(model, b"a b", **options))
    for ids in ([97, 32, 98], [BOS, 97, 32, 98]):
        assert texts(generate(model, ids, **options)) == as_bytes
        both = generate(model, [ids, "c"], **options)
        assert both.prompts == [b"a b", b"c"] and texts(both)[0] == as_bytes[0]
    turn = [BOS, USER, *b"hi", END_OF_TURN, ASSISTANT]
    assert generate(model, turn).prompts == [b"hi"]
    with torch.no_grad():
        logits = model(torch.tensor([turn])).logits[0, -1, 0]
    first = next(iter(generate(model, turn, **options))).id
    assert first == logits[:256].argmax()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_text_ends_with_any_of_its_stop_symbols_and_writes_no_other(monkeypatch, batch):
    """The control symbols that may be drawn are those that end a text."""
    a, b, c = b"abc"
    odd = {EOS: 0.2, END_OF_TURN: 0.3, USER: 0.4}
    table = {BOS: {a: 1}, a: {b: 0.1, **odd}, b: {c: 0.1, **odd}, c: {a: 0.1, **odd}}
    table |= {i: {a: 1} for i in (EOS, USER, END_OF_TURN)}
    model, _ = use_tables(monkeypatch, table, table)

    def ends(*symbols):
        run = generate(model, [b""] * batch, max_bytes=6, temperature=0, stop_symbols=symbols)
        return texts(run), run.ended

    assert ends() == ([b"abcabc"] * batch, ["length"] * batch)
    for symbols in ([EOS], [END_OF_TURN], [EOS, END_OF_TURN, USER]):
        assert ends(*symbols) == ([b"a"] * batch, ["end"] * batch)


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1000])
def test_the_last_temperatures_that_are_allowed_give_text(temperature):
    for prompts in ([b""], [b"", b"a"]):
        assert sum(map(len, texts(generate(tiny(), prompts, max_bytes=20, temperature=temperature)))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("heads", [62, 63, 64])
def test_as_many_heads_as_there_may_be(heads, chained):
    """Drafts and the byte before them fit into one forward."""
    model = tiny("topk", next_tokens=heads, chained_heads=chained)
    options = dict(max_bytes=100, temperature=0)
    together = texts(generate(model, [b"", b"a"], **options))
    assert together == texts(generate(model, [b"", b"a"], speculative=False, **options))
    assert together == [texts(generate(model, prompt, **options))[0] for prompt in (b"", b"a")]


def test_generate_is_a_function_for_whoever_imports_it():
    import pico

    assert pico.generate is generate


@pytest.mark.slow
def test_a_text_is_written_without_torch_compiler():
    """Its import takes longer than the text."""
    code = """if True:
        import sys
        from helpers import texts, tiny
        from pico.decode.generation import Continuation, Step, generate
        assert len(texts(generate(tiny(), [b"a"], max_bytes=20, temperature=0))[0]) == 20
        sys.exit("torch._dynamo" in sys.modules)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
