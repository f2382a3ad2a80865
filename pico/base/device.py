"""The device that computes, and the precision it computes in."""

import torch

from pico.base.errors import PicoError

SHARE = 0.25  # of a GPU's free memory, that the text may take


def pick_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """The dtype of activations: 'auto' is bf16 where the hardware multiplies it faster, fp16 on older NVIDIA GPUs."""
    if precision == "auto":
        device = torch.device(device)
        if device.type == "cuda":
            bf16, other = torch.cuda.is_bf16_supported(including_emulation=False), "fp16"
        else:
            other = "fp32"
            bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() | torch.cpu._is_amx_tile_supported()
        precision = "bf16" if bf16 else other
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def device_of(model) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def widest(device: torch.device) -> torch.dtype:
    """The floats to draw by: float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is. Raises PicoError for one that cannot be used here."""
    if name is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        return best if best is not None else torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()  # 'meta' makes tensors, and they hold nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        raise PicoError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.device(name)
