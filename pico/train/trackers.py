"""Where metrics go besides metrics.jsonl: wandb, tensorboard or trackio. Whatever fails there, the training goes on."""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from pico.base.config import TrainConfig


class Tracker:
    """The tracker of a run, which a resumed run goes on with; nothing for --tracker none.

    name: the tracker's id of the run, kept in train.json; step: what is logged after it is cut off; warn: told what
    fails. Set up by Accelerate, on the main process.
    """

    def __init__(
        self, accelerator, config: TrainConfig, settings: dict, run: Path, name: str, step: int, warn: Callable
    ):
        self.accelerator, self.kind, self.warn = accelerator, config.tracker, warn
        if config.tracker == "none":
            return
        wandb = {"name": run.name, "dir": str(run), "id": name}
        options = {
            "wandb": wandb,
            "tensorboard": {"purge_step": step + 1},
            "trackio": {"name": f"{run.name}-{name}", "resume": "allow"},  # it tells runs apart by their names
        }
        start = partial(accelerator.init_trackers, config.tracker_project_name, settings, options)
        if os.environ.get("WANDB_MODE") == "offline" or config.tracker != "wandb":
            self._try(start)
            return
        wandb["resume"] = "allow"
        if not self._try(start):
            os.environ["WANDB_MODE"] = "offline"
            del wandb["resume"]
            self._try(start)

    def log(self, line: dict) -> None:
        values = {key: value for key, value in line.items() if key != "step" or self.kind != "trackio"}  # its own key
        self._try(lambda: self.accelerator.log(values, step=line["step"]))

    def close(self) -> None:
        """Ends the tracker, which may have something left to send, and what Accelerate has set up."""
        if not self._try(self.accelerator.end_training):
            self.accelerator.end_training()

    def _try(self, work: Callable) -> bool:
        """Whether it worked. If not, that is said once: metrics.jsonl has all of it anyway."""
        try:
            with redirect_stdout(sys.stderr):  # on which trackio talks, and which is the product's
                work()
        except Exception as error:  # of any kind: the network, an account, a disk, another version
            self.accelerator.trackers.clear()
            self.warn(f"--tracker {self.kind} stopped working, metrics.jsonl goes on: {' '.join(str(error).split())}")
            return False
        return True
