"""What a training is made of: all that is opened, built and restored before its first step.

The order matters. The run is claimed before anything is opened; random numbers are drawn after the seed is set, those
of the weights first; and a checkpoint is restored last, so that nothing after it draws.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.amp import GradScaler

from pico.base.config import DataConfig, TrainConfig
from pico.base.device import pick_dtype
from pico.base.errors import PicoError
from pico.base.files import write_json
from pico.base.memory import require, require_weights, training_bytes
from pico.base.shapes import Shape
from pico.base.symbols import BYTES, Alphabet
from pico.base.threads import pick_threads, threads_chosen
from pico.data.documents import Documents
from pico.data.encoding import Conversations, encoded
from pico.data.hub import Stream
from pico.data.mixture import holds_chats
from pico.data.open import Batches, open_data
from pico.data.reading import Reading
from pico.data.tokens import EndlessTokens, Tokens
from pico.model.build import Model, build_model
from pico.model.cost import flops_per_symbol
from pico.runs import checkpoint
from pico.runs.folder import differences, git_revision, lock, read_record, run_folder
from pico.runs.metrics import cut_back
from pico.runs.state import set_rng_state, set_seed
from pico.train import budget, parallel
from pico.train import resume as runs
from pico.train.parallel import on_main
from pico.train.progress import Display
from pico.train.step import loss_scaler
from pico.train.trackers import Tracker

PROBE_FLOPS = 5e9  # of a forward and backward that is tried with several numbers of threads: a step of `tiny`
VALIDATION_BYTES = 100_000  # scored at each validation, whole documents; `picolm.py eval` scores everything


@dataclass
class State:
    """How far a run is. A checkpoint's state.json holds this, the random state and what the optimizers know."""

    step: int = 0
    seconds: float = 0.0  # of training, over all resumes
    bytes: int = 0  # raw bytes predicted
    flops: int = 0  # charged by routed bytes
    executed_flops: int = 0  # with the empty slots of the latent buffer
    best: dict | None = None  # step and bits_per_byte of the best validation
    validation_bpb: float | None = None  # of the newest one
    data: dict = field(default_factory=dict)  # the position in the text, by `Batches.state_dict`
    unconcluded: dict | None = None  # the line of the newest step, if its validation could not read the text
    sample_bytes: int | None = 0  # size of samples.txt; None in a checkpoint that does not say it


class Text(NamedTuple):
    """The opened data."""

    documents: Documents | Stream | Tokens | EndlessTokens | Conversations  # to train on
    validation: Documents
    scored: Documents  # the first ones of it, at most VALIDATION_BYTES
    floor: float | None  # their exact entropy, bits per byte, where it is known


class Origin(NamedTuple):
    """What a run starts from: nothing, or what was there of it before."""

    checkpoint: Path | None = None
    record: Mapping = MappingProxyType({})  # train.json


@dataclass
class Parts:
    """A training that is ready for its next step."""

    path: Path  # of the model
    run: str  # its name
    config: TrainConfig
    accelerator: Accelerator
    display: Display
    reading: Reading  # what was read, in words
    text: Text
    origin: Origin
    model: Model
    forward: Callable  # the model as it is called, which may be wrapped in DDP
    optimizers: list
    scaler: GradScaler  # of the loss; on for fp16 alone
    batches: Batches
    numbers_per_byte: float  # of all but the n-gram table, for a text that is read again; 0 if none is
    total_steps: int | None  # that limit the run; None if other limits do
    state: State
    tracker: Tracker

    @property
    def folder(self) -> Path:
        return self.path / self.run


def claim(path: Path, run: str, resume: bool, stack: ExitStack, display: Display) -> None:
    """Locks the run folder; raises PicoError if the run should exist and does not, or the other way round."""
    if resume:
        run_folder(path, run)
    if unlocked := stack.enter_context(lock(path / run)):
        display.warn(unlocked)
    if not resume:
        runs.check_new(path / run)


def build(
    path: Path,
    run: str,
    model_config: Shape,
    alphabet: Alphabet,
    data: DataConfig,
    config: TrainConfig,
    accelerator,
    display: Display,
    resume: bool,
    base_weights: str | None,
) -> Parts:
    """Opens the data, builds model, optimizers and batches, fresh or from a checkpoint, and writes train.json.

    Called by all processes, once the run is claimed. Raises PicoError for what cannot be trained, or so resumed.
    """
    rank, world, reading = accelerator.process_index, accelerator.num_processes, Reading()
    if config.batch_size % world:
        raise PicoError(
            f"--batch-size {config.batch_size} does not divide over {world} processes: use a multiple of {world}"
        )
    # What may be refused is refused before anything large is built.
    check_memory(model_config, config, accelerator)
    text = open_text(data, config, alphabet, reading, display)
    origin = Origin()
    if resume:
        origin = find_origin(path / run, model_config, data, config, text.documents.fingerprint, display)

    # The seed decides the weights, the same in all processes. Whatever draws before them would change them.
    set_seed(config.seed)
    dtype = pick_dtype(config.precision, accelerator.device)
    model = build_model(model_config, config.attention_backend, dtype)
    model.alphabet = alphabet
    base = first_weights(model, path, origin, base_weights, display, main=not rank)
    forward, optimizers = parallel.prepare(model.train(), config, accelerator)
    scaler = loss_scaler(accelerator.device, dtype)
    if rank:
        set_seed(config.seed, rank)  # its rows lose others to dropout than rank 0's
    heads = model_config.next_tokens
    batches = Batches(text.documents, config.context_len, heads, config.batch_size, config.seed, rank, world)
    # All is there: now a checkpoint overwrites it, random state included.
    state = restore(origin.checkpoint, optimizers, scaler, batches, rank) if origin.checkpoint else State()
    state.data = batches.state_dict()
    choose_threads(model, config, accelerator, origin, display)

    # A text of fewer bytes than the blocks have numbers is learned by heart when it is read again.
    numbers, documents = sum(p.numel() for p in model.dense_parameters()), text.documents
    again = documents.repeats and not isinstance(documents, (Stream, EndlessTokens))
    numbers_per_byte = numbers / documents.size if again else 0.0
    total_steps = budget.step_limit(config, batches.chunks_per_epoch)

    # train.json says what the run began with; what was written behind the checkpoint will be written again.
    tracker_run = origin.record.get("tracker_run") or secrets.token_hex(4)
    about = {
        "fingerprint": text.documents.fingerprint,
        "chat": holds_chats(data),
        "processes": world,
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "base_weights": base,
        "tracker_run": tracker_run,
        "git_revision": revisions(origin.record),
    }

    def write() -> None:
        cut_back(path / run, state.step - (state.unconcluded is not None), state.sample_bytes)
        write_json(path / run / "train.json", runs.record(model_config, data, config, **about))

    on_main(write)
    settings = {**config.model_dump(), **data.model_dump(), **model_config.model_dump()}
    settings = {key: value for key, value in settings.items() if value is not None}
    tracker = Tracker(accelerator, config, settings, path / run, tracker_run, state.step, display.warn)
    return Parts(
        path=path, run=run, config=config, accelerator=accelerator, display=display, reading=reading, text=text,
        origin=origin, model=model, forward=forward, optimizers=optimizers, scaler=scaler, batches=batches,
        numbers_per_byte=numbers_per_byte, total_steps=total_steps, state=state, tracker=tracker,
    )  # fmt: skip


def revisions(before: Mapping) -> str | None:
    """The commits that trained a run, one where the code stayed the same; before: its train.json, if there is one."""
    found = [*str(before.get("git_revision") or "").split(), git_revision()]
    return " ".join(dict.fromkeys(filter(None, found))) or None


def check_memory(model_config: Shape, config: TrainConfig, accelerator) -> None:
    """Raises PicoError for a model that does not fit into memory, with its gradients and optimizer."""
    require_weights(model_config)
    size = training_bytes(model_config, config.optimizer)
    size /= accelerator.num_processes if parallel.sharding() else 1
    what = f"this model, its gradients and the state of {config.optimizer} do not fit"
    require(size, accelerator.device, what, "take a smaller model, or --optimizer muon, which needs least")


def open_text(data: DataConfig, config: TrainConfig, alphabet: Alphabet, reading: Reading, display: Display) -> Text:
    opened, validation = open_data(data, config.seed, reading)
    if alphabet is BYTES:
        documents = encoded(opened, alphabet, config.context_len)
    else:
        made = []  # by the main process, alone; the others find it in the cache
        on_main(lambda: made.append(encoded(opened, alphabet, config.context_len, display.log)))
        documents = made[0] if made else encoded(opened, alphabet, config.context_len)
        assert not isinstance(documents, (Documents, Stream)), "they are tokens now"
        reading.note("tokens", *documents.notes())
    scored = validation.first(VALIDATION_BYTES) if len(validation) else validation
    floor = scored.floor_bits / scored.size if scored.floor_bits is not None else None
    return Text(documents, validation, scored, floor)


def find_origin(folder: Path, model_config, data, config, fingerprint: str, display) -> Origin:
    """What there is of a run to resume. Raises PicoError where it cannot go on with these settings."""
    record = on_main(lambda: read_record(folder))
    settings = model_config, data, config, fingerprint
    source, skipped = on_main(lambda: runs.check_resume(folder.parent, folder, *settings))
    for problem in skipped:
        display.warn(f"skipped checkpoint {problem}")
    where = f"at step {int(source.name)}" if source else "from the beginning: it has no checkpoint yet"
    display.log(f"resuming {folder} {where}")
    before = TrainConfig.build(**record["train"])
    if source and (changed := differences(before, config, name=TrainConfig.flag)):
        display.log(f"from here on {changed}")
    return Origin(source, record)


def first_weights(
    model: Model, path: Path, origin: Origin, base_weights: str | None, display, main: bool
) -> dict | None:
    """Gives a new model the weights that its training starts from; returns what train.json remembers of another run's.

    They are those of the checkpoint; or else of the run that this one began with; or else of `base_weights`.
    """
    base = origin.record.get("base_weights")
    if origin.checkpoint:
        checkpoint.load_weights(model, origin.checkpoint)
    elif base is not None:
        runs.load_base(model, path, base)
    elif base_weights is not None:
        base = on_main(lambda: runs.take_base(model, path, base_weights))
        if not main:
            runs.load_base(model, path, base)
        display.log(f"starting from the weights of {base_weights}, step {base['step']}")
    return base


def restore(source: Path, optimizers: list, scaler: GradScaler, batches: Batches, rank: int) -> State:
    """Everything except the weights, from a checkpoint."""
    optimizer_states, found = checkpoint.load_training(source)
    try:
        for optimizer, optimizer_state in zip(optimizers, optimizer_states, strict=True):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(optimizer_state)
            for group, now in zip(optimizer.param_groups, settings):
                group.update(now)  # torch takes the settings of then as well: --weight-decay could not be changed
        if scaler.is_enabled() and found.get("scaler"):
            scaler.load_state_dict(found["scaler"])
        batches.load_state_dict(found["data"])
        if rank < len(found["rng"]):
            set_rng_state(found["rng"][rank])
        found: dict[str, Any] = {"sample_bytes": None, "unconcluded": None, **found}
        return State(**{each.name: found[each.name] for each in fields(State)})
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise PicoError(f"{source} is of another version of Pico or this run: {error!r}") from None


def choose_threads(model: Model, config: TrainConfig, accelerator, origin: Origin, display: Display) -> None:
    """On a CPU: what is faster for a new run, as many as before for a resumed one: sums round in their order."""
    if accelerator.device.type != "cpu":
        return
    threads = origin.record.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    elif accelerator.num_processes == 1 and not threads_chosen():
        row = flops_per_symbol(model.config, config.context_len)[1] * config.context_len
        rows = min(config.batch_size, max(2, round(PROBE_FLOPS / row)))
        with torch.random.fork_rng(devices=[]):
            tokens = torch.randint(256, (rows, config.context_len + model.config.next_tokens))

        def work() -> None:
            out = model(tokens[:, : config.context_len], targets=tokens[:, 1:])
            assert out.loss is not None and out.router_loss is not None
            (out.loss + out.router_loss).backward()

        pick_threads(work, display.log)
        model.zero_grad()
        model.forget_step()
