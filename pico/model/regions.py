"""torch.compile in regions: the parts of a training step that are many small kernels between two matmuls.

A compiled region is traced once for each of its shapes: blocks of one shape share a graph whichever their number, a
latent block is traced anew when the routing turns causal and its sequence grows, and all blocks when dropout begins.
What the text decides (lookups, routing) stays outside, so no graph breaks.
"""

import warnings
from types import MethodType
from typing import Any

import torch

GRAPHS = 22  # of a block of one shape: more than its dropout, on or off, and its two passes ask for


def compile_regions(model, **options) -> None:
    """From now on the model trains compiled, in place; parameters keep their names. Evaluation stays as it is.

    options: of torch.compile.
    """
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # of constants: harmless
    regions = [(block, "forward") for block in model.blocks] + [(model, name) for name in model.regions]
    shapes = {tuple(p.shape for p in block.parameters()) for block in model.blocks}
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS * len(shapes))
    compiled = {}  # a function a class, so that all of its modules share their graphs
    for module, name in regions:
        plain = getattr(type(module), name)
        if plain not in compiled:
            compiled[plain] = _in_training(plain, torch.compile(plain, dynamic=False, **options))
        setattr(module, name, MethodType(compiled[plain], module))


def _in_training(plain, compiled):
    """Evaluation meets all lengths: it would be traced again and again."""
    return lambda module, *arguments: (compiled if module.training else plain)(module, *arguments)
