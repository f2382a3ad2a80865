"""Generation with a dense decoder: nothing is drafted; a symbol is a byte or a token."""

from collections import Counter

import pytest
import torch
from helpers import OneDevice, chi_square, joint, random_tokens, texts, tiny_gpt, tiny_gpt_config
from torch._subclasses import FakeTensorMode

import pico.decode.torch_reader
from pico.base.config import PREFILL
from pico.base.graphs import run
from pico.base.symbols import BOS, BYTES, Alphabet
from pico.decode.generation import generate
from pico.decode.sampling import Sampling
from pico.decode.torch_reader import TorchDecoder, TorchReader
from pico.model.gpt import GPT
from pico.model.pico import plain_generate

RAGGED = [b"", b"A", b"one two", b"\xff\x00\xfe" * 40]
TOKENS = [*BYTES.table[:256], b"th", b"the ", b"\xe2\x82", b" \xe2", b"ab", b"abc", b"", b""]


class Pairs(Alphabet):
    """An alphabet of tokens: the longest that fits."""

    unit = "token"

    def encode(self, data):
        ids, at = [], 0
        while at < len(data):
            ids.append(max((len(t), i) for i, t in enumerate(self.table) if t and data.startswith(t, at))[1])
            at += len(self.table[ids[-1]])
        return torch.tensor(ids, dtype=torch.long).numpy()


def tokens_model():
    model = tiny_gpt(vocab_size=len(TOKENS), tokenizer="bpe")
    model.alphabet = Pairs(TOKENS, {"bos": 262, "eos": 263})
    with torch.no_grad():
        model.head.weight[256:262] *= 3  # tokens of several bytes are often likely
    return model


@pytest.mark.parametrize(
    "change", [{}, dict(window=3, gate="query", qk_norm="before"), dict(ngram_max=3, ngram_rows=32)]
)
def test_greedy_decoding_is_the_full_forward_in_a_ragged_batch(change):
    """Alone and together, far over max_context; speculation has nothing to do."""
    model, long = tiny_gpt(**change), bytes(random_tokens(PREFILL + 30).tolist())
    run = generate(model, [*RAGGED, long], max_bytes=30, temperature=0)
    together = texts(run)
    assert run.stats["bytes_per_forward"] == 1 and run.stats["acceptance"] == [] and run.stats["routed_fraction"] == 0
    for prompt, text in zip([*RAGGED, long], together):
        assert list(text) == plain_generate(model, [BOS, *prompt], 30)
        assert texts(generate(model, prompt, max_bytes=30, temperature=0, speculative=False)) == [text]


@pytest.mark.parametrize("num_samples", [1, 2])
def test_a_text_longer_than_the_context_slides(num_samples):
    model = tiny_gpt(max_context=5)
    text = texts(generate(model, b"ab", max_bytes=60, temperature=0, num_samples=num_samples))
    assert [list(each) for each in text] == [plain_generate(model, [BOS, *b"ab"], 60)] * num_samples


def test_generates_from_its_own_joint_distribution():
    options = dict(temperature=0.7, top_k=5)
    model = tiny_gpt()
    expected = joint(model, b"ab", 3, **options)
    run = generate(model, b"ab", max_bytes=3, num_samples=3000, seed=1, **options)
    statistic, limit = chi_square(Counter(texts(run)), expected, 3000)
    assert statistic < limit and len(expected) > 20


def test_tokens_are_steps_of_several_bytes():
    """The prompt is encoded, its last token too; the text ends exactly at max_bytes, within a token."""
    model, cut = tokens_model(), 0
    prompt = "the ab\u20ac".encode()
    ids = [262, *model.alphabet.encode(prompt).tolist()]
    assert [TOKENS[i] for i in ids] == [b"", b"the ", b"ab", b"\xe2\x82", b"\xac"]
    whole = b"".join(TOKENS[i] for i in plain_generate(model, ids, 40))
    assert len(whole) > 50
    for max_bytes in range(1, 30):
        run = generate(model, prompt, max_bytes=max_bytes, temperature=0, echo=True)
        steps = list(run)
        assert [step.id for step in steps if step.prompt] == ids[1:] and run.prompts == [prompt]
        new = [step for step in steps if not step.prompt]
        assert b"".join(step.bytes for step in new) == whole[:max_bytes] and run.ended == ["length"]
        assert all(TOKENS[step.id].startswith(step.bytes) for step in new)
        cut += new[-1].bytes != TOKENS[new[-1].id]
        assert (run.stats["bytes"], run.stats["symbols"]) == (max_bytes, len(new))
    assert cut
    stop = whole[9:12]
    assert (
        texts(generate(model, [prompt, b"x"], max_bytes=40, temperature=0, stop=stop))[0] == whole[: whole.find(stop)]
    )


def test_stop_symbols_are_those_of_the_alphabet():
    model = tokens_model()
    with torch.no_grad():
        model.head.weight[263] = 50 * model.head.weight[97]
    run = generate(model, [b"", b"ab"], max_bytes=40, temperature=2.0)
    assert all(step.id < 262 and step.bytes for step in run) and "end" in run.ended
    endless = generate(model, [b"", b"ab"], max_bytes=40, temperature=2.0, stop_symbols=())
    assert list(map(len, texts(endless))) == [40, 40]


def test_nothing_in_a_step_waits_for_the_gpu(monkeypatch):
    monkeypatch.setattr(pico.decode.torch_reader, "Graphed", lambda device, **_: run)
    with FakeTensorMode(), torch.device("cuda"), torch.inference_mode():
        model = GPT(tiny_gpt_config(qk_norm="before", gate="query"), torch.bfloat16).eval()
        decoder = TorchDecoder(TorchReader(model, 2), [[BOS, 1], [BOS, 2]], 0, Sampling(repetition_penalty=1.2))
        with OneDevice():
            record = decoder.run(decoder.step, decoder.tokens, decoder.u)
        assert record.shape == (2, 5) and record.is_cuda
