"""The arithmetic of SOAP: blocks of one shape, (n, rows, cols), stepped by batched matmuls.

A `SpreadStack` refreshes the bases of some blocks in each step, by Householder QR; the paper's own schedule is among
them. A `TogetherStack` refreshes all on one step, by Cholesky-QR, and leaves every number on the device. See soap.py.
"""

import math
import typing
from typing import NamedTuple

import torch
from torch import Tensor

from pico.base.device import pick_dtype
from pico.train.orthogonal import cholesky_qr, eigenvectors, householder

REFRESH_SIZE = 2**26  # elements of the bases refreshed at once: 0.5 GB in fp64, 4 GB with all that is made of them


class Stack:
    """The state of one or more parameters, in blocks. All tensors are (n, rows, cols), n counting the blocks of all."""

    def __init__(
        self,
        members: list[tuple[Tensor, tuple[int, int, int, int]]],
        sides: tuple[int, ...],
        states: dict,
        group: dict,
        matmul_dtype: torch.dtype | None,
    ):
        """members: (parameter, its cut (a, r, b, c)), all with the same r, c, age, dtype and device. sides: rotated."""
        p, (_, r, _, c) = members[0]
        self.members, self.sides, self.dtype, self.exact = members, sides, p.dtype, group["exact"]
        self.counts = [a * b for _, (a, _, b, _) in members]
        plain = self.exact or not sides
        self.matmul_dtype = p.dtype if plain else matmul_dtype or pick_dtype("auto", p.device)
        shapes: dict[str, tuple[int, ...]] = {"exp_avg": (r, c), "exp_avg_sq": (r, c)}
        for side in sides:
            shapes[f"gram_{side}"] = shapes[f"basis_{side}"] = ((r, c)[side],) * 2

        old = [states[p] for p, _ in members]
        self.age = int(old[0].get("step", 0))  # steps, as the host counts
        self.steps = torch.full((len(members),), self.age, device=p.device)
        if self.age:
            self.state = {name: torch.cat([state[name] for state in old]) for name in shapes}
        else:
            self.state = {name: p.new_zeros(sum(self.counts), *shape) for name, shape in shapes.items()}
            for side in sides:
                self.state[f"basis_{side}"].diagonal(dim1=1, dim2=2).fill_(1)
        views = zip(*(tensor.split(self.counts) for tensor in self.state.values()))
        for (p, _), step, tensors in zip(members, self.steps.unbind(), views):
            states[p] = {"step": step, **dict(zip(self.state, tensors))}

        self.grad = p.new_empty(sum(self.counts), r, c, dtype=self.matmul_dtype)
        self.bases = {side: self.basis(side) for side in sides}

    def basis(self, side: int) -> Tensor:
        """Q_L or Q_R, eigenvectors in columns, in the dtype of the per-step matmuls."""
        return self.state[f"basis_{side}"].to(self.matmul_dtype).mT

    def weights(self) -> list[Tensor]:
        """The members as (a, r, b, c), like their views of a stack."""
        return [p.view(cut) for p, cut in self.members]

    def views(self, stack: Tensor) -> list[Tensor]:
        """The stack's (n, r, c) as one (a, r, b, c) view a member: the member's own layout, its two sides split."""
        return [
            # Where columns are not cut, the view has the strides of the member's own: one kernel can take all.
            x.view(a, r, 1, c) if b == 1 else x.view(a, b, r, c).transpose(1, 2)
            for x, (_, (a, r, b, c)) in zip(stack.split(self.counts), self.members)
        ]

    def read_gradients(self):
        """Copies them into the stack, cast to the dtype of the matmuls."""
        torch._foreach_copy_(
            self.views(self.grad), [typing.cast(Tensor, p.grad).reshape(cut) for p, cut in self.members]
        )

    def adam(self, weight1: float | Tensor, weight2: float | Tensor, eps: float) -> Tensor:
        """Moves the moments towards this gradient's by these weights. Returns momentum over size, (n, r, c), rotated.

        In the precision of the state; the bias of the moments is still to be corrected.
        """
        grad, state = self.grad, self.state
        rotated = _rotate(grad, self.bases).to(self.dtype)
        momentum = state["exp_avg"].lerp_(grad if self.exact else rotated, weight1)
        if self.exact:
            momentum = _rotate(momentum, self.bases)
        state["exp_avg_sq"].lerp_(rotated.square_(), weight2)
        scratch = torch.sqrt(state["exp_avg_sq"], out=rotated).add_(eps)  # fresh memory would cost page faults
        return torch.div(momentum, scratch, out=scratch)

    def turn_back(self, update: Tensor) -> Tensor:
        """Out of the rotated basis, in the dtype of the matmuls."""
        return _rotate(update.to(self.matmul_dtype), {side: basis.mT for side, basis in self.bases.items()})

    def average(self, group: dict, counts: float | Tensor = 1.0):
        """Moves the averages of G G^T and G^T G towards this gradient's; counts: 0 for a gradient that is none."""
        beta = group["betas"][1] if group["gram_beta"] is None else group["gram_beta"]
        for side in self.sides:
            gram = self.state[f"gram_{side}"]
            product = _matmul(self.grad, self.grad.mT) if side == 0 else _matmul(self.grad.mT, self.grad)
            gram.lerp_(product.to(gram.dtype), counts * (1 - beta))

    def decay_shrinking(self, weights: list[Tensor], updates: list[Tensor], share: float | Tensor):
        """Weight decay of the numbers that their updates, which are subtracted, take towards 0 as well."""
        torch._foreach_mul_(weights, [1 - share * (w * u > 0) for w, u in zip(weights, updates)])


class SpreadStack(Stack):
    """Every step refreshes 1/frequency of the blocks, and each of the first steps all, whose averages change fast; in
    exact mode, every frequency-th step all."""

    def __init__(self, members, sides, states, group, matmul_dtype, first: dict[Tensor, int]):
        """first: a running number for the first block of each parameter, which gives its blocks their turns."""
        super().__init__(members, sides, states, group, matmul_dtype)
        blocks = torch.cat([first.get(p, 0) + torch.arange(k) for (p, _), k in zip(members, self.counts)])
        if self.exact:
            blocks.zero_()  # all on the same step
        frequency = group["precondition_frequency"]
        self.due = [(blocks % frequency == i).nonzero().flatten().to(self.grad.device) for i in range(frequency)]
        self.all = torch.cat(self.due)

    def step(self, group: dict):
        """Reads the members' gradients, changes the members and their state. The first gradient sets the bases only."""
        beta1, beta2 = group["betas"]
        self.read_gradients()
        self.steps += 1
        self.age += 1
        if self.age == 1:
            self.average(group)
            for side in self.sides:
                self.state[f"basis_{side}"].copy_(eigenvectors(self.state[f"gram_{side}"]).mT)
                self.bases[side] = self.basis(side)
            return

        update = self.turn_back(self.adam(1 - beta1, 1 - beta2, group["eps"]))
        t = self.age - 1
        scale = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        weights, updates, decay = self.weights(), self.views(update), group["lr"] * group["weight_decay"]
        if group["weight_decay"] and group["cautious"]:
            self.decay_shrinking(weights, updates, decay)
        torch._foreach_add_(weights, updates, alpha=-scale)
        if group["weight_decay"] and not group["cautious"]:
            torch._foreach_mul_(weights, 1 - decay)

        self.average(group)
        due = self.all if t < group["precondition_frequency"] and not self.exact else self.due[-t % len(self.due)]
        if len(due):
            self.refresh(due)

    def refresh(self, due: Tensor):
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
                state["exp_avg"][due] = _turn(state["exp_avg"][due], basis.mT @ new, side)
            state[f"basis_{side}"][due] = new.mT
            self.bases[side][due] = new.to(self.matmul_dtype)  # the same memory, unless the dtypes differ


class Pace(NamedTuple):
    """How far a step goes, which only the device knows: () tensors. Where the gate is shut, nowhere."""

    is_open: Tensor  # bool, the gate
    counts: Tensor  # 1, the gradient is averaged, or 0
    moves: Tensor  # 1, it moves the moments and the weights, or 0, as at the first one
    scale: Tensor  # length of the step: the learning rate, and the correction of the bias
    keep: Tensor  # what weight decay leaves of the weights

    @classmethod
    def of(cls, group: dict, seen: Tensor, gate: Tensor | None, dtype: torch.dtype) -> "Pace":
        """seen: () int64, gradients before this one. dtype: that of the state."""
        beta1, beta2 = group["betas"]
        counts = seen.new_ones((), dtype=dtype) if gate is None else gate.to(dtype)
        moves = counts * (seen > 0)
        t = seen.clamp(min=1)  # 0 would divide by 0, and nothing moves then
        scale = moves * group["lr"] * (1 - torch.pow(beta2, t)).sqrt() / (1 - torch.pow(beta1, t))
        return cls(counts > 0, counts, moves, scale, 1 - moves * group["lr"] * group["weight_decay"])


class TogetherStack(Stack):
    """Refreshed as a whole, in fp64, and stepped without the host reading anything."""

    def refreshes_next(self, group: dict) -> bool:
        """Each of the first steps does: averages change fast then, and bases are on their way from the identity."""
        frequency = group["precondition_frequency"]
        return self.age < frequency or self.age % frequency == 0

    def step(self, group: dict, pace: Pace):
        """As `SpreadStack.step`, except that the first gradient refreshes the identity."""
        beta1, beta2 = group["betas"]
        refresh = self.refreshes_next(group)
        self.age += 1
        self.steps += pace.is_open
        self.read_gradients()
        self.grad.masked_fill_(~pace.is_open, 0)  # it may be NaN, and NaN times 0 is NaN

        update = self.adam(pace.moves * (1 - beta1), pace.moves * (1 - beta2), group["eps"]).mul_(pace.scale)
        weights, updates = self.weights(), self.views(self.turn_back(update).to(self.dtype))  # of one dtype: one kernel
        if group["weight_decay"] and group["cautious"]:
            self.decay_shrinking(weights, updates, 1 - pace.keep)
        torch._foreach_sub_(weights, updates)
        if group["weight_decay"] and not group["cautious"]:
            torch._foreach_mul_(weights, pace.keep)

        self.average(group, pace.counts)
        if refresh:
            self.refresh(pace.is_open)

    def refresh(self, is_open: Tensor):
        """As `SpreadStack.refresh`, for all blocks; where the gate is shut or the QR fails, the bases stay."""
        for side in self.sides:
            names = f"gram_{side}", f"basis_{side}", "exp_avg", "exp_avg_sq"
            tensors = *(self.state[name] for name in names), self.bases[side]
            chunk = max(1, REFRESH_SIZE // tensors[0][0].numel())
            for gram, rows, momentum, square, cast in zip(*(x.split(chunk) for x in tensors)):
                basis = rows.mT.double()  # (m, d, d)
                power = gram.double() @ basis
                values = (basis * power).sum(1)  # (m, d)
                # Directions without gradients would make it singular: with this they just stay where they are.
                power += (1e-10 * values.sum(1) + 1e-30)[:, None, None] * basis
                order = values.argsort(1, descending=True)
                new, factored = cholesky_qr(_reorder(power, order, 1))
                turned = _turn(momentum, (basis.mT @ new).to(self.dtype), side)
                good = (factored & is_open)[:, None, None]
                momentum.copy_(torch.where(good, turned, momentum))
                square.copy_(torch.where(good, _reorder(square, order, side), square))
                rows.copy_(torch.where(good, new.mT.to(self.dtype), rows))
                cast.copy_(rows.mT)  # the same memory, unless the dtypes differ


def _rotate(x: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """Q_L^T x Q_R for (n, r, c) stacks, where there is such a basis. In this order exact mode rounds as its oracle."""
    if 0 in bases:
        x = _matmul(x.mT, bases[0]).mT
    return _matmul(x, bases[1]) if 1 in bases else x


def _turn(x: Tensor, turn: Tensor, side: int) -> Tensor:
    """(n, r, c) whose rows (side 0) or columns (side 1) are in a basis, in the basis times `turn`."""
    return turn.mT @ x if side == 0 else x @ turn


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """(n, i, j) @ (n, j, k). bmm rounds small matrices in a way of its own, so a lone one does not go through it."""
    return torch.tensordot(a[0], b[0], 1)[None] if len(a) == 1 else torch.bmm(a, b)


def _reorder(x: Tensor, order: Tensor, side: int) -> Tensor:
    """(n, r, c) with its rows (side 0) or columns (side 1) in the order (n, r or c)."""
    return x.gather(1 + side, order.unsqueeze(2 - side).expand_as(x))
