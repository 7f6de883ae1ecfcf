"""Weights from files and into files: a network's own, and a purified network's with what rebuilds it.

Files end in .safetensors, .pt or .pth. No file is ever unpickled beyond tensors and plain values.
"""

import copy
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifier_core import bound, purifier
from purifier_core.checks import ConfigError, one_of
from purifier_core.files import save_tensors, write_atomically
from purifier_core.fix.options import WEIGHTS
from purifier_core.purifier import Purified
from purifier_core.sites import Wrapped

State = dict[str, torch.Tensor]


def save(network: Wrapped, path: Path | str, **notes: Any) -> None:
    """Write a purified network's weights and what `load` needs beside them, whole or not at all.

    notes: further plain values to keep, such as the size of the images. Raises OSError where nothing can be written.
    """
    path = Path(path)
    write_atomically(path, lambda part: write(network, part, path.suffix, **notes))


def load(model: nn.Module, path: Path | str) -> Wrapped:
    """The purified network of a file that `save` or `purifier fix` wrote: a copy of `model` with its units, in eval
    mode.

    model: the network as its factory makes it; its weights do not matter. Raises ConfigError for a file that is none of
    these, or that does not fit the model.
    """
    path = Path(path)
    state, notes = read(path)
    if not notes:
        raise ConfigError(
            f"{path} holds no purified network; `purifier fix` or purifier_core.fix.weights.save makes one."
        )
    model = copy.deepcopy(model)
    ending = {"bound": "upper", "purify": "head.weight"}[one_of("method", notes["method"], ("bound", "purify"))]
    network: Wrapped
    try:
        shapes = {site: state[f"{site}.{ending}"] for site in notes["sites"]}
        if notes["method"] == "bound":
            network = bound.wrap(model, {s: torch.empty_like(t) for s, t in shapes.items()}, notes["granularity"])
        else:
            heads = {s: nn.Linear(t.shape[1], t.shape[0], dtype=t.dtype) for s, t in shapes.items()}
            network = purifier.wrap(model, heads, notes["granularity"])
    except (KeyError, AttributeError) as problem:
        raise ConfigError(f"{path} does not fit the model: {problem} is missing.") from problem
    where = next(iter(model.parameters()), torch.empty(0)).device
    insert(network.to(where).model, state, path)
    for name in ("quantile", "changed"):
        if name in notes:
            setattr(network, name, notes[name])
    return network.eval()


def write(network: Wrapped, path: Path, suffix: str, **notes: Any) -> None:
    """Write the file of a purified network in the format of `suffix`."""
    one_of("the ending of the file", suffix, WEIGHTS)
    kind = "purify" if isinstance(network, Purified) else "bound"
    notes |= {"method": kind, "granularity": network.granularity, "sites": list(network.sites)}
    if isinstance(network, bound.Bounded):
        notes |= {"quantile": network.quantile, "changed": network.changed}
    # copies: tensors that share memory are none for safetensors
    state = {n: t.detach().cpu().contiguous().clone() for n, t in network.model.state_dict().items()}
    if suffix == ".safetensors":
        _safetensors().torch.save_file(state, path, metadata={"format": "pt", "purifier": json.dumps(notes)})
    else:
        save_tensors({"state": state, "purifier": notes}, path)


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors by name in a weights file, and what `write` noted with them: empty for a network's own weights.

    Raises ConfigError for a file that is not there, damaged, no state dict, or that could run code when loaded.
    """
    one_of("the ending of the file", path.suffix, WEIGHTS)
    if not path.is_file():
        raise ConfigError(f"{path} is not there." if not path.exists() else f"{path} is no file.")
    state, notes = _from_safetensors(path) if path.suffix == ".safetensors" else _from_torch(path)
    if not state or not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state.items()):
        raise ConfigError(f"{path} is no model's weights: it holds no state dict (names with tensors).")
    if broken := [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ConfigError(f"{path} holds values that are no finite numbers, in {_some(broken)}.")
    return dict(state), notes


def insert(model: nn.Module, state: State, path: Path) -> None:
    """Load a state dict into a model in place; raises ConfigError that names what does not fit."""
    own = model.state_dict()
    if all(name.startswith("module.") for name in state) and not any(n.startswith("module.") for n in own):
        state = {name.removeprefix("module."): t for name, t in state.items()}  # saved from DataParallel
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    other = [
        f"{n} is {tuple(t.shape)} in the file and {tuple(own[n].shape)} in the model"
        for n, t in state.items()
        if n in own and own[n].shape != t.shape
    ]
    told = [f"missing are {_some(missing)}"] if missing else []
    told += [f"unknown are {_some(unknown)}"] if unknown else []
    told += [_some(other)] if other else []
    if told:
        raise ConfigError(f"{path} does not fit {type(model).__name__}: {'; '.join(told)}.")
    model.load_state_dict({**own, **state})


def _from_safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = (file.metadata() or {}).get("purifier")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(notes) if notes else {}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as problem:
        raise ConfigError(f"{path} is no safetensors file, or damaged ({problem}).") from problem


def _from_torch(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if "nsupported" not in str(problem):
            raise ConfigError(f"{path} is no PyTorch file, or damaged.") from problem
        raise ConfigError(
            f"{path} holds more than tensors, and loading it could run code, so it is refused. Where you trust it, "
            "save model.state_dict() from it."
        ) from problem
    except Exception as problem:  # a damaged file raises many types
        raise ConfigError(f"{path} is no PyTorch file, or damaged ({type(problem).__name__}).") from problem
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} is no model's weights: it holds a {type(content).__name__}, not a state dict.")
    notes = content.get("purifier", {})
    for name in ("state_dict", "model", "state"):
        if isinstance(inner := content.get(name), Mapping):
            return inner, notes if isinstance(notes, dict) else {}
    return content, {}


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as problem:
        raise ConfigError(
            "files ending in .safetensors need the package safetensors: pip install safetensors, or use .pt."
        ) from problem
    return safetensors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
