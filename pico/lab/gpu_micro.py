"""Parts on a GPU, for gpu.py: the machine's limits, the kernels' checks, attention, and what choices rest on."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pico.lab.gpu_clock import Section, clock
from pico.model.attention import alibi_slopes, attention, available_backends, split_heads
from pico.model.loss import multi_byte_loss
from pico.model.norm import norm
from pico.train import orthogonal

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {  # batch, length, query heads, key heads, head width, window; 64k bytes, of which a quarter is routed
    "s local": (64, 1024, 6, 2, 64, 32),
    "m local": (64, 1024, 12, 4, 64, 64),
    "s latent of 4k bytes": (16, 1024, 6, 2, 64, 512),
    "m latent of 4k bytes": (16, 1024, 12, 4, 64, 1024),
    "s latent": (64, 256, 6, 2, 64, 512),
    "m latent": (64, 256, 12, 4, 64, 1024),
    "9 heads of 40, local": (64, 1024, 9, 3, 40, 32),
}
QR_SIDES = {384: 24, 372: 24, 768: 24, 1024: 8, 2048: 4, 4096: 1}  # side -> matrices refreshed together


def machine(section: Section) -> None:
    """What this GPU does with a large bf16 matmul and a large copy: the limits that all else is held against."""
    size, device = 256 if section.smoke else 8192, section.device
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    source = torch.empty(2**16 if section.smoke else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if section.cuda:
        import triton

        facts |= {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        facts |= {"triton": triton.__version__, "cuda": torch.version.cuda}
    section.note(**facts, backends=available_backends(device))
    section.note(flops=2e3 * size**3 / clock(section, torch.mm, a, b)["ms"])
    section.note(bytes=2e3 * source.numel() / clock(section, target.copy_, source)["ms"])


# --- kernels ----------------------------------------------------------------------------------------------------------

SMOKE_CHECKS = ("tiles_are_powers_of_two_for_every_width", "attention_refuses_heads_that_no_tile_holds")


def kernels(section: Section) -> None:
    """Every check of kernel_checks.py on this hardware; one that finds its GPU poisoned is tried again alone."""
    jobs = max(1, min(12, (os.cpu_count() or 1) - 2))
    names = SMOKE_CHECKS if section.smoke else ()
    passed, failed = checks(section, 1 if section.smoke else jobs, *names)
    for name in [name for name, wrong in failed.items() if "CUDA error" in wrong]:
        again, still = checks(section, 1, name)
        passed += again
        failed = {key: wrong for key, wrong in failed.items() if key != name} | still
        section.note(passed=len(passed), failed=failed)


def checks(section: Section, jobs: int, *names: str) -> tuple[list[str], dict[str, str]]:
    """(names that passed, {name: why it failed}) of the kernel checks so named, or all; noted as they come."""
    command = [sys.executable, "-u", str(ROOT / "tests" / "model" / "kernel_checks.py"), str(jobs), *names]
    interpret = {"TRITON_INTERPRET": "1"} if not section.cuda else {}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **interpret}
    passed, failed, name = [], {}, None
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        for line in run.stdout or ():
            word, _, rest = line.rstrip().partition(" ")
            if word == "ok":
                passed.append(rest)
            elif word == "FAILED":
                name, failed[rest] = rest, ""
            elif name and not line.rstrip().endswith("checks passed"):
                failed[name] = (failed[name] + line)[-600:]
            elif not passed:  # it did not begin: what Python says about that
                failed["the checks themselves"] = (failed.get("the checks themselves", "") + line)[-600:]
            if word in ("ok", "FAILED") or run.poll() is not None:
                section.note(passed=len(passed), failed=failed)
    section.note(passed=len(passed), failed=failed)
    return passed, failed


# --- attention --------------------------------------------------------------------------------------------------------


def inputs(section: Section, batch, length, heads, kv_heads, width):
    """Queries, keys and values as the model makes them, one tensor, the sharpness, and an upstream gradient."""

    def draw(heads: int):
        return torch.randn(batch, length, heads, width, dtype=torch.bfloat16, device=section.device)

    qkv, sharpness = draw(heads + 2 * kv_heads), torch.full((1,), 1.5, device=section.device)
    return qkv.requires_grad_(), sharpness.requires_grad_(), draw(heads)


def varlen(q, k, v, window):
    """torch's own kernel for FlashAttention 2, without the bias: a yardstick of speed alone."""
    from torch.nn.attention.varlen import varlen_attn

    batch, length = q.shape[:2]
    ends = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=q.device)
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    out = varlen_attn(*flat, ends, ends, length, length, window_size=(window, 0))
    assert isinstance(out, torch.Tensor), "it was not asked for the log-sum-exp"
    return out.view_as(q)


def attend_by(backend, qkv, sharpness, heads, window):
    """By its first word; then "alone" is without QK-norm, "after" with torch's."""
    name, _, how = backend.partition(", ")
    if how == "after torch's QK-norm":
        qkv, sharpness = torch.cat(split_heads(qkv, sharpness, heads), 2), None
    if name == "varlen":
        return varlen(*split_heads(qkv, None, heads), window)
    return attention(qkv, None if how == "alone" else sharpness, heads, window, name)


def forward(backend, qkv, sharpness, upstream, window):
    return attend_by(backend, qkv, sharpness, upstream.shape[2], window).detach()


def both(backend, qkv, sharpness, upstream, window):
    return torch.autograd.grad(attend_by(backend, qkv, sharpness, upstream.shape[2], window), qkv, upstream)


OWN = ("triton", "triton, alone", "triton, after torch's QK-norm")
YARDSTICKS = {"flex, alone": 4, "varlen": 2}  # in so many of the layers: each shape of flex is seconds of compilation


def attention_speed(section: Section) -> None:
    """One layer's attention, forward and with backward, beside what memory or matmul allows (of_limit is 1 at best)."""
    own, yardsticks = (OWN, YARDSTICKS) if section.cuda else (("blocked", "blocked, alone"), {})
    entries: dict[str, dict] = {}
    with torch._dynamo.config.patch(recompile_limit=64):  # flex is compiled for every shape
        for backend, layers in [(backend, len(LAYERS)) for backend in own] + [*yardsticks.items()]:
            for name in list(LAYERS)[:layers]:
                for run in (forward, both):
                    key = f"{name}, {'forward' if run is forward else 'forward and backward'}"
                    entry = entries.setdefault(key, limits(section, LAYERS[name], run is both))
                    entry[backend] = section.attempt(layer, section, run, backend, LAYERS[name])
                    if "ms" in entry[backend]:
                        entry[backend]["of_limit"] = round(entry["limit_ms"] / entry[backend]["ms"], 3)
                    flex, triton = entry.get("flex, alone", {}), entry.get("triton, alone", {})
                    if "ms" in flex and "ms" in triton:
                        entry["flex_over_triton"] = round(flex["ms"] / triton["ms"], 2)
                    section.note(**{key: entry})


def layer(section: Section, run, backend: str, shape: tuple) -> dict:
    """The time of one layer of LAYERS."""
    *sizes, window = (1, 40, *shape[2:]) if section.smoke else shape
    qkv, sharpness, upstream = inputs(section, *sizes)
    return clock(section, run, backend, qkv, sharpness, upstream, window)


def limits(section: Section, shape: tuple, backward: bool) -> dict:
    """What memory and matmuls allow: q, k, v read and out written; a backward reads and writes twice as much."""
    batch, length, heads, kv_heads, width, window = shape
    seen = min(window, length - 1)
    work = 4 * batch * heads * width * length * (seen + 1) * (1 - seen / length / 2)
    traffic = 4 * batch * length * width * (heads + kv_heads)  # bytes
    memory = (3 if backward else 1) * traffic / section.peak("bytes") * 1e3
    matmul = (3.5 if backward else 1) * work / section.peak("flops") * 1e3
    return {
        "limit_ms": float(f"{max(memory, matmul):.3g}"),
        "limited_by": "memory" if memory > matmul else "matmul",
    }


# --- what choices rest on ---------------------------------------------------------------------------------------------


def micro(section: Section) -> None:
    """Pairs of ways to do the same, each timed beside the other."""
    for part in (losses, decode, matmuls, norms, routed_rows, qr):
        wrong = section.attempt(part, section)
        if wrong:
            section.note(**{part.__name__: wrong})


def matmuls(section: Section) -> None:
    """A Linear of width 372 against one of 384: rows of 744 bytes are not aligned to 16."""
    rows = 64 if section.smoke else 65536
    for width in (372, 384, 768):
        x = torch.randn(rows, width, dtype=torch.bfloat16, device=section.device)
        w = torch.randn(width, 2 * width, dtype=torch.bfloat16, device=section.device)
        took = clock(section, torch.mm, x, w)
        section.note(**{f"matmul {width}": took | {"tflops": round(4 * rows * width**2 / took["ms"] / 1e9, 1)}})


def norms(section: Section) -> None:
    """RMSNorm over head-wide rows against hidden-wide ones of as many numbers, forward and backward."""
    numbers = 2**16 if section.smoke else 64 * 1024 * 384

    def gradients(x, upstream):
        return torch.autograd.grad(norm(x), x, upstream)

    for width in (40, 64, 384, 768):
        shape = numbers // width, width
        x = torch.randn(shape, dtype=torch.bfloat16, device=section.device, requires_grad=True)
        upstream = torch.randn_like(x)
        limit = 10 * x.numel() / section.peak("bytes") * 1e3  # read, written; two read, one written
        section.note(**{f"norm {width}": clock(section, gradients, x, upstream) | {"limit_ms": float(f"{limit:.3g}")}})


def qr(section: Section) -> None:
    """SOAP's refresh of a stack of bases: Householder, as on a CPU, against Cholesky; and the eigh of a first step."""
    for side, count in QR_SIDES.items():
        side, count = (side // 8, 2) if section.smoke else (side, count)
        factor = torch.randn(count, side, side, device=section.device)
        gram = factor @ factor.mT / side
        basis = torch.linalg.qr(torch.randn(side, side, device=section.device)).Q
        power, entry = gram @ basis, {"matrices": count}
        ways = {"householder": orthogonal.householder, "cholesky twice": lambda x: orthogonal.cholesky_qr(x.double())}
        if side <= 1024:
            ways["eigh"] = torch.linalg.eigh
        for name, way in ways.items():
            entry[name] = section.attempt(lambda w=way, x=power if name != "eigh" else gram: slow(section, w, x))
        entry["off orthogonal"] = section.attempt(lambda p=power: off_orthogonal(orthogonal.cholesky_qr(p.double())[0]))
        section.note(**{f"qr {side}": entry})


def leaves(section: Section) -> None:
    """Cholesky-QR by the widest block that is factored by itself, replayed from a CUDA graph if it can be captured."""
    chosen = orthogonal.LEAF
    for side in (384, 768, 1024, 2048):
        count, side = (2, side // 8) if section.smoke else (QR_SIDES[side], side)
        power, entry = torch.randn(count, side, side, dtype=torch.float64, device=section.device), {"matrices": count}
        for orthogonal.LEAF in (128, 64, 32, 16):
            took = section.attempt(clock, section, orthogonal.cholesky_qr, power)
            if "error" in took:
                took = {"not captured": took["error"]} | section.attempt(slow, section, orthogonal.cholesky_qr, power)
            entry[f"leaf {orthogonal.LEAF}"] = took
        section.note(**{f"side {side}": entry})
    orthogonal.LEAF = chosen


def slow(section: Section, function, *arguments) -> dict:
    """`clock` of what takes long or cannot be captured: three calls."""
    return clock(section, function, *arguments, calls=1, graph=False)


def off_orthogonal(q) -> float:
    """Largest entry of q^T q - 1."""
    eye = torch.eye(q.shape[-1], device=q.device)
    return float(f"{(q.mT @ q - eye).abs().max().item():.1e}")


def routed_rows(section: Section) -> None:
    """Into the latent stack and out of it, forward and backward: our kernels against torch's own indexing."""
    batch, length, slots = (1, 20, 5) if section.smoke else (64, 1024, 256)
    for dim in (384, 768):
        x = torch.randn(batch, length, dim, dtype=torch.bfloat16, device=section.device, requires_grad=True)
        index = torch.rand(batch, length, device=section.device).argsort(1)[:, :slots].sort(1).values
        weight = torch.rand(batch, slots, device=section.device, requires_grad=True)
        upstream = torch.randn_like(x)

        def fused(x=x, index=index, weight=weight):
            from pico.model.kernels.gather import gated_scatter, latent_gather

            return gated_scatter(x, latent_gather(x, index).sin(), index, weight)

        def indexed(x=x, index=index, weight=weight, dim=dim):
            flat = (index + torch.arange(batch, device=x.device)[:, None] * length).flatten()
            chosen = x.reshape(-1, dim).index_select(0, flat).view(batch, -1, dim)
            update = (chosen.sin() - chosen) * weight.to(x.dtype)[..., None]
            return x.reshape(-1, dim).index_add(0, flat, update.view(-1, dim)).view(batch, length, dim)

        def gradients(function, x=x, weight=weight, upstream=upstream):
            return torch.autograd.grad(function(), (x, weight), upstream)

        ways: dict[str, Callable] = {"torch": indexed}
        if section.cuda:
            ways |= {"torch, compiled": torch.compile(indexed, dynamic=False), "triton": fused}
        section.note(**{f"gather and scatter {dim}": {
            name: section.attempt(clock, section, gradients, way) for name, way in ways.items()
        }})  # fmt: skip


def losses(section: Section) -> None:
    """The loss of all heads, with its gradients, against a compiled F.cross_entropy of the same logits."""
    batch, length, heads, vocabulary = (1, 32, 4, 264) if section.smoke else (64, 1024, 4, 264)
    for dim in (384, 768):
        tensors = torch.randn(heads, batch, length, dim, dtype=torch.bfloat16, device=section.device)
        hidden = [x.requires_grad_() for x in tensors.unbind()]
        weight = torch.randn(heads * vocabulary, dim, device=section.device).mul_(0.02).requires_grad_()
        targets = torch.randint(256, (batch, length + heads - 1), device=section.device)

        def own(hidden=hidden, weight=weight, targets=targets):
            return multi_byte_loss(hidden, weight, targets)[0]

        def plain(hidden=hidden, weight=weight, targets=targets):
            logits = torch.stack([x @ w.to(x.dtype).T for x, w in zip(hidden, weight.chunk(heads))], 2)
            return F.cross_entropy(logits.flatten(0, 2), targets.unfold(1, heads, 1).flatten())

        def gradients(function, inputs=(*hidden, weight)):
            return torch.autograd.grad(function(), inputs)

        ways = {"own": own, "cross_entropy": plain}
        if section.cuda:
            ways["cross_entropy, compiled"] = torch.compile(plain, dynamic=False)
        section.note(**{f"loss {dim}": {
            name: section.attempt(clock, section, gradients, way) for name, way in ways.items()
        }})  # fmt: skip


def decode(section: Section) -> None:
    """One layer's attention over its ring while generating with 5 drafts: our kernel against torch."""
    from pico.model.attention import attend_cached, ring_bias

    n, dtype = 6, torch.bfloat16 if section.cuda else torch.float32
    for name, batch in (("s local", 1), ("s local", 64), ("s latent of 4k bytes", 64), ("m latent of 4k bytes", 64)):
        _, _, heads, kv_heads, width, window = LAYERS[name]
        slots = window + 64
        q = torch.randn(batch, n, heads, width, dtype=dtype, device=section.device)
        k, v = torch.randn(batch, slots, 2, kv_heads, width, dtype=dtype, device=section.device).unbind(2)
        position = (torch.arange(n, device=section.device) + 5000).expand(batch, -1)
        limit = 2 * k.numel() * k.element_size() / section.peak("bytes") * 1e3
        bias = ring_bias(position, slots, heads, window, dtype)
        entry = {"limit_ms": float(f"{limit:.3g}"), "torch": clock(section, attend_cached, q, k, v, bias)}
        if section.cuda:
            places = ring_bias(position, slots, heads, window, dtype, "triton")
            alibi_slopes(heads, section.device)  # made before the capture
            entry["triton"] = section.attempt(clock, section, attend_cached, q, k, v, places)
        section.note(**{f"decode {name}, batch {batch}": entry})
