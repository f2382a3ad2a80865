"""Batches made ahead of the step that reads them, by a thread."""

import queue
import threading
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from pico.base.device import SHARE


class Batch(NamedTuple):
    """What one forward pass of training reads."""

    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T + N - 1), -100 where nothing is scored
    bytes: int  # raw ones that the next-symbol targets stand for, those of head 0
    position: dict  # of the data, after this batch, by `Batches.state_dict`
    epochs: list[int]  # (B,) how often the text of each row was read before


class Prefetch:
    """The batches of a step, `each` of them, made by a thread a few steps ahead; for CUDA on the GPU itself."""

    def __init__(self, batches, device: torch.device, each: int = 1, depth: int = 4):
        self.batches, self.each = batches, each
        self.on_device = None
        if device.type == "cuda":
            from pico.data.packing import OnDevice

            self.on_device = OnDevice(batches, device, int(torch.cuda.mem_get_info(device)[0] * SHARE))
        self.queue: queue.Queue[list[Batch] | BaseException] = queue.Queue(depth)
        self.coming: list[Batch] | BaseException | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        while self.thread.is_alive():
            with suppress(queue.Empty):
                self.queue.get(timeout=0.05)
        self.thread.join()

    def _work(self) -> None:
        try:
            while not self.stopping.is_set():
                self.queue.put([self._batch() for _ in range(self.each)])
        except BaseException as error:
            self.queue.put(error)

    def _batch(self) -> Batch:
        if self.on_device:
            inputs, targets, count = next(self.on_device)
        else:
            inputs, targets = next(self.batches)
            count = self.batches.counted(targets.numpy())
        return Batch(inputs, targets, count, self.batches.state_dict(), self.batches.epochs.tolist())

    def _next(self) -> list[Batch] | BaseException:
        """The next step's batches, or what keeps them from being made; it waits until they are or cannot be."""
        if self.coming is None:
            self.coming = self.queue.get()
        return self.coming

    def failure(self) -> BaseException | None:
        coming = self._next()
        return coming if isinstance(coming, BaseException) else None

    def __next__(self) -> list[Batch]:
        coming = self._next()
        if isinstance(coming, BaseException):
            raise coming
        self.coming = None
        return coming
