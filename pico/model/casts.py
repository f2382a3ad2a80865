"""The weights of a training step in the dtype of its activations: all cast in one launch, instead of one each.

A GPU takes longer to launch the cast of a small matrix than to do it, forward and backward. The masters stay fp32, and
so do their gradients, which add up over the batches of a step.
"""

import torch
from torch import Tensor

from pico.model.blocks import Linear
from pico.model.pico import Pico


class _Cast(torch.autograd.Function):
    """Several tensors in another dtype, as views of one; and their gradients back."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: Tensor):
        ctx.set_materialize_grads(False)
        ctx.dtypes = [w.dtype for w in weights]
        flat = weights[0].new_empty(sum(w.numel() for w in weights), dtype=dtype)
        casts = [part.view_as(w) for part, w in zip(flat.split([w.numel() for w in weights]), weights)]
        torch._foreach_copy_(casts, weights)
        return tuple(casts)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        found = [None if g is None else torch.empty_like(g, dtype=dtype) for g, dtype in zip(grads, ctx.dtypes)]
        if there := [g for g in grads if g is not None]:
            torch._foreach_copy_([x for x in found if x is not None], there)
        return None, *found


def cast_together(model: Pico) -> None:
    """From now on every forward in training casts the weights of all Linears at once.

    Their gradients then come together too, when the whole backward pass is done: for a process that shares none.
    """
    linears = [module for module in model.modules() if isinstance(module, Linear)]

    def cast(model: Pico, _) -> None:
        if model.training:
            for linear, weight in zip(linears, _Cast.apply(model.dtype, *(each.weight for each in linears))):
                linear.cast = weight

    def forget(*_) -> None:
        for linear in linears:
            linear.cast = None

    model.register_forward_pre_hook(cast)
    model.register_forward_hook(forget, always_call=True)
