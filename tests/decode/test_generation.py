"""What a user asks of `generate`: settings, prompts, seeds, figures. Laws 3 and 4 are in test_speculation.py."""

import math
import os
import subprocess
import sys

import pytest
import torch
from helpers import random_tokens, texts, tiny, trained, use_tables

import pico.decode.generation
import pico.decode.numpy_reader
from pico.base.config import LONGEST_PROMPT, MAX_FEED, PREFILL
from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, END_OF_TURN, EOS, USER, VOCABULARY
from pico.decode.generation import generate
from pico.decode.sampling import Sampling


def test_control_symbols_are_never_emitted():
    """Not even by a model that wants nothing else."""
    model = tiny()
    with torch.no_grad():
        model.heads.weight.view(4, VOCABULARY, -1)[:, [BOS, *range(EOS + 1, VOCABULARY)]] *= 50
    for temperature in (0, 1.0, 3.0):
        steps = list(generate(model, [b"", b"x"], max_bytes=60, temperature=temperature))
        assert len(steps) > 20 and all(0 <= step.id < 256 for step in steps)


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
