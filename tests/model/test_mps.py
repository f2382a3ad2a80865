"""What runs on a Mac's GPU, asked of torch's own table of operators and the backends that have a kernel for each.

On a CPU, a dispatch mode sees every operator that training, evaluation and batched generation call and refuses float64,
which MPS does not have, and operators without an MPS kernel. Composite operators count by what they are made of.
"""

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from helpers import first_fast, random_tokens, texts, tiny, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import TWINS

import pico.decode.torch_reader
import pico.model.causal
import pico.model.gpt
from pico.base.config import TrainConfig
from pico.base.routers import ROUTERS
from pico.decode.generation import generate
from pico.decode.sampling import torch_draw
from pico.decode.torch_reader import widest
from pico.evaluate.score import score
from pico.lab.bench import synchronized_clock
from pico.model.gpt import GPT
from pico.model.pico import Pico
from pico.train.optimizers import build_optimizers

# What SOAP leaves to the CPU when the model is on MPS: the eigenvectors of its first step, a QR every tenth (soap.py).
ON_THE_CPU = {"_linalg_eigh", "geqrf", "linalg_householder_product"}
CONVERSIONS = {"to.dtype", "_to_copy", "detach", "alias", "lift_fresh", "resolve_conj", "resolve_neg"}


def backends() -> dict[str, set[str]]:
    """{operator: the backends, or kinds of composition, that it has a kernel for}, of the installed torch."""
    file = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    table = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    table = {entry["func"].split("(")[0]: entry for entry in table}

    def keys(entry: dict) -> set[str]:
        if "structured_delegate" in entry:
            return keys(table[entry["structured_delegate"]])
        given = entry.get("dispatch", {"CompositeImplicitAutograd": None})
        return {key.strip() for several in given for key in several.split(",")}

    return {name: keys(entry) for name, entry in table.items()}


BACKENDS = backends()


class OnMPS(TorchDispatchMode):
    """Refuses what would fail on MPS. float64 is allowed on the host: in what came by `.cpu()` or from numpy."""

    def __init__(self):
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        full = f"{name}.{function._schema.overload_name}".removesuffix(".")
        keys = BACKENDS.get(full, set())
        if full not in CONVERSIONS and "CompositeImplicitAutograd" in keys and "MPS" not in keys:
            with self:
                if (made := function.decompose(*args, **kwargs)) is not NotImplemented:
                    return made
        out = function(*args, **kwargs)
        self.called.add(full)
        if "::" not in name and name not in ON_THE_CPU:
            assert keys & {"MPS", "CompositeExplicitAutograd", "CompositeImplicitAutograd"} or any(
                key.startswith("CompositeExplicit") for key in keys
            ), f"{full} has no kernel on MPS"
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_host = full == "lift_fresh" or any(getattr(x, "on_host", False) for x in inputs)
        for x in [*inputs, *tree_leaves(out)]:
            if isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128):
                assert on_host and full in CONVERSIONS, f"{full} of float64, which MPS does not have"
                x.on_host = True
        return out


@pytest.fixture
def mps(monkeypatch):
    """The mode, in a world in which the device is taken for MPS and `.cpu()` leaves it."""

    def leave(x):
        copy = x.clone()
        copy.on_host = True
        return copy

    monkeypatch.setattr(torch.Tensor, "cpu", leave)
    for module in (pico.decode.torch_reader, pico.model.gpt):
        monkeypatch.setattr(module, "widest", lambda device: torch.float32)
    for module in (pico.model.causal, pico.model.gpt):
        monkeypatch.setattr(module, "on_cpu", lambda x: False)
    with OnMPS() as mode, sdpa_kernel(SDPBackend.MATH):
        yield mode


@pytest.mark.parametrize("optimizer", ["soap", "adamw", "muon"])
def test_training_runs_on_mps(mps, optimizer):
    model = Pico(tiny_config("topk")).train()
    model.ngrams.count([random_tokens(2, 60)], 120)
    model.set_dropout(0.1, torch.tensor(1))
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    for _ in range(3):
        tokens = random_tokens(2, 64)
        out = model(tokens[:, :60], targets=tokens[:, 1:])
        (out.loss + 0.1 * out.router_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.dense_parameters(), 1.0)
        for each in optimizers:
            each.step()
            each.zero_grad()
        model.end_step()
    assert {"mm", "linalg_vector_norm", "embedding_dense_backward"} <= mps.called
    assert ("geqrf" in mps.called) == (optimizer == "soap")


@pytest.mark.parametrize("router", first_fast("topk", *(name for name in ROUTERS if name != "topk")))
def test_evaluation_and_generation_run_on_mps(mps, router):
    model = tiny(router).train()
    model(random_tokens(2, 40)).router_weight.sum().backward()
    model.end_step()
    assert score(model, [b"abc" * 30, b""], 32).bits_per_byte > 0
    options = dict(top_k=5, top_p=0.9, min_p=0.01) if router == "topk" else dict(temperature=0)
    assert len(texts(generate(model, [b"a", b"bcd"], max_bytes=9, **options))) == 2
    assert "cumsum" in mps.called


@pytest.mark.parametrize("name", first_fast(*TWINS))
def test_a_dense_decoder_runs_on_mps(mps, name):
    """Training by running each block again, evaluation past the context, and generation."""
    model = GPT(TWINS[name]).train()
    model.set_dropout(0.1, torch.tensor(1))
    model.gradient_checkpointing = True
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon"))
    for _ in range(3):
        tokens = random_tokens(2, 33)
        model(tokens[:, :32], targets=tokens[:, 1:]).loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
    assert score(model, [b"abc" * 30, b""], 32).bits_per_byte > 0
    assert len(texts(generate(model, [b"a", b"bcd"], max_bytes=40, top_k=5))) == 2
    assert model.eval()(random_tokens(2, 70)).logits.isfinite().all()


def test_the_mode_sees_what_it_should(mps):
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(3).double()
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="no kernel on MPS"):
        torch.special.ndtri(torch.tensor(0.3))
    torch.zeros(3).cpu().double()


def test_a_draw_in_fp32_is_of_something_possible():
    """0.99999999 is 1 in fp32, and would fall behind the last byte that has a probability."""
    p = torch.zeros(4, 300)
    p[:, [3, 7]] = torch.tensor([[0.5, 0.5], [1e-3, 0.1], [1.0, 1e-7], [0.7, 1.9]])
    u = torch.tensor([0.0, 0.5, 1 - 1e-9], dtype=torch.float64).float()
    for row in p:
        assert set(torch_draw(row.expand(3, -1), u).tolist()) <= {3, 7}


def test_the_clock_waits_for_any_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for name in ("mps", "cuda", "cpu"):
        synchronized_clock(torch.device(name))
    assert waited == [torch.device("mps"), torch.device("cuda")]
    assert [widest(torch.device(name)) for name in ("mps", "cpu")] == [torch.float32, torch.float64]
