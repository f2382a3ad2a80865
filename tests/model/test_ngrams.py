"""The n-gram hash: what it may see, that its two forms agree, and that a step moves only the rows looked up."""

from collections import Counter

import pytest
import torch
from helpers import random_tokens, tiny
from hypothesis import given
from hypothesis import strategies as st

from pico import PicoError, preset
from pico.base.symbols import BOS
from pico.model.ngrams import LEFT_OUT, keys
from pico.train.optimizers import RowAdagrad

ids = st.lists(st.one_of(st.integers(0, 263), st.just(BOS)), min_size=8, max_size=8)


@given(ids, st.integers(2, 8), st.integers(1, 10**6))
def test_tensors_and_integers_hash_alike(text, longest, rows):
    newest, before = text[-1], text[-2::-1]
    tensors = keys(torch.tensor([newest]), [torch.tensor([x]) for x in before], longest, rows)
    plain, stacked = keys(newest, before, longest, rows), keys(newest, before, longest, rows, rows)
    assert [int(x) for x in tensors] == plain
    assert all(0 <= row < rows for row in plain) and len(plain) == longest - 1
    assert stacked == [row + i * rows for i, row in enumerate(plain)]  # each length has a table of its own


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
        found = {1: grad[1], 3: grad[3], 4: grad[0] + grad[2]}
        others = torch.stack(list(found.values())).square().mean()
        for row, g in found.items():
            square[row] = 0.9 * square[row] + (g**2).mean()
            wanted[row] -= 0.1 * g / (square[row] + others).sqrt()
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


# --- a text that is read again ----------------------------------------------------------------------------------------


def text_and_counts() -> tuple[torch.Tensor, list[dict]]:
    """(2, 500) bytes of which few differ, and how often each n-gram of 2, 3 and 4 of them stands in it."""
    text = torch.where(random_tokens(2, 500) < 60, random_tokens(2, 500, seed=1), 97)
    counts = []
    for length in (2, 3, 4):
        padded = [[BOS] * (length - 1) + row for row in text.tolist()]
        counts.append(Counter(tuple(row[t : t + length]) for row in padded for t in range(500)))
    return text, counts


def test_n_grams_are_counted():
    (text, counts), model = text_and_counts(), tiny()
    model.ngrams.count([text[:1], text[1:]], text.numel())
    hashed = model.ngrams.hashed(torch.nn.functional.pad(text, (3, 0), value=BOS))
    found = model.ngrams.counts[model.ngrams.cells(hashed, len(model.ngrams.counts))]
    wanted = [
        [[counts[n][tuple(([BOS] * 3 + row)[t + 2 - n : t + 4])] for n in range(3)] for t in range(500)]
        for row in text.tolist()
    ]
    wanted = torch.tensor(wanted).clamp(max=255)
    shared = found != wanted  # two n-grams may share a cell
    assert (found >= wanted).all() and shared.float().mean() < 0.2 and wanted.unique().tolist()[:4] == [1, 2, 3, 4]
    assert len(model.ngrams.counts) == 2**12 and "ngrams.counts" not in model.state_dict()


def test_a_rare_n_gram_is_new_where_a_text_is_read_again():
    """One that stands in c places finds another's row in LEFT_OUT / c of them, which learns nothing from it."""
    model = tiny(ngram_rows=2**18)
    text = random_tokens(1, 6000, high=40)
    text[0, 5], text[0, 100:1700:80], text[0, 2000:3800:30] = 100, 101, 102  # once, 20 and 60 times
    text[0, 101:1701:80], text[0, 2001:3801:30] = 101, 102
    model.ngrams.count([text], 2**20)
    model.ngrams.project = torch.nn.Identity()
    padded = torch.nn.functional.pad(text, (3, 0), value=BOS)
    full = model.ngrams(padded, torch.float32)  # (1, T, orders * width)
    model.train().set_dropout(0.0)
    assert torch.equal(model.ngrams(padded, torch.float32), full)
    model.set_dropout(0.0, torch.tensor(2))
    other = model.ngrams(padded, torch.float32)
    model.set_dropout(0.0, torch.tensor(1))
    seen = model.ngrams(padded, torch.float32)
    assert torch.equal(model.ngrams(padded, torch.float32), seen) and not torch.equal(other, seen)
    parts = torch.cat([model.ngrams(part, torch.float32) for part in (padded[:, :3003], padded[:, 3000:])], dim=1)
    assert torch.equal(parts, seen)  # however the text is cut
    pairs = (seen == full)[0, :, :8].all(-1).float()  # (T,)
    assert pairs[5] == pairs[6] == 0
    assert abs(pairs[101:1701:80].mean() - (1 - LEFT_OUT / 20)) < 0.2
    assert abs(pairs[2001:3801:30].mean() - (1 - LEFT_OUT / 60)) < 0.1
    seen.sum().backward()
    moved, table = model.ngrams.table.weight.grad.any(1), model.ngrams.table.weight
    rows = keys(padded[0, 3:], [padded[0, 2 - n : -1 - n] for n in range(3)], 4, len(table))
    known = model.ngrams.known(model.ngrams.hashed(padded), model.ngrams.counts, torch.tensor(1))[0]
    assert set(moved.nonzero().flatten().tolist()) == set(torch.stack(rows, -1)[known].tolist())
    model.eval()
    assert torch.equal(model.ngrams(padded, torch.float32), full)


def test_where_an_n_gram_is_new_the_longer_ones_are():
    (text, _), model = text_and_counts(), tiny()
    model.ngrams.count([text], 2**20)  # so many cells that few n-grams share one
    hashed = model.ngrams.hashed(torch.nn.functional.pad(text, (3, 0), value=BOS))
    known = model.ngrams.known(hashed, model.ngrams.counts, torch.tensor(1)).int()  # (B, T, orders)
    both = model.ngrams.known(hashed[:1].repeat(2, 1, 1), model.ngrams.counts, torch.tensor([0, 1]))
    assert both[0].all() and torch.equal(both[1].int(), known[0])  # a row of new text beside one that is read again
    assert (known.diff() <= 0).float().mean() > 0.99 and 0.05 < known[..., 1].float().mean() < 0.95


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
