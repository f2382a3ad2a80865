"""The training loop, on Accelerate: one CPU, one GPU, MPS, or many processes under `accelerate launch`.

    python picolm.py train models/my-model my-run stories --max-minutes 3

Precision is the model's own (fp32 weights, activations in Pico(dtype=...)), so Accelerate's autocast stays off. A run
can be killed anywhere: model, optimizer, schedule, data position and random state are in every checkpoint, and on a
CPU a resumed run repeats the uninterrupted one bit for bit.
"""

import json
import math
import os
import secrets
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object

from pico import budget, checkpoint, hints, parallel, runs
from pico.config import DataConfig, DataError, PicoError, TrainConfig
from pico.data import Batches, open_data
from pico.derive import pretrained
from pico.evaluate import score
from pico.files import append, size_of, write_json
from pico.folder import check_name, lock, read_config, read_record, run_folder
from pico.generation import generate
from pico.machine import (
    Prefetch,
    catch_signals,
    explained,
    keep_memory,
    make_accelerator,
    pick_dtype,
    pick_threads,
    threads_chosen,
)  # fmt: skip
from pico.memory import require, require_weights, training_bytes
from pico.metrics import cut_back
from pico.model import Pico
from pico.parallel import on_main, whole_model
from pico.plots import plot_losses
from pico.progress import Display, Summary
from pico.reading import Reading, counted, outlook
from pico.report import marked, underscored
from pico.state import rng_state, set_rng_state, set_seed
from pico.step import optimizer_step
from pico.trackers import Tracker
from pico.vocab import VOCABULARY

VALIDATION_BYTES = 100_000  # scored at each validation, whole documents; `picolm.py eval` scores everything
SAMPLE_BYTES = 256
MOST_SKIPS = 10  # non-finite steps in a row that end a run
STOPS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}  # signals, and what they make of a run
SAVES = "SIGUSR1"


def train(
    path: str | Path,
    run: str,
    data: DataConfig,
    config: TrainConfig,
    resume: bool = False,
    base_weights: str | None = None,
    quiet: bool = False,
    device: str | None = None,
    head: bool = True,
    display: Display | None = None,
) -> Summary:
    """Trains the model at `path` into path/run and returns how it went.

    resume: continue the run's newest valid checkpoint; base_weights: start from those of another run (its folder, a
    checkpoint's folder, or the name of a run of the same model), by default from those that a derived model has;
    head: begin with what was read, and warn of a run that cannot be meant so; display: where it says how it goes,
    instead of stderr's usual one.
    Raises PicoError for whatever the user can mend: an existing run, other data than the run's, out of memory, ...
    """
    check_name(run)
    if resume and base_weights is not None:
        raise PicoError("--base-weights begin a new run, and --resume goes on with a run's own: leave one of them out")
    model_config = read_config(path)
    if not resume and base_weights is None:
        base_weights = pretrained(path)
    accelerator = make_accelerator(config, Path(path) / run, device, model_config.router == "none")
    if accelerator.device.type == "cpu":
        keep_memory()
    with ExitStack() as stack:
        stack.enter_context(parallel.together())
        display = stack.enter_context(display or Display(quiet or not accelerator.is_main_process))
        stack.enter_context(explained(config))
        training = Training(path, run, model_config, data, config, accelerator, display)
        on_main(lambda: training.claim(resume, stack))
        training.start(resume, base_weights)
        if head and accelerator.is_main_process:
            training.announce()
        return training.run()


class Training:
    """One run in progress, made by `train`."""

    def __init__(self, path, run: str, model_config, data, config: TrainConfig, accelerator, display):
        self.path, self.run_name, self.folder, self.display = path, run, Path(path) / run, display
        self.model_config, self.data, self.config, self.accelerator = model_config, data, config, accelerator
        self.reading, self.announced = Reading(), False
        self.step = self.bytes = self.skips = 0
        self.flops = self.executed_flops = 0  # charged, and with the empty slots of the latent buffer
        self.seconds = self.rate = 0.0
        self.best: dict | None = None
        self.bpb: float | None = None  # of the newest validation
        self.saved = -1  # step of the newest checkpoint
        self.sample_bytes: int | None = 0  # size of samples.txt at the checkpoint that we start from, if it says so
        known = [name for name in (*STOPS, SAVES) if hasattr(signal, name)]  # Windows has not all of them
        self.signals = {getattr(signal, name): 0 for name in known}  # received by this process
        self.stopped: str | None = None  # agreed by all processes
        self.saves_wanted = self.saves_made = 0  # by signal; agreed by all processes
        self.failure: BaseException | None = None  # what keeps this process from reading on
        self.failed = False  # whether one of them has such a failure; agreed by all processes

    # --- start ---------------------------------------------------------------------------------------------------

    def claim(self, resume: bool, stack: ExitStack) -> None:
        """Locks the run folder; raises PicoError if the run should exist and does not, or the other way round."""
        if resume:
            run_folder(self.path, self.run_name)
        if unlocked := stack.enter_context(lock(self.folder)):
            self.display.warn(unlocked)
        if not resume:
            runs.check_new(self.folder)

    def start(self, resume: bool, base_weights: str | None) -> None:
        """Opens the data, builds model, optimizers and batches, fresh or from a checkpoint, and writes train.json."""
        accelerator, config, world = self.accelerator, self.config, self.accelerator.num_processes
        if config.batch_size % world:
            raise PicoError(f"batch_size {config.batch_size} does not divide over {world} processes: use a multiple")
        require_weights(self.model_config)
        size = training_bytes(self.model_config, config.optimizer) / (world if parallel.sharding() else 1)
        what = f"this model, its gradients and the state of {config.optimizer} do not fit"
        require(size, accelerator.device, what, "take a smaller model, or --optimizer muon, which needs least")
        self.documents, self.validation = open_data(self.data, config.seed, self.reading)
        self.scored = self.validation.first(VALIDATION_BYTES) if len(self.validation) else self.validation
        self.floor = self.scored.floor_bits / self.scored.bytes if self.scored.floor_bits is not None else None
        source, self.base, self.before, self.tracker_run = None, None, {}, ""
        if resume:
            self.before = on_main(lambda: read_record(self.folder))
            self.base = self.before.get("base_weights")
            settings = self.model_config, self.data, config, self.documents.fingerprint
            found = on_main(lambda: runs.check_resume(self.path, self.folder, *settings))
            source, skipped = found
            for problem in skipped:
                self.display.warn(f"skipped checkpoint {problem}")
            where = f"at step {int(source.name)}" if source else "from the beginning: it has no checkpoint yet"
            self.display.say(f"resuming {self.folder} {where}")

        set_seed(config.seed)
        dtype = pick_dtype(config.precision, accelerator.device)
        self.model = Pico(self.model_config, config.attention_backend, dtype)
        if source:
            checkpoint.load_weights(self.model, source)
        elif self.base is not None:
            runs.load_base(self.model, self.path, self.base)
        elif base_weights is not None:
            self.base = on_main(lambda: runs.take_base(self.model, self.path, base_weights))
            if not accelerator.is_main_process:
                runs.load_base(self.model, self.path, self.base)
            self.display.say(f"starting from the weights of {base_weights}, step {self.base['step']}")
        self.forward, self.optimizers = parallel.prepare(self.model.train(), config, accelerator)
        if accelerator.process_index:
            set_seed(config.seed, accelerator.process_index)  # its rows lose others to dropout than rank 0's
        rank, heads = accelerator.process_index, self.model_config.next_tokens
        self.batches = Batches(
            self.documents, config.context_len, heads, config.batch_size, config.seed, rank=rank, world=world
        )
        if source:
            self.restore(source)
        self.pick_threads()
        self.position = self.batches.state_dict()
        # A text of fewer bytes than the n-gram tables have numbers is learned by heart when it is read again.
        numbers = math.prod(self.model.ngrams.table.weight.shape) if self.model.ngrams else 0
        self.short = self.documents.repeats and self.documents.bytes < numbers
        self.total_steps = budget.step_limit(config, self.batches.chunks_per_epoch)
        on_main(self.write_record)
        settings = {**config.model_dump(), **self.data.model_dump(), **self.model_config.model_dump()}
        settings = {key: value for key, value in settings.items() if value is not None}
        self.tracker = Tracker(
            accelerator, config, settings, self.folder, self.tracker_run, self.step, self.display.warn
        )

    def announce(self) -> None:
        """Before the first step: what was read, what is to come, and what cannot be meant so."""
        self.announced = True
        self.reading.tell("to come", *outlook(self.config, self.total_steps, self.batches.chunks_per_epoch))
        for line in self.reading.lines():
            self.display.say(line)
        for warning in self.reading.warnings:
            self.display.warn(warning)
        if self.step and self.progress() >= 1:
            self.display.warn(
                f"nothing is left to train at step {self.step}, after {self.seconds / 60:.1f} min: the run was given "
                f"{', '.join(self.reading.told['to come'])}; give more to go on"
            )
        elif self.total_steps and self.total_steps <= self.config.warmup_steps:
            self.warn_of_warmup(counted(self.total_steps, "step"))

    def warn_of_warmup(self, length: str) -> None:
        self.display.warn(
            f"a run of {length} ends in its warm-up of {self.config.warmup_steps} steps: the learning rate does not "
            f"reach its peak; train longer, or give --warmup-steps"
        )

    def pick_threads(self) -> None:
        """On a CPU: what is faster for a new run, as many as before for a resumed one: sums round in their order."""
        if self.accelerator.device.type != "cpu":
            return
        threads = self.before.get("threads")
        if isinstance(threads, int) and threads > 0:
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        elif self.accelerator.num_processes == 1 and not threads_chosen():
            shape = min(2, self.config.batch_size), self.config.context_len + self.model_config.next_tokens
            with torch.random.fork_rng(devices=[]):
                tokens = torch.randint(256, shape)

            def work() -> None:
                out = self.model(tokens[:, : self.config.context_len], targets=tokens[:, 1:])
                (out.loss + out.router_loss).backward()

            pick_threads(work, self.display.say)
            self.model.zero_grad()
            self.model.router.seen.zero_()

    def write_record(self) -> None:
        """train.json; metrics.jsonl and samples.txt cut back to the step we start from."""
        self.tracker_run = self.before.get("tracker_run") or secrets.token_hex(4)
        more = {
            "fingerprint": self.documents.fingerprint,
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "threads": torch.get_num_threads(),
            "base_weights": self.base,
            "tracker_run": self.tracker_run,
        }
        cut_back(self.folder, self.step, self.sample_bytes)
        record = runs.record(self.model_config, self.data, self.config, **more)
        write_json(self.folder / "train.json", record)

    def restore(self, source: Path) -> None:
        """Everything but the weights, from a checkpoint."""
        optimizer_states, state = checkpoint.load_training(source)
        try:
            for optimizer, optimizer_state in zip(self.optimizers, optimizer_states, strict=True):
                optimizer.load_state_dict(optimizer_state)
            self.step = self.saved = state["step"]
            self.seconds, self.bytes = state["seconds"], state["bytes"]
            self.flops, self.executed_flops = state["flops"], state["executed_flops"]
            self.best, self.bpb = state["best"], state["validation_bpb"]
            self.batches.load_state_dict(state["data"])
            if self.accelerator.process_index < len(state["rng"]):
                set_rng_state(state["rng"][self.accelerator.process_index])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise PicoError(f"{source} is of another version of Pico or this run: {error!r}") from None
        self.sample_bytes = state.get("sample_bytes")

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Trains until a limit or a signal, saves, and sums up."""
        config, main = self.config, self.accelerator.is_main_process
        self.started = time.monotonic() - self.seconds
        with ExitStack() as stack:
            stack.enter_context(catch_signals(self.signals))
            each = config.grad_accumulation_steps
            prefetch = stack.enter_context(Prefetch(self.batches, self.accelerator.device, each))
            while self.progress() < 1 and not self.stopped and not self.failed:
                line = self.optimizer_step(prefetch)
                if line is None:
                    continue
                if self.due(config.validation_interval):
                    line |= self.validate()
                if self.due(config.sample_interval):
                    self.sample()
                if main:
                    append(self.folder / "metrics.jsonl", json.dumps(line) + "\n")
                self.tracker.log(line)
                new_best = self.best is not None and self.best["step"] == self.step
                if new_best or self.saves_wanted > self.saves_made or self.due(config.checkpoint_interval):
                    self.save()
                self.display.step(line, self.progress(), self.remaining(), self.floor)
            if self.saved != self.step:
                self.save()
        if not self.failed:
            return self.finish()
        if isinstance(self.failure, DataError):
            raise DataError(f"{self.failure}; step {self.step} is saved, --resume goes on from there")
        raise self.failure or parallel.Elsewhere(1)

    def optimizer_step(self, prefetch) -> dict | None:
        """One optimizer step over grad_accumulation_steps batches. Its metrics, or None if it was not finite."""
        config, began = self.config, time.monotonic()
        batches = next(prefetch)
        parts = self.model, self.forward, self.optimizers, config, batches
        tell = partial(self.tell, prefetch)
        done = optimizer_step(*parts, self.step, self.progress(), short_text=self.short, tell=tell)
        self.position = batches[-1].position
        self.heed(done.told)
        if not done.finite:
            self.skip(done.loss, done.grad_norm)
            return None
        self.step, self.bytes, self.skips = self.step + 1, self.bytes + done.bytes, 0
        self.flops += budget.step_flops(self.model_config, config, done.routed)
        self.executed_flops += budget.step_flops(self.model_config, config, done.slots)
        self.failed &= self.progress() < 1  # else nothing more is to be read
        rate = done.bytes / (time.monotonic() - began)
        self.rate = 0.9 * self.rate + 0.1 * rate if self.rate else rate
        return {
            "step": self.step,
            "loss": done.loss,
            "train_bpb": done.bits_per_byte,  # by the training-time routing; validation_bpb is causal
            "router_loss": done.router_loss,
            "routed": done.routed,
            "skipped": done.skipped,
            "learning_rate": done.learning_rate,
            "grad_norm": done.grad_norm,
            "bytes": self.bytes,
            "flops": self.flops,
            "executed_flops": self.executed_flops,
            "seconds": round(self.seconds, 3),
            "kB_per_s": round(self.rate / 1000, 2),
        }

    def tell(self, prefetch: Prefetch) -> list[float]:
        """What the processes share in every step: how often each signal came, whether text failed, the main's clock."""
        self.failure = prefetch.failure()  # of the next step's text: this step can still be finished and saved
        self.seconds = time.monotonic() - self.started
        clock = self.seconds if self.accelerator.is_main_process else 0.0
        return [*self.signals.values(), self.failure is not None, clock]

    def heed(self, told: list[float]) -> None:
        """What the signals that all processes have received ask for, and what time it is."""
        *counts, failures, clock = told
        self.failed = failures > 0
        if self.accelerator.num_processes > 1:  # a process alone knows its own time, unrounded
            self.seconds = clock
        received = dict(zip(self.signals, counts, strict=True))
        self.saves_wanted = received.pop(getattr(signal, SAVES, None), 0)
        self.stopped = next((STOPS[signal.Signals(number).name] for number, n in received.items() if n), None)

    def skip(self, loss: float, norm: float) -> None:
        """A step that was not finite: say so, and stop after ten in a row."""
        self.skips += 1
        self.display.warn(f"step {self.step + 1} skipped: loss {loss}, gradient norm {norm} ({self.skips} in a row)")
        if self.skips == MOST_SKIPS:
            raise self.diverged(f"{MOST_SKIPS} steps in a row had a loss or gradient that is not finite")

    def progress(self) -> float:
        """Fraction of the run that is done, by steps, clock or FLOPs, whichever is furthest; 0 if nothing limits it."""
        spent = {"step": self.step, "seconds": self.seconds, "flops": self.flops}
        return budget.progress(self.config, self.total_steps, spent)

    def remaining(self) -> float | None:
        """Seconds to go, if the rest is as fast as the run so far."""
        done = self.progress()
        return self.seconds * (1 / done - 1) if done else None

    def due(self, interval: int) -> bool:
        return self.progress() >= 1 or self.step % interval == 0

    # --- now and then --------------------------------------------------------------------------------------------

    def sound_model(self):
        """The model for what the main process does with it alone (None elsewhere). Raises PicoError if it diverged."""
        model = whole_model(self.model)

        def check() -> None:
            numbers = [*model.state_dict().values(), every_byte(model)]
            if not torch.stack([x.isfinite().all() for x in numbers]).all():
                raise self.diverged(f"the weights of step {self.step} are not finite, or too large to compute with")

        on_main(check)
        return model

    def validate(self) -> dict:
        """Causal bits per byte of the validation text's first documents; remembers the best."""
        if not len(self.scored):
            return {}

        model = self.sound_model()

        def bits_per_byte() -> float | DataError:
            try:
                return score(model, self.scored, self.config.context_len, max_bytes=VALIDATION_BYTES).bits_per_byte
            except DataError as error:
                return error

        bpb = on_main(bits_per_byte)
        if isinstance(bpb, DataError):
            self.failure, self.failed = bpb, True
            return {}
        if not math.isfinite(bpb):
            raise self.diverged(f"the validation of step {self.step} is not finite")
        self.bpb = bpb
        if self.best is None or bpb < self.best["bits_per_byte"]:
            self.best = {"step": self.step, "bits_per_byte": self.bpb}
        floor = f", the floor is {self.floor:.4f}" if self.floor is not None else ""
        self.display.say(f"step {self.step}: validation {self.bpb:.4f} bits per byte{floor}")
        return {"validation_bpb": self.bpb}

    def sample(self) -> None:
        """One text, shown and added to samples.txt with a _ before what was routed."""
        model = self.sound_model()

        def write() -> None:
            with np.errstate(all="ignore"):  # numbers of a run that is about to diverge
                pieces = list(marked(generate(model, max_bytes=SAMPLE_BYTES, seed=self.step)))
            self.display.sample(self.step, pieces)
            append(self.folder / "samples.txt", f"step {self.step}\n{underscored(pieces)}\n\n")

        on_main(write)

    def save(self) -> None:
        """A checkpoint of this step, then removal of those no longer kept."""
        state = {
            "seconds": self.seconds,
            "bytes": self.bytes,
            "flops": self.flops,
            "executed_flops": self.executed_flops,
            "best": self.best,
            "validation_bpb": self.bpb,
            "data": self.position,
            "rng": gather_object([rng_state()]),
            "sample_bytes": size_of(self.folder / "samples.txt"),
        }

        model, optimizers = self.sound_model(), [optimizer.state_dict() for optimizer in self.optimizers]

        def write() -> None:
            checkpoint.save(self.folder, self.step, model, optimizers, state)
            best = self.best and self.best["step"]
            for problem in checkpoint.prune(self.folder, self.config.keep_last, best, self.step):
                self.display.warn(f"removed the damaged checkpoint {problem}")

        on_main(write)
        self.saved, self.saves_made = self.step, self.saves_wanted

    def diverged(self, what: str) -> PicoError:
        """The error that ends a run whose numbers got out of hand."""
        folder, _ = checkpoint.newest(self.folder)
        good = (
            f"the last good checkpoint is {folder}: --resume from there" if folder else "nothing is saved: start again"
        )
        return PicoError(f"{what}; {good} with a --learning-rate below {self.config.learning_rate}")

    def finish(self) -> Summary:
        """The plot, the table, the next command."""
        stopped = self.stopped or "finished"
        spent = self.seconds, self.bytes, self.flops, self.executed_flops
        summary = Summary(self.step, self.bpb, self.floor, *spent, self.folder, stopped)
        if self.accelerator.is_main_process and self.step:
            try:
                plot_losses(self.folder / "metrics.jsonl", self.folder / "loss.png", self.floor)
            except PicoError as error:  # all that counts is saved
                self.display.warn(str(error))
        self.display.summary(summary, self.best, self.saved)
        if self.announced and not (self.stopped or self.total_steps) and 0 < self.step <= self.config.warmup_steps:
            self.warn_of_warmup(counted(self.step, "step"))
        if stopped == "finished":
            first = hints.prompt(self.validation[0]) if len(self.validation) else []
            self.display.say(f"next: {hints.command('run', self.path, self.run_name, *first)}")
        else:
            self.display.say("next: the same command with --resume")
        self.accelerator.end_training()
        return summary


@torch.inference_mode()
def every_byte(model) -> torch.Tensor:
    """Logits (1, V, N, V) of a text in which every symbol stands once."""
    training = model.training
    model.eval()
    try:
        return model(torch.arange(VOCABULARY, device=model.router.threshold.device)[None]).logits
    finally:
        model.train(training)
