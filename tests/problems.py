"""What optimizers are tried on: parameters of any shape, gradients by number, a small problem to learn."""

import json

import torch
from safetensors.torch import load, save
from torch import Tensor

BF16 = torch.bfloat16


def parameters(*shapes, seed=0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(0.3 * torch.randn(shape, generator=generator)) for shape in shapes]


def noise(params, step, scale=1e-2):
    """Puts a gradient in every parameter that depends only on its shape, its place and the step."""
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        p.grad = scale * torch.randn(p.shape, generator=generator)


def problem(params, batch=32) -> Tensor:
    """A loss of every parameter: matrices meet inputs with a few strong directions, vectors are pulled to a curve."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(())
    for p in params:
        x = torch.randn(batch, p.shape[-1], generator=generator) * torch.logspace(0, -2, p.shape[-1])
        total = total + (((x @ p.T).tanh() - 0.3) ** 2).mean() if p.ndim == 2 else total + (p * x).sin().pow(2).mean()
    return total


def train(optimizer, params, steps) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem(params)
        loss.backward()
        optimizer.step()
    return loss.item()


def distance(a, b) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a, b, strict=True))


def through_a_file(state_dict: dict) -> dict:
    """The state as a checkpoint keeps it: flat tensors and JSON."""
    tensors = {f"{i}.{name}": x for i, state in state_dict["state"].items() for name, x in state.items()}
    assert all(isinstance(x, Tensor) for x in tensors.values())
    groups = json.loads(json.dumps(state_dict["param_groups"]))
    loaded: dict = {}
    for key, x in load(save(tensors)).items():
        i, name = key.split(".")
        loaded.setdefault(int(i), {})[name] = x
    return {"state": loaded, "param_groups": groups}
