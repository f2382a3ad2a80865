"""RMSNorm of our own against torch's."""

import pytest
import torch
import torch.nn.functional as F

from pico.model.norm import EPS, norm


def test_norm_is_rms_norm_and_so_is_its_gradient():
    """Down to vectors so short that the epsilon is most of what they are divided by."""
    for scale in (0.0, 1e-6, 1e-4, 1e-2, 1.0, 100.0):
        x = (torch.randn(5, 7, 16) * scale).requires_grad_()
        upstream = torch.randn(5, 7, 16)
        ours, theirs = norm(x), F.rms_norm(x, (16,), eps=EPS)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        grads = [torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [16, 24, 64])
def test_norm_in_bf16_rounds_alike_for_rows_of_any_width(width):
    x, upstream = (torch.randn(5, 7, 3, width).bfloat16()[:, :, :2] for _ in range(2))
    exact, given = x.float().requires_grad_(), x.requires_grad_()
    for ours, theirs in (
        (norm(given), norm(exact)),
        (
            torch.autograd.grad(norm(given), given, upstream)[0],
            torch.autograd.grad(norm(exact), exact, upstream.float())[0],
        ),
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=0.02, rtol=0.02)
