"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321).

For a matrix with gradient G, running averages of G G^T and G^T G give two bases, Q_L and Q_R. Adam runs on
Q_L^T G Q_R, and its update is turned back. The bases follow their averages by one step of power iteration and a QR
every `precondition_frequency` steps. What is not a matrix (norms) gets plain Adam. As in the paper, the first gradient
of a parameter only sets its bases.

    optimizer = SOAP(model.parameters(), lr=3e-3)

Two modes share this code. `exact=True` is the paper to the letter: one parameter at a time, whole matrices, all bases
refreshed on the same step. The default does the same mathematics for a fraction of the time:

- wide matrices are cut into equal blocks (`block_dim`), each with its own pair of bases, and all blocks of one shape,
  whichever parameters they come from, are one stack (n, rows, cols) stepped by batched matmuls;
- the momentum lives in the rotated basis and is turned only when its basis changes: four matmuls a step, not six;
- every step refreshes 1/frequency of the blocks, instead of all of them every tenth step; until the tenth step every
  step refreshes all;
- per-step matmuls run in bfloat16 where the hardware multiplies it. The state and the QR stay in fp32.

That is `schedule="spread"`. A GPU wants large batches and no waiting, so on CUDA the default is `schedule="together"`:
all bases are refreshed on the same step, every tenth, by Cholesky-QR in fp64. They start from the identity, and until
the tenth step every step turns them, so no eigenvectors are asked for. Sides over 2048 are not rotated. The host
decides only whether a step refreshes, and everything else stays on the device: a CUDA graph can hold a step.

State of one parameter, every entry a tensor (safetensors can hold it), k = number of blocks it was cut into:

    step         ()             int64, gradients seen
    exp_avg      (k, r, c)      momentum; in the rotated basis unless exact
    exp_avg_sq   (k, r, c)      second moment, always in the rotated basis
    gram_0, basis_0  (k, r, r)  average of G G^T, and Q_L^T (matrices only; missing for a side left unrotated)
    gram_1, basis_1  (k, c, c)  average of G^T G, and Q_R^T: a row is an eigenvector

In memory these are views of the stacks, so nothing is copied to read them. A run goes on from the state of another
schedule or device: it rotates the sides that have a basis there.
"""

import math
from collections import Counter, defaultdict
from typing import Literal

import torch
from torch import Tensor

from pico.base.errors import PicoError
from pico.train.stacks import Pace, SpreadStack, Stack, TogetherStack

STACK_SIZE = 2**18  # elements of a stack on the CPU: what a step makes of them stays in its cache
WIDEST = 2048  # side that is rotated when all are refreshed together


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning eigenbasis. Parameters are the fp32 master weights; those without a gradient rest.

    precondition_frequency: steps between two refreshes of a basis.
    exact: the paper's algorithm, unbatched and in the parameters' precision; slow, the reference.
    block_dim: widest side that is rotated whole. A wider side is cut into equal blocks; it stays unrotated (identity)
        if no cut of at least block_dim / 2 divides it, or in exact mode, which never cuts. None: no limit.
    one_sided: rotate only the columns. For matrices whose rows are symbols, not directions (embedding, heads): turning
        those mixes frequent with unseen bytes, and the model learned worse than with Adam (RESULTS.md).
    gram_beta: of the averages that the bases follow; that of the second moment, betas[1], if not given.
    cautious: weight decay of those numbers alone that the update takes towards 0 as well (arXiv 2510.12402).
    matmul_dtype: of the per-step matmuls; bfloat16 where it is fast if not given. Exact mode does not use it.
    schedule: "spread", a part of the bases in each step, or "together", all of them in one. By device if not given;
        exact mode has its own.
    gate: an attribute, a () tensor, 1 or 0. While it is 0, step() leaves weights and state as they are, whatever the
        gradients. With schedule "together" the host does not read it.
    Raises PicoError for values out of range and for parameters in half precision.
    """

    def __init__(
        self,
        params,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        exact: bool = False,
        block_dim: int | None = None,
        one_sided: bool = False,
        gram_beta: float | None = None,
        cautious: bool = False,
        matmul_dtype: torch.dtype | None = None,
        schedule: Literal["spread", "together"] | None = None,
    ):
        self.matmul_dtype, self.schedule = matmul_dtype, schedule
        self.gate: Tensor | None = None
        self._stacks: dict[int, tuple[list[int], list[Stack]]] = {}  # group number -> (ids stacked, stacks)
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                precondition_frequency=precondition_frequency,
                exact=exact,
                block_dim=block_dim,
                one_sided=one_sided,
                gram_beta=gram_beta,
                cautious=cautious,
            ),
        )

    def add_param_group(self, param_group: dict):
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, good, expected in (
            ("lr", group["lr"] >= 0, "a number >= 0"),
            ("betas", all(0 <= beta < 1 for beta in group["betas"]), "two numbers in [0, 1)"),
            ("gram_beta", group["gram_beta"] is None or 0 <= group["gram_beta"] < 1, "None or a number in [0, 1)"),
            ("eps", group["eps"] >= 0, "a number >= 0"),
            ("weight_decay", group["weight_decay"] >= 0, "a number >= 0"),
            ("precondition_frequency", group["precondition_frequency"] >= 1, "a whole number >= 1"),
            ("block_dim", group["block_dim"] is None or group["block_dim"] >= 1, "None or a whole number >= 1"),
        ):
            if not good:
                raise PicoError(f"SOAP: {name} = {group[name]!r}: expected {expected}")
        for p in group["params"]:
            if p.dtype not in (torch.float32, torch.float64):
                raise PicoError(f"SOAP: a parameter is {p.dtype}: expected fp32 master weights, try model.float()")

    def __setstate__(self, state: dict):  # also the end of load_state_dict: the stacks are not these tensors' any more
        super().__setstate__(state)
        self._stacks = {}
        for group in self.param_groups:  # one of an older checkpoint says less
            group.update({**self.defaults, **group})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. Returns closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            live = [p for p in group["params"] if p.grad is not None]
            ids = [id(p) for p in live]
            if number not in self._stacks or self._stacks[number][0] != ids:
                self._stacks[number] = ids, self._stack(group, live)
            paces = {}  # the stacks of one group and age share theirs
            for stack in self._stacks[number][1]:
                if isinstance(stack, TogetherStack):
                    kind = stack.age, stack.steps.device, stack.dtype
                    if kind not in paces:
                        paces[kind] = Pace.of(group, stack.steps[0], self.gate, stack.dtype)
                    stack.step(group, paces[kind])
                elif isinstance(stack, SpreadStack) and (self.gate is None or self.gate):
                    stack.step(group)
        return loss

    @property
    def refreshes_next(self) -> tuple[bool, ...]:
        """Whether the next step refreshes bases, with schedule "together": an answer for each age of parameters, since
        those that began to learn later have turns of their own. The host counts: nothing is read."""
        turns = {(s.age, group["precondition_frequency"]): s.refreshes_next(group) for s, group in self._together()}
        return tuple(turns.values()) or (True,)

    def advance(self):
        """Counts, on the host, a step that a CUDA graph has made in place of step()."""
        for stack, _ in self._together():
            stack.age += 1

    def _together(self) -> list[tuple[TogetherStack, dict]]:
        stacks = [(s, self.param_groups[number]) for number, (_, stacks) in self._stacks.items() for s in stacks]
        return [(stack, group) for stack, group in stacks if isinstance(stack, TogetherStack)]

    def _stack(self, group: dict, params: list[Tensor]) -> list[Stack]:
        """The stacks of `params`, built out of (and from now on holding) their state; new parameters start at zero.

        One for each block shape and age; in exact mode one for each parameter.
        """
        members, sizes = defaultdict(list), Counter()
        for i, p in enumerate(params):
            _, r, _, c = cut = _cut(p, group)
            age = int(self.state[p].get("step", 0))
            kind = self._is_together(p, group), self._sides(p, r, c, group), r, c, p.dtype, p.device, age
            part = i if group["exact"] else sizes[kind] // STACK_SIZE if p.device.type == "cpu" else 0
            members[kind, part].append((p, cut))
            sizes[kind] += p.numel()
        first, stacks = self._first_block(), []
        for ((together, sides, *_), _), chosen in members.items():
            shared = chosen, sides, self.state, group, self.matmul_dtype
            stacks.append(TogetherStack(*shared) if together else SpreadStack(*shared, first))
        return stacks

    def _is_together(self, p: Tensor, group: dict) -> bool:
        schedule = self.schedule or ("together" if p.device.type == "cuda" else "spread")
        return schedule == "together" and not group["exact"]

    def _sides(self, p: Tensor, rows: int, columns: int, group: dict) -> tuple[int, ...]:
        """Which sides of the parameter's blocks are rotated, rows 0, columns 1: if it has a state, those that were."""
        if self.state[p]:
            return tuple(side for side in (0, 1) if f"basis_{side}" in self.state[p])
        limit = min(group["block_dim"] or math.inf, WIDEST if self._is_together(p, group) else math.inf)
        whole = () if p.ndim < 2 else (1,) if group["one_sided"] else (0, 1)
        return tuple(side for side in whole if (rows, columns)[side] <= limit)

    def _first_block(self) -> dict[Tensor, int]:
        """A running number for the first block of each matrix, widest first: it spreads the refreshes over steps."""
        matrices = [(p, g) for g in self.param_groups for p in g["params"] if p.ndim == 2]
        matrices.sort(key=lambda pair: -max(pair[0].shape))
        first, total = {}, 0
        for p, group in matrices:
            first[p] = total
            a, _, b, _ = _cut(p, group)
            total += a * b
        return first


def _cut(p: Tensor, group: dict) -> tuple[int, int, int, int]:
    """(a, r, b, c): p is a x b blocks of r x c. A side stays whole if it fits, is not rotated or has no even cut."""
    widest = group["block_dim"]
    sides = []
    for side, width in enumerate(p.shape if p.ndim == 2 else (1, p.numel())):
        count = 1
        if p.ndim == 2 and widest and not group["exact"] and not (group["one_sided"] and side == 0):
            count = next((k for k in range(1, 2 * width // widest + 1) if width % k == 0 and width // k <= widest), 1)
        sides += [count, width // count]
    return tuple(sides)
