"""The Triton kernels against dense formulas: what tests/model/test_kernels.py runs in processes of its own.

TRITON_INTERPRET must be set before triton is first imported, and then holds for the whole process. By hand, with
nothing but Pico and triton installed, in JOBS processes (1 if not given; for a GPU each of them compiles on a core),
all of them or those named:

    PYTHONPATH=. TRITON_INTERPRET=1 python tests/model/kernel_checks.py JOBS NAME...  (without the variable: on the GPU)
"""

import sys
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from pico.base.errors import PicoError
from pico.base.presets import preset
from pico.base.symbols import BOS, BYTES
from pico.decode.sampling import Sampling, torch_accept_drafts, torch_distribution, torch_draw
from pico.model.cache import Cache
from pico.model.kernels import interpreted
from pico.model.kernels.attention import tiles, window_attention
from pico.model.kernels.decode import decode_attention
from pico.model.kernels.gather import gated_scatter, latent_gather
from pico.model.kernels.loss import head_nats
from pico.model.kernels.ngrams import ngram_hashes
from pico.model.kernels.sampling import draft, verify
from pico.model.loss import multi_byte_loss
from pico.model.ngrams import hashes
from pico.model.norm import EPS
from pico.model.pico import Pico

CHECKS = {}  # by name; a check raises what is wrong

DEVICE = torch.device("cpu" if interpreted() else "cuda")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest value
AT_SCALE = [  # batch, length, heads, kv_heads, width, window, dtype: a minute each for the interpreter
    (2, 1000, 6, 2, 64, 32, torch.bfloat16),
    (2, 1024, 9, 3, 40, 512, torch.bfloat16),
    (1, 2048, 12, 4, 64, 512, torch.bfloat16),
    (2, 777, 8, 1, 128, 600, torch.bfloat16),
    (1, 500, 4, 2, 80, 300, torch.float16),
] * (not interpreted())


def check(*cases):
    """Adds a function to CHECKS, once for each tuple of arguments."""

    def add(function):
        for case in cases or [()]:
            words = [function.__name__, *map(str, case)]
            CHECKS[" ".join(words).replace("torch.", "")] = partial(function, *case)
        return function

    return add


def slopes(heads):
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=DEVICE) / heads)


def dense(q, k, v, q_positions, k_positions, window):
    """The formula, in double precision, with rows (B, n) and (B, R) of positions, -1 where there is none."""
    group = q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    distance = q_positions[:, None, :, None] - k_positions[:, None, None, :]  # (B, 1, n, R)
    seen = (distance >= 0) & (distance <= window) & (k_positions >= 0)[:, None, None]
    score = torch.einsum("bnhe,brhe->bhnr", q, k) * q.shape[-1] ** -0.5
    score = (score - slopes(q.shape[2])[:, None, None] * distance).masked_fill(~seen, -torch.inf)
    return torch.einsum("bhnr,brhe->bnhe", score.softmax(-1).masked_fill(~seen, 0.0), v)


def split(qkv, heads):
    kv_heads = (qkv.shape[2] - heads) // 2
    return qkv.split([heads, kv_heads, kv_heads], 2)


def root_mean_square(x):
    return (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()


def dense_window(qkv, sharpness, heads, window):
    position = torch.arange(qkv.shape[1], device=DEVICE).expand(qkv.shape[0], -1)
    q, k, v = split(qkv, heads)
    if sharpness is not None:
        q, k = q / root_mean_square(q) * sharpness, k / root_mean_square(k)
    return dense(q, k, v, position, position, window)


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def close(fast, slow, dtype=torch.float32, scale=1.0):
    """Within rounding of the largest value, or of `scale` where that is more."""
    error, scale = (fast.double() - slow.double()).abs().max(), slow.abs().max().clamp(min=scale)
    assert error <= TOLERANCE[dtype] * scale, f"off by {error:.2e} at scale {scale:.2e}"


@check(
    (1, 1, 1, 1, 16, 1),
    (3, 1, 3, 1, 40, 8),
    (2, 33, 2, 2, 16, 1),
    (2, 20, 2, 1, 16, 0),
    (1, 71, 2, 2, 40, 16),
    (2, 45, 4, 2, 64, 100),  # shorter than the window
    (1, 50, 3, 1, 24, 13),
    (2, 37, 6, 2, 40, 5),
    (1, 40, 8, 1, 16, 50),
    (1, 33, 4, 2, 8, 9),
    (1, 49, 2, 1, 72, 30),
    (1, 34, 1, 1, 128, 12),
    (1, 35, 1, 1, 20, 7),  # no multiple of 8: strides in units of 1
    # longer than the largest tile, so that tiles have neighbours on both sides
    (1, 145, 3, 1, 40, 16, torch.bfloat16),
    (1, 145, 3, 1, 64, 100, torch.float16),
    (2, 145, 2, 1, 24, 70, torch.bfloat16),
    (1, 200, 1, 1, 48, 90, torch.bfloat16),
    (1, 150, 2, 2, 56, 140, torch.bfloat16),
    (1, 145, 2, 1, 72, 70, torch.bfloat16),
    (1, 161, 2, 1, 80, 100, torch.bfloat16),
    (1, 140, 1, 1, 96, 65, torch.bfloat16),
    (1, 131, 2, 1, 128, 128, torch.bfloat16),
    (1, 70, 2, 1, 16, 0, torch.bfloat16),  # 0 and 1 are numbers that Triton may compile in
    (1, 70, 2, 1, 16, 1, torch.bfloat16),
    (1, 70, 1, 1, 128, 20, torch.float16),
    *AT_SCALE,
)
def attention_equals_dense(batch, length, heads, kv_heads, width, window, dtype=torch.float32):
    """Output and gradients, without QK-norm and with it, where one row is zero and others differ in scale."""
    torch.manual_seed(0)
    qkv = random(batch, length, heads + 2 * kv_heads, width, dtype=dtype).requires_grad_()
    compare(heads, window, qkv)
    with torch.no_grad():
        qkv[:, :, :-kv_heads] *= 2.0 ** torch.randint(-4, 5, (batch, length, heads + kv_heads, 1), device=DEVICE)
        qkv[0, length // 2] = 0
    compare(heads, window, qkv, torch.tensor([1.7], device=DEVICE, requires_grad=True))


def compare(heads, window, *inputs):
    """The kernels against dense attention, on qkv and, if there is QK-norm, its sharpness."""
    dtype, exact = inputs[0].dtype, [x.detach().double().requires_grad_() for x in inputs]
    out = window_attention(*inputs, *[None] * (2 - len(inputs)), slopes(heads), window)
    wanted = dense_window(*exact, *[None] * (2 - len(inputs)), heads, window)
    assert out.dtype == dtype and out.is_contiguous()
    close(out, wanted, dtype)
    upstream = random(*out.shape, dtype=dtype)
    grads = torch.autograd.grad(out, inputs, upstream)
    wanted = torch.autograd.grad(wanted, exact, upstream.double())
    unit = root_mean_square(exact[0]).detach() if len(inputs) == 2 else 1  # a short row's gradient is large
    for got, right in zip(split(grads[0] * unit, heads), split(wanted[0] * unit, heads)):
        close(got, right, dtype)
    for got, right in zip(grads[1:], wanted[1:]):  # a sum over queries, of either sign, each with its rounding
        close(got, right, dtype, scale=4 * out[..., 0].numel() ** 0.5)


@check()
def no_row_reads_another():
    """Not even NaN gets from one into the next, forward or backward, past the ends of rows either."""
    qkv = random(3, 41, 4, 16).requires_grad_()
    with torch.no_grad():
        qkv[1] = torch.nan
    out = window_attention(qkv, torch.ones(1, device=DEVICE), slopes(2), 12)
    (grad,) = torch.autograd.grad(out, qkv, random(*out.shape))
    assert not out[::2].isnan().any() and not grad[::2].isnan().any()


@check()
def every_position_sees_exactly_its_window():
    """Gradients outside are zero, not small; across the 32 x 16 tiles' edges too."""
    length, window = 70, 20
    qkv = random(1, length, 3, 16).requires_grad_()
    out = window_attention(qkv, None, slopes(1), window)
    for i in (0, 16, 31, 52, 69):
        (grad,) = torch.autograd.grad(out[0, i].sum(), qkv, retain_graph=True)
        q, k, v = grad[0].unbind(1)
        for x in (k, v):
            assert not x[: max(0, i - window)].any() and not x[i + 1 :].any()
        assert v[max(0, i - window) : i + 1].abs().sum(-1).all()
        assert not q[:i].any() and not q[i + 1 :].any()


@check()
def bias_stays_exact_far_from_the_start():
    """q = k = 0 and v = position: a wide window at large positions, where low precision would lose distances."""
    length, window = 290, 200
    qkv, position = torch.zeros(1, length, 3, 16, device=DEVICE), torch.arange(length, device=DEVICE)
    qkv[0, :, 2] = position[:, None]
    out = window_attention(qkv, None, torch.tensor([2.0**-9], device=DEVICE), window)
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance <= window)
    weights = (-(2.0**-9) * distance.double()).masked_fill(~seen, -torch.inf).softmax(-1)
    close(out[0, :, 0, 0], weights @ position.double())


@check()
def attention_refuses_heads_that_no_tile_holds():
    qkv, positions = random(1, 4, 3, 136), torch.zeros(1, 4, dtype=torch.int32, device=DEVICE)
    for call in (
        lambda: window_attention(qkv, None, slopes(1), 2),
        lambda: decode_attention(*split(qkv, 1), positions, positions, 2, slopes(1)),
    ):
        try:
            call()
        except PicoError as error:
            assert "heads 136 wide: the triton backend takes up to 128" in str(error)
        else:
            raise AssertionError("not refused")


@check()
def upstream_gradient_of_any_strides():
    qkv = random(1, 20, 6, 16).requires_grad_()
    out = window_attention(qkv, None, slopes(2), 6)
    for upstream in (torch.ones((), device=DEVICE).expand_as(out), random(16, 2, 20, 1).permute(3, 2, 1, 0)):
        strided, plain = (
            torch.autograd.grad(out, qkv, x, retain_graph=True)[0] for x in (upstream, upstream.contiguous())
        )
        assert torch.equal(strided, plain)


@check()
def tiles_are_powers_of_two_for_every_width():
    for dtype in TOLERANCE:
        for width in (16, 32, 64, 128):
            for window in (1, 64, 65, 4096):
                for backward in (False, True):
                    rows, columns, warps, _ = tiles(width, window, dtype, backward)
                    assert all(n >= 16 and n & (n - 1) == 0 for n in (rows, columns)) and warps in (4, 8)


@check(
    (1, 1, 1, 1, 16, 5, 100, torch.float32),
    (2, 3, 9, 3, 40, 37, 20, torch.float32),
    (2, 3, 9, 3, 40, 150, 140, torch.bfloat16),
    (3, 7, 8, 1, 24, 90, 64, torch.float32),
    (2, 9, 16, 1, 64, 140, 100, torch.float16),  # more than one tile of queries, and of keys
    (2, 4, 6, 6, 40, 70, 1, torch.float32),
    (2, 6, 6, 2, 40, 150, 140, torch.bfloat16),
    (2, 6, 6, 2, 64, 90, 32, torch.bfloat16),
    (1, 6, 4, 1, 128, 300, 280, torch.bfloat16),
    (2, 1, 2, 1, 16, 70, 0, torch.bfloat16),
    (2, 6, 2, 2, 16, 70, 1, torch.bfloat16),
)
def decode_equals_dense(batch, n, heads, kv_heads, width, ring, window, dtype):
    """Rings of keys and values side by side, in any order of slots, with empty ones and with padding queries."""
    torch.manual_seed(0)
    q = random(batch, n, heads, width, dtype=dtype)
    k, v = random(batch, ring, 2, kv_heads, width, dtype=dtype).unbind(2)
    end = torch.arange(batch, device=DEVICE)[:, None] * 1000 + ring  # rows are at different places
    order = torch.stack([torch.randperm(ring) for _ in range(batch)]).to(DEVICE)
    k_positions = (end - 1 - order).masked_fill(torch.rand(batch, ring, device=DEVICE) < 0.2, -1).int()
    q_positions = (end - n + torch.arange(n, device=DEVICE)).int()
    q_positions[0, n // 2] = -1
    if batch > 1:
        k_positions[1] = -1  # an empty cache
    out = decode_attention(q, k, v, k_positions, q_positions, window, slopes(heads))
    close(out, dense(q, k, v, q_positions, k_positions, window), dtype)
    assert not out[0, n // 2].any()


@check()
def decode_equals_the_whole_sequence():
    """A ring that wraps twice, fed a few at a time."""
    length, window, slots = 40, 9, 14
    qkv = random(2, length, 8, 16)
    q, k, v = split(qkv, 4)
    whole = window_attention(qkv, None, slopes(4), window)
    ring_k, ring_v = random(2, 2, slots, 2, 16)
    positions = torch.full((2, slots), -1, dtype=torch.int32, device=DEVICE)
    for start in range(0, length, 5):
        new = torch.arange(start, start + 5, device=DEVICE)
        ring_k[:, new % slots], ring_v[:, new % slots] = k[:, new], v[:, new]
        positions[:, new % slots] = new.int()
        out = decode_attention(q[:, new], ring_k, ring_v, positions, new.int().expand(2, -1), window, slopes(4))
        close(out, whole[:, new])


INDEX = [[0, 3, 4, 10, -1], [2, 5, -1, -1, -1], [-1] * 5]


def reference_gather(x, index):
    rows = torch.arange(len(x), device=DEVICE)[:, None]
    return x[rows, index.clamp(min=0)] * (index >= 0)[..., None]


def reference_scatter(x, latent, index, weight):
    rows = torch.arange(len(x), device=DEVICE)[:, None]
    update = weight[..., None] * (latent - reference_gather(x, index)) * (index >= 0)[..., None]
    return x.index_put((rows.expand_as(index), index.clamp(min=0)), update, accumulate=True)


@check(*((width, dtype, index) for width, index in ((8, torch.int64), (132, torch.int32)) for dtype in TOLERANCE))
def gather_and_scatter(width, dtype, index_dtype):
    """Inputs that are views, fp32 gates for any dtype."""
    torch.manual_seed(0)
    index = torch.tensor(INDEX, device=DEVICE)
    x = random(3, width, 11, dtype=dtype).mT.requires_grad_()
    latent = random(3, 5, width, dtype=dtype).requires_grad_()
    weight = torch.rand(5, 3, device=DEVICE).T.requires_grad_()
    inputs = x, latent, weight
    doubles = [t.detach().double().requires_grad_() for t in inputs]

    chosen = latent_gather(x, index.to(index_dtype))
    out = gated_scatter(x, latent, index.to(index_dtype), weight)
    wanted_chosen = reference_gather(doubles[0], index)
    wanted_out = reference_scatter(*doubles[:2], index, doubles[2])
    assert chosen.dtype == out.dtype == dtype
    assert torch.equal(chosen.double(), wanted_chosen)
    close(out, wanted_out, dtype)
    upstream = random(*chosen.shape, dtype=dtype), random(*out.shape, dtype=dtype)
    grads = torch.autograd.grad((chosen, out), inputs, upstream)
    wanted = torch.autograd.grad((wanted_chosen, wanted_out), doubles, [u.double() for u in upstream])
    for got, right, tensor in zip(grads, wanted, inputs):
        assert got.dtype == tensor.dtype
        close(got, right, dtype)


LOSSES = [  # heads, rows, width, vocabulary, share of the targets that are not scored
    (1, 1, 16, 264, 0.0),
    (3, 37, 24, 264, 0.3),
    (4, 65, 40, 264, 1.0),
    (2, 50, 24, 300, 0.1),
    (1, 9, 8, 6, 0.5),
    *[(4, 4099, 384, 264, 0.01)] * (not interpreted()),
]


@check((1, 1, 6), (3, 700, 12), (2, 40, 2), (1, 300, 16), (2, 5, 3), (2, 90, 3, 999))
def ngram_hashes_equal_the_formula(batch, length, longest, bos=BOS):
    """Exactly, with documents that begin anywhere."""
    text = torch.randint(264, (batch, longest - 1 + length), device=DEVICE)
    text[torch.rand(text.shape, device=DEVICE) < 0.1] = bos
    before = [text[:, longest - 1 - n : longest - 1 - n + length] for n in range(1, longest)]
    wanted = torch.stack(hashes(text[:, longest - 1 :], before, longest, bos), -1)
    assert torch.equal(ngram_hashes(text, longest, bos), wanted)


@check((3, 6, 0.0, 0.0), (3, 6, 0.8, 0.0), (5, 1, 0.8, 0.05), (200, 4, 2.0, 0.0), (2, 9, 1000.0, 0.0))
def sampling_equals_the_formulas(batch, n, temperature, min_p):
    """Drafts one after the other into slices of two buffers, then what a model that disagrees a little keeps of them.

    A number so close to a step of the cumulative sum that rounding decides is drawn once in millions.
    """
    torch.manual_seed(0)
    sampling = Sampling(temperature=temperature, min_p=min_p)
    banned = torch.from_numpy(sampling.banned(BYTES)).to(DEVICE)
    logits = random(batch, n, 3 * 264, dtype=torch.bfloat16)[:, :, 264:528] * 2
    u = torch.rand(batch, 2 * n, dtype=torch.float64, device=DEVICE)
    q, tokens = torch.zeros(batch, n, 264, device=DEVICE), torch.zeros(batch, 1 + n, dtype=torch.long, device=DEVICE)
    for k in range(n):
        draft(logits[:, k], u[:, k], temperature, min_p, banned, q[:, k], tokens[:, k + 1])
    wanted = torch_distribution(logits, sampling, banned)
    torch.testing.assert_close(q, wanted, rtol=1e-5, atol=1e-8)
    assert torch.equal(tokens[:, 1:], torch_draw(wanted, u[:, :n]))

    logits = logits + random(batch, n, 264, dtype=torch.bfloat16) / 2
    drafts = tokens[:, 1:n], q[:, : n - 1], u[:, n:]
    accepted, following = verify(logits, *drafts, temperature, min_p, banned)
    wanted = torch_accept_drafts(torch_distribution(logits, sampling, banned), *drafts)
    assert torch.equal(accepted, wanted[0]) and torch.equal(following, wanted[1])


@check()
def sampling_draws_only_what_is_possible():
    """At both ends of the unit interval and between two bytes; and where no correction is left."""
    logits = torch.full((5, 264), float("-inf"), device=DEVICE)
    logits[:, 3] = logits[:, 200] = 0.0
    logits[:, 220] = -25.0  # fp32 would lose it in the sum
    banned, q = torch.zeros(264, dtype=torch.bool, device=DEVICE), torch.zeros(5, 264, device=DEVICE)
    drawn, u = torch.zeros(5, dtype=torch.long, device=DEVICE), torch.tensor([0, 0.4, 0.6, 1, 1]).double()
    u[3] -= 1e-12
    draft(logits, u.to(DEVICE), 1.0, 0.0, banned, q, drawn)
    assert drawn.tolist() == [3, 3, 200, 220, 220]
    logits[:, 220] = float("-inf")
    draft(logits, torch.full_like(u, 0.5).to(DEVICE), 1.0, 0.0, banned, q, drawn)
    assert drawn.tolist() == [200] * 5
    two, q, u = logits[:4, None].expand(-1, 2, -1), q[:4, None] * (1 + 1e-6), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    u = u.repeat(2, 1).double().to(DEVICE)
    accepted, following = verify(two, drawn[:4, None], q, u, 1.0, 0.0, banned)
    assert accepted.tolist() == [0] * 4 and following[:, 0].tolist() == [3, 200, 3, 200]


@check(*((*case, dtype) for case in LOSSES for dtype in (torch.float32, torch.bfloat16)))
def loss_equals_the_formula(heads, rows, width, vocabulary, unscored, dtype):
    """Nats of each head, and gradients by an upstream gradient that differs from head to head."""
    torch.manual_seed(0)
    hidden = [random(rows, width, dtype=dtype).requires_grad_() for _ in range(heads)]
    weight = random(heads, vocabulary, width, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (1, rows + heads - 1), device=DEVICE)
    targets[torch.rand(targets.shape, device=DEVICE) < unscored] = -100
    wanted_targets = targets.unfold(1, heads, 1)[0]  # (R, N), overlapping
    if heads == 3:
        wanted_targets = wanted_targets.contiguous()
    upstream = torch.rand(heads, device=DEVICE)
    doubles = [x.detach().double().requires_grad_() for x in (weight, *hidden)]
    nats, first = head_nats(hidden, weight, wanted_targets)
    logits = torch.einsum("nrd,nvd->nrv", torch.stack(doubles[1:]), doubles[0])
    logits = logits + (logits.detach().to(dtype) - logits.detach()) * (dtype != torch.float32)  # rounded as stored
    wanted = [torch.nn.functional.cross_entropy(x, y, reduction="sum") for x, y in zip(logits, wanted_targets.T)]
    close(nats, torch.stack(wanted), dtype)
    close(first, torch.nn.functional.cross_entropy(logits[0], wanted_targets[:, 0], reduction="none"), dtype)
    grads = torch.autograd.grad(nats @ upstream, (weight, *hidden))
    wanted = torch.autograd.grad(torch.stack(wanted) @ upstream.double(), doubles)
    for got, right in zip(grads, wanted):
        assert got.dtype == dtype
        close(got, right, dtype, scale=rows**0.5 / 8)  # the weight's is a sum over the rows


@check()
def loss_of_a_device_equals_that_of_a_cpu():
    torch.manual_seed(0)
    hidden, weight = [torch.randn(2, 300, 64) for _ in range(3)], torch.randn(3 * 264, 64)
    targets, results = torch.randint(-1, 264, (2, 302)), []
    for device in ("cpu", DEVICE):
        leaves = [x.to(device).requires_grad_() for x in (weight, *hidden)]
        loss, *nats = multi_byte_loss(leaves[1:], leaves[0], targets.to(device))
        results.append([x.cpu() for x in (loss, *nats, *torch.autograd.grad(loss, leaves))])
    for here, there in zip(*results):
        torch.testing.assert_close(here, there, atol=1e-6, rtol=1e-4)


@check()
def kernels_inside_torch_compile():
    """One graph, no break, same results: what torch.compile needs."""
    index = torch.tensor(INDEX, device=DEVICE)
    qkv, sharpness = random(3, 11, 3, 16).requires_grad_(), torch.ones(1, device=DEVICE, requires_grad=True)
    positions = torch.arange(11, dtype=torch.int32, device=DEVICE).expand(3, -1)

    def layer(qkv, sharpness):
        x = window_attention(qkv, sharpness, slopes(1), 4).flatten(2)
        x = gated_scatter(x, latent_gather(x, index).tanh(), index, torch.full((3, 5), 0.3, device=DEVICE))
        return x + decode_attention(*split(qkv, 1), positions, positions, 3, slopes(1)).flatten(2)

    results = []
    for function in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        out = function(qkv, sharpness)
        results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, sharpness))])
    for eager, compiled in zip(*results):
        torch.testing.assert_close(eager, compiled)


@check()
def model_on_the_kernels_equals_the_dense_one():
    """Loss and gradients of a whole model, and its logits when it reads through the cache, rows routed differently."""
    torch.manual_seed(0)
    config = preset("tiny", dim=32, fb_num_blocks=1, latent_num_blocks=1, next_tokens=2, fb_att_window_size=5)
    model, tokens = Pico(config), torch.randint(256, (2, 40))
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():  # what starts at zero would prove nothing
                p.normal_(std=0.2)
    model, tokens, results = model.to(DEVICE), tokens.to(DEVICE), []  # the same numbers on every device
    for model.attention_backend in ("dense", "triton"):
        loss = model.train()(tokens[:, :38], targets=tokens[:, 1:]).loss
        grads = torch.autograd.grad(loss, [p for n, p in model.named_parameters() if not n.startswith("router")])
        cache, pieces = Cache(config, 2, device=DEVICE), []
        with torch.inference_mode():
            model.eval()
            for piece in tokens.split((20, 1, 19), dim=1):
                pieces.append(model(piece, cache=cache).logits)
        assert model(tokens).routed.sum(1).unique().numel() == 2
        results.append([loss, *grads, torch.cat(pieces, 1)])
    for dense_result, triton_result in zip(*results):
        torch.testing.assert_close(triton_result, dense_result, atol=1e-5, rtol=1e-4)


def failure(name: str) -> str | None:
    """What is wrong by the check of that name, None if nothing is."""
    try:
        CHECKS[name]()
    except Exception:
        return traceback.format_exc(limit=-2)


def failures(jobs: int = 1, names: Iterable[str] = ()) -> Iterator[tuple[str, str | None]]:
    """(name, failure) of these checks, or all, in processes of their own: a failing one may leave its own no GPU."""
    names = list(names) or list(CHECKS)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from zip(names, pool.map(failure, names))


if __name__ == "__main__":
    ran = failed = 0
    for name, wrong in failures(int((sys.argv[1:] or [1])[0]), sys.argv[2:]):
        ran, failed = ran + 1, failed + (wrong is not None)
        print(f"FAILED {name}\n{wrong}" if wrong else f"ok {name}", flush=True)
    print(f"{ran - failed} of {ran} checks passed")
    sys.exit(failed > 0)
