"""The tensors in a weights file, without running anything that it holds, and without believing its sizes."""

import argparse
import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from purifier_core.checks import ConfigError, one_of
from purifier_core.fix.options import READ

State = dict[str, torch.Tensor]

KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "state", "weights")
AVERAGED = ("state_dict_ema", "model_ema", "ema")
"""The entries of a checkpoint that hold weights, in the order in which they are tried; averaged ones last."""

_CALLED = {
    b"<!doctype html": "an HTML page, perhaps in place of a download",
    b"<html": "an HTML page, perhaps in place of a download",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"\x89hdf": "an HDF5 file, as Keras writes it",
    b"gguf": "a GGUF file",
    b"\x93numpy": "a NumPy array",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file holds: tensors by name, perhaps in a checkpoint with more, and the notes of `purifier fix`, if any.

    Nothing is checked against a network: see `state`. Raises ConfigError for a file that is missing, is damaged,
    is of another kind, or could run code when loaded.
    """
    one_of("the ending of the file", path.suffix, READ)
    if not path.is_file():
        raise ConfigError(f"{path} is not there." if not path.exists() else f"{path} is no file.")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for signature, kind in _CALLED.items():
        if start.startswith(signature):
            raise ConfigError(f"{path} is {kind}, and no weights.")
    content, notes = _from_safetensors(path) if path.suffix == ".safetensors" else _from_torch(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} is no model's weights: it holds a {type(content).__name__}, not a state dict.")
    return dict(content), notes if isinstance(notes, dict) else {}


def states(content: Mapping[str, Any], path: Path, key: str | None = None) -> dict[str, State]:
    """The sets of weights in a file by the entry that holds them, in the order to try them in. "" is the file itself.

    Raises ConfigError where there are none, or not under `key`.
    """
    if key is not None:
        if not _is_state(content.get(key)):
            raise ConfigError(f"{path} has no weights under {key!r}; it has {some(list(map(str, content)))}.")
        return {key: dict(content[key])}
    sets = {name: dict(content[name]) for name in (*KEYS, *AVERAGED) if _is_state(content.get(name))}
    if _is_state(content):
        sets = {"": dict(content)} | sets
    if not sets:
        raise ConfigError(f"{path} is no model's weights: it holds no state dict (names with tensors).")
    return sets


def check_sizes(state: State, path: Path) -> None:
    """Raise ConfigError for a tensor that claims more than its file holds, or is no plain one."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ConfigError(f"{path}: {name} is no plain tensor of numbers.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{path}: {name} claims {tuple(tensor.shape)}, which is more than the file holds.")


def check_values(state: State, path: Path) -> None:
    """Raise ConfigError for values that are no finite numbers."""
    if broken := [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ConfigError(f"{path} holds values that are no finite numbers, in {some(broken)}.")


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items())
    )


def _from_safetensors(path: Path) -> tuple[Any, Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = (file.metadata() or {}).get("purifier")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(notes) if notes else {}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{path} is no safetensors file, or damaged ({problem}).") from problem


def _from_torch(path: Path) -> tuple[Any, Any]:
    if packed := zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except pickle.UnpicklingError as problem:
        if "nsupported" not in str(problem):
            raise ConfigError(f"{path} is no PyTorch file, or damaged.") from problem
        raise ConfigError(
            f"{path} holds more than tensors and plain values, and loading it could run code, so it is refused. Where "
            "you trust it, save model.state_dict() from it."
        ) from problem
    except Exception as problem:  # a damaged file raises many types
        raise ConfigError(f"{path} is no PyTorch file, or damaged ({type(problem).__name__}).") from problem
    return content, content.get("purifier", {}) if isinstance(content, Mapping) else {}


def _check_archive(path: Path) -> None:
    """Raise ConfigError for TorchScript, an exported program, or an archive that unpacks to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise ConfigError(f"{path} is no PyTorch file, or damaged ({type(problem).__name__}).") from problem
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise ConfigError(f"{path} is TorchScript, a program with its weights; save model.state_dict() instead.")
    if any(name.startswith(("models/", "archive_format")) for name in names):
        raise ConfigError(f"{path} is an exported program; save model.state_dict() instead.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ConfigError(f"{path} would unpack to more than it is; torch.save packs nothing, so it is refused.")


def _harmless() -> list[Any]:
    """Values that checkpoints hold beside their tensors: making them runs nothing."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    paths = (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
    array = np.zeros(0).__reduce__()[0]
    olds = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]
    return [argparse.Namespace, scalar, array, *olds, np.ndarray, np.dtype, *kinds, *paths]


def some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
