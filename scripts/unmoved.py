"""Shows that a commit which only moves code moves no result: bit for bit on this machine.

    python scripts/unmoved.py              # HEAD against its parent
    python scripts/unmoved.py v0.1 HEAD    # any two commits

Both commits are laid out in folders of their own and driven through the command line alone: 30 steps on the built-in
stories with two optimizers and two routers, in fp32 on one thread, and greedy text of the model in the repository.
Exits with 1 and names what moved.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPE = ["--preset", "tiny", "--dim", "64", "--latent-num-blocks", "2", "--ngram-rows", "4096"]
STEPS = ["--max-steps", "30", "--warmup-steps", "5", "--context-len", "128", "--batch-size", "4"]
STEPS += ["--precision", "fp32", "--dataset-validation-size", "20", "--device", "cpu", "--quiet"]
WATCHED = ("loss", "train_bpb", "router_loss", "routed", "grad_norm", "bytes", "validation_bpb")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def results(code: Path) -> dict[str, str]:
    """What the code in this folder makes: one line each, equal only if every bit is."""

    def picolm(*arguments) -> bytes:
        command = [sys.executable, "picolm.py", *map(str, arguments)]
        done = subprocess.run(command, cwd=code, capture_output=True, env={**os.environ, **ONE_THREAD})
        if done.returncode:
            raise SystemExit(f"{' '.join(command[1:])} failed in {code}:\n{done.stderr.decode()}")
        return done.stdout

    found = {}
    for router in ("topk", "threshold"):
        model = code / "unmoved" / router
        picolm("init", model, *SHAPE, "--router", router)
        for optimizer in ("soap", "adamw"):
            picolm("train", model, optimizer, "stories", *STEPS, "--optimizer", optimizer)
            lines = [json.loads(line) for line in (model / optimizer / "metrics.jsonl").read_text().splitlines()]
            for key in WATCHED:
                found[f"{router} {optimizer} {key}"] = repr([line[key] for line in lines if key in line])
            weights = (model / optimizer / "00000030" / "model.safetensors").read_bytes()
            found[f"{router} {optimizer} weights"] = hashlib.sha256(weights).hexdigest()
    for extra in ([], ["--no-speculative"], ["--num-samples", "2"]):
        greedy = ["--temperature", "0", "--max-bytes", "300", "--prompt", "Once upon a time", "--device", "cpu"]
        found[f"greedy text {' '.join(extra)}"] = repr(picolm("run", "models/tinystories", "best", *greedy, *extra))
    return found


def main(before: str = "HEAD~1", after: str = "HEAD") -> int:
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for name, commit in ("before", before), ("after", after):
            code = Path(folder, name)
            code.mkdir()
            tree = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", code], input=tree, check=True)
            both.append(results(code))
    moved = [key for key in both[0] | both[1] if both[0].get(key) != both[1].get(key)]
    for key in moved:
        print(f"moved: {key}\n  {both[0].get(key, '-')[:200]}\n  {both[1].get(key, '-')[:200]}")
    print(f"{len(both[0]) - len(moved)} of {len(both[0])} results are the same, bit for bit")
    return bool(moved)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
