"""Which optimizer moves which parameter, and how fast."""

import math

import torch

from pico.config import TrainConfig
from pico.soap import SOAP


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, times a cosine from the peak to 10 % of it over the whole run."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def build_optimizers(model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """SOAP or AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    No weight decay on norms, biases and the router.
    """
    rate, decay = config.learning_rate, config.weight_decay
    named = list(model.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or name.startswith("router")]
    wide = [p for name, p in named if p.ndim > 1 and name.startswith(("embedding", "heads"))]
    blocks = [p for name, p in named if not any(p is other for other in plain + wide)]
    undecayed = {"params": plain, "weight_decay": 0.0}
    if config.optimizer == "soap":
        return [SOAP([{"params": blocks}, {"params": wide, "one_sided": True}, undecayed], lr=rate, weight_decay=decay)]
    options = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": decay}
    if config.optimizer == "adamw":
        return [torch.optim.AdamW([{"params": wide + blocks}, undecayed], **options)]
    muon = torch.optim.Muon(blocks, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([{"params": wide}, undecayed], **options)]
