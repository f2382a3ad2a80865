import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pico.model.loss import PHI, SLICE, head_targets, head_weights, multi_byte_loss


def naive(hidden, weight, targets):
    """Head by head, byte by byte, with the logits in hand."""
    batch, length, _ = hidden.shape
    heads = targets.shape[1] - length + 1
    logits = (hidden @ weight.T).view(batch, length, heads, -1)
    phi = torch.tensor([PHI**-k for k in range(heads)])
    loss, nats, first = 0.0, [], None
    for k in range(heads):
        nll = F.cross_entropy(logits[:, :, k].transpose(1, 2), targets[:, k : k + length], reduction="none")
        loss = loss + phi[k] * nll.sum() / (batch * length)
        nats.append(nll.sum() / max(1, int((targets[:, k : k + length] >= 0).sum())))
        first = nll.detach() if first is None else first
    return loss, torch.stack(nats), first


def loss_of(hidden, weight, targets):
    """Of heads that all read the same stream."""
    return multi_byte_loss([hidden] * (targets.shape[1] - hidden.shape[1] + 1), weight, targets)


def example(batch, length, heads, width=16, vocabulary=24, padded=0.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(heads * vocabulary, width, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (batch, length + heads - 1), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < padded] = -100
    return hidden, weight, targets


@given(st.integers(1, 3), st.integers(1, 150), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_loss_and_gradients_equal_plain_cross_entropy(batch, length, heads, padded, seed):
    hidden, weight, targets = example(batch, length, heads, padded=padded, seed=seed)
    fast, slow = loss_of(hidden, weight, targets), naive(hidden, weight, targets)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    grads = zip(*(torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (fast[0], slow[0])))
    for ours, theirs in grads:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_more_rows_than_a_slice():
    hidden, weight, targets = example(3, SLICE, 2, padded=0.1)  # 3 slices, and 2.6 with the last row cut
    for h, t in ((hidden, targets), (hidden[:, :111], targets[:, :112])):
        fast, slow = loss_of(h, weight, t)[0], naive(h, weight, t)[0]
        torch.testing.assert_close(torch.autograd.grad(fast, weight), torch.autograd.grad(slow, weight))


def test_close_in_bf16():
    hidden, weight, targets = example(2, 200, 4, dtype=torch.bfloat16)
    fast, slow = loss_of(hidden, weight, targets), naive(hidden.float(), weight, targets)
    torch.testing.assert_close(fast[:2], slow[:2], atol=0, rtol=5e-3)
    torch.testing.assert_close(fast[2], slow[2], atol=0.1, rtol=0)
    ours = torch.autograd.grad(fast[0], (hidden, weight))
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32]
    for a, b in zip(ours, torch.autograd.grad(slow[0], (hidden, weight))):
        assert (a.float() - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 17])
def test_head_weights_are_golden(heads):
    weights = head_weights(heads)
    assert weights[0].item() == 1
    for k in range(heads - 2):
        assert weights[k].item() == pytest.approx((weights[k + 1] + weights[k + 2]).item(), rel=1e-5)
    if heads > 1:
        assert (weights[0] / weights[1]).item() == pytest.approx((1 + 5**0.5) / 2)


def test_head_k_is_asked_for_the_byte_k_plus_one_ahead():
    text = torch.arange(100, 112)[None]  # inputs 100.., T = 9, N = 3
    wanted = head_targets(text[:, 1:], 9, 3)
    assert wanted.shape == (1, 9, 3)
    assert all(wanted[0, t, k] == 100 + t + 1 + k for t in range(9) for k in range(3))


def test_padding_costs_nothing_and_teaches_nothing():
    hidden, weight, targets = example(2, 20, 3)
    targets[0, 12:] = -100
    loss, nats, each = loss_of(hidden, weight, targets)
    grad = torch.autograd.grad(loss, hidden)[0]
    assert not grad[0, 12:].any() and grad[0, :12].any()
    other = hidden.detach().clone()
    other[0, 12:] = 7.0
    torch.testing.assert_close(loss_of(other, weight, targets), (loss, nats, each))
    assert not each[0, 12:].any() and each[1].all()


def test_the_loss_of_a_batch_is_the_mean_over_its_halves():
    """However padding falls: that is why the divisor counts it. Processes then average to the same gradient."""
    hidden, weight, targets = example(4, 30, 3, padded=0.2)
    targets[3, 5:] = -100
    whole = loss_of(hidden, weight, targets)[0]
    halves = [loss_of(hidden[i : i + 2], weight, targets[i : i + 2])[0] for i in (0, 2)]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_a_uniform_model_costs_log_v_and_a_lost_one_is_seen():
    hidden, weight, targets = example(1, 10, 2)
    loss, nats, _ = loss_of(torch.zeros_like(hidden), weight, targets)
    assert nats.tolist() == pytest.approx([math.log(24)] * 2)
    assert loss.item() == pytest.approx((1 + 1 / PHI) * math.log(24))
    assert torch.isnan(loss_of(hidden * float("nan"), weight, targets)[0])
