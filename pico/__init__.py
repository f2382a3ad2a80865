"""Pico: a byte-level language model with learned depth routing.

Names are imported on first use, so `import pico` costs nothing until a model is needed.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "ModelConfig": "base.shapes",
    "GPTConfig": "base.shapes",
    "TrainConfig": "base.config",
    "DataConfig": "base.config",
    "PicoError": "base.errors",
    "preset": "base.presets",
    "Pico": "model.pico",
    "GPT": "model.gpt",
    "load": "runs.checkpoint",
    "generate": "decode.generation",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"pico.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pico' has no attribute '{name}'")
