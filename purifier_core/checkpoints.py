"""A training keeps its state on disk. After an interruption it goes on from there, and ends with the same bits.

`training.fit` asks `begin` for a place of its own. Outside of `checkpoints` there is none, and nothing is written.
"""

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from purifier_core.files import ROOM, save_tensors, write_atomically

PAUSE = 10.0
"""The least number of seconds between two states on disk. A kill loses at most this, or one epoch if that is longer."""


class Carried(Protocol):
    """State that changes from epoch to epoch beside the network: a random stream (torch.Generator), a curve."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> Any: ...


class Place:
    """Where one call of `fit` keeps its state. `training` names that call, so that no other goes on from it."""

    def __init__(self, path: Path, training: dict[str, Any], carried: Sequence[Carried], pause: float) -> None:
        self.path = path
        training = training | {"carried": [type(part).__name__ for part in carried]}
        self.training = json.dumps(training, sort_keys=True, default=str)
        self.carried = carried
        self.pause = pause
        self.written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The last state of this training, or None. What is carried is set back to it."""
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, weights_only=True)  # tensors and plain values, no code
            training, state, carried = content["training"], content["state"], content["carried"]
        except Exception as problem:  # a damaged file raises many types
            warnings.warn(f"{self.path} is damaged ({problem}); the training begins anew", stacklevel=3)
            return None
        if training != self.training:
            return None
        for part, its_state in zip(self.carried, carried, strict=True):
            part.set_state(its_state)
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state of tensors and plain values, if the last one is at least `pause` seconds old."""
        if time.monotonic() - self.written < self.pause:
            return
        carried = [part.get_state() for part in self.carried]
        content = {"training": self.training, "state": state, "carried": carried}
        write_atomically(self.path, partial(save_tensors, content), ROOM)
        self.written = time.monotonic()


class _Folder:
    def __init__(self, path: Path, carried: Sequence[Carried], pause: float) -> None:
        self.path, self.carried, self.pause = path, tuple(carried), pause
        self.calls = 0


_FOLDER: ContextVar[_Folder | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder: Path, carried: Sequence[Carried] = (), pause: float = PAUSE) -> Iterator[None]:
    """Inside, every `fit` keeps its state in `folder`, numbered in the order of the calls.

    The same calls made again, after the process was killed, go on from the last states.
    `carried` is kept with each of them. The folder goes when the block ends without an error.
    """
    token = _FOLDER.set(_Folder(folder, carried, pause))
    try:
        yield
    finally:
        _FOLDER.reset(token)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def begin(training: dict[str, Any], carried: Sequence[Carried]) -> Place | None:
    """The place of the next call of `fit`; None where no state is kept."""
    folder = _FOLDER.get()
    if folder is None:
        return None
    folder.calls += 1
    return Place(folder.path / f"{folder.calls:02}.pt", training, (*carried, *folder.carried), folder.pause)
