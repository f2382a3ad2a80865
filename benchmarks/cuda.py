"""Everything Pico claims about a GPU, measured in one go in under eight minutes.

    python benchmarks/cuda.py > cuda.json                   all sections, the most important first
    python benchmarks/cuda.py attention decode > a.json     only these
    python benchmarks/cuda.py --smoke > /dev/null           tiny shapes, also on a CPU: tries the script itself

One JSON object on stdout, talk on stderr. A time is the median of repetitions, with the 10th and 90th percentile beside
it. A section, or one entry of it, that fails or that the time no longer allows says so in its place; the rest stand.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.pop(0)  # this folder: torch imports a package that is named like this file
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pico.attention import alibi_slopes, attend_cached, attention, available_backends, ring_bias
from pico.config import TrainConfig, preset
from pico.generation import generate
from pico.machine import Batch
from pico.model import Pico, flops_per_byte
from pico.optimizers import build_optimizers
from pico.step import StepResult, optimizer_step

SHAPES = {  # one layer: batch, length, query heads, key heads, head width, window; 64k bytes, a quarter of them latent
    "s local": (32, 2048, 9, 3, 40, 32),
    "s latent": (32, 512, 9, 3, 40, 512),
    "m local": (32, 2048, 12, 4, 64, 64),
    "m latent": (32, 512, 12, 4, 64, 1024),
    "m latent of 16k bytes": (4, 4096, 12, 4, 64, 1024),
}
LIMITS = {}  # bytes and FLOPs per second, filled by `machine`
STARTED = time.monotonic()


def left() -> float:
    """Seconds that may still be spent."""
    return SECONDS - (time.monotonic() - STARTED)


def talk(*words) -> None:
    print(f"[{time.monotonic() - STARTED:4.0f} s]", *words, file=sys.stderr, flush=True)


def attempt(function, *arguments, needs: float = 5.0):
    """function(*arguments), or what went wrong, or that fewer than `needs` seconds are left."""
    if left() < needs:
        return {"error": "no time left"}
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def spread(seconds: list[float]) -> dict:
    """Milliseconds: median, 10th and 90th percentile."""
    ordered = sorted(s * 1e3 for s in seconds)
    tenth = len(ordered) // 10
    middle = statistics.median(ordered)
    return {"ms": round(middle, 4), "p10": round(ordered[tenth], 4), "p90": round(ordered[-1 - tenth], 4)}


def clock(function, *arguments) -> dict:
    """`spread` of one call on the GPU, replayed from a CUDA graph: the time Python takes to launch it is left out."""
    if DEVICE.type == "cpu":
        began = time.perf_counter()
        function(*arguments)
        return spread([time.perf_counter() - began])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles
            function(*arguments)
        torch.cuda.synchronize()
        began = time.perf_counter()
        function(*arguments)
        torch.cuda.synchronize()
        calls = max(1, min(20, int(5e-3 / (time.perf_counter() - began))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(calls):
                function(*arguments)
        graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(31)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
    return spread([a.elapsed_time(b) / 1e3 / calls for a, b in pairwise(marks)])


def machine() -> dict:
    """What this GPU does with a large bf16 matmul and a large copy: the limits that all else is held against."""
    size = 256 if SMOKE else 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    source = torch.empty(2**16 if SMOKE else 2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    LIMITS["flops"] = 2 * size**3 / clock(torch.mm, a, b)["ms"] * 1e3
    LIMITS["bytes"] = 2 * source.numel() / clock(target.copy_, source)["ms"] * 1e3
    facts = {"torch": torch.__version__, "backends": available_backends(DEVICE)}
    if DEVICE.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
    peaks = {"matmul_peak_tflops": LIMITS["flops"] / 1e12, "copy_gb_per_second": LIMITS["bytes"] / 1e9}
    return facts | {name: round(value, 2) for name, value in peaks.items()}


def inputs(batch, length, heads, kv_heads, width, dtype=torch.bfloat16):
    """q, k, v as the model makes them, views of one tensor, and an upstream gradient."""
    fused = torch.randn(batch, length, heads + 2 * kv_heads, width, dtype=dtype, device=DEVICE)
    q, k, v = (x.requires_grad_() for x in fused.split([heads, kv_heads, kv_heads], 2))
    return q, k, v, torch.randn_like(q)


def forward(backend, q, k, v, upstream, window):
    with torch.no_grad():
        return attention(q, k, v, window, backend)


def both(backend, q, k, v, upstream, window):
    out = attention(q, k, v, window, backend)
    return [out, *torch.autograd.grad(out, (q, k, v), upstream)]


def correctness() -> dict:
    """Worst error over the largest value of (out, dq, dk, dv), each backend against dense attention in fp32."""
    shapes = [(2, min(length, 1024), *rest) for _, length, *rest in SHAPES.values()]
    odd = [(2, 777, 8, 1, 128, 100), (1, 333, 2, 2, 72, 500), (3, 1, 3, 1, 24, 8)]  # for our kernels alone
    result = {}
    for batch, length, *shape, window in shapes + odd:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            tensors = inputs(batch, min(length, 40) if SMOKE else length, *shape, dtype=dtype)
            exact = [x.detach().float().requires_grad_() for x in tensors]
            wanted = both("dense", *exact, window)
            for backend in available_backends(DEVICE):
                if backend in ("flash", "flex") and (dtype == torch.float32 or shape[2] not in (40, 64)):
                    continue
                got = attempt(both, backend, *tensors, window)
                entry = result.setdefault(f"{backend} {str(dtype)[6:]}", [0.0] * 4)
                if isinstance(got, dict) or isinstance(entry, dict):
                    result[f"{backend} {str(dtype)[6:]}"] = entry if isinstance(entry, dict) else got
                    continue
                errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in zip(got, wanted)]
                entry[:] = [float(f"{max(e):.1e}") for e in zip(entry, errors)]
    return result


def backends() -> dict:
    """One layer's attention, forward and with backward, beside what memory or matmul allows (of_limit is 1 at best)."""
    result = {}
    for name, (batch, length, heads, kv_heads, width, window) in SHAPES.items():
        batch, length = (1, 40) if SMOKE else (batch, length)
        q, k, v, upstream = inputs(batch, length, heads, kv_heads, width)
        seen = min(window, length - 1)
        work = 4 * batch * heads * width * length * (seen + 1) * (1 - seen / length / 2)
        traffic = 4 * batch * length * width * (heads + kv_heads)  # bytes: q, k, v read, out written
        for run, passes, products in ((forward, 1, 1), (both, 3, 3.5)):
            memory, matmul = passes * traffic / LIMITS["bytes"] * 1e3, products * work / LIMITS["flops"] * 1e3
            limit = max(memory, matmul)
            entry = {"limit_ms": round(limit, 4), "limited_by": "memory" if memory > matmul else "matmul"}
            for backend in available_backends(DEVICE):
                entry[backend] = attempt(clock, run, backend, q, k, v, upstream, window, needs=60)
                if "ms" in entry[backend]:
                    entry[backend]["of_limit"] = round(limit / entry[backend]["ms"], 3)
            result[f"{name}, {run.__name__}"] = entry
            talk(name, run.__name__, {b: e.get("ms", "failed") for b, e in entry.items() if isinstance(e, dict)})
    return result


def decode() -> dict:
    """One layer's attention over its ring while generating, with 8 drafts: the kernel against torch."""
    from pico.kernels.decode import decode_attention

    result, n, dtype = {}, 9, torch.float32 if SMOKE else torch.bfloat16
    for name in ("s local", "s latent", "m latent"):
        _, _, heads, kv_heads, width, window = SHAPES[name]
        window = min(window, 20) if SMOKE else window
        for batch in (1, 2) if SMOKE else (1, 64):
            slots = window + 64
            q = torch.randn(batch, n, heads, width, dtype=dtype, device=DEVICE)
            k, v = torch.randn(batch, slots, 2, kv_heads, width, dtype=dtype, device=DEVICE).unbind(2)
            position = (torch.arange(n, device=DEVICE) + 5000).expand(batch, -1)
            last, slot = position[:, -1:], torch.arange(slots, device=DEVICE)
            places = (last - (last - slot) % slots).int(), position.int()
            arguments = q, k, v, *places, window, alibi_slopes(heads, DEVICE)
            bias = ring_bias(position, slots, heads, window, dtype)
            kernel, plain = decode_attention(*arguments), attend_cached(q, k, v, bias)
            result[f"{name}, batch {batch}"] = entry = {
                "error": float(f"{((kernel - plain).abs().max() / plain.abs().max()).item():.1e}"),
                "limit_ms": round(2 * k.numel() * k.element_size() / LIMITS["bytes"] * 1e3, 4),
                "triton": clock(decode_attention, *arguments),
                "torch": clock(attend_cached, q, k, v, bias),
            }
            talk("decode", name, batch, entry)
    return result


def gather() -> dict:
    """Into the latent stack and out of it, forward and backward, against torch's own indexing."""
    from pico.kernels.gather import gated_scatter, latent_gather

    batch, length, slots, dim = (1, 20, 5, 32) if SMOKE else (32, 2048, 512, 768)
    x = torch.randn(batch, length, dim, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    index = torch.rand(batch, length, device=DEVICE).argsort(1)[:, :slots].sort(1).values
    weight, upstream = torch.rand(batch, slots, device=DEVICE, requires_grad=True), torch.randn_like(x)

    def fused():
        return gated_scatter(x, latent_gather(x, index).sin(), index, weight)

    def indexed():
        flat = (index + torch.arange(batch, device=DEVICE)[:, None] * length).flatten()
        chosen = x.reshape(-1, dim).index_select(0, flat).view(batch, -1, dim)
        update = (chosen.sin() - chosen) * weight.to(x.dtype)[..., None]
        return x.reshape(-1, dim).index_add(0, flat, update.view(-1, dim)).view(batch, length, dim)

    def gradients(function):
        return torch.autograd.grad(function(), (x, weight), upstream)

    error = (fused() - indexed()).abs().max().item()
    return {"error": float(f"{error:.1e}"), "triton": clock(gradients, fused), "torch": clock(gradients, indexed)}


class Trainer:
    """A model, its optimizer and a text on the GPU, for the steps that pico/train.py takes."""

    def __init__(self, config, text: bytes, length: int, batch: int, compiled: bool):
        torch.manual_seed(0)
        self.config, self.length, self.batch, self.step = TrainConfig(context_len=length), length, batch, 0
        self.model = Pico(config, dtype=torch.bfloat16).to(DEVICE).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizers = build_optimizers(self.model, self.config)
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(DEVICE)
        self.window = torch.arange(length + config.next_tokens, device=DEVICE)

    def train(self, progress: float = 0.0, mark=lambda part: None) -> StepResult:
        """One optimizer step on random places of the text; calls `mark` with "data" before it."""
        starts = torch.randint(len(self.text) - len(self.window), (self.batch, 1), device=DEVICE)
        tokens = self.text[starts + self.window].long()  # (B, T + N)
        chunk = Batch(tokens[:, : self.length], tokens[:, 1:], self.batch * self.length, {})
        mark("data")
        parts = self.model, self.forward, self.optimizers, self.config, [chunk]
        result = optimizer_step(*parts, self.step, progress, mark=mark)
        self.step += 1
        return result


def story_text(size: int) -> bytes:
    from pico.stories import stories

    text = bytearray()
    for story in stories(0):
        text += story.text.encode() + b"\n"
        if len(text) > size:
            return bytes(text)


def training() -> dict:
    """Whole steps, SOAP included. FLOPs are the model's, without recomputation, against the matmul peak above."""
    result, text = {}, story_text(3_000 if SMOKE else 300_000)
    for name, compiled in (("tiny", False),) if SMOKE else (("s", False), ("m", False), ("s", True), ("m", True)):
        length, batch = (64, 2) if SMOKE else (2048, 32)
        entry = attempt(steps, preset(name), text, length, batch, compiled, needs=60)
        result[f"{name} compiled" if compiled else name] = entry
        talk("training", name, "compiled" if compiled else "eager", entry)
    return result


def steps(*arguments) -> dict:
    """Times 40 steps after 15, so that SOAP's work every tenth step is in both. The mean, for the same reason.

    Every five steps are a run in small: the last of them routes causally.
    """
    trainer = Trainer(*arguments)
    began = time.perf_counter()
    for number in range(1 if SMOKE else 15):
        trainer.train(number % 5 / 5)
    warm_up, times, marks = time.perf_counter() - began, [], []

    def mark(part: str) -> None:
        if DEVICE.type == "cuda":
            marks.append((part, torch.cuda.Event(enable_timing=True)))
            marks[-1][1].record()

    for number in range(2 if SMOKE else 40):
        began = time.perf_counter()
        trainer.train(number % 5 / 5, mark)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds, size = statistics.mean(times), trainer.length * trainer.batch
    flops = flops_per_byte(trainer.model.config, trainer.length)[1]
    entry = {
        "bytes_per_second": round(size / seconds),
        "fraction_of_peak": round(flops * size / seconds / LIMITS["flops"], 4),
        "ms_per_step": round(seconds * 1e3, 2),
        "step": spread(times),
        "bytes_per_step": size,
        "warm_up_seconds": round(warm_up, 1),
    }
    for name in ("forward", "backward", "optimizer") if marks else ():
        spent = [a.elapsed_time(b) for (_, a), (part, b) in pairwise(marks) if part == name]
        entry[f"{name}_ms"] = round(statistics.mean(spent), 2)
    if marks:
        entry["optimizer_share"] = round(entry["optimizer_ms"] / entry["ms_per_step"], 3)
        entry["peak_memory_mb"] = torch.cuda.max_memory_allocated() >> 20
        torch.cuda.reset_peak_memory_stats()
    return entry


def generation() -> dict:
    """Preset s after some training on `stories` (an untrained model's drafts are never right), temperature 0.8.

    `graph` replays each step as one CUDA graph, its capture included in the time; `eager` launches every kernel.
    """
    text, length, batch = (story_text(3_000), 64, 2) if SMOKE else (story_text(1_000_000), 512, 64)
    trainer = Trainer(preset("tiny" if SMOKE else "s"), text, length, batch, False)
    began, seconds = time.monotonic(), 0.5 if SMOKE else min(60.0, left() / 3)
    while (progress := (time.monotonic() - began) / seconds) < 1:
        result = trainer.train(progress)
    result = {"trained_steps": trainer.step, "last_training_bpb": round(result.bits_per_byte, 3)}
    for batch in (1, 2) if SMOKE else (1, 64):
        for speculative in (False, True):
            label = f"{'speculative' if speculative else 'plain'}, batch {batch}"
            for cuda_graph in (True, False):
                options = dict(num_samples=batch, speculative=speculative, cuda_graph=cuda_graph)
                entry = attempt(generated, trainer.model, options, needs=20)
                result[f"{label}, {'graph' if cuda_graph else 'eager'}"] = entry
                talk(label, "graph" if cuda_graph else "eager", entry)
        result[f"graph equals eager, batch {batch}"] = attempt(graph_equals_eager, trainer.model, batch)
    return result


def generated(model, options: dict) -> dict:
    """Four texts' worth after one to warm up; the figures of the one of median speed."""
    runs = []
    for seed in range(3 if SMOKE else 5):
        run = generate(model, b"One day", max_bytes=8 if SMOKE else 400, temperature=0.8, seed=seed, **options)
        for _ in run:
            pass
        runs.append(run.stats)
        if left() < 10:
            break
    runs = sorted(runs[1:] or runs, key=lambda run: run["bytes_per_second"])
    middle = runs[len(runs) // 2]
    return {
        "bytes_per_second": round(middle["bytes_per_second"]),
        "slowest_and_fastest": [round(runs[i]["bytes_per_second"]) for i in (0, -1)],
        "bytes_per_forward": round(middle["bytes_per_forward"], 3),
        "acceptance": [round(a, 3) for a in middle["acceptance"]],
        "ms_per_forward": round(middle["seconds"] / middle["forwards"] * 1e3, 3),
    }


def graph_equals_eager(model, batch: int) -> bool:
    """The same kernels on the same numbers must give the same bytes."""
    options = dict(max_bytes=8 if SMOKE else 100, temperature=0.8, num_samples=batch)
    return list(generate(model, b"One day", **options)) == list(
        generate(model, b"One day", cuda_graph=False, **options)
    )


def tiles() -> dict:
    """The kernels' tile table against other [BM, BN, warps, stages], ms, best first; `both` varies the backward's."""
    from pico.kernels import attention as kernels

    others = [(32, 32, 4, 2), (64, 16, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3),
              (128, 32, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2)]  # fmt: skip
    result, table = {}, kernels.tiles
    for name, (batch, length, *shape, window) in SHAPES.items():
        tensors = inputs(*((1, 40) if SMOKE else (batch, length)), *shape)
        for run in (forward, both):
            measured, chosen = {}, table(64, window, torch.bfloat16, run is both)
            for tile in [chosen, *others[: 1 if SMOKE else None]]:
                kernels.tiles = lambda *a, t=tile, backward=run is both: t if a[-1] == backward else table(*a)
                spent = attempt(clock, run, "triton", *tensors, window)
                measured[str(list(tile))] = spent.get("ms", spent.get("error"))
            order = sorted(measured.items(), key=lambda entry: (isinstance(entry[1], str), entry[1]))
            result[f"{name}, {run.__name__}"] = {"table": list(chosen), **dict(order)}
            talk("tiles", name, run.__name__, "table", chosen, "best", order[0])
    kernels.tiles = table
    return result


SECTIONS = dict(
    correctness=correctness, attention=backends, training=training, generation=generation, decode=decode,
    gather=gather, tiles=tiles,
)  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU too, to try the script itself")
    parser.add_argument("--minutes", type=float, default=7.5, help="stop starting things after this (default 7.5)")
    options = parser.parse_args()
    SMOKE, SECONDS = options.smoke, 60 * options.minutes
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}: expected some of {', '.join(SECTIONS)}")
    if not (torch.cuda.is_available() or SMOKE):
        parser.error("there is no CUDA GPU here; --smoke tries the script on a CPU")
    DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {"machine": machine()}
    talk(report["machine"])
    for section in options.sections or SECTIONS:
        report[section] = attempt(SECTIONS[section], needs=10)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    report["seconds"] = round(time.monotonic() - STARTED, 1)
    print(json.dumps(report, indent=1))
