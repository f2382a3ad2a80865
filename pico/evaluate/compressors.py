"""What general compressors need for the same bytes: a small model that cannot beat PPMd has nothing to show.

The text of all documents, end to end, is compressed alone, and again after a history that the compressor has just
seen: size(history + text) - size(history). Compressors do not pay for where documents end; the model does.

    yardsticks(text, history)["xz"]["after_training_text"]
"""

import importlib.util
import lzma
from collections.abc import Callable

import numpy as np

HISTORY_BYTES = 32 << 20  # the last of the training text; xz looks back 64 MB, zstd 128 MB
PPMD_ORDER = 16


def xz(data: bytes) -> int:
    """Size in bytes under xz -9e."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def zstd(data: bytes) -> int:
    """Size in bytes under zstd -22 (pyarrow's, which comes with datasets)."""
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=22).compress(data).size


def ppmd(data: bytes) -> int:
    """Size in bytes under PPMd variant H, order 16, with memory enough to forget nothing up to 1 GB."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, min(1 << 30, (64 << 20) + 64 * len(data)))
    return len(encoder.encode(data)) + len(encoder.flush())


def compressors() -> dict[str, Callable[[bytes], int]]:
    """Those whose packages are installed; PPMd is the extra `ppmd`."""
    found = {"xz": xz, "zstd": zstd}
    if importlib.util.find_spec("pyppmd"):
        found["ppmd"] = ppmd
    return found


def yardsticks(text: bytes, history: bytes | None = None) -> dict[str, dict[str, float]]:
    """{compressor: {"alone": bits per byte, "after_training_text": bits per byte where there is a history}}."""
    out = {}
    for name, size in compressors().items():
        out[name] = {"alone": 8 * size(text) / len(text)}
        if history:
            history = history[-HISTORY_BYTES:]
            out[name]["after_training_text"] = 8 * (size(history + text) - size(history)) / len(text)
    return out


def last_bytes(documents, limit: int = HISTORY_BYTES) -> bytes:
    """The end of a sequence of documents, whole ones up to `limit` bytes (at least one document, cut at its start)."""
    lengths = np.asarray(documents.lengths)
    first = len(lengths) - int(np.searchsorted(np.cumsum(lengths[::-1]), limit, side="right"))
    return b"".join(documents[i] for i in range(min(first, len(lengths) - 1), len(lengths)))[-limit:]
