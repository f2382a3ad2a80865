"""Training and generation on a GPU, for gpu.py: the steps that `train` takes, and the texts that `run` writes."""

import hashlib
import statistics
import tarfile
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pico.base.config import DataConfig, TrainConfig
from pico.base.device import pick_dtype
from pico.base.presets import preset
from pico.base.shapes import HEADS_FROM, Shape
from pico.data.prefetch import Batch
from pico.data.stories import stories
from pico.decode.generation import generate
from pico.lab.gpu_clock import Section, percentiles, read_report
from pico.model.build import build_model
from pico.model.cost import flops_per_symbol
from pico.runs.export import export_run
from pico.runs.folder import create
from pico.train import parallel
from pico.train.loop import train
from pico.train.step import Pending, optimizer_step, step_graphs

MODES = {  # how a step is run: settings of TrainConfig
    "eager": {"cuda_graph": False},
    "compiled": {"cuda_graph": False, "compile": True},
    "graph": {},
    "compiled graph": {"compile": True},
}
BEST = "compiled graph"
STEPS, WARM_UP = 30, 30  # timed, and before: whole tens, for SOAP has more to do in every tenth
FIRST_FORWARDS = 5  # of a text: its prompt, the first byte, a warm-up and the capture of a graph are among them
PIECE = 15 << 20  # bytes of a piece of the exported model


def story_text(size: int) -> bytes:
    """At least so many bytes of the built-in stories."""
    text, corpus = bytearray(), stories(0)
    while len(text) <= size:
        text += next(corpus).text.encode() + b"\n"
    return bytes(text)


class Trainer:
    """A model, its optimizers and a text on the device, for the steps that pico/train/loop.py takes."""

    def __init__(self, section: Section, config: Shape, settings: TrainConfig, text: bytes):
        torch.manual_seed(0)
        self.config, self.settings, self.device, self.step = config, settings, section.device, 0
        self.model = build_model(config, settings.attention_backend, pick_dtype("auto", section.device)).train()
        alone = SimpleNamespace(device=section.device, num_processes=1, prepare=lambda model: model)
        self.forward, self.optimizers = parallel.prepare(self.model, settings, alone)
        self.graphs = step_graphs(self.model, self.optimizers, settings, print)
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(section.device)
        self.window = torch.arange(settings.context_len + config.next_tokens, device=section.device)

    def train(self, progress: float = 0.0, mark=lambda part: None) -> Pending:
        """One optimizer step on random places of the text; calls `mark` with "data" before it."""
        settings, length = self.settings, self.settings.context_len
        starts = torch.randint(len(self.text) - len(self.window), (settings.batch_size, 1), device=self.device)
        tokens = self.text[starts + self.window].long()  # (B, T + N)
        chunk = Batch(tokens[:, :length], tokens[:, 1:], settings.step_symbols, {}, [0] * len(tokens))
        mark("data")
        parts = self.model, self.forward, self.optimizers, settings, [chunk]
        result = optimizer_step(*parts, self.step, progress, mark=mark, graphs=self.graphs)
        self.step += 1
        return result


def progress_at(number: int) -> float:
    """Every five steps are the first four fifths of a run, in which one head learns. Where heads come and go SOAP moves
    its state, and graphs do not follow."""
    return number % 5 / 5 * HEADS_FROM


# --- training ---------------------------------------------------------------------------------------------------------


EVERY = [(BEST, "soap"), (BEST, "none"), (BEST, "adamw"), *((mode, "soap") for mode in reversed(MODES) if mode != BEST)]


def train_tiny(section: Section) -> None:
    """Steps of preset tiny."""
    training(section, "tiny", [(BEST, "soap"), ("eager", "soap")])


def train_s(section: Section) -> None:
    """Steps of preset s in every mode, and what its kernels are."""
    training(section, "s", EVERY, profiled=True)


def train_m(section: Section) -> None:
    """Steps of preset m in every mode, and what its kernels are."""
    training(section, "m", EVERY, profiled=True)


def training(section: Section, name: str, runs: list[tuple[str, str]], profiled: bool = False) -> None:
    """Batches of 64 x 1024 bytes in each mode and with each optimizer; "none" leaves the weights as they are."""
    text = story_text(3_000 if section.smoke else 1_000_000)
    size = dict(context_len=64, batch_size=2) if section.smoke else dict(context_len=1024, batch_size=64)
    took = {}
    for mode, optimizer in runs:
        settings = TrainConfig.build(optimizer="soap" if optimizer == "none" else optimizer, **size, **MODES[mode])
        entry = section.attempt(timed, section, name, settings, text, optimizer == "none", needs=10)
        section.note(**{f"{mode}, {optimizer}": entry})
        took[mode, optimizer] = entry.get("ms_per_step")
        if optimizer == "none" and took[mode, "soap"] and took[mode, "none"]:
            section.note(soap_share=round(1 - took[mode, "none"] / took[mode, "soap"], 3))
        if section.cuda:
            torch.cuda.empty_cache()
    if profiled:
        for mode in (BEST, "eager"):
            settings = TrainConfig.build(**size, **MODES[mode])
            entry = section.attempt(profile, section, name, mode, settings, text, needs=10)
            section.note(**{f"profile of {mode}": entry})


def model_config(section: Section, name: str) -> Shape:
    small = dict(dim=32, latent_num_blocks=1, fb_num_blocks=1, ngram_rows=256) if section.smoke else {}
    return preset(name, **small)


def timed(section: Section, name: str, settings: TrainConfig, text: bytes, rests: bool = False) -> dict:
    """Milliseconds a step and of its parts, by events on the GPU's own clock: nothing waits for it in between.

    The mean, for every tenth step has more to do.
    """
    if section.cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(section, model_config(section, name), settings, text)
    if rests:
        for optimizer in trainer.optimizers:
            optimizer.step = lambda: None
    began = time.perf_counter()
    for number in range(2 if section.smoke else WARM_UP):
        trainer.train(progress_at(number))
    synchronize(section)
    warm_up, marks = time.perf_counter() - began, []

    def mark(part: str) -> None:
        if section.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        marks.append((part, event))

    began = time.perf_counter()
    for number in range(3 if section.smoke else STEPS):
        trainer.train(progress_at(number), mark)
    mark("data")
    synchronize(section)
    seconds = (time.perf_counter() - began) / (3 if section.smoke else STEPS)
    shape, size = trainer.config, settings.step_symbols
    flops = flops_per_symbol(shape, settings.context_len, heads=shape.heads_at(progress_at(0)))[1]
    starts = [event for part, event in marks if part == "data"]
    figures = {
        "ms_per_step": round(seconds * 1e3, 2),
        "kB_per_second": round(size / seconds / 1e3),
        "fraction_of_peak": round(flops * size / seconds / section.peak("flops"), 4),
        "step": percentiles([between(a, b) for a, b in pairwise(starts)]),
        "warm_up_seconds": round(warm_up, 1),
    }
    parts = ("forward", "backward", "optimizer")
    for name in parts if any(part == "forward" for part, _ in marks) else ():  # a graph has no parts
        spent = [between(a, b) for (_, a), (part, b) in pairwise(marks) if part == name]
        if spent:
            figures[f"{name}_ms"] = round(statistics.mean(spent) * 1e3, 2)
            figures[f"{name}_share"] = round(statistics.mean(spent) / seconds, 3)
    if section.cuda:
        figures["peak_memory_mb"] = torch.cuda.max_memory_allocated() >> 20
    return figures


def synchronize(section: Section) -> None:
    if section.cuda:
        torch.cuda.synchronize()


def between(a, b) -> float:
    """Seconds from one mark to the next: events of the GPU, or times of the host."""
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1e3


def profile(section: Section, name: str, mode: str, settings: TrainConfig, text: bytes) -> dict:
    """Kernels and launches a step; the 25 kernels that take longest go to profile.txt."""
    from torch.autograd import DeviceType

    trainer = Trainer(section, model_config(section, name), settings, text)
    steps = 1 if section.smoke else 10
    for number in range(1 if section.smoke else WARM_UP):
        trainer.train(progress_at(number))
    synchronize(section)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if section.cuda else kinds.CPU]) as profiler:
        for number in range(steps):
            trainer.train(progress_at(number))
        synchronize(section)
    rows = profiler.key_averages()
    order = "self_cuda_time_total" if section.cuda else "self_cpu_time_total"
    table = rows.table(sort_by=order, row_limit=25, max_name_column_width=90)
    with open(section.folder / "profile.txt", "a") as file:
        file.write(f"{name}, {mode}, {steps} steps\n{table}\n\n")
    kernels = [row for row in rows if row.device_type == DeviceType.CUDA]
    launches = [row for row in rows if "Launch" in row.key and row.device_type != DeviceType.CUDA]
    kernels.sort(key=lambda row: -row.self_device_time_total)
    return {
        "kernels_per_step": sum(row.count for row in kernels) / steps,
        "launches_per_step": sum(row.count for row in launches) / steps,
        "busy_ms_per_step": round(sum(row.self_device_time_total for row in kernels) / steps / 1e3, 2),
        "top_ms": {row.key[:60]: round(row.self_device_time_total / steps / 1e3, 3) for row in kernels[:8]},
    }


# --- generation -------------------------------------------------------------------------------------------------------


def generation(section: Section) -> None:
    """Preset s after a short training on stories (an untrained model's drafts are never right).

    `graph` replays each step as one CUDA graph, its capture included in the time; `eager` launches every kernel.
    """
    text = story_text(3_000 if section.smoke else 4_000_000)
    size = dict(context_len=64, batch_size=2) if section.smoke else dict(context_len=512, batch_size=64)
    trainer = Trainer(section, model_config(section, "s"), TrainConfig.build(**size), text)
    began, seconds = time.monotonic(), 0.5 if section.smoke else min(30.0, section.left() / 2)
    while (progress := (time.monotonic() - began) / seconds) < 1:
        result = trainer.train(progress)
        synchronize(section)  # with it the clock of the host is the GPU's
    section.note(trained_steps=trainer.step, training_bpb=round(result.get().bits_per_byte, 3))
    for batch in (1, 2) if section.smoke else (1, 64):
        for cuda_graph in (True, False):
            how = f"batch {batch}, {'graph' if cuda_graph else 'eager'}"
            plain, speculative = (
                section.attempt(generated, section, trainer.model, batch, cuda_graph, ahead) for ahead in (False, True)
            )
            section.note(**{f"{how}, plain": plain, f"{how}, speculative": speculative})
        for check in (graph_equals_eager, speculative_equals_plain):
            entry = section.attempt(check, section, trainer.model, batch)
            section.note(**{f"batch {batch}, {check.__name__.replace('_', ' ')}": entry})


def generated(section: Section, model, batch: int, cuda_graph: bool, speculative: bool) -> dict:
    """Three texts' worth after one to warm up, eager a short one; the figures of the one of median speed.

    `steady` leaves out each text's first forwards, which read the prompt and capture the graph: what a long text costs.
    """
    length, times = (48, 1) if section.smoke else (512, 4) if cuda_graph else (64, 2)
    options = {"num_samples": batch, "speculative": speculative, "cuda_graph": cuda_graph}
    settings: dict[str, Any] = {"max_bytes": length, "temperature": 0.8, "stop_symbols": frozenset(), **options}
    runs: list[dict] = []
    for seed in range(times):
        run = generate(model, b"One day", seed=seed, **settings)
        begun: dict = {}
        for _ in run:
            if not begun and run.stats["forwards"] > FIRST_FORWARDS:
                begun = run.stats
        runs.append(run.stats | {"steady": rate(begun, run.stats)})
        if section.left() < 10:
            break
    runs = sorted(runs[1:] or runs, key=lambda run: run["bytes_per_second"])
    middle = runs[len(runs) // 2]
    return {
        "bytes_per_second": round(middle["bytes_per_second"]),
        "steady_bytes_per_second": round(middle["steady"]),
        "slowest_and_fastest": [round(runs[i]["bytes_per_second"]) for i in (0, -1)],
        "bytes_per_forward": round(middle["bytes_per_forward"], 3),
        "acceptance": [round(a, 3) for a in middle["acceptance"]],
        "ms_per_forward": round(middle["seconds"] / middle["forwards"] * 1e3, 3),
    }


def rate(begun: dict, ended: dict) -> float:
    """Bytes a second between two moments of a generation."""
    return (ended["bytes"] - begun["bytes"]) / (ended["seconds"] - begun["seconds"])


def bytes_of(section: Section, model, batch: int, **options) -> list[bytes]:
    """The texts so generated."""
    texts = [bytearray() for _ in range(batch)]
    for step in generate(model, b"One day", max_bytes=8 if section.smoke else 100, num_samples=batch, **options):
        texts[step.row] += step.bytes
    return [bytes(text) for text in texts]


def graph_equals_eager(section: Section, model, batch: int) -> bool:
    """The same kernels on the same numbers must give the same bytes."""
    return bytes_of(section, model, batch, temperature=0.8) == bytes_of(
        section, model, batch, temperature=0.8, cuda_graph=False
    )


def speculative_equals_plain(section: Section, model, batch: int) -> str | bool:
    """Whether temperature 0 gives one text with and without speculation; else how far the texts agree.

    In bf16 two logits may round to a tie in one and not in the other, so in fp32.
    """
    dtype, model.dtype = model.dtype, torch.float32
    try:
        ahead, plain = (bytes_of(section, model, batch, temperature=0, speculative=way) for way in (True, False))
    finally:
        model.dtype = dtype
    agree = [next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None) for a, b in zip(ahead, plain)]
    return ahead == plain or f"the first differing byte of each text: {agree}"


# --- a model to take home ---------------------------------------------------------------------------------------------


def story_model(section: Section) -> None:
    """Trains a story model with `train` by the clock, then exports it in pieces that are small files."""
    minutes = 5 / 60 if section.smoke else min(3.0, (section.left() - 22) / 60)
    name, mode = story_choice(section)
    size = dict(context_len=64, batch_size=2) if section.smoke else dict(context_len=512, batch_size=128)
    never = dict(validation_interval=10**6, sample_interval=10**6, checkpoint_interval=10**6)
    settings = TrainConfig.build(max_minutes=minutes, **size, **never, **MODES[mode])
    home = Path(tempfile.mkdtemp())
    create(home / "models", model_config(section, name))
    summary = train(home / "models", "stories", DataConfig(), settings, device=str(section.device))
    sample = (home / "models" / "stories" / "samples.txt").read_text()
    section.note(
        preset=name, mode=mode, steps=summary.steps, validation_bpb=summary.bpb, floor=summary.floor,
        seconds=round(summary.seconds, 1), kB_per_second=round(summary.bytes / summary.seconds / 1e3),
        sample=sample[-600:],
    )  # fmt: skip
    export_run(home / "models", "stories", home / f"stories-{name}", step=-1)
    split_archive(home / f"stories-{name}", section.folder)
    section.note(pieces=sorted(file.name for file in section.folder.glob("story.tar.gz.*")))


def story_choice(section: Section) -> tuple[str, str]:
    """(preset, mode): `s` where what was measured promises enough steps to beat `tiny`, and the fastest mode."""
    report = read_report(section.folder)
    speeds = {
        (name, mode): report.get(f"train_{name}", {}).get(f"{mode}, soap", {}).get("ms_per_step", float("inf"))
        for name in ("s", "tiny")
        for mode in MODES
    }
    if section.smoke or min(speeds.values()) == float("inf"):
        return "s", BEST
    mode = min(MODES, key=lambda mode: speeds["s", mode])
    if 180e3 / speeds["s", mode] >= 1500:  # a step reads as many bytes as one that was timed
        return "s", mode
    return "tiny", min(MODES, key=lambda mode: speeds["tiny", mode])


def split_archive(model: Path, folder: Path) -> None:
    """The model's folder as folder/story.tar.gz.0, .1 ... and story.txt, which says how to join them."""
    whole = model.with_suffix(".tar.gz")
    with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
        archive.add(model, arcname=model.name)
    lines = [f"cat story.tar.gz.* | tar xz    # makes the folder {model.name}; sha256 of the pieces and of the whole:"]
    data = whole.read_bytes()
    for number, start in enumerate(range(0, len(data), PIECE)):
        piece = data[start : start + PIECE]
        (folder / f"story.tar.gz.{number}").write_bytes(piece)
        lines.append(f"{hashlib.sha256(piece).hexdigest()}  story.tar.gz.{number}")
    lines.append(f"{hashlib.sha256(data).hexdigest()}  story.tar.gz")
    (folder / "story.txt").write_text("\n".join(lines) + "\n")
