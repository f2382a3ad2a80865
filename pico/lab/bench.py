"""Where the time goes: training, generation, attention and optimizers, each against a limit measured beside it.

    python picolm.py bench train --preset tiny
    python picolm.py bench generate models/my-model my-run --json

Two kinds look at generated text instead: `long` at what a long one costs, `spelling` at its words.

Nothing is timed once: every figure is a median over repetitions that take turns in one process, with the spread
(the middle half of them) beside it, so that figures of one run can be compared although the machine is shared.
"""

import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np
import psutil
import torch

from pico.base.config import DataConfig, TrainConfig
from pico.base.device import pick_dtype
from pico.base.errors import PicoError
from pico.base.memory import keep_memory, peak_memory, require_weights
from pico.base.shapes import ModelConfig, Shape
from pico.data.prefetch import Prefetch
from pico.model.attention import attention, available_backends
from pico.model.build import Model, build_model, sparse_tables
from pico.model.cost import flops_per_symbol

KINDS = ("train", "generate", "long", "spelling", "attention", "optimizer")
WORD = re.compile(rb"[A-Za-z]+")


def run_benchmark(
    kind: str,
    config: Shape,
    device: torch.device,
    settings: TrainConfig,
    model=None,
    seconds=30.0,
    dataset: str = "stories",
) -> dict:
    """One benchmark for about so many seconds, except `spelling`, which always writes the same texts.

    model: the trained one whose text is measured. dataset: its training text, for `spelling`.
    Raises PicoError for an unknown kind, for one that this kind of model has no use for, and for an impossible time.
    """
    if kind not in KINDS:
        raise PicoError(f"unknown benchmark '{kind}': expected one of {', '.join(KINDS)}")
    if not 0 <= seconds < float("inf"):
        raise PicoError(f"--seconds {seconds:g}: expected how long to measure, 30 for example")
    if kind == "attention" and not config.routes:
        raise PicoError("bench attention times Pico's windows: a gpt has torch's attention alone; take --preset tiny")
    require_weights(config, device)
    keep_memory()
    torch.manual_seed(0)
    facts = {"benchmark": kind, "device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if kind == "attention":
        return facts | bench_attention(config, device, settings, seconds)
    if kind in ("generate", "long", "spelling"):
        model = (model or build_model(config).to(device)).eval()
        if kind == "spelling":
            return facts | bench_spelling(model, dataset)
        return facts | (bench_generate if kind == "generate" else bench_long)(model, seconds)
    return facts | (bench_train if kind == "train" else bench_optimizer)(config, device, settings, seconds)


def synchronized_clock(device: torch.device) -> float:
    """The clock, once the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def quartiles(seconds: list[float]) -> dict:
    """Median and spread (first to third quartile), in milliseconds."""
    low, middle, high = np.percentile(seconds, [25, 50, 75]) * 1000
    return {"median": round(middle, 4), "spread": [round(low, 4), round(high, 4)], "repetitions": len(seconds)}


def take_turns(tasks: dict[str, Callable], device: torch.device, seconds: float, least: int = 5) -> dict[str, dict]:
    """Each task once to warm up, then in turn until the time is over: {name: quartiles}."""
    for task in tasks.values():
        task()
    times, end = {name: [] for name in tasks}, time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, task in tasks.items():
            start = synchronized_clock(device)
            task()
            times[name].append(synchronized_clock(device) - start)
    return {name: quartiles(values) for name, values in times.items()}


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the better of two shapes: a large square, and one like a training batch's."""
    peaks = []
    for rows, inner, columns in ((2048, 2048, 2048), (4096, 512, 512)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        took = take_turns({"mm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}, device, 1.0)["mm"]["median"]
        peaks.append(2e3 * rows * inner * columns / took)
    return max(peaks)


def bench_train(config: Shape, device: torch.device, settings: TrainConfig, seconds: float) -> dict:
    """Whole training steps on the built-in stories, split into data, forward, backward and optimizer."""
    from pico.data.mixture import Mixture
    from pico.data.open import open_data
    from pico.data.packing import Batches
    from pico.model.regions import compile_regions
    from pico.train.optimizers import build_optimizers
    from pico.train.step import loss_scaler, optimizer_step

    dtype = pick_dtype(settings.precision, device)
    peak = matmul_peak(device, dtype)
    documents, _ = open_data(DataConfig(dataset="stories"), settings.seed)
    length, batch = settings.context_len, settings.batch_size
    model = trainable(config, device, settings)
    if settings.compile:
        compile_regions(model)
    parts, scaler = (model, model, build_optimizers(model, settings), settings), loss_scaler(device, dtype)
    times, marks, warm, end = [], [], 5, 0.0

    def mark(part: str) -> None:
        marks.append((part, synchronized_clock(device)))

    assert not isinstance(documents, Mixture), "they are stories"
    with Prefetch(Batches(documents, length, config.next_tokens, batch, settings.seed), device) as batches:
        while len(times) < warm + 10 or time.perf_counter() < end:
            mark("start")
            chunks = next(batches)
            mark("data")
            # every five steps are a run in small: the last of them routes causally
            optimizer_step(*parts, chunks, len(times), progress=len(times) % 5 / 5, mark=mark, scaler=scaler)
            times.append({part: now - before for (_, before), (part, now) in pairwise(marks)})
            marks.clear()
            if len(times) == warm:
                end = time.perf_counter() + seconds
    times = times[warm:]
    step = quartiles([sum(t.values()) for t in times])
    rate = 1000 * batch * length / step["median"]
    memory = peak_memory(device) / 2**20
    parts = {name: quartiles([t[name] for t in times]) for name in times[0]}
    flops = flops_per_symbol(config, length, heads=config.heads_at(0))[1]  # of most steps, and so of the median
    return {
        "precision": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": [batch, length],
        "optimizer": settings.optimizer,
        f"{config.unit}s_per_second": round(rate),
        "fraction_of_peak": round(rate * flops / peak, 4),
        "matmul_peak_tflops": round(peak / 1e12, 3),
        f"training_mflops_per_{config.unit}": round(flops / 1e6, 2),
        "optimizer_share": round(parts["optimizer"]["median"] / step["median"], 4),
        "ms_per_step": step | {"parts": parts},
        "peak_memory_mb": round(memory),
    }


def trainable(config: Shape, device: torch.device, settings: TrainConfig) -> Model:
    """A new model as a training on one process makes it."""
    model = build_model(config, settings.attention_backend, pick_dtype(settings.precision, device)).to(device).train()
    sparse_tables(model, device.type != "mps")
    return model


def bench_generate(model: Model, seconds: float) -> dict:
    """Plain and speculative generation of the same length, at temperature 0 and 0.8, and one reading of the weights."""
    from pico.decode.generation import generate

    device = next(model.parameters()).device
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    read = take_turns({"read": lambda: weights.sum()}, device, 0.5)["read"]["median"]
    runs: dict[tuple, list[dict]] = {(t, s): [] for t in (0.0, 0.8) for s in (False, True)}
    end, warm, seed = time.perf_counter() + seconds, True, 0
    while warm or time.perf_counter() < end or seed < 4:
        for (temperature, speculative), stats in runs.items():
            run = generate(model, "Once", max_bytes=256, temperature=temperature, speculative=speculative, seed=seed)
            for _ in run:
                pass
            if not warm and run.stats["bytes"]:
                stats.append(run.stats)
        warm, seed = False, seed + 1
    result: dict = {"parameters": weights.numel(), "weight_read_ms": read}
    for temperature in (0.0, 0.8):
        plain, fast = runs[temperature, False], runs[temperature, True]
        rates = [np.percentile([s["bytes_per_second"] for s in stats], [25, 50, 75]) for stats in (plain, fast)]
        one = {
            "plain_bytes_per_second": round(rates[0][1]),
            "plain_spread": rates[0][::2].round().tolist(),
            "speculative_bytes_per_second": round(rates[1][1]),
            "speculative_spread": rates[1][::2].round().tolist(),
            "speedup": round(rates[1][1] / rates[0][1], 3),
            "bytes_per_forward": round(float(np.mean([s["bytes_per_forward"] for s in fast])), 3),
            "acceptance": np.mean([s["acceptance"] for s in fast], axis=0).round(3).tolist(),
            "ms_per_forward": round(float(np.median([1000 * s["seconds"] / s["forwards"] for s in fast])), 3),
            "plain_ms_per_forward": round(float(np.median([1000 * s["seconds"] / s["forwards"] for s in plain])), 3),
            "repetitions": len(fast),
        }
        result |= one if temperature else {"greedy": one}
    return result


def bench_long(model: Model, seconds: float, block: int = 1000, least: int = 20) -> dict:
    """Does a long text cost more than a short one? The first and the last ten blocks of one that never ends."""
    from pico.decode.generation import generate

    result = {}
    for name, speculative in (("plain", False), ("speculative", True)):
        generation = generate(model, "The", max_bytes=10**9, speculative=speculative, stop_symbols=())
        times, memory, last = [], [], time.perf_counter()
        end = last + seconds / 2
        for count, _ in enumerate(generation, start=1):
            if count % block == 0:
                now = time.perf_counter()
                times.append(now - last)
                memory.append(psutil.Process().memory_info().rss / 2**20)
                last = now
                if now > end and len(times) >= least:
                    break
        first, final = quartiles(times[1:11]), quartiles(times[-10:])
        result[name] = {
            f"{model.config.unit}s": block * len(times),
            "ms_per_block": {"block": block, "first": first, "last": final},
            "last_over_first": round(final["median"] / first["median"], 3),
            "memory_mb": round(memory[-1]),
            "memory_growth_mb": round(memory[-1] - memory[1], 2),  # after the second block
        }
    return result


def bench_spelling(model: Model, dataset: str, texts: int = 20, size: int = 500) -> dict:
    """Does a model spell without its latent blocks? Share of the words it writes that its training text has."""
    from pico.data.documents import Documents
    from pico.data.open import open_data

    documents, _ = open_data(DataConfig(dataset=dataset), 0)
    if not isinstance(documents, Documents):
        raise PicoError("spelling needs the words of all training text: give one data set that is no stream")
    known = {word.lower() for document in documents for word in WORD.findall(document)}
    result: dict = {"dataset": dataset, "texts": texts, "bytes_per_text": size}
    ways = {"with_latent_blocks": False, "without_latent_blocks": True} if model.config.routes else {"written": False}
    for name, disable_latent in ways.items():
        words = [word for text in written(model, texts, size, disable_latent) for word in WORD.findall(text)[:-1]]
        share = sum(word.lower() in known for word in words) / max(1, len(words))
        result[name] = {"words": len(words), "known": round(share, 4)}
    return result


def written(model: Model, texts: int, size: int, disable_latent: bool) -> Iterable[bytes]:
    """Texts of `size` bytes at temperature 0.8; the last word of each may be cut off."""
    from pico.decode.generation import generate

    for seed in range(texts):
        steps = generate(model, "Once upon a time", max_bytes=size, seed=seed, disable_latent=disable_latent)
        yield b"".join(step.bytes for step in steps)


def bench_attention(config: Shape, device: torch.device, settings: TrainConfig, seconds: float) -> dict:
    """Forward and backward of each backend at growing lengths and the same number of bytes, with the local window."""
    assert isinstance(config, ModelConfig), "its windows are Pico's"
    dtype, total, heads = pick_dtype(settings.precision, device), 4096, config.att_q_heads
    rows = []
    for window in sorted({config.fb_att_window_size, config.latent_att_window_size}):
        for length in (512, 1024, 4096):
            shape = total // length, length, heads + 2 * config.att_kv_heads, config.head_dim
            qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            backends = [b for b in available_backends(device) if b != "dense" or length <= 1024]

            def both(backend: str, qkv: torch.Tensor, window: int) -> None:
                attention(qkv, None, heads, window, backend).sum().backward()

            tasks: dict[str, Callable] = {backend: partial(both, backend, qkv, window) for backend in backends}
            for backend, took in take_turns(tasks, device, seconds / 12).items():
                rows.append({"window": window, "length": length, "backend": backend, "ms": took})
    return {"precision": str(dtype).removeprefix("torch."), "bytes": total, "forward_backward": rows}


def bench_optimizer(config: Shape, device: torch.device, settings: TrainConfig, seconds: float) -> dict:
    """One step of every optimizer on this model's parameters, SOAP in its exact mode too."""
    from pico.train.optimizers import build_optimizers

    tasks = {}
    for name in get_args(TrainConfig.model_fields["optimizer"].annotation):
        model = trainable(config, device, settings)
        tokens = torch.randint(256, (settings.batch_size, settings.context_len + config.next_tokens), device=device)
        out = model(tokens[:, : settings.context_len], targets=tokens[:, 1:])
        assert out.loss is not None and out.router_loss is not None
        (out.loss + out.router_loss).backward()
        optimizers = build_optimizers(model, settings.model_copy(update={"optimizer": name}))
        tasks[name] = lambda optimizers=optimizers: [optimizer.step() for optimizer in optimizers]
    for task in tasks.values():
        task()  # the first step of SOAP only sets the bases
    return {"ms_per_step": take_turns(tasks, device, seconds, least=20)}
