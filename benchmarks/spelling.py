"""Does a model spell without its latent blocks? Share of the words it writes that stand in its training text.

    python benchmarks/spelling.py models/tinystories best tinystories

Twenty texts of 500 bytes at temperature 0.8, seeds 0 to 19, latent blocks on and off. One JSON object on stdout.
"""

import json
import re
import sys
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parent.parent)]  # not this folder: torch imports a package named cuda

from pico import DataConfig, generate, load
from pico.data import open_data

WORD = re.compile(rb"[A-Za-z]+")
TEXTS = 20


def written(model, disable_latent: bool) -> list[bytes]:
    """The words of all texts, but for each one's last, which may be cut off."""
    words = []
    for seed in range(TEXTS):
        steps = generate(model, "Once upon a time", max_bytes=500, seed=seed, disable_latent=disable_latent)
        words += WORD.findall(bytes(step.byte for step in steps))[:-1]
    return words


if __name__ == "__main__":
    path, run, dataset = sys.argv[1:4]
    model, (documents, _) = load(path, run), open_data(DataConfig(dataset=dataset), 0)
    known = {word.lower() for i in range(len(documents)) for word in WORD.findall(documents[i])}
    result = {}
    for name, off in (("latent", False), ("no_latent", True)):
        words = written(model, off)
        result[name] = {"words": len(words), "known": round(sum(w.lower() in known for w in words) / len(words), 4)}
    print(json.dumps(result))
