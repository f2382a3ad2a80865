"""SOAP with all bases moved together, as on a GPU: against the exact mode, and in a graph that nothing waits for."""

from contextlib import nullcontext

import pytest
import torch
from helpers import OneDevice
from hypothesis import given
from hypothesis import strategies as st
from problems import BF16, distance, noise, parameters, problem, through_a_file, train
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pico.train.soap
import pico.train.stacks
from pico.train.orthogonal import cholesky_qr, householder
from pico.train.soap import SOAP


def snapshot(optimizer, params) -> list[Tensor]:
    return [x.detach().clone() for p in params for x in (p, *optimizer.state[p].values())]


def together(params, **options) -> SOAP:
    return SOAP(params, schedule="together", **options)


@given(width=st.integers(1, 300), decay=st.floats(0, 8), seed=st.integers(0, 99))
def test_cholesky_qr_is_householders(width, decay, seed):
    """Orthonormal, and the same columns up to their signs, for matrices of a condition up to 1e8."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.linalg.qr(torch.randn(2, 3, width, width, generator=generator, dtype=torch.float64))[0]
    x = left * torch.logspace(0, -decay, width, dtype=torch.float64) @ right.mT
    q, good = cholesky_qr(x)
    assert good.all()
    rounded = q.float().double()
    assert (rounded.mT @ rounded - torch.eye(width, dtype=torch.float64)).abs().max() < 1e-6
    assert (1 - (q * householder(x)).sum(1).abs()).max() < 1e-6


def test_cholesky_qr_tells_what_it_cannot_factor():
    x = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1, 3, 5], x[2, :, 7], x[3] = torch.nan, 0, 1
    assert cholesky_qr(x)[1].tolist() == [True, False, False, False]


def test_together_every_basis_moves_at_first_and_then_on_every_tenth_step_only():
    params = parameters((12, 8), (12, 8), (8, 8), (8,))
    optimizer = together(params, precondition_frequency=5)
    for step in range(24):
        noise(params, step)
        bases = [optimizer.state[p][f"basis_{side}"].clone() for p in params[:3] for side in (0, 1) if step]
        expected = all(optimizer.refreshes_next)
        optimizer.step()
        now = [optimizer.state[p][f"basis_{side}"] for p in params[:3] for side in (0, 1) if step]
        assert expected == (step < 5 or step % 5 == 0)
        assert all(torch.equal(a, b) != expected for a, b in zip(bases, now, strict=True))


@pytest.mark.parametrize("chunk", [2**26, 1])
def test_together_in_fp32_is_exact_mode(chunk, monkeypatch):
    """Refreshed at every step, with eigenvectors at the start, both are one algorithm."""
    monkeypatch.setattr(pico.train.stacks, "REFRESH_SIZE", chunk)
    shapes = [(12, 12), (12, 12), (20,), (9, 12), (20,)]
    fast, exact = parameters(*shapes), parameters(*shapes)
    options = dict(lr=1e-2, precondition_frequency=1)
    one, two = together(fast, matmul_dtype=torch.float32, **options), SOAP(exact, exact=True, **options)
    for step in range(8):
        noise(fast, step)
        noise(exact, step)
        one.step()
        two.step()
        if step == 0:
            for p, q in zip(fast, exact, strict=True):
                for side in (0, 1) if p.ndim == 2 else ():
                    one.state[p][f"basis_{side}"].copy_(two.state[q][f"basis_{side}"])
    assert distance(fast, exact) < 1e-4
    assert distance(fast, parameters(*shapes)) > 1e-2


def test_together_learns_as_fast():
    shapes = [(48, 32), (48, 32), (32, 32), (64, 32), (32,)]
    fast, usual = parameters(*shapes), parameters(*shapes)
    start = problem(usual).item()
    reference = train(SOAP(usual, lr=1e-2), usual, 120)
    assert train(together(fast, lr=1e-2), fast, 120) < reference + 0.02 * start


def test_a_basis_that_cannot_be_factored_is_kept(monkeypatch):
    params = parameters((12, 8), (12, 8))
    optimizer = together(params, precondition_frequency=1)
    for step in range(4):
        noise(params, step)
        optimizer.step()

    def failing(x):
        q, good = cholesky_qr(x)
        q[1], good[1] = torch.nan, False
        return q, good

    monkeypatch.setattr(pico.train.stacks, "cholesky_qr", failing)
    bases = [optimizer.state[p]["basis_0"].clone() for p in params]
    for step in range(4, 9):
        noise(params, step)
        optimizer.step()
    assert torch.equal(optimizer.state[params[1]]["basis_0"], bases[1])
    assert not torch.equal(optimizer.state[params[0]]["basis_0"], bases[0])
    assert all(torch.isfinite(x).all() for x in snapshot(optimizer, params))


def test_dead_rows_do_not_stop_a_basis():
    """Units without any gradient make the averages singular; what lives is still diagonalised."""
    params = parameters((24, 16))
    optimizer = together(params)
    for step in range(60):
        noise(params, step)
        params[0].grad[5:20] = 0
        params[0].grad *= torch.logspace(0, -3, 16)
        optimizer.step()
    basis, gram = optimizer.state[params[0]]["basis_1"][0], optimizer.state[params[0]]["gram_1"][0]
    turned = basis @ gram @ basis.T
    assert (turned - turned.diag().diag()).norm() < 0.2 * turned.norm()
    basis = optimizer.state[params[0]]["basis_0"][0]
    assert torch.allclose(basis @ basis.T, torch.eye(24), atol=1e-5)
    assert basis[:9, 5:20].abs().max() < 1e-3  # the nine live rows lead


@pytest.mark.parametrize("options", [dict(schedule="together"), {}, dict(exact=True)], ids=str)
@pytest.mark.parametrize("shut", [{0}, {4}, {5, 6}, {0, 1, 12}], ids=str)
def test_a_shut_gate_leaves_everything_as_it_is(options, shut):
    params = parameters((12, 8), (12, 8), (8,))
    optimizer = SOAP(params, precondition_frequency=5, weight_decay=0.1, **options)
    optimizer.gate = torch.ones(())
    for step in range(14):
        noise(params, step)
        before = [p.detach().clone() for p in params] if step == 0 else snapshot(optimizer, params)
        optimizer.gate.fill_(step not in shut)
        if step in shut:
            params[0].grad[3, 3], params[2].grad[1] = torch.nan, torch.inf
        optimizer.step()
        after = [*params] if step == 0 else snapshot(optimizer, params)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(same) if step in shut else step == 0 or not all(same)
    applied = {int(optimizer.state[p]["step"]) for p in params}
    assert applied == {14 - len(shut)}


def test_an_open_gate_and_a_rate_on_the_device_change_nothing():
    plain, gated = parameters((12, 8), (8,)), parameters((12, 8), (8,))
    one, two = together(plain, lr=1e-2), together(gated, lr=torch.tensor(1e-2))
    two.gate = torch.ones(())
    for step in range(15):
        noise(plain, step)
        noise(gated, step)
        one.step()
        two.step()
    assert distance(plain, gated) < 1e-8
    assert distance(plain, parameters((12, 8), (8,))) > 1e-2


def test_together_waits_for_nothing():
    """Fake tensors have a shape and a device but no values: whatever needs one of them raises."""
    with FakeTensorMode(), torch.device("cuda"):
        params = [torch.nn.Parameter(torch.empty(shape)) for shape in [(300, 16), (300, 16), (16, 2050), (16,)]]
        groups = [{"params": params[:1], "one_sided": True}, {"params": params[1:]}]
        optimizer = SOAP(groups, precondition_frequency=3, matmul_dtype=BF16)
        for group in optimizer.param_groups:
            group["lr"] = torch.empty(())
        optimizer.gate = torch.empty(())
        refreshed = []
        for _ in range(8):
            for p in params:
                p.grad = torch.empty_like(p)
            refreshed.append(all(optimizer.refreshes_next))
            with OneDevice() if len(refreshed) > 1 else nullcontext():
                optimizer.step()
        assert refreshed == [True] * 4 + [False] * 2 + [True, False]
        optimizer.advance()
        assert all(optimizer.refreshes_next)
        assert all(x.is_cuda for state in optimizer.state.values() for x in state.values())
        assert "basis_1" not in optimizer.state[params[2]] and "basis_0" in optimizer.state[params[2]]


@torch.no_grad()
def test_replayed_steps_are_steps():
    """A trace of the operators does what a replayed CUDA graph does: it knows tensors, and nothing of Python.

    The last matrix learns from step 10 on, so its bases are refreshed in other steps than those of the rest.
    """
    shapes = (24, 16), (24, 16), (16,), (16, 16)
    plain, traced = parameters(*shapes), parameters(*shapes)
    options = dict(precondition_frequency=4, weight_decay=0.1, matmul_dtype=BF16)
    one, two = together(plain, lr=torch.zeros(()), **options), together(traced, lr=torch.zeros(()), **options)
    one.gate, two.gate, graphs, replays = torch.ones(()), torch.ones(()), {}, 0
    gradients = [torch.zeros_like(p) for p in traced]
    for step in range(30):
        noise(plain, step)
        for p, q, gradient in zip(plain, traced, gradients, strict=True):
            q.grad = gradient.copy_(p.grad)
        if step < 10:
            plain[-1].grad = traced[-1].grad = None
        for optimizer in (one, two):
            optimizer.param_groups[0]["lr"].fill_(1e-2 / (1 + step))
            optimizer.gate.fill_(step != 13)
        assert one.refreshes_next == two.refreshes_next
        one.step()
        kind = step >= 10, two.refreshes_next
        if step in (0, 10):
            two.step()
        elif kind in graphs:
            graphs[kind]()
            two.advance()
            replays += 1
        else:
            graphs[kind] = make_fx(lambda: two.step())()  # runs it too, which a capture does not
    for a, b in zip(snapshot(one, plain), snapshot(two, traced), strict=True):
        assert torch.equal(a, b)
    assert replays == 22


@pytest.mark.parametrize("schedules", [("spread", "together"), ("together", "spread"), ("together", "together")])
def test_a_run_goes_on_with_another_schedule(schedules):
    params = parameters((24, 16), (16,), (9, 16))
    first, second = schedules
    optimizer = SOAP(params, lr=1e-2, schedule=first)
    train(optimizer, params, 25)
    weights, stored = [torch.nn.Parameter(p.detach().clone()) for p in params], through_a_file(optimizer.state_dict())
    again = SOAP(weights, schedule=second)
    again.load_state_dict(stored)
    straight, resumed = train(optimizer, params, 25), train(again, weights, 25)
    assert abs(straight - resumed) < 1e-3
    if first == second:
        assert distance(params, weights) == 0


def test_what_was_rotated_stays_rotated(monkeypatch):
    """A side too wide for one schedule has a basis in the state of the other."""
    monkeypatch.setattr(pico.train.soap, "WIDEST", 10)
    for first, second, has in (("spread", "together", True), ("together", "spread", False)):
        params = parameters((12, 8), (12, 8))
        optimizer = SOAP(params, schedule=first)
        train(optimizer, params, 3)
        again = SOAP(params, schedule=second)
        again.load_state_dict(through_a_file(optimizer.state_dict()))
        train(again, params, 12)
        assert ("basis_0" in again.state[params[0]]) == has
        assert "basis_1" in again.state[params[0]]
