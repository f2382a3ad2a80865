"""Law 6: bits per byte = all bits of head 0, EOS's included, over raw bytes; each byte once; and causally (law 1)."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import first_fast, random_tokens, tiny
from hypothesis import given
from hypothesis import strategies as st

from pico.base.errors import PicoError
from pico.base.presets import preset
from pico.base.routers import ROUTERS
from pico.base.symbols import BOS, EOS, VOCABULARY
from pico.data import bpe
from pico.data.documents import collect
from pico.decode.generation import generate
from pico.evaluate.score import score, traces
from pico.model.gpt import GPT

TEXTS = [b"The cat sat.", b"", b"A", bytes(range(0, 256, 5)), "Zoë sang, à voix basse".encode()]


@torch.no_grad()
def plain(model, data, context_len, stride, **options):
    """Byte by byte: the surprisal of each, and of EOS, given what the first window that reaches it holds before it."""
    alphabet, bits = model.alphabet, []
    ids = [alphabet.bos, *alphabet.encode(data).tolist(), alphabet.eos]
    for target in range(1, len(ids)):
        start = 0
        while target > start + context_len:
            start += stride
        out = model(torch.tensor([ids[start:target]]), start=torch.tensor([start]), **options)
        logits = out.logits[0, -1, 0].double()
        bits.append((logits.logsumexp(0) - logits[ids[target]]).item() / math.log(2))
    return bits


@pytest.mark.parametrize("disable_latent", [False, True])
@pytest.mark.parametrize("router", first_fast("topk", *(name for name in ROUTERS if name != "topk")))
def test_bits_per_byte_by_hand(router, disable_latent):
    """Each byte by a forward that has not seen it: routing that looked ahead would show."""
    model = tiny(router)
    by_hand = [plain(model, text, 10, 5, disable_latent=disable_latent) for text in TEXTS]
    result = score(model, TEXTS, 10, disable_latent=disable_latent)
    assert result.document_bits == pytest.approx([sum(bits) for bits in by_hand], rel=1e-4)
    assert result.bits_per_byte == pytest.approx(sum(map(sum, by_hand)) / sum(map(len, TEXTS)), rel=1e-4)
    assert (result.context_len, result.stride) == (10, 5)


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_every_byte_is_scored_once_for_any_window(documents, context_len, stride, batch_size, seed):
    """The model sees each window as it would alone, and every surprisal lands at its byte."""
    stride, model = min(stride, context_len), tiny("threshold", seed=seed)
    for trace, data in zip(traces(model, documents, context_len, stride, batch_size=batch_size), documents):
        assert trace.data == data
        assert len(trace.bits) == len(trace.weight) == len(trace.routed) == len(data) + 1
        np.testing.assert_allclose(trace.bits, plain(model, data, context_len, stride), rtol=1e-3, atol=1e-4)
        assert trace.head_count.tolist() == [max(0, len(data) + 1 - k) for k in range(4)]


def test_loss_perplexity_and_accuracy_are_of_the_next_symbol():
    """Of each byte, and of EOS, by the first head."""
    model = tiny()
    found = list(traces(model, TEXTS, 16))
    result = score(model, TEXTS, 16)
    symbols = sum(len(text) + 1 for text in TEXTS)
    assert result.symbols == symbols
    assert result.loss == pytest.approx(math.log(2) * sum(trace.bits.sum() for trace in found) / symbols)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.accuracy == pytest.approx(sum(trace.correct.sum() for trace in found) / symbols)


def test_tokens_cost_and_bytes_count():
    """A model of tokens: each token of the tokenizer's own spelling of a text is scored once, over the text's bytes."""
    text = "The cat sat, à voix basse. The cat sang. ".encode() * 9
    tokenizer = bpe.BPE("t.json", json.loads(bpe.train_tokenizer(collect([text]), 300)), "")
    torch.manual_seed(0)
    model = GPT(preset("gpt-tiny", dim=16, num_blocks=2, head_dim=8, vocab_size=tokenizer.size)).eval()
    model.alphabet = tokenizer
    uniform = score(model, [text, b""], 10)  # as it begins
    tokens = len(tokenizer.encode(text))
    assert uniform.symbols == tokens + 2 and uniform.perplexity == pytest.approx(tokenizer.size)
    assert tokens < len(text) / 2
    assert uniform.bits_per_byte == pytest.approx((tokens + 2) / len(text) * math.log2(tokenizer.size))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    by_hand = [plain(model, data, 10, 5) for data in TEXTS]
    result = score(model, TEXTS, 10)
    assert result.document_bits == pytest.approx([sum(bits) for bits in by_hand], rel=1e-4)
    assert result.document_bytes == [len(data) for data in TEXTS] and result.routed == 0


def test_the_denominator_is_raw_bytes_and_eos_costs():
    model = tiny()
    result = score(model, TEXTS, 64)
    assert result.bytes == sum(map(len, TEXTS)) and result.document_bytes == [len(t) for t in TEXTS]
    assert result.read == sum(len(t) + 1 for t in TEXTS)  # BOS is read too
    empty = score(model, [b""], 64).document_bits[0]  # nothing but EOS
    logits = model(torch.tensor([[BOS]])).logits[0, 0, 0]
    assert empty == pytest.approx(-logits.log_softmax(0)[EOS].item() / math.log(2), rel=1e-4)
    with torch.no_grad():  # EOS made likely makes the same bytes cheaper
        model.heads.weight[EOS] = 0
        dear = score(model, [b"abc"], 64).document_bits[0]
        model.heads.weight[EOS] = 10 * model.heads.weight[EOS + 1]
    trace = next(traces(model, [b"abc"], 64))
    assert trace.bits.sum() != pytest.approx(dear, rel=1e-3)


def test_a_uniform_model_scores_the_size_of_the_vocabulary():
    """log2 V for each of n bytes and EOS: (n + 1) / n log2 V bits per byte."""
    model = tiny()
    torch.nn.init.zeros_(model.heads.weight)
    for n in (1, 100):
        assert score(model, [b"x" * n], 32).bits_per_byte == pytest.approx((n + 1) / n * math.log2(VOCABULARY))


def test_max_bytes_takes_the_first_bytes():
    model = tiny()
    whole = score(model, TEXTS, 16)
    assert score(model, TEXTS, 16, max_bytes=10**9).document_bits == whole.document_bits
    part = score(model, TEXTS, 16, max_bytes=20)
    assert part.bytes == 20 and part.document_bytes == [12, 0, 1, 7]
    assert part.document_bits[:3] == pytest.approx(whole.document_bits[:3], rel=1e-4)
    assert part.document_bits[3] == pytest.approx(sum(plain(model, TEXTS[3][:7], 16, 8)), rel=1e-4)

    def endless():
        while True:
            yield b"more"

    assert score(model, endless(), 16, max_bytes=1001).bytes == 1001


def test_training_mode_does_not_change_the_score():
    """The original validated with the routing of training, which sees the future."""
    for router in ("topk", "threshold"):
        model = tiny(router)
        wanted = score(model, TEXTS, 16)
        model.train()
        found = score(model, TEXTS, 16)
        assert (found.document_bits, found.routed) == (wanted.document_bits, wanted.routed)
        assert model.training and not model.router.seen.any()  # and the controller has not learnt from it
        model(random_tokens(2, 200)).logits.sum().backward()


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("capacity", [0.5, 1 / 3])  # every third byte: 3 divides neither window nor stride
def test_evaluation_routes_as_generation_over_several_windows(router, capacity):
    """A window that begins in the middle of a text counts on as generation does, and costs what one long read does."""
    model = tiny(router, latent_capacity_factor=capacity, latent_num_blocks=1)
    data = bytes(random_tokens(400).tolist())
    (trace,) = traces(model, [data], 100, 20)
    steps = list(generate(model, data, max_bytes=1, echo=True))[: len(data)]
    assert trace.routed[1:].tolist() == [step.routed for step in steps]
    np.testing.assert_allclose(trace.weight[1:], [step.weight for step in steps], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        out = model(torch.tensor([[BOS, *data]]))
    assert trace.routed.tolist() == out.routed[0].tolist()
    nats = torch.nn.functional.cross_entropy(out.logits[0, :, 0], torch.tensor([*data, EOS]), reduction="none")
    np.testing.assert_allclose(trace.bits, nats / math.log(2), rtol=1e-3, atol=1e-3)
    assert score(model, [data] * 3, 100).routed_fraction == pytest.approx(out.routed.float().mean().item())
    assert score(model, [data], 100, disable_latent=True).routed_fraction == 0


@pytest.mark.parametrize("chained", [True, False])
def test_every_head_is_scored_as_it_drafts(chained):
    """Head k by `draft_logits`, a byte at a time: shown the true bytes before the one it predicts."""
    model, data = tiny("topk", chained_heads=chained), b"heads look further and further ahead"
    ids = [BOS, *data, EOS]
    (trace,) = traces(model, [data], 100)
    with torch.no_grad():
        stream = model(torch.tensor([ids[:-1]])).stream
    nats, right = [0.0] * 4, [0] * 4
    for t in range(len(data) + 1):
        history = torch.tensor([[BOS] * model.config.history + ids[: t + 1]])[:, -model.config.history :]
        for k in range(min(4, len(data) + 1 - t)):
            drawn = torch.tensor([ids[t + 1 : t + 1 + k]], dtype=torch.long)
            with torch.no_grad():
                logits = model.draft_logits(stream[:, t], drawn, history)[0] if k else model.heads(stream[0, t])[:264]
            nats[k] -= logits.log_softmax(0)[ids[t + 1 + k]].item()
            right[k] += logits.argmax().item() == ids[t + 1 + k]
    assert trace.head_bits.tolist() == pytest.approx([n / math.log(2) for n in nats], rel=1e-4)
    assert trace.head_correct.tolist() == right
    total = score(model, [data, data], 100)
    assert total.head_bits[2] == pytest.approx(2 * trace.head_bits[2], rel=1e-4)
    assert total.document_bits[0] == pytest.approx(trace.head_bits[0], rel=1e-4)


def test_heads_past_the_end_of_a_window_are_shown_what_is_there():
    """In windows that end in the middle of a text the last positions' drafts lie beyond the window."""
    model, data = tiny("stride", fb_num_blocks=0, latent_num_blocks=1, latent_att_window_size=1), b"Zoe sang " * 30
    (whole,), (cut,) = traces(model, [data], 1000), traces(model, [data], 32, 8)
    np.testing.assert_allclose(cut.head_bits, whole.head_bits, rtol=1e-3)


@pytest.mark.parametrize("context_len", [1, 2, 3])
def test_a_window_may_be_shorter_than_the_heads_look(context_len):
    model = tiny(next_tokens=8)
    (trace,) = traces(model, [b"a short text"], context_len)
    np.testing.assert_allclose(trace.bits, plain(model, b"a short text", context_len, 1), rtol=1e-3)
    tokens = random_tokens(2, context_len + 8)
    out = model.train()(tokens[:, :context_len], targets=tokens[:, 1:])
    out.loss.backward()
    assert out.head_nll.isfinite().all() and model.chain[-1].weight.grad is not None


@pytest.mark.parametrize("documents", [[], [b""], [b"", b""]])
def test_no_bytes_are_a_line_not_a_division_by_zero(documents):
    result = score(tiny(), documents, 16)
    assert result.bytes == 0 and result.read == len(documents)
    with pytest.raises(PicoError, match="nothing to score"):
        _ = result.bits_per_byte
    with pytest.raises(PicoError, match="max-bytes = 0"):
        score(tiny(), [b"text"], 16, max_bytes=0)


def test_many_documents_come_back_in_order():
    model = tiny(fb_num_blocks=1, latent_num_blocks=0)
    documents = [b"%d" % i * (1 + i % 7) for i in range(300)]  # several handfuls, batches of mixed lengths
    found = list(traces(model, documents, 8, batch_size=4))
    assert [t.data for t in found] == documents
    for i in (0, 123, 299):
        np.testing.assert_allclose(found[i].bits, plain(model, documents[i], 8, 4), rtol=1e-3)


@pytest.mark.parametrize("stride", [-1, 17])
def test_a_stride_that_passes_bytes_over_is_refused(stride):
    with pytest.raises(PicoError, match=f"stride = {stride}: expected 1 to 16"):
        score(tiny(), [b"x" * 50], 16, stride)
