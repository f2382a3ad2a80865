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
- every step refreshes 1/frequency of the blocks, instead of all of them every tenth step;
- per-step matmuls run in bfloat16 where the hardware multiplies it. The state and the QR stay in fp32.

A GPU wants large batches and no waiting (`schedule="together"`, the default on CUDA). There all bases are refreshed on
the same step, by Cholesky-QR in fp64. They start from the identity, and each of the first steps turns them, so that no
eigenvectors are asked for. Sides over 2048 are not rotated. The host decides only whether a step refreshes: everything
else stays on the device, so that a CUDA graph can hold a step.

State of one parameter, every entry a tensor (safetensors can hold it), k = number of blocks it was cut into:

    step         ()             int64, gradients seen (on the parameter's device if the schedule is "together")
    exp_avg      (k, r, c)      momentum; in the rotated basis unless exact
    exp_avg_sq   (k, r, c)      second moment, always in the rotated basis
    gram_0, basis_0  (k, r, r)  average of G G^T, and Q_L^T (matrices only; missing for a side left unrotated)
    gram_1, basis_1  (k, c, c)  average of G^T G, and Q_R^T: a row is an eigenvector

In memory these are views of the stacks, so nothing is copied to read them. A run goes on from the state of another
schedule or device: it rotates the sides that have a basis there.
"""

import math
from collections import Counter, defaultdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pico.config import PicoError
from pico.machine import pick_dtype
from pico.orthogonal import cholesky_qr, eigenvectors, householder

STACK_SIZE = 2**18  # elements of a stack on the CPU: what a step makes of them stays in its cache
WIDEST = 2048  # side that is rotated when all are refreshed together
REFRESH_SIZE = 2**24  # elements of the bases refreshed at once: 128 MB in fp64, and there are about six such tensors


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning eigenbasis. Parameters are the fp32 master weights; those without a gradient rest.

    precondition_frequency: steps between two refreshes of a basis.
    exact: the paper's algorithm, unbatched and in the parameters' precision; slow, the reference.
    block_dim: widest side that is rotated whole. A wider side is cut into equal blocks; it stays unrotated (identity)
        if no cut of at least block_dim / 2 divides it, or in exact mode, which never cuts. None: no limit.
    one_sided: rotate only the columns. For matrices whose rows are symbols, not directions (embedding, heads): turning
        those mixes frequent with unseen bytes, and the model learned worse than with Adam (RESULTS.md).
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
        matmul_dtype: torch.dtype | None = None,
        schedule: Literal["spread", "together"] | None = None,
    ):
        self.matmul_dtype, self.schedule = matmul_dtype, schedule
        self.gate: Tensor | None = None
        self._stacks: dict[int, tuple[list[int], list[_Stack]]] = {}  # group number -> (ids stacked, stacks)
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
            ),
        )

    def add_param_group(self, param_group: dict):
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, good, expected in (
            ("lr", group["lr"] >= 0, "a number >= 0"),
            ("betas", all(0 <= beta < 1 for beta in group["betas"]), "two numbers in [0, 1)"),
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
            paces: dict[int, _Pace] = {}  # age -> what stacks of this group and age share
            for stack in self._stacks[number][1]:
                if isinstance(stack, _TogetherStack):
                    if stack.age not in paces:
                        paces[stack.age] = _pace(group, stack.steps[0], self.gate, stack.dtype)
                    stack.step(group, paces[stack.age])
                elif self.gate is None or self.gate:
                    stack.step(group)
        return loss

    @property
    def refreshes_next(self) -> bool:
        """Whether the next step refreshes bases, with schedule "together". The host counts: nothing is read."""
        stacks = self._together()
        return not stacks or any(stack.refreshes_next(group) for stack, group in stacks)

    def advance(self):
        """Counts, on the host, a step that a CUDA graph has made in place of step()."""
        for stack, _ in self._together():
            stack.age += 1

    def _together(self) -> list[tuple["_TogetherStack", dict]]:
        stacks = [(s, self.param_groups[number]) for number, (_, stacks) in self._stacks.items() for s in stacks]
        return [(stack, group) for stack, group in stacks if isinstance(stack, _TogetherStack)]

    def _stack(self, group: dict, params: list[Tensor]) -> list["_Stack"]:
        """The stacks of `params`, built out of (and from now on holding) their state; new parameters start at zero.

        One for each block shape and age; in exact mode one for each parameter.
        """
        first = self._first_block()
        members, sizes = defaultdict(list), Counter()
        for i, p in enumerate(params):
            cut = _cut(p, group)
            age = int(self.state[p].get("step", 0))
            schedule = self.schedule or ("together" if p.device.type == "cuda" else "spread")
            together = schedule == "together" and not group["exact"]
            sides = self._sides(p, cut, group, together)
            kind = _TogetherStack if together else _Stack, cut[1], cut[3], sides, p.dtype, p.device, age
            part = i if group["exact"] else sizes[kind] // STACK_SIZE if p.device.type == "cpu" else 0
            members[kind, part].append((p, cut))
            sizes[kind] += p.numel()
        return [
            kind(group, chosen, sides, self.state, first, self.matmul_dtype)
            for ((kind, _, _, sides, *_), _), chosen in members.items()
        ]

    def _sides(self, p: Tensor, cut: tuple[int, int, int, int], group: dict, together: bool) -> tuple[int, ...]:
        """Which sides of a parameter's blocks are rotated, rows 0, columns 1: those that were, if it has a state."""
        if self.state[p]:
            return tuple(side for side in (0, 1) if f"basis_{side}" in self.state[p])
        limit = min(group["block_dim"] or math.inf, WIDEST if together else math.inf)
        whole = () if p.ndim < 2 else (1,) if group["one_sided"] else (0, 1)
        return tuple(side for side in whole if cut[1 + 2 * side] <= limit)

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


class _Stack:
    """Blocks of one shape, stepped together. All tensors are (n, rows, cols), n counting the parameters' blocks."""

    counted_on: str | None = "cpu"  # device of the steps; None: that of the parameters

    def __init__(self, group: dict, members: list, sides: tuple, states: dict, first: dict, matmul_dtype):
        """members: (parameter, its cut (a, r, b, c)), all with the same r, c, age, dtype and device."""
        p, (_, r, _, c) = members[0]
        self.exact, self.members, self.sides, self.dtype = group["exact"], members, sides, p.dtype
        counts = [a * b for _, (a, _, b, _) in members]
        n = sum(counts)
        plain = self.exact or not self.sides
        self.matmul_dtype = p.dtype if plain else matmul_dtype or pick_dtype("auto", p.device)
        shapes = {"exp_avg": (r, c), "exp_avg_sq": (r, c)}
        for side in self.sides:
            shapes[f"gram_{side}"] = shapes[f"basis_{side}"] = ((r, c)[side],) * 2

        old = [states[p] for p, _ in members]
        self.age = int(old[0].get("step", 0))
        self.steps = torch.full((len(members),), self.age, device=self.counted_on or p.device)
        if self.age:
            self.state = {name: torch.cat([state[name] for state in old]) for name in shapes}
        else:
            self.state = {name: p.new_zeros(n, *shape) for name, shape in shapes.items()}
            for side in self.sides:
                self.state[f"basis_{side}"].diagonal(dim1=1, dim2=2).fill_(1)
        views = zip(*(tensor.split(counts) for tensor in self.state.values()))
        for (p, _), step, tensors in zip(members, self.steps.unbind(), views):
            states[p] = {"step": step, **dict(zip(self.state, tensors))}

        self.grad = p.new_empty(n, r, c, dtype=self.matmul_dtype)
        self.bases = [self._basis(side) for side in (0, 1)]
        self.due = self._schedule(group["precondition_frequency"], counts, first)

    def _schedule(self, frequency: int, counts: list[int], first: dict) -> list[Tensor]:
        """The numbers of the blocks to refresh, for each of `frequency` steps."""
        blocks = torch.cat([first.get(p, 0) + torch.arange(k) for (p, _), k in zip(self.members, counts)])
        if self.exact:
            blocks.zero_()  # all on the same step
        return [(blocks % frequency == phase).nonzero().flatten().to(self.grad.device) for phase in range(frequency)]

    def step(self, group: dict):
        """Reads the members' gradients, changes the members and their state. The first gradient sets the bases only."""
        beta1, beta2 = group["betas"]
        self._read()
        self.steps += 1
        self.age += 1
        if self.age == 1:
            self._average(1 - beta2)
            for side in self.sides:
                self.state[f"basis_{side}"].copy_(eigenvectors(self.state[f"gram_{side}"]).mT)
                self.bases[side] = self._basis(side)
            return

        update = self._turned_back(self._adam(1 - beta1, 1 - beta2, group["eps"]))
        t = self.age - 1
        scale = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        weights = self._weights()
        torch._foreach_add_(weights, self._views(update), alpha=-scale)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])

        self._average(1 - beta2)
        due = self.due[-t % len(self.due)]
        if len(due):
            self._refresh(due)

    def _read(self):
        """Copies the members' gradients into the stack, cast to the dtype of the matmuls."""
        torch._foreach_copy_(self._views(self.grad), [p.grad.reshape(cut) for p, cut in self.members])

    def _weights(self) -> list[Tensor]:
        return [p.view(cut) for p, cut in self.members]

    def _adam(self, weight1, weight2, eps: float) -> Tensor:
        """Moves both moments towards this gradient's by these weights, numbers or () tensors. Returns Adam's update.

        It is (n, r, c), in the rotated basis, in the precision of the state and before the correction of the bias.
        """
        grad, state = self.grad, self.state
        rotated = _rotate(grad, *self.bases).to(state["exp_avg"].dtype)
        momentum = state["exp_avg"].lerp_(grad if self.exact else rotated, weight1)
        if self.exact:
            momentum = _rotate(momentum, *self.bases)
        state["exp_avg_sq"].lerp_(rotated.square_(), weight2)
        scratch = torch.sqrt(state["exp_avg_sq"], out=rotated).add_(eps)  # fresh memory would cost page faults
        return torch.div(momentum, scratch, out=scratch)

    def _turned_back(self, update: Tensor) -> Tensor:
        """Out of the rotated basis, in the dtype of the matmuls."""
        bases = [None if basis is None else basis.mT for basis in self.bases]
        return _rotate(update.to(self.matmul_dtype), *bases)

    def _views(self, stack: Tensor) -> list[Tensor]:
        """The stack's (n, r, c) as one (a, r, b, c) view a member: the member's own layout, its two sides split."""
        pieces = stack.split([a * b for _, (a, _, b, _) in self.members])
        return [  # where only rows are cut the view has the strides of the member's own, so that one kernel takes all
            x.view(a, r, 1, c) if b == 1 else x.view(a, b, r, c).transpose(1, 2)
            for x, (_, (a, r, b, c)) in zip(pieces, self.members)
        ]

    def _basis(self, side: int) -> Tensor | None:
        """Q_L or Q_R, eigenvectors in columns, in the dtype of the per-step matmuls; None if not rotated."""
        return self.state[f"basis_{side}"].to(self.matmul_dtype).mT if side in self.sides else None

    def _average(self, weight):
        """Moves the averages of G G^T and G^T G towards this gradient's by this weight, a number or () tensor."""
        for side in self.sides:
            gram = self.state[f"gram_{side}"]
            product = _matmul(self.grad, self.grad.mT) if side == 0 else _matmul(self.grad.mT, self.grad)
            gram.lerp_(product.to(gram.dtype), weight)

    def _refresh(self, due: Tensor):
        """One step of power iteration for the bases of the blocks `due`, with the rotated state carried along.

        Columns are put in order of falling eigenvalue first: QR settles the leading ones best.
        """
        state = self.state
        for side in self.sides:
            basis = state[f"basis_{side}"][due].mT  # (m, d, d)
            power = _matmul(state[f"gram_{side}"][due], basis)
            order = (basis * power).sum(1).argsort(1, descending=True)  # (m, d)
            new = householder(_reorder(power, order, 1))
            state["exp_avg_sq"][due] = _reorder(state["exp_avg_sq"][due], order, side)
            if not self.exact:
                turn = basis.mT @ new
                momentum = state["exp_avg"][due]
                state["exp_avg"][due] = turn.mT @ momentum if side == 0 else momentum @ turn
            state[f"basis_{side}"][due] = new.mT
            self.bases[side][due] = new.to(self.matmul_dtype)  # the same memory, unless the dtypes differ


class _Pace(NamedTuple):
    """How far a step goes, known to the device alone: () tensors, all but the last 0 where the gate is shut."""

    open: Tensor  # whether the gate is, bool
    counts: Tensor  # 1: the gradient is averaged
    moves: Tensor  # 1: it moves the weights too, as all but the first one do
    scale: Tensor  # learning rate with the correction of the bias
    keep: Tensor  # what weight decay leaves of the weights


def _pace(group: dict, seen: Tensor, gate: Tensor | None, dtype: torch.dtype) -> _Pace:
    """seen: () int64, gradients before this one."""
    beta1, beta2 = group["betas"]
    counts = seen.new_ones((), dtype=dtype) if gate is None else gate.to(dtype)
    moves = counts * (seen > 0)
    t = seen.clamp(min=1)  # nothing moves where it would be 0
    scale = moves * group["lr"] * (1 - torch.pow(beta2, t)).sqrt() / (1 - torch.pow(beta1, t))
    return _Pace(counts > 0, counts, moves, scale, 1 - moves * group["lr"] * group["weight_decay"])


class _TogetherStack(_Stack):
    """Refreshed as a whole, in fp64, and stepped without the host knowing any number of the device's."""

    counted_on = None

    def refreshes_next(self, group: dict) -> bool:
        """In every step at first, while the averages change fast and the bases are on their way from the identity."""
        frequency = group["precondition_frequency"]
        return self.age < frequency or self.age % frequency == 0

    def step(self, group: dict, pace: _Pace):
        beta1, beta2 = group["betas"]
        refresh = self.refreshes_next(group)
        self.age += 1
        self.steps += pace.open
        self._read()
        self.grad.masked_fill_(~pace.open, 0)  # it may be NaN, and NaN times 0 is NaN

        update = self._adam(pace.moves * (1 - beta1), pace.moves * (1 - beta2), group["eps"]).mul_(pace.scale)
        weights = self._weights()
        torch._foreach_sub_(weights, self._views(self._turned_back(update).to(self.dtype)))  # one dtype: one kernel
        if group["weight_decay"]:
            torch._foreach_mul_(weights, pace.keep)

        self._average(pace.counts * (1 - beta2))
        if refresh:
            self._refresh_all(pace.open)

    def _refresh_all(self, allowed: Tensor):
        """As `_refresh`, for all blocks, except where it is not allowed or their matrix cannot be factored."""
        state = self.state
        for side in self.sides:
            size = max(1, REFRESH_SIZE // state[f"gram_{side}"][0].numel())
            stacks = (
                state[f"gram_{side}"],
                state[f"basis_{side}"],
                state["exp_avg"],
                state["exp_avg_sq"],
                self.bases[side],
            )
            for gram, rows, momentum, square, used in zip(*(stack.split(size) for stack in stacks)):
                basis = rows.mT.double()  # (m, d, d)
                power = gram.double() @ basis
                values = (basis * power).sum(1)  # (m, d)
                order = values.argsort(1, descending=True)
                # Directions without any gradient would make it singular: they stay where they are.
                power += basis * (1e-10 * values.sum(1) + 1e-30)[:, None, None]
                new, good = cholesky_qr(_reorder(power, order, 1))
                good = (good & allowed)[:, None, None]
                turn = (basis.mT @ new).to(momentum.dtype)
                turned = turn.mT @ momentum if side == 0 else momentum @ turn
                momentum.copy_(torch.where(good, turned, momentum))
                square.copy_(torch.where(good, _reorder(square, order, side), square))
                rows.copy_(torch.where(good, new.mT.to(rows.dtype), rows))
                used.copy_(rows.mT)  # the same memory, unless the dtypes differ

    def _schedule(self, frequency: int, counts: list[int], first: dict) -> list[Tensor]:
        return []  # it has no phases


def _rotate(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left^T x right for (n, r, c) stacks; None is the identity. In this order exact mode rounds as its oracle does."""
    if left is not None:
        x = _matmul(x.mT, left).mT
    return x if right is None else _matmul(x, right)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """(n, i, j) @ (n, j, k). bmm rounds small matrices in a way of its own, so a lone one does not go through it."""
    return torch.tensordot(a[0], b[0], 1)[None] if len(a) == 1 else torch.bmm(a, b)


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


def _reorder(x: Tensor, order: Tensor, side: int) -> Tensor:
    """(n, r, c) with its rows (side 0) or columns (side 1) in the order (n, r or c)."""
    return x.gather(1 + side, order.unsqueeze(2 - side).expand_as(x))
