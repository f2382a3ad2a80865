"""What happens every so many steps, and at the end of a run: validation, a sample, a checkpoint.

The main process does each alone, with weights that were looked at first, while the others wait for it.
"""

import math
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from pico.base.device import device_of
from pico.base.errors import DataError, PicoError
from pico.base.files import append, size_of
from pico.base.memory import peak_memory
from pico.base.symbols import VOCABULARY
from pico.decode.generation import generate
from pico.decode.text import marked, underscored
from pico.evaluate.score import score
from pico.runs import checkpoint
from pico.runs.state import rng_state
from pico.train.parallel import full_model, on_main
from pico.train.parts import VALIDATION_BYTES, Parts

SAMPLE_BYTES = 256


class Validation(NamedTuple):
    """What the validation text costs; all but bits per byte are for a symbol, a byte or a token."""

    bpb: float
    loss: float  # nats
    perplexity: float
    accuracy: float  # of the first guess


def validate(parts: Parts) -> dict[str, float]:
    """Causal bits per byte and more of the validation text's first documents, for metrics.jsonl; remembers the best.

    Raises DataError, in every process, where the text cannot be read now.
    """
    state, text = parts.state, parts.text
    if not len(text.scored):
        return {}
    model = sound_model(parts)

    def scored() -> Validation | DataError:
        try:
            found = score(model, text.scored, parts.config.context_len, max_bytes=VALIDATION_BYTES)
            return Validation(found.bits_per_byte, found.loss, found.perplexity, found.accuracy)
        except DataError as error:
            return error

    found = on_main(scored)
    if isinstance(found, DataError):
        raise found
    bpb = found.bpb
    if not math.isfinite(bpb):
        raise diverged(parts, f"the validation of step {state.step} is not finite")
    state.validation_bpb = bpb
    if state.best is None or bpb < state.best["bits_per_byte"]:
        state.best = {"step": state.step, "bits_per_byte": bpb}
    floor = f", the floor is {text.floor:.4f}" if text.floor is not None else ""
    parts.display.log(
        f"step {state.step}: validation {bpb:.4f} bits per byte{floor}; {found.accuracy:.1%} of the next "
        f"{parts.model.config.unit}s right, perplexity {found.perplexity:.3f}"
    )
    memory = round(peak_memory(parts.accelerator.device) / 2**20, 1)  # MiB, of this run
    return {f"validation_{name}": value for name, value in found._asdict().items()} | {"peak_memory_mb": memory}


def write_sample(parts: Parts) -> None:
    """One text, shown and added to samples.txt with a _ before what was routed."""
    model, step = sound_model(parts), parts.state.step

    def write() -> None:
        with np.errstate(all="ignore"):  # numbers of a run that is about to diverge
            pieces = list(marked(generate(model, max_bytes=SAMPLE_BYTES, seed=step)))
        parts.display.sample(step, pieces)
        append(parts.folder / "samples.txt", f"step {step}\n{underscored(pieces)}\n\n")

    on_main(write)


def in_order(state: dict) -> dict:
    """An optimizer's state by the order of its parameters, not by when each first had a gradient."""
    return {**state, "state": dict(sorted(state["state"].items()))}


def save_checkpoint(parts: Parts) -> None:
    """A checkpoint of this step, then removal of those no longer kept."""
    parts.state.sample_bytes = size_of(parts.folder / "samples.txt")
    step, best = parts.state.step, parts.state.best["step"] if parts.state.best else None
    state = {**asdict(parts.state), "rng": gather_object([rng_state()]), "scaler": parts.scaler.state_dict()}
    model, optimizers = sound_model(parts), [in_order(optimizer.state_dict()) for optimizer in parts.optimizers]

    def write() -> None:
        checkpoint.save(parts.folder, step, model, optimizers, state)
        for problem in checkpoint.prune(parts.folder, parts.config.keep_last, best, step):
            parts.display.warn(f"removed the damaged checkpoint {problem}")

    on_main(write)


def sound_model(parts: Parts):
    """The model for what the main process does with it alone (None elsewhere). Raises PicoError if it diverged."""
    model = full_model(parts.model)

    def check() -> None:
        numbers = [*model.state_dict().values(), one_text(model)]
        if not torch.stack([x.isfinite().all() for x in numbers]).all():
            step = parts.state.step
            raise diverged(parts, f"the weights of step {step} are not finite, or too large to compute with")

    on_main(check)
    return model


@torch.inference_mode()
def one_text(model) -> torch.Tensor:
    """Logits (1, T, N, V) of a text in which every symbol of a byte model stands once."""
    training = model.training
    model.eval()
    try:
        return model(torch.arange(min(model.config.vocabulary, VOCABULARY), device=device_of(model))[None]).logits
    finally:
        model.train(training)


def diverged(parts: Parts, what: str) -> PicoError:
    """The error that ends a run whose numbers got out of hand."""
    folder, _ = checkpoint.newest(parts.folder)
    good = f"the last good checkpoint is {folder}: --resume from there" if folder else "nothing is saved: start again"
    return PicoError(f"{what}; {good} with a --learning-rate below {parts.config.learning_rate}")
