"""Orthonormal bases for stacks of matrices (n, d, d): eigenvectors, and the Q of a QR in two ways.

Householder's reflections are exact whatever the matrix, and sequential. Cholesky-QR is made of matmuls, which is what a
GPU is fast at; in fp64 and done twice it is as good up to a condition of 1e10.
"""

import torch
from torch import Tensor

LEAF: int = 128  # widest block that is factored by itself; everything wider is matmuls


def eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors of symmetric (n, d, d), as columns of falling eigenvalue."""
    shifted = gram + 1e-30 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.eigh(_where_factored(shifted)).eigenvectors.flip(-1).to(gram.device)


def householder(x: Tensor) -> Tensor:
    """The Q of x = QR for (n, d, d). linalg.qr would cut out R too, and that takes a fifth of its time."""
    return torch.linalg.householder_product(*torch.geqrf(_where_factored(x))).to(x.device)


def cholesky_qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """The Q (n, d, d) of x = QR with a positive diagonal of R, and for which matrices it is one, bool (n,). x in fp64.

    Q = X W^T, where W inverts the Cholesky factor of X^T X. Its condition is the square of X's, so this is done twice:
    a small shift keeps the first factorization possible, and what it costs in orthogonality the second one mends, whose
    matrix is close to orthonormal (Fukaya et al. 2020, arXiv 1809.11085). Nothing waits for the GPU.
    """
    d = x.shape[-1]
    q = x / x.norm(dim=1, keepdim=True)  # the Q is the same, the condition much smaller
    failures = 0
    for shift in (1e-15 * d, 0.0):
        gram = q.mT @ q
        gram.diagonal(dim1=1, dim2=2).add_(shift)
        inverse, failed = _inverse_cholesky(gram)
        q, failures = q @ inverse.mT, failures + failed
    return q, (failures == 0) & q.isfinite().flatten(1).all(1)


def _inverse_cholesky(gram: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 of gram = L L^T for (n, d, d), and how many of its factorizations failed, (n,).

    By halves: with gram = [[A, B], [B^T, C]] and L = [[J, 0], [K, M]], J J^T = A, K = (J^-1 B)^T, M M^T = C - K K^T.
    """
    d = gram.shape[-1]
    if d <= LEAF:
        factor, info = torch.linalg.cholesky_ex(gram)
        identity = torch.eye(d, dtype=gram.dtype, device=gram.device).expand_as(gram)
        return torch.linalg.solve_triangular(factor, identity, upper=False), (info != 0).int()
    half = d // 2
    first, failed = _inverse_cholesky(gram[:, :half, :half])
    below = (first @ gram[:, :half, half:]).mT  # (n, d - half, half)
    last, failed_too = _inverse_cholesky(gram[:, half:, half:] - below @ below.mT)
    inverse = torch.zeros_like(gram)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, last
    inverse[:, half:, :half] = -last @ (below @ first)
    return inverse, failed + failed_too


def _where_factored(x: Tensor) -> Tensor:
    """x where matrices are factored: on the CPU if it is on MPS, which lacks these operators in some versions."""
    return x.cpu() if x.device.type == "mps" else x
