"""Training state without pickle: any tree of tensors and plain values as JSON plus a dictionary for safetensors."""

import random

import numpy as np
import torch


def pack_state(tree, name: str, tensors: dict[str, torch.Tensor]):
    """A state_dict as JSON, its tensors moved into `tensors` under their path in the tree.

    Memory order is kept: the Q of a QR is column-major, and a matmul of the row-major copy rounds differently, which
    would break bit-exact resume. Raises TypeError for anything but tensors, containers and plain values.
    """
    if isinstance(tree, torch.Tensor):
        order = sorted(range(tree.dim()), key=lambda axis: -tree.stride(axis))
        flat = tree.detach().permute(order).cpu().contiguous()
        tensors[name] = flat.clone() if flat.untyped_storage().nbytes() != flat.nbytes else flat
        return {"$tensor": name} | ({"order": order} if order != sorted(order) else {})
    if isinstance(tree, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: pack_state(value, f"{name}/{key}", tensors) for key, value in tree.items()}
        return {"$items": [[key, pack_state(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [pack_state(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]
        return {"$tuple": items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{name}: a {type(tree).__name__} cannot be stored in a checkpoint")


def unpack_state(tree, tensors: dict[str, torch.Tensor]):
    """The inverse of pack_state: the same tree, with tensors of their own, aligned memory."""
    if isinstance(tree, list):
        return [unpack_state(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        tensor = tensors[tree["$tensor"]].clone()
        order = tree.get("order", range(tensor.dim()))
        return tensor.permute(sorted(range(tensor.dim()), key=order.__getitem__))
    if "$items" in tree:
        return {key: unpack_state(value, tensors) for key, value in tree["$items"]}
    if "$tuple" in tree:
        return tuple(unpack_state(value, tensors) for value in tree["$tuple"])
    return {key: unpack_state(value, tensors) for key, value in tree.items()}


def set_seed(seed: int, rank: int = 0) -> None:
    """Seeds every random generator of this process (on all devices); each rank draws something else."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # it takes no more
    torch.manual_seed(seed)


def rng_state() -> dict:
    """The state of every random generator of this process, as a tree for pack_state."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    keys = torch.tensor(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, torch.tensor(words), gauss],
        "numpy": [numpy["bit_generator"], keys, numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]],
    }


def set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
