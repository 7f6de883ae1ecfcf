"""Networks that several cells start from: trained once, kept on disk, and read back only if they are whole."""

import hashlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifier_core.files import ROOM, save_tensors, write_atomically
from purifier_core.lab.locks import locked
from purifier_core.lab.records import Store

Made = tuple[nn.Module, dict[str, Any]]
"""A network in eval mode and notes on it, as plain values; `digest` among them is the checksum of its weights."""

Make = Callable[[], Made]


def kept(store: Store, path: Path, blank: Callable[[], nn.Module], make: Make) -> Made:
    """The network at `path`, or made and written there. `blank` gives a fresh network to load the weights into.

    Where another run is making the same network, this one waits for it.
    """
    if cached := _read(path, blank):
        return cached
    with locked(store, path.stem, wait=True):
        if cached := _read(path, blank):
            return cached
        model, notes = make()
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        notes["digest"] = digest(state)
        write_atomically(path, partial(save_tensors, {"state": state, "notes": notes}), ROOM)
        return model, notes


def _read(path: Path, blank: Callable[[], nn.Module]) -> Made | None:
    if not path.exists():
        return None
    try:
        cached = torch.load(path, weights_only=True)  # tensors and plain values, no code
        state, notes, model = cached["state"], cached["notes"], blank()
        if notes["digest"] != digest(state):
            raise ValueError("the weights do not match their checksum")
        model.load_state_dict(state)
        return model.eval(), notes
    except Exception as problem:  # a damaged file raises many types
        warnings.warn(f"{path} is damaged ({problem}); the model is trained again", stacklevel=2)
        return None


def digest(state: dict[str, torch.Tensor]) -> str:
    """A checksum of weights by name, type, shape and value: 16 hex digits."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + str(state[name].dtype).encode() + str(tuple(state[name].shape)).encode())
        total.update(state[name].contiguous().flatten().numpy().data)
    return total.hexdigest()[:16]
