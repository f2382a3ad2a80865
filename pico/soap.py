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

State of one parameter, every entry a tensor (safetensors can hold it), k = number of blocks it was cut into:

    step         ()             int64, gradients seen
    exp_avg      (k, r, c)      momentum; in the rotated basis unless exact
    exp_avg_sq   (k, r, c)      second moment, always in the rotated basis
    gram_0, basis_0  (k, r, r)  average of G G^T, and Q_L^T (matrices only; missing for a side left unrotated)
    gram_1, basis_1  (k, c, c)  average of G^T G, and Q_R^T: a row is an eigenvector

In memory these are views of the stacks, so nothing is copied to read them.
"""

import math
from collections import Counter, defaultdict

import torch
from torch import Tensor

from pico.config import PicoError
from pico.machine import pick_dtype

STACK_SIZE = 2**18  # elements of a stack on the CPU: what a step makes of them stays in its cache


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning eigenbasis. Parameters are the fp32 master weights; those without a gradient rest.

    precondition_frequency: steps between two refreshes of a basis.
    exact: the paper's algorithm, unbatched and in the parameters' precision; slow, the reference.
    block_dim: widest side that is rotated whole. A wider side is cut into equal blocks; it stays unrotated (identity)
        if no cut of at least block_dim / 2 divides it, or in exact mode, which never cuts. None: no limit.
    one_sided: rotate only the columns. For matrices whose rows are symbols, not directions (embedding, heads): turning
        those mixes frequent with unseen bytes, and the model learned worse than with Adam (RESULTS.md).
    matmul_dtype: of the per-step matmuls; bfloat16 where it is fast if not given. Exact mode does not use it.
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
    ):
        self.matmul_dtype = matmul_dtype
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
            for stack in self._stacks[number][1]:
                stack.step(group)
        return loss

    def _stack(self, group: dict, params: list[Tensor]) -> list["_Stack"]:
        """The stacks of `params`, built out of (and from now on holding) their state; new parameters start at zero.

        One for each block shape and age; in exact mode one for each parameter.
        """
        first = self._first_block()
        members, sizes = defaultdict(list), Counter()
        for i, p in enumerate(params):
            cut = _cut(p, group)
            age = int(self.state[p].get("step", 0))
            kind = cut[1], cut[3], p.ndim, p.dtype, p.device, age
            part = i if group["exact"] else sizes[kind] // STACK_SIZE if p.device.type == "cpu" else 0
            members[kind, part].append((p, cut))
            sizes[kind] += p.numel()
        return [_Stack(group, chosen, self.state, first, self.matmul_dtype) for chosen in members.values()]

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

    def __init__(self, group: dict, members: list, states: dict, first: dict, matmul_dtype: torch.dtype | None):
        """members: (parameter, its cut (a, r, b, c)), all with the same r, c, age, dtype and device."""
        p, (_, r, _, c) = members[0]
        self.exact, self.members = group["exact"], members
        counts = [a * b for _, (a, _, b, _) in members]
        n = sum(counts)
        limit = group["block_dim"] or math.inf
        whole = [] if p.ndim < 2 else [1] if group["one_sided"] else [0, 1]
        self.sides = [side for side in whole if (r, c)[side] <= limit]
        plain = self.exact or not self.sides
        self.matmul_dtype = p.dtype if plain else matmul_dtype or pick_dtype("auto", p.device)
        shapes = {"exp_avg": (r, c), "exp_avg_sq": (r, c)}
        for side in self.sides:
            shapes[f"gram_{side}"] = shapes[f"basis_{side}"] = ((r, c)[side],) * 2

        old = [states[p] for p, _ in members]
        self.age = int(old[0].get("step", 0))
        self.steps = torch.full((len(members),), self.age)
        if self.age:
            self.state = {name: torch.cat([state[name] for state in old]) for name in shapes}
        else:
            self.state = {name: p.new_zeros(n, *shape) for name, shape in shapes.items()}
        views = zip(*(tensor.split(counts) for tensor in self.state.values()))
        for (p, _), step, tensors in zip(members, self.steps.unbind(), views):
            states[p] = {"step": step, **dict(zip(self.state, tensors))}

        self.grad = p.new_empty(n, r, c, dtype=self.matmul_dtype)
        self.bases = [self._basis(side) for side in (0, 1)]
        frequency = group["precondition_frequency"]
        blocks = torch.cat([first.get(p, 0) + torch.arange(k) for (p, _), k in zip(members, counts)])
        if self.exact:
            blocks.zero_()  # all on the same step
        self.due = [(blocks % frequency == phase).nonzero().flatten().to(p.device) for phase in range(frequency)]

    def step(self, group: dict):
        """Reads the members' gradients, changes the members and their state. The first gradient sets the bases only."""
        beta1, beta2 = group["betas"]
        grad, state = self.grad, self.state
        torch._foreach_copy_(self._views(grad), [p.grad.reshape(cut) for p, cut in self.members])  # casts too
        self.steps += 1
        self.age += 1
        if self.age == 1:
            self._average(beta2)
            for side in self.sides:
                state[f"basis_{side}"].copy_(_eigenvectors(state[f"gram_{side}"]).mT)
                self.bases[side] = self._basis(side)
            return

        rotated = _rotate(grad, *self.bases).to(state["exp_avg"].dtype)
        momentum = state["exp_avg"].lerp_(grad if self.exact else rotated, 1 - beta1)
        if self.exact:
            momentum = _rotate(momentum, *self.bases)
        state["exp_avg_sq"].lerp_(rotated.square_(), 1 - beta2)
        scratch = torch.sqrt(state["exp_avg_sq"], out=rotated).add_(group["eps"])  # fresh memory would cost page faults
        update = torch.div(momentum, scratch, out=scratch).to(self.matmul_dtype)
        update = _rotate(update, *(None if basis is None else basis.mT for basis in self.bases))

        t = self.age - 1
        scale = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        weights = [p.view(cut) for p, cut in self.members]
        torch._foreach_add_(weights, self._views(update), alpha=-scale)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])

        self._average(beta2)
        due = self.due[-t % len(self.due)]
        if len(due):
            self._refresh(due)

    def _views(self, stack: Tensor) -> list[Tensor]:
        """The stack's (n, r, c) as one (a, r, b, c) view a member: the member's own layout, its two sides split."""
        pieces = stack.split([a * b for _, (a, _, b, _) in self.members])
        return [x.view(a, b, r, c).transpose(1, 2) for x, (_, (a, r, b, c)) in zip(pieces, self.members)]

    def _basis(self, side: int) -> Tensor | None:
        """Q_L or Q_R, eigenvectors in columns, in the dtype of the per-step matmuls; None if not rotated."""
        return self.state[f"basis_{side}"].to(self.matmul_dtype).mT if side in self.sides else None

    def _average(self, beta: float):
        """Moves the averages of G G^T and G^T G towards this gradient's."""
        for side in self.sides:
            gram = self.state[f"gram_{side}"]
            product = _matmul(self.grad, self.grad.mT) if side == 0 else _matmul(self.grad.mT, self.grad)
            gram.lerp_(product.to(gram.dtype), 1 - beta)

    def _refresh(self, due: Tensor):
        """One step of power iteration for the bases of the blocks `due`, with the rotated state carried along.

        Columns are put in order of falling eigenvalue first: QR settles the leading ones best.
        """
        state = self.state
        for side in self.sides:
            basis = state[f"basis_{side}"][due].mT  # (m, d, d)
            power = _matmul(state[f"gram_{side}"][due], basis)
            order = (basis * power).sum(1).argsort(1, descending=True)  # (m, d)
            new = _orthonormal(_reorder(power, order, 1))
            state["exp_avg_sq"][due] = _reorder(state["exp_avg_sq"][due], order, side)
            if not self.exact:
                turn = basis.mT @ new
                momentum = state["exp_avg"][due]
                state["exp_avg"][due] = turn.mT @ momentum if side == 0 else momentum @ turn
            state[f"basis_{side}"][due] = new.mT
            self.bases[side][due] = new.to(self.matmul_dtype)  # the same memory, unless the dtypes differ


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


def _eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors of symmetric (n, d, d), as columns of falling eigenvalue."""
    shifted = gram + 1e-30 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.eigh(_where_factored(shifted)).eigenvectors.flip(-1).to(gram.device)


def _reorder(x: Tensor, order: Tensor, side: int) -> Tensor:
    """(n, r, c) with its rows (side 0) or columns (side 1) in the order (n, r or c)."""
    return x.gather(1 + side, order.unsqueeze(2 - side).expand_as(x))


def _orthonormal(x: Tensor) -> Tensor:
    """The Q of x = QR for (n, d, d). linalg.qr would cut out R too, and that takes a fifth of its time."""
    return torch.linalg.householder_product(*torch.geqrf(_where_factored(x))).to(x.device)


def _where_factored(x: Tensor) -> Tensor:
    """x where matrices are factored: on the CPU if it is on MPS, which lacks these operators in some versions."""
    return x.cpu() if x.device.type == "mps" else x
