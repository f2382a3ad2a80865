"""SOAP: against another implementation, the fast mode against the exact one, its state, and its odd corners."""

from collections import Counter

import pytest
import torch
from helpers import first_fast
from hypothesis import given
from hypothesis import strategies as st
from problems import BF16, distance, noise, parameters, problem, through_a_file, train

import pico.train.soap
import pico.train.stacks
from pico.base.errors import PicoError
from pico.train.soap import SOAP

SIDES = st.integers(1, 24)


# --- exact mode -------------------------------------------------------------------------------------------------------


def follow_oracle(shapes, steps=40, widest=None, **options) -> float:
    """The largest difference of any weight after any of the steps."""
    oracle = pytest.importorskip("pytorch_optimizer").SOAP
    ours, theirs = parameters(*shapes), parameters(*shapes)
    mine = SOAP(ours, exact=True, block_dim=widest, **options)
    other = oracle(theirs, **options, max_precondition_dim=widest or 10_000)
    worst = 0.0
    for _ in range(steps):
        train(mine, ours, 1)
        train(other, theirs, 1)
        worst = max(worst, distance(ours, theirs))
    assert distance(ours, parameters(*shapes)) > 1e-3  # it has moved
    return worst


@pytest.mark.parametrize(
    "shapes",
    [[(16, 16)], [(24, 8), (8, 24), (7,), (24, 8)], [(64, 32), (32,)], [(5, 1), (1, 5), (1,), (40, 40)]],
    ids=str,
)
def test_exact_mode_is_the_oracle_step_for_step(shapes):
    assert follow_oracle(shapes) <= 1e-5


@given(rows=SIDES, columns=SIDES)
def test_exact_mode_is_the_oracle_for_any_shape(rows, columns):
    assert follow_oracle([(rows, columns), (columns,)], steps=13) <= 1e-5


def test_exact_mode_is_the_oracle_for_any_setting():
    settings = dict(lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, precondition_frequency=3)
    assert follow_oracle([(12, 20), (20,)], **settings) <= 1e-5


def test_a_side_too_wide_stays_unrotated_as_in_the_oracle():
    assert follow_oracle([(30, 8), (8, 30), (30, 30)], widest=16) <= 1e-5


# --- what is not in the paper -----------------------------------------------------------------------------------------

MODES = [dict(exact=True), dict(schedule="spread"), dict(schedule="together")]
FP32 = dict(matmul_dtype=torch.float32)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_second_moment_and_the_bases_may_have_memories_of_their_own(mode):
    (p,), (q,) = parameters((6, 4)), parameters((5,))
    optimizer = SOAP([p, q], betas=(0.9, 0.99), gram_beta=0.8, precondition_frequency=100, **FP32, **mode)
    gram, square = torch.zeros(6, 6), torch.zeros(5)
    for step in range(5):
        noise([p, q], step, scale=1.0)
        gram = 0.8 * gram + 0.2 * p.grad @ p.grad.T
        if step:  # the first gradient sets the bases alone
            square = 0.99 * square + 0.01 * q.grad**2
        optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["gram_0"][0], gram, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(optimizer.state[q]["exp_avg_sq"].flatten(), square, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_cautious_decay_is_of_numbers_that_the_update_shrinks(mode):
    """Against the same optimizer without decay: what a step subtracts says where it decays."""
    decayed, plain = parameters((6, 4), (5,)), parameters((6, 4), (5,))
    one = SOAP(decayed, lr=0.1, weight_decay=0.5, cautious=True, **FP32, **mode)
    two = SOAP(plain, lr=0.1, weight_decay=0.0, **FP32, **mode)
    for step in range(4):
        noise(decayed, step), noise(plain, step)
        before = [p.detach().clone() for p in decayed]
        for p, start in zip(plain, before):
            p.data.copy_(start)
        one.step(), two.step()
        for p, q, start in zip(decayed, plain, before):
            shrinks = (start - q) * start > 0
            torch.testing.assert_close(p, q - 0.05 * start * shrinks, atol=1e-6, rtol=1e-5)
            assert not step or 0 < shrinks.sum() < shrinks.numel()


def test_a_state_that_says_less_has_the_defaults():
    optimizer = SOAP(parameters((3, 3)))
    state = optimizer.state_dict()
    for name in ("gram_beta", "cautious"):
        state["param_groups"][0].pop(name)
    other = SOAP(parameters((3, 3)), cautious=True)
    other.load_state_dict(state)
    assert other.param_groups[0]["gram_beta"] is None and other.param_groups[0]["cautious"]
    with pytest.raises(PicoError, match=r"gram_beta = 1\.0: expected None or a number"):
        SOAP(parameters((3, 3)), gram_beta=1.0)


# --- the fast mode ----------------------------------------------------------------------------------------------------


def test_stacks_and_rotated_momentum_change_nothing_but_rounding():
    """In fp32, uncut and with every basis refreshed at every step, both modes are one algorithm."""
    shapes = [(12, 12), (12, 12), (20,), (12, 12), (9, 12), (20,)]
    fast, exact = parameters(*shapes), parameters(*shapes)
    options = dict(lr=1e-2, precondition_frequency=1)
    one, two = SOAP(fast, matmul_dtype=torch.float32, **options), SOAP(exact, exact=True, **options)
    for step in range(8):
        noise(fast, step)
        noise(exact, step)
        one.step()
        two.step()
    assert distance(fast, exact) < 1e-4
    assert distance(fast, parameters(*shapes)) > 1e-2


@pytest.mark.parametrize(
    "options", first_fast({}, dict(matmul_dtype=BF16), dict(block_dim=16, matmul_dtype=BF16)), ids=str
)
def test_the_fast_mode_learns_as_fast(options):
    shapes = [(48, 32), (48, 32), (32, 32), (64, 32), (32,)]
    fast, exact = parameters(*shapes), parameters(*shapes)
    start = problem(exact).item()
    reference = train(SOAP(exact, lr=1e-2, exact=True), exact, 120)
    loss = train(SOAP(fast, lr=1e-2, **options), fast, 120)
    assert reference < 0.4 * start
    assert loss < reference + 0.02 * start


def test_blocks_of_a_cut_matrix_are_matrices_of_their_own():
    whole = parameters((12, 8))
    blocks = [torch.nn.Parameter(b.clone()) for rows in whole[0].detach().split(4) for b in rows.split(4, 1)]
    one, many = SOAP(whole, block_dim=4), SOAP(blocks)
    for step in range(25):
        noise(whole, step)
        pieces = [b for rows in whole[0].grad.split(4) for b in rows.split(4, 1)]
        for p, grad in zip(blocks, pieces, strict=True):
            p.grad = grad.clone()
        one.step()
        many.step()
    assert torch.equal(whole[0], torch.cat([torch.cat(blocks[i : i + 2], 1) for i in (0, 2, 4)]))
    assert one.state[whole[0]]["basis_0"].shape == (6, 4, 4)


@given(rows=st.integers(1, 60), columns=st.integers(1, 60), limit=st.integers(1, 30))
def test_every_side_is_cut_evenly_or_left_unrotated(rows, columns, limit):
    params = parameters((rows, columns))
    optimizer = SOAP(params, block_dim=limit)
    for step in range(3):
        noise(params, step)
        optimizer.step()
    state = optimizer.state[params[0]]
    k, r, c = state["exp_avg"].shape
    assert k * r * c == rows * columns and rows % r == 0 and columns % c == 0
    for side, width, whole in ((0, r, rows), (1, c, columns)):
        assert (f"basis_{side}" in state) == (width <= limit)
        assert whole <= limit or width == whole or limit / 2 <= width <= limit
        if width > limit:
            assert width == whole
            assert not any(whole % d == 0 for d in range(-(-limit // 2), limit + 1))
    assert torch.isfinite(params[0]).all()


def test_basis_refreshes_are_spread_over_the_steps(monkeypatch):
    calls = Counter()
    step = 0

    def counted(x, original=pico.train.stacks.householder):
        calls[step] += len(x)
        return original(x)

    monkeypatch.setattr(pico.train.stacks, "householder", counted)
    params = parameters(*[(8, 8)] * 7, *[(12, 8)] * 4, (24, 8), (8,))
    optimizer = SOAP(params, block_dim=12)
    for step in range(21):
        noise(params, step)
        optimizer.step()
    matrices = 7 + 4 + 2
    assert calls[0] == 0  # the first gradient sets the bases by eigh
    assert all(calls[step] == 2 * matrices for step in range(1, 10))  # both sides of all, while averages change fast
    assert all(2 * (matrices // 10) <= calls[step] <= 2 * (matrices // 10 + 1) for step in range(10, 21))
    assert sum(calls[step] for step in range(10, 20)) == 2 * matrices


def test_bases_stay_orthonormal_and_diagonalise():
    params = parameters((24, 16), (16, 16))
    optimizer = SOAP(params)
    for step in range(200):
        noise(params, step)
        for p in params:
            p.grad *= torch.logspace(0, -3, 16)
        optimizer.step()
    for p in params:
        basis, gram = optimizer.state[p]["basis_1"][0], optimizer.state[p]["gram_1"][0]
        assert torch.allclose(basis @ basis.T, torch.eye(16), atol=1e-5)
        turned = basis @ gram @ basis.T
        assert (turned - turned.diag().diag()).norm() < 0.2 * turned.norm()
        assert (turned.diag()[:8].mean() > 10 * turned.diag()[8:].mean()).item()


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(exact=True), {}, dict(block_dim=8, matmul_dtype=BF16)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 14])
def test_state_goes_through_a_file_and_continues_bit_for_bit(options, steps):
    shapes = [(24, 16), (16,), (24, 16), (7, 16), (3,)]
    params = parameters(*shapes)
    optimizer = SOAP([{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0}], **options)
    for step in range(steps):
        noise(params, step)
        optimizer.step()
    stored = through_a_file(optimizer.state_dict())

    fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = SOAP([{"params": fresh[:3]}, {"params": fresh[3:]}], **{**options, "lr": 0.5})
    again.load_state_dict(stored)
    for step in range(steps, steps + 23):
        noise(params, step)
        noise(fresh, step)
        optimizer.step()
        again.step()
    assert distance(params, fresh) == 0
    mine, other = optimizer.state_dict(), again.state_dict()
    for i, state in mine["state"].items():
        assert all(torch.equal(x, other["state"][i][name]) for name, x in state.items())
        assert all(x.dtype == (torch.int64 if name == "step" else torch.float32) for name, x in state.items())


def test_a_used_optimizer_can_go_back():
    params = parameters((12, 12), (12,))
    optimizer = SOAP(params)
    train(optimizer, params, 5)
    weights, stored = [p.detach().clone() for p in params], through_a_file(optimizer.state_dict())
    train(optimizer, params, 12)
    after = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, weight in zip(params, weights, strict=True):
            p.copy_(weight)
    optimizer.load_state_dict(stored)
    train(optimizer, params, 12)
    assert distance(params, after) == 0


def test_state_is_views_of_the_stacks():
    params = parameters(*[(8, 8)] * 3)
    optimizer = SOAP(params)
    noise(params, 0)
    optimizer.step()
    moments = [optimizer.state[p]["exp_avg"] for p in params]
    assert len({x.untyped_storage().data_ptr() for x in moments}) == 1
    noise(params, 1)
    optimizer.step()
    assert all(x.abs().sum() > 0 for x in moments)  # what was read before follows the optimizer


# --- odd corners ------------------------------------------------------------------------------------------------------


def test_vectors_get_adam():
    (vector,) = parameters((6,))
    expected, first, second = vector.detach().clone(), torch.zeros(6), torch.zeros(6)
    optimizer = SOAP([vector], lr=1e-2, betas=(0.9, 0.8), weight_decay=0.1)
    for step in range(5):
        noise([vector], step)
        optimizer.step()
        if step == 0:
            continue  # the first gradient moves nothing
        first, second = 0.9 * first + 0.1 * vector.grad, 0.8 * second + 0.2 * vector.grad**2
        update = first / (1 - 0.9**step) / (second.sqrt() + 1e-8) * (1 - 0.8**step) ** 0.5
        expected = (expected - 1e-2 * update) * (1 - 1e-2 * 0.1)
    assert torch.allclose(vector.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_parameters_without_gradient_rest_and_may_start_late(exact):
    """Each of three parameters gets gradients on steps of its own; it must move as if it were alone."""
    live = [{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {3, 4, 5, 8, 9, 10, 11}, {0, 1, 6, 7, 11}, set()]
    shapes = [(6, 4), (6, 4), (6, 4), (6, 4)]
    options = dict(lr=1e-2, exact=exact, precondition_frequency=2, matmul_dtype=torch.float32)
    together, alone = parameters(*shapes), parameters(*shapes)
    optimizer = SOAP(together, **options)
    single = [SOAP([p], **options) for p in alone]
    for step in range(12):
        noise(together, step)
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            q.grad = p.grad = p.grad if step in live[i] else None
        optimizer.step()
        for other in single:
            other.step()
    assert together[3] not in optimizer.state
    for p, steps in zip(together, live, strict=True):
        assert int(optimizer.state[p].get("step", 0)) == len(steps)
    assert distance(together[3:], parameters(*shapes)[3:]) == 0
    if exact:
        assert distance(together, alone) == 0
    else:  # alone, bases are refreshed on other steps: the moments differ a little
        assert distance(together[:1], parameters(*shapes)[:1]) > 1e-2
        assert distance(together, alone) < 2 * distance(alone, parameters(*shapes))


def test_same_gradients_give_the_same_bits():
    runs = []
    for _ in range(2):
        params = parameters((24, 16), (24, 16), (16,))
        optimizer = SOAP(params, block_dim=8)
        for step in range(15):
            noise(params, step)
            optimizer.step()
        runs.append(params)
    assert distance(*runs) == 0


def test_rate_and_decay_are_read_from_each_group_at_each_step():
    moving, still, late = parameters((8, 8), (8, 8), (8, 8))
    optimizer = SOAP([{"params": [moving]}, {"params": [still], "lr": 0.0}], lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 4))
    before = still.detach().clone()
    trace = []
    for step in range(8):
        noise([moving, still], step)
        optimizer.step()
        schedule.step()
        trace.append(moving.detach().clone())
    assert torch.equal(still, before)
    assert not torch.equal(trace[1], trace[3]) and torch.equal(trace[3], trace[7])
    optimizer.add_param_group({"params": [late], "lr": 1e-2})
    before = late.detach().clone()
    for step in range(2):
        noise([late], step)
        optimizer.step()
    assert not torch.equal(late, before)

    decayed, plain = parameters((8, 8)), parameters((8, 8))
    for params, decay in ((decayed, 0.5), (plain, 0.0)):
        optimizer = SOAP(params, lr=0.1, weight_decay=decay)
        for step in range(2):
            noise(params, step)
            optimizer.step()
    assert torch.allclose(decayed[0], plain[0] * (1 - 0.1 * 0.5), atol=1e-6)


def test_zero_gradients_and_zero_columns_do_no_harm():
    params = parameters((8, 6), (8, 6), (6,))
    optimizer = SOAP(params, weight_decay=0.0)
    before = [p.detach().clone() for p in params]
    for step in range(12):
        noise(params, step)
        params[0].grad.zero_()
        params[1].grad[:, 3:] = 0
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert torch.equal(params[0], before[0])
    assert (params[1] - before[1])[:, 3:].abs().max() < 1e-3 * (params[1] - before[1]).abs().max()


def test_the_layout_of_a_parameter_does_not_matter():
    straight = parameters((12, 8))
    turned = [torch.nn.Parameter(straight[0].detach().T.contiguous().T)]
    assert not turned[0].is_contiguous()
    for params in (straight, turned):
        optimizer = SOAP(params, block_dim=4)
        for step in range(13):
            noise(params, step)
            params[0].grad = params[0].grad.T.contiguous().T if step % 2 else params[0].grad
            optimizer.step()
    assert distance(straight, turned) == 0


def test_a_closure_is_called_with_gradients_on():
    params = parameters((8, 8))
    optimizer = SOAP(params, lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = problem(params)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses[0] == losses[1] > losses[9]  # the first step only sets the bases


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(lr=-1.0), "lr = -1.0"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(eps=-1e-8), "eps"),
        (dict(weight_decay=-0.1), "weight_decay"),
        (dict(precondition_frequency=0), "precondition_frequency = 0: expected a whole number >= 1"),
        (dict(block_dim=0), "block_dim"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(PicoError, match=message) as error:
        SOAP(parameters((4, 4)), **options)
    assert "\n" not in str(error.value)


def test_half_precision_weights_are_refused():
    with pytest.raises(PicoError, match="fp32 master weights"):
        SOAP([torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))])


def test_one_sided_rotates_columns_only():
    """Rows of an embedding are symbols: one that is never seen must stay exactly where it is."""
    weight = torch.nn.Parameter(torch.randn(12, 4))
    optimizer = SOAP([{"params": [weight], "one_sided": True}], weight_decay=0.0)
    before = weight.detach().clone()
    for _ in range(15):
        weight.grad = torch.randn(12, 4)
        weight.grad[5] = 0
        optimizer.step()
    assert torch.equal(weight[5], before[5]) and not torch.equal(weight[4], before[4])
    assert "basis_1" in optimizer.state[weight] and "basis_0" not in optimizer.state[weight]
