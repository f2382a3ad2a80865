"""The training loop, on Accelerate: one CPU, one GPU, MPS, or many processes under `accelerate launch`.

    python picolm.py train models/my-model my-run stories --max-minutes 3

Precision is the model's own (fp32 weights, activations in Pico(dtype=...)), so Accelerate's autocast stays off. A run
can be killed anywhere: model, optimizer, schedule, data position and random state are in every checkpoint, and on a
CPU a resumed run repeats the uninterrupted one bit for bit.
"""

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from pico.base import hints
from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import DataError, PicoError
from pico.base.files import append
from pico.base.memory import forget_peak, keep_memory
from pico.base.shapes import check_context, check_routes
from pico.base.threads import threads_given_back
from pico.data.documents import Packed
from pico.data.packing import Batches
from pico.data.prefetch import Prefetch
from pico.data.reading import plural, training_plan
from pico.runs import checkpoint
from pico.runs.derive import pretrained
from pico.runs.folder import check_name, read_alphabet, read_config, read_recipe
from pico.runs.plots import plot_losses
from pico.train import budget, parallel
from pico.train.intervals import diverged, save_checkpoint, validate, write_sample
from pico.train.launch import explained, make_accelerator
from pico.train.parallel import on_main
from pico.train.parts import Parts, build, claim
from pico.train.progress import Display, Summary
from pico.train.signals import Signals
from pico.train.step import Pending, optimizer_step, step_graphs

MOST_SKIPS = 10  # non-finite steps in a row that end a run


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
    alphabet = read_alphabet(path, model_config)
    check_context(model_config, config.context_len)
    check_routes(model_config, attention_backend=config.attention_backend)
    if not resume and base_weights is None:
        base_weights = pretrained(path)
    path = Path(path)
    accelerator = make_accelerator(config, path / run, device, not model_config.trains_all)
    if accelerator.device.type == "cpu":
        keep_memory()
    forget_peak(accelerator.device)
    with ExitStack() as stack:
        stack.enter_context(threads_given_back())
        stack.enter_context(parallel.together())
        shown = stack.enter_context(display or Display(quiet or not accelerator.is_main_process))
        stack.enter_context(explained(config))
        on_main(lambda: claim(path, run, resume, stack, shown))
        settings = model_config, alphabet, data, config, accelerator, shown
        training = Training(build(path, run, *settings, resume, base_weights))
        if head and accelerator.is_main_process:
            training.announce()
        return training.run()


class Queued(NamedTuple):
    """A step that the device was given."""

    pending: Pending
    began: float  # on the monotonic clock
    seconds: float  # of training, when it was queued
    position: dict  # of the data, after it


class Training:
    """One run in progress: `run` takes its steps, and validates, samples and saves between them."""

    def __init__(self, parts: Parts):
        self.parts, self.state, self.config, self.display = parts, parts.state, parts.config, parts.display
        self.folder, self.announced = parts.folder, False
        self.saved = parts.state.step if parts.origin.checkpoint else -1  # step of the newest checkpoint
        self.queued: list[Queued] = []  # steps whose numbers are yet to be read, the oldest first
        alone = parts.accelerator.device.type == "cuda" and parts.accelerator.num_processes == 1
        self.lags = alone and not parts.config.tail_average  # which reads the weights of every step
        self.graphs = step_graphs(parts.model, parts.optimizers, parts.config, self.display.warn)
        self.skips, self.rate = 0, 0.0  # steps that were not finite, in a row; bytes a second, lately
        self.signals, self.saves_made = Signals(), 0  # saves: by signal
        self.failure: BaseException | None = None  # what keeps this process from reading on
        self.failed = False  # whether any process has a failure, agreed by all of them

    def announce(self) -> None:
        """Before the first step: what was read, what is to come, and what cannot be meant so."""
        self.announced, parts, reading = True, self.parts, self.parts.reading
        batches = parts.batches
        coming = training_plan(self.config, parts.total_steps, batches.chunks_per_epoch, batches.alphabet.unit)
        recipe, settings = read_recipe(parts.path), self.config.model_dump()
        if taken := [f"{key} {value}" for key, value in recipe.items() if settings[key] == value]:
            reading.note("recipe", *taken)
        reading.note("to come", *coming)
        for line in reading.lines():
            self.display.log(line)
        for warning in reading.warnings:
            self.display.warn(warning)
        if self.state.step and self.progress() >= 1:
            self.display.warn(
                f"nothing is left to train at step {self.state.step}, after {self.state.seconds / 60:.1f} min "
                f"({', '.join(reading.notes['to come'])}): give more to go on, of the limit that ended it"
            )
        elif parts.total_steps and parts.total_steps <= self.config.warmup:
            self.warn_of_warmup(parts.total_steps)

    def warn_of_warmup(self, steps: int) -> None:
        self.display.warn(
            f"a run of {plural(steps, 'step')} ends in its warm-up of {plural(self.config.warmup, 'step')}: the "
            f"learning rate does not reach its peak; train longer, or give --warmup-steps"
        )

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Steps until a limit, a signal or a failure; then saves, and sums up."""
        parts, state = self.parts, self.state
        self.started = time.monotonic() - state.seconds
        with ExitStack() as stack:
            stack.enter_context(self.signals.caught(self.say_once))
            stack.enter_context(self.interruptible())
            each = self.config.grad_accumulation_steps
            prefetch = stack.enter_context(Prefetch(parts.batches, parts.accelerator.device, each))
            if state.unconcluded is not None:
                self.conclude(state.unconcluded)
            while self.progress(self.queued) < 1 and not self.signals.stopped and not self.failed:
                self.step(prefetch)
            if self.saved != state.step:
                self.save()
        if not self.failed:
            return self.finish()
        if isinstance(self.failure, DataError):
            raise DataError(f"{self.failure}; step {state.step} is saved, --resume goes on from there")
        raise self.failure or parallel.Elsewhere(1)

    def step(self, prefetch: Prefetch) -> None:
        """Queues one optimizer step, and settles those that the host need not wait for, or must."""
        self.queue(prefetch)
        while self.queued and self.reads_on():
            self.settle(self.queued.pop(0))

    def queue(self, prefetch: Prefetch) -> None:
        parts, state, began = self.parts, self.state, time.monotonic()
        batches = next(prefetch)  # may raise; nothing has changed so far
        if batches[-1].position["epoch"]:  # of some row of some process: all of them count
            self.count_ngrams()
            if self.failed:
                return
        pending = optimizer_step(
            parts.model,
            parts.forward,
            parts.optimizers,
            self.config,
            batches,
            state.step + len(self.queued),
            self.progress(self.queued),
            parts.numbers_per_byte,
            to_share=lambda: self.to_share(prefetch),
            graphs=self.graphs,
            scaler=parts.scaler,
        )
        self.queued.append(Queued(pending, began, self.clock, batches[-1].position))

    def count_ngrams(self) -> None:
        """Once, before the text is read again: how often each n-gram stands in it; see `NGrams.known`.

        If the text of any process has changed, all of them have failed, and save what they learned before.
        """
        parts, ngrams = self.parts, self.parts.model.ngrams
        if not parts.numbers_per_byte or not ngrams or ngrams.counts is not None:
            return
        began, config, documents = time.monotonic(), self.config, parts.batches.documents
        first = Batches(documents, config.context_len, parts.model.config.next_tokens, config.batch_size, config.seed)
        chunks = first.chunks_per_epoch or 0
        pieces = (next(first)[0][: chunks - n] for n in range(0, chunks, config.batch_size))
        try:
            ngrams.count(pieces, chunks * config.context_len, parts.batches.alphabet.bos)
        except DataError as error:
            self.failure = error
        failures = torch.tensor(float(self.failure is not None), device=parts.accelerator.device)
        self.failed = bool(parallel.total(failures))
        took = time.monotonic() - began
        if not self.failed:
            self.display.log(
                f"the text is read again: {took:.1f} s to count its n-grams; rare ones are new from here on"
            )

    def reads_on(self) -> bool:
        """Whether the host waits for the oldest step that is queued.

        A CPU is through with it. A GPU is given the next one first, so that it never waits for the host, unless
        something is due after this one.
        """
        ended = self.signals.stopped or self.failure or self.progress(self.queued) >= 1
        if ended or not self.lags or len(self.queued) > 1 or self.signals.saves > self.saves_made:
            return True
        config, step = self.config, self.state.step + len(self.queued)
        return any(
            step % n == 0 for n in (config.validation_interval, config.sample_interval, config.checkpoint_interval)
        )

    def settle(self, step: "Queued") -> None:
        """Takes account of a step and concludes it, unless it was not finite: then no weight has moved."""
        parts, state, config, done = self.parts, self.state, self.config, step.pending.get()
        # What all processes were told: now they agree on the time, and on stopping.
        *counts, failures, clock = done.shared
        self.signals.agree(counts)
        state.seconds = clock if parts.accelerator.num_processes > 1 else step.seconds  # alone: its own, unrounded
        state.data = step.position
        if done.finite:
            self.skips = 0
            state.step += 1
            state.bytes += done.bytes
            state.flops += budget.step_flops(parts.model.config, config, done.routed, done.heads)
            state.executed_flops += budget.step_flops(parts.model.config, config, done.slots, done.heads)
            if config.tail_average:
                parts.optimizers[-1].follow(state.step, self.progress())
        self.failed |= failures > 0 and self.progress() < 1
        if not done.finite:
            self.skip(done.loss, done.grad_norm)
            return
        ended = self.queued[0].began if self.queued else time.monotonic()
        rate = done.bytes / (ended - step.began)
        self.rate = 0.9 * self.rate + 0.1 * rate if self.rate else rate
        line = {
            "step": state.step,
            "loss": done.loss,
            "train_bpb": done.bits_per_byte,  # by the training-time routing; validation_bpb is causal
            "perplexity": done.perplexity,
            "router_loss": done.router_loss,
            "routed": done.routed,
            "skipped": done.skipped,
            "learning_rate": done.learning_rate,
            "grad_norm": done.grad_norm,
            "bytes": state.bytes,
            "flops": state.flops,
            "executed_flops": state.executed_flops,
            "seconds": round(state.seconds, 3),
            "kB_per_s": round(self.rate / 1000, 2),
        }
        self.conclude(line)

    def conclude(self, line: dict) -> None:
        """What follows a step: validation and sample, and then the checkpoint, which holds their results."""
        config, parts, state = self.config, self.parts, self.state
        state.unconcluded = None
        if self.due(config.validation_interval):
            try:
                line |= validate(parts)
            except DataError as error:  # the run ends, and begins here when it goes on
                self.failure, self.failed, state.unconcluded = error, True, line
                return
        if self.due(config.sample_interval):
            write_sample(parts)
        if parts.accelerator.is_main_process:
            append(self.folder / "metrics.jsonl", json.dumps(line) + "\n")
        parts.tracker.log(line)
        new_best = state.best is not None and state.best["step"] == state.step
        wanted = new_best or self.signals.saves > self.saves_made or self.due(config.checkpoint_interval)
        if wanted and self.saved != state.step and not self.queued:  # else after the step whose weights these are
            self.save()
        self.display.step(line, self.progress(), self.remaining(), parts.text.floor)

    def to_share(self, prefetch: Prefetch) -> list[float]:
        """What the processes share in every step: the signals that came, failures, and the main one's clock."""
        self.failure = prefetch.failure()  # of the next step's text: this step can still be finished and saved
        self.clock = time.monotonic() - self.started
        clock = self.clock if self.parts.accelerator.is_main_process else 0.0
        return [*self.signals.counts.values(), self.failure is not None, clock]

    def skip(self, loss: float, norm: float) -> None:
        """A step that was not finite: say so, and stop after ten in a row.

        A gradient that overflows in fp16 is no news, unless its scale, which has halved now, is as small as can help.
        """
        scaler = self.parts.scaler
        if scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() >= 1:
            return
        self.skips += 1
        step, row = self.state.step + 1, f"({self.skips} in a row)"
        self.display.warn(f"step {step} skipped: loss {loss}, gradient norm {norm} {row}")
        if self.skips == MOST_SKIPS:
            raise diverged(self.parts, f"{MOST_SKIPS} steps in a row had a loss or gradient that is not finite")

    def progress(self, queued: Sequence["Queued"] = ()) -> float:
        """Fraction of the run that is done, by steps, clock or FLOPs, whichever is furthest; 0 if nothing limits it.

        queued: steps that count as done.
        """
        state = vars(self.state)
        if queued:
            state = state | {"step": state["step"] + len(queued), "seconds": queued[-1].seconds}
        return budget.progress(self.config, self.parts.total_steps, state)

    def remaining(self) -> float | None:
        """Seconds to go, if the rest is as fast as the run so far."""
        done = self.progress()
        return self.state.seconds * (1 / done - 1) if done else None

    def due(self, interval: int) -> bool:
        return self.progress() >= 1 or self.state.step % interval == 0

    def save(self) -> None:
        save_checkpoint(self.parts)
        self.saved, self.saves_made = self.state.step, self.signals.saves

    # --- the end -------------------------------------------------------------------------------------------------

    @contextmanager
    def interruptible(self):
        """Says, where Ctrl-C ends the run at once, what is left of it."""
        try:
            yield
        except KeyboardInterrupt:
            folder, _ = checkpoint.newest(self.folder)
            self.say_once(f"ended at once; --resume goes on from {folder or 'the beginning: nothing was saved yet'}")
            raise

    def say_once(self, message: str) -> None:
        """Even when quiet, but by one of the processes."""
        if self.parts.accelerator.is_main_process:
            self.display.warn(message)

    def finish(self) -> Summary:
        """The plot, the table, the next command."""
        parts, state, text, stopped = self.parts, self.state, self.parts.text, self.signals.stopped
        spent = state.seconds, state.bytes, state.flops, state.executed_flops
        summary = Summary(state.step, state.validation_bpb, text.floor, *spent, self.folder, stopped or "finished")
        if parts.accelerator.is_main_process and state.step:
            try:
                plot_losses(self.folder / "metrics.jsonl", self.folder / "loss.png", text.floor)
            except (PicoError, ImportError) as error:  # all that counts is saved
                self.display.warn(f"no loss.png: {error}" if isinstance(error, ImportError) else str(error))
        self.display.summary(summary, state.best, self.saved)
        unforeseen = self.announced and not (stopped or parts.total_steps)  # no step limit told us before
        if unforeseen and 0 < state.step <= self.config.warmup:
            self.warn_of_warmup(state.step)
        if stopped:
            self.display.log("next: the same command with --resume")
        else:
            prompt = len(text.validation) and not isinstance(text.validation[0], Packed)
            first = hints.prompt(text.validation[0]) if prompt else []
            self.display.log(f"next: {hints.command('run', parts.path, parts.run, *first)}")
        parts.tracker.close()
        return summary
