"""The step that decodes a batch: what a CUDA graph asks of it, held to the other ways of decoding.

Without a GPU, tensors that only claim to be on one show what the step would launch, and a trace of the step's
operators, replayed, does what a replayed graph does: it knows the tensors of its capture and nothing of Python.
"""

import gc
import importlib.util
import weakref
from contextlib import contextmanager

import pytest
import torch
from helpers import OneDevice, first_fast, texts, tiny_config, trained
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pico.decode.generation
import pico.decode.torch_reader
import pico.model.routing
from pico.base.graphs import WARM_UP, Graphed, run
from pico.base.routers import ROUTERS
from pico.base.symbols import BOS
from pico.decode.generation import generate
from pico.decode.sampling import Sampling
from pico.decode.torch_reader import TorchDecoder, TorchReader
from pico.model.attention import alibi_slopes
from pico.model.cache import Cache
from pico.model.pico import Pico

RAGGED = [b"", b"A", b"one two", b"\xff\x00\xfe" * 40]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


PENALTY = dict(min_p=0.01, repetition_penalty=1.2)


@pytest.mark.parametrize("backend", ["blocked", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize(
    "router, sampling",
    first_fast(
        *[(router, PENALTY) for router in ROUTERS], ("topk", dict(temperature=0)), ("topk", dict(top_k=5, top_p=0.9))
    ),
)
def test_nothing_in_a_step_waits_for_the_gpu(router, backend, sampling, monkeypatch):
    """A fake tensor has a shape and a device but no values: whatever needs one of them raises."""
    monkeypatch.setattr(pico.model.kernels, "available", lambda: True)
    monkeypatch.setattr(pico.decode.torch_reader, "Graphed", lambda device, warm_up: run)
    for drafts in (0, 3):
        alibi_slopes.cache_clear()
        with FakeTensorMode(), torch.device("cuda"), torch.inference_mode():
            model = Pico(tiny_config(router), backend, torch.bfloat16).eval()
            decoder = TorchDecoder(TorchReader(model, 2), [[BOS, 1], [BOS, 2]], drafts, Sampling(**sampling))
            with OneDevice():
                record = decoder.run(decoder.step, decoder.tokens, decoder.u)
            assert record.shape == (2, 4 * (1 + drafts) + 1) and record.is_cuda
        alibi_slopes.cache_clear()  # it keeps the fake ones


class Traced:
    """In the place of `Graphed`, on a CPU: records the operators once and runs those from then on."""

    def __init__(self):
        self.replay, self.runs = None, 0

    def __call__(self, step, *arguments):
        self.runs += 1
        if self.runs <= WARM_UP:
            return step(*arguments)
        if self.replay is None:
            decoder, cache = step.__self__, step.__self__.reader.cache
            state = decoder.tokens, decoder.q, decoder.recent, cache.history, cache.carry
            state += cache.local.length, cache.latent.length
            before = [x.clone() for x in state]
            self.replay = make_fx(lambda: step(*arguments))()  # runs it too, which a capture does not
            for x, old in zip(state, before):
                x.copy_(old)
        return self.replay()


@pytest.fixture
def replayed(monkeypatch):
    """Decoding as on a GPU: as many latent slots as bytes, one capture, replays. Returns the captures made."""
    made = []

    class Replayed(TorchDecoder):
        def __init__(self, *args):
            super().__init__(*args)
            self.run = Traced()
            made.append(self.run)

    monkeypatch.setattr(pico.decode.torch_reader, "TorchDecoder", Replayed)
    monkeypatch.setattr(pico.model.routing, "slots_needed", lambda routed: routed.shape[1])
    return made


STATELESS = "entropy", "space+topk", "space+random"  # that route by what the history and a score say, as others do


@pytest.mark.slow
@pytest.mark.parametrize("router", [router for router in ROUTERS if router not in STATELESS])
def test_replayed_decoding_is_plain_decoding(router, replayed):
    """Rows that route, accept and roll back differently, over several turns of both rings."""
    model = trained(router)
    options = dict(max_bytes=100, temperature=0)
    fast = generate(model, RAGGED, **options)
    together = texts(fast)
    assert together == texts(generate(model, RAGGED, speculative=False, **options))
    assert [r.runs > 2 * WARM_UP and r.replay is not None for r in replayed] == [True, True]
    assert together == [texts(generate(model, prompt, **options))[0] for prompt in RAGGED]  # by the numpy code
    assert 0.05 < fast.stats["acceptance"][0] < 1


@pytest.mark.slow
@pytest.mark.parametrize("speculative", [True, False])
def test_a_greedy_text_is_the_same_on_every_path_and_a_seed_gives_one_text(speculative, replayed, monkeypatch):
    """Where it is drawn, numpy and torch draw otherwise: see pico/decode/sampling.py."""
    model, options = trained("topk"), dict(max_bytes=80, repetition_penalty=1.5, repetition_window=9)
    options |= dict(speculative=speculative)
    alone = texts(generate(model, b"one", temperature=0, **options))
    assert not replayed
    monkeypatch.setattr(pico.decode.generation, "reader", TorchReader)
    assert alone == texts(generate(model, b"one", temperature=0, **options))
    drawn = [[texts(generate(model, b"one", seed=seed, temperature=1.2, **options)) for seed in range(3)] for _ in "ab"]
    assert drawn[0] == drawn[1] and len({text for (text,) in drawn[0]}) == 3
    assert len(replayed) == 7


def test_weights_may_change_between_generations():
    model = trained("topk")
    before = texts(generate(model, RAGGED, max_bytes=20, temperature=0))
    old = model.heads.weight.detach().clone()
    with torch.no_grad():
        model.heads.weight.neg_()
    assert texts(generate(model, RAGGED, max_bytes=20, temperature=0)) != before
    with torch.no_grad():
        model.heads.weight.copy_(old)
    assert texts(generate(model, RAGGED, max_bytes=20, temperature=0)) == before


def test_a_graph_is_captured_once_after_a_warm_up_on_its_own_stream(monkeypatch):
    """With doubles for torch.cuda: in which order things happen."""
    log = []

    class Stream:
        device = "cuda:0"

        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            log.append("wait")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def entered(*_, **options):
        log.append("capture" if options else "side")
        yield

    doubles = dict(Stream=Stream, CUDAGraph=Graph, graph=entered, stream=entered, current_stream=Stream)
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    graphed, x = Graphed(torch.device("cuda")), torch.zeros(())
    outs = [graphed(lambda x: log.append("run") or x.add_(1), x) for _ in range(5)]
    assert log == ["wait", "side", "run", "wait"] * 3 + ["capture", "run", "replay", "replay"]
    assert all(out is x for out in outs)


def test_nothing_of_a_generation_outlives_it():
    """No cycle of references: the memory of a cache and of a graph is free at once, not at the next collection."""
    gc.collect()  # what other tests left
    run = iter(generate(trained("topk"), RAGGED, max_bytes=20))
    next(run)
    caches = [x for x in gc.get_objects() if type(x) is Cache]
    alive = [weakref.ref(cache) for cache in caches]
    del caches
    gc.disable()
    try:
        run.close()
        del run
        assert alive and not any(cache() for cache in alive)
    finally:
        gc.enable()


@needs_gpu
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("router", ["topk", "threshold", "space"])
def test_a_cuda_graph_gives_the_text_of_eager_decoding(router, batch, monkeypatch):
    made = []
    monkeypatch.setattr(pico.decode.torch_reader, "Graphed", lambda *args: made.append(Graphed(*args)) or made[-1])
    reference = trained(router)
    model = Pico(reference.config, "dense").cuda().eval()
    model.load_state_dict(reference.state_dict())
    for speculative in (True, False):
        for temperature in (0, 0.8):
            options = dict(max_bytes=100, temperature=temperature, speculative=speculative)
            graph = texts(generate(model, RAGGED[:batch], **options))
            assert made.pop().graph is not None
            assert graph == texts(generate(model, RAGGED[:batch], cuda_graph=False, **options))
            assert not made
            if temperature == 0:
                assert graph == texts(generate(reference, RAGGED[:batch], **options))
