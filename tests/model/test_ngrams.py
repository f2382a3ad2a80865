"""The n-gram hash: what it may see, that its two forms agree, and that a step moves only the rows looked up."""

import pytest
import torch
from helpers import random_tokens, tiny
from hypothesis import given
from hypothesis import strategies as st

from pico import PicoError, preset
from pico.base.symbols import BOS
from pico.model.ngrams import keys
from pico.train.optimizers import RowAdagrad

ids = st.lists(st.one_of(st.integers(0, 263), st.just(BOS)), min_size=8, max_size=8)


@given(ids, st.integers(2, 8), st.integers(1, 10**6))
def test_tensors_and_integers_hash_alike(text, longest, rows):
    newest, before = text[-1], text[-2::-1]
    tensors = keys(torch.tensor([newest]), [torch.tensor([x]) for x in before], longest, rows)
    plain = keys(newest, before, longest, rows)
    assert [int(x) for x in tensors] == plain
    assert all(i * rows <= row < (i + 1) * rows for i, row in enumerate(plain)) and len(plain) == longest - 1


@given(ids, st.integers(0, 6), st.integers(0, 255))
def test_an_n_gram_is_its_bytes_and_no_others(text, at, other):
    """Changing the byte `at` places back changes the key of every n-gram that reaches it, and of no other."""
    newest, before = text[-1], text[-2::-1]
    text = [byte if byte != BOS else 0 for byte in before]
    changed = [*text[:at], (text[at] + 1 + other % 255) % 256, *text[at + 1 :]]
    one, two = (keys(newest % 256, b, 8, 2**40) for b in (text, changed))
    assert [a == b for a, b in zip(one, two)] == [n < at + 2 for n in range(2, 9)]


def test_what_is_before_a_document_is_not_seen():
    """The first bytes of a document are looked up alike at the start of a text and after another document."""
    inside = keys(*split([5, 6, 7, BOS, 65, 66]), 6, 1000)
    at_start = keys(*split([BOS, BOS, BOS, BOS, 65, 66]), 6, 1000)
    assert inside == at_start


def split(text):
    return text[-1], text[-2::-1]


def test_keys_are_spread_evenly():
    tokens = torch.arange(256)
    pairs = keys(tokens[:, None].expand(256, 256), [tokens[None].expand(256, 256)], 2, 4096)[0]
    counts = torch.bincount(pairs.flatten(), minlength=4096).float()
    assert len(counts) == 4096 and 0.7 < counts.var() / counts.mean() < 1.3  # Poisson's is 1


def test_a_step_moves_the_rows_looked_up_and_no_others():
    model, tokens = tiny().train(), random_tokens(2, 44)
    before = model.ngrams.table.weight.detach().clone()
    model(tokens[:, :40], targets=tokens[:, 1:44]).loss.backward()
    rows = model.ngrams.table.weight.grad.any(1).nonzero().flatten()
    RowAdagrad([model.ngrams.table.weight], lr=0.1).step()
    moved = (model.ngrams.table.weight != before).any(1).nonzero().flatten()
    assert 0 < len(moved) < len(before) and torch.equal(moved, rows)


def test_a_row_that_is_looked_up_steps_by_the_formula():
    torch.manual_seed(0)
    start, rows = torch.randn(6, 4), torch.tensor([4, 1, 4, 3])  # row 4 twice: its gradients add up
    table = torch.nn.Parameter(start.clone())
    optimizer = RowAdagrad([table], 0.1, beta=0.9)
    wanted, square = start.clone(), torch.zeros(6, 1)
    for _ in range(5):
        grad = torch.randn(4, 4)
        table.grad = torch.sparse_coo_tensor(rows[None], grad, start.shape, check_invariants=True)
        optimizer.step()
        for row, g in ((1, grad[1]), (3, grad[3]), (4, grad[0] + grad[2])):
            square[row] = 0.9 * square[row] + (g**2).mean()
            wanted[row] -= 0.1 * g / square[row].sqrt()
    torch.testing.assert_close(table.detach(), wanted)
    assert torch.equal(table[[0, 2, 5]], start[[0, 2, 5]])


def test_sparse_and_dense_gradients_step_alike():
    models = [tiny(seed=3).train() for _ in range(2)]
    models[1].ngrams.table.sparse = True
    tokens = random_tokens(2, 44)
    for model in models:
        optimizer = RowAdagrad([model.ngrams.table.weight], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens[:, :40], targets=tokens[:, 1:44]).loss.backward()
            assert model.ngrams.table.weight.grad.is_sparse == (model is models[1])
            optimizer.step()
    torch.testing.assert_close(models[0].ngrams.table.weight, models[1].ngrams.table.weight, atol=1e-3, rtol=1e-2)


def test_dropout_leaves_out_whole_lookups_and_keeps_their_mean():
    model = tiny(ngram_max=3)
    model.ngrams.dropout = 0.25
    tokens = random_tokens(1, 4000)
    text = torch.nn.functional.pad(tokens, (2, 0), value=BOS)
    full = model.ngrams(text, torch.float32)  # (1, T, D): two lookups, so four kinds of outcome
    torch.testing.assert_close(model.ngrams(text, torch.float32), full)  # none in eval mode
    model.train()
    dropped = model.ngrams(text, torch.float32)
    none = (dropped == 0).all(-1)
    assert abs(none.float().mean() - 0.25**2) < 0.02
    whole = torch.isclose(dropped, full / 0.75, atol=1e-5).all(-1)
    assert abs(whole.float().mean() - 0.75**2) < 0.04


def test_a_longest_n_gram_of_one_byte_is_refused():
    with pytest.raises(PicoError, match=r"0 \(off\) or at least 2"):
        preset("tiny", ngram_max=1)


def table_and_gradient(sparse: bool) -> torch.nn.Parameter:
    """(20, 4), of which rows 3, 5 and 17 have a gradient, 3 twice."""
    p = torch.nn.Parameter(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    rows, values = torch.tensor([[3, 5, 3, 17]]), torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    gradient = torch.sparse_coo_tensor(rows, values, (20, 4), check_invariants=False)
    p.grad = gradient if sparse else gradient.to_dense()
    return p


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_step_alike_whether_or_not_they_are_looked_at(sparse):
    """A GPU does not tell the host which rows have a gradient."""
    looked, blind = table_and_gradient(sparse), table_and_gradient(sparse)
    one, other = RowAdagrad([looked], lr=0.1), RowAdagrad([blind], lr=0.1)
    squares, group = torch.zeros(20, 1), other.param_groups[0]
    for _ in range(3):
        one.step()
        looked.grad, blind.grad = (table_and_gradient(sparse).grad for _ in range(2))
        with torch.no_grad():
            other._step_unseen(blind, squares, group)
    torch.testing.assert_close(looked, blind)
    torch.testing.assert_close(one.state[looked]["square"], squares)
    assert squares.count_nonzero() == 3


@pytest.mark.parametrize("sparse", [True, False])
def test_a_shut_gate_lets_nothing_into_the_table(sparse):
    p, squares = table_and_gradient(sparse), torch.zeros(20, 1)
    before, optimizer = p.detach().clone(), RowAdagrad([p], lr=0.1)
    with torch.no_grad():
        (p.grad._values() if sparse else p.grad)[:4] = torch.nan
        for gate in (0.0, 1.0):
            optimizer.gate = torch.tensor(gate)
            optimizer._step_unseen(p, squares, optimizer.param_groups[0])
            assert torch.equal(p, before) == (not gate) and squares.any() == gate
            p.grad = table_and_gradient(sparse).grad
    assert p.isfinite().all() and squares.isfinite().all()
