"""What every model offers to the other rooms, and how one is made from its config.

What only Pico has, the rules of routing and several heads, is asked of the config: `routes`, `next_tokens`. Nobody
outside this room looks inside of a model.
"""

from collections.abc import Hashable, Iterator
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn

from pico.base.routers import Rule
from pico.base.shapes import Shape
from pico.base.symbols import Alphabet
from pico.model.cache import Cache
from pico.model.gpt import GPT
from pico.model.ngrams import NGrams
from pico.model.pico import Output, Pico


class Model(Protocol):
    """A torch module whose forward gives an `Output`; see `Pico`, where each of these says more."""

    config: Shape
    dtype: torch.dtype  # of activations; weights are fp32
    alphabet: Alphabet  # what its ids stand for
    attention_backend: str | None  # as it was asked for
    gradient_checkpointing: bool  # training keeps what goes into each block, and runs it again
    blocks: list[nn.Module]  # what is sharded and compiled one by one
    ngrams: NGrams | None

    def __call__(
        self,
        tokens: Tensor,  # (B, T)
        targets: Tensor | None = None,  # (B, T + N - 1), -100 where there is none
        cache: Cache | None = None,
        disable_latent: bool = False,
        start: Tensor | None = None,  # (B,) where in its text each row begins
        rule: Rule | None = None,  # routes otherwise than the model's own
    ) -> Output: ...

    def begin_step(self, progress: float) -> Hashable:
        """Before a training step, after this fraction of the run: what of it a CUDA graph must not mix up."""

    def end_step(self, gate: Tensor | None = None) -> None:
        """After the optimizers; where gate () is 0, they have left the weights alone."""

    def forget_step(self) -> None:
        """After a step that moves nothing."""

    def set_dropout(self, updates: float, times: Tensor | None = None) -> None:
        """What training leaves out from now on: a share of what each block adds, and lookups in rows (B,) of text that
        it has read so many times before; None: all of it is new."""

    def new_cache(self, batch: int, feed: int) -> Cache: ...

    def right_draft_logits(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, T, N, V): what each head says after the stream x (B, T, D) where all drafts before its own were right."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter, by what its optimizer must know: tables, symbols, matrices, undecayed."""

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but the tables."""

    def uncast_parameters(self) -> list[nn.Parameter]:
        """Those that the forward reads in fp32, whatever the dtype of its activations."""

    def parts(self) -> dict[str, int]:
        """Parameters of each part, as the config names them."""

    # of torch's modules
    def to(self, device: str | torch.device) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> object: ...
    def zero_grad(self) -> None: ...


def build_model(config: Shape, attention_backend: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """A new model of this shape. attention_backend: of Pico alone; None picks the fastest for the device."""
    model = GPT(config, dtype) if config.kind == "gpt" else Pico(config, attention_backend, dtype)
    return cast(Model, model)  # torch types neither a module's call nor its children


def sparse_tables(model: Model, sparse: bool) -> None:
    """Whether the n-gram tables, if there are any, get sparse gradients."""
    if model.ngrams:
        model.ngrams.table.sparse = sparse
