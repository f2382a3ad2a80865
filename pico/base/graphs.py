"""CUDA graphs: what the host launches again and again, captured once and replayed.

A small model's kernels take less time to run than to launch. A function that is captured works in place on the same
tensors, does not wait for the device, and lets no shape depend on values.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3  # real calls before a capture: they compile kernels, and libraries and autograd allocate what they keep


def run(function: Callable, *arguments):
    return function(*arguments)


class Graphed:
    """`run` for a function that works in place, always on the same tensors: as it is a few times, then as a CUDA graph.

    What it returned at its capture is what every replay fills anew. pool: memory to share with other graphs, of which
    only one runs at a time. warm_up: how many calls are a few; without a backward pass one is enough.
    """

    def __init__(self, device: torch.device, pool=None, warm_up: int = WARM_UP):
        self.warm_up, self.graph, self.out, self.pool = warm_up, None, None, pool
        self.stream = torch.cuda.Stream(device)  # the default stream cannot be captured

    def __call__(self, function: Callable, *arguments):
        if self.warm_up:
            self.warm_up -= 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                out = function(*arguments)
            current.wait_stream(self.stream)
            return out
        if self.graph is None:
            self.graph = self.capture(function, *arguments)
        self.graph.replay()
        return self.out

    def capture(self, function: Callable, *arguments):
        graph = torch.cuda.CUDAGraph()
        # other threads, such as one that pins batches for training, may go on using the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            self.out = function(*arguments)  # recorded, not run
        return graph


class StepGraphs:
    """Training steps as CUDA graphs, one for each kind of step, in memory that they share.

    What changes from step to step is filled in: the batches and the learning rates. Where a capture fails, `warn` is
    told, and from then on the host launches every kernel.
    """

    def __init__(self, device: torch.device, optimizers, warn: Callable[[str], object]):
        self.device, self.warn, self.pool = device, warn, torch.cuda.graph_pool_handle()
        self.counting = [optimizer for optimizer in optimizers if hasattr(optimizer, "refreshes_next")]  # SOAP
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.rates = [torch.zeros((), device=device) for _ in self.groups]
        self.runs: dict[tuple, Graphed] = {}
        self.inputs: dict[tuple, list[Tensor]] = {}  # of the batches of a shape
        self.failed = False

    def __call__(self, kind: tuple, function: Callable, tensors: list[Tensor]):
        """function(*tensors), which moves the weights. kind: all that the host decides in it, except learning rates."""
        shapes = tuple(x.shape for x in tensors)
        kind = kind, shapes, tuple(optimizer.refreshes_next for optimizer in self.counting)
        if kind not in self.runs:
            self.runs[kind] = Graphed(self.device, self.pool)
        run = self.runs[kind]
        if self.failed or run.warm_up:
            return function(*tensors) if self.failed else run(function, *tensors)
        inputs = self.inputs.setdefault(shapes, [torch.empty_like(x) for x in tensors])
        torch._foreach_copy_(inputs, tensors)
        captured = run.graph is not None
        try:
            with self.filled_rates():
                out = run(function, *inputs)
        except RuntimeError as error:
            self.failed = True
            self.runs.clear()
            self.warn(f"no CUDA graph of a step, so it is launched kernel by kernel: {str(error).splitlines()[0]}")
            return function(*tensors)
        for optimizer in self.counting if captured else ():  # a replay runs none of its code
            optimizer.advance()
        return out

    @contextmanager
    def filled_rates(self):
        """The learning rates as tensors, which a graph reads anew."""
        numbers = [group["lr"] for group in self.groups]
        for group, rate, number in zip(self.groups, self.rates, numbers):
            group["lr"] = rate.fill_(number)
        try:
            yield
        finally:
            for group, number in zip(self.groups, numbers):
                group["lr"] = number
