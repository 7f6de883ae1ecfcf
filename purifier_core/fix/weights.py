"""Weights from files and into files: a network's own, and a purified network's with what rebuilds it."""

import copy
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from purifier_core import bounds, purifier
from purifier_core.checks import ConfigError, one_of
from purifier_core.files import save_tensors, write_atomically
from purifier_core.fix import weights_file
from purifier_core.fix.options import WRITTEN
from purifier_core.fix.weights_file import State, check_sizes, check_values, some
from purifier_core.purifier import Purified
from purifier_core.recipes import GRANULARITIES
from purifier_core.sites import Wrapped

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What DataParallel, torch.compile, Lightning and others put before the names of a network's weights."""


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
    content, notes = weights_file.read(path)
    if not notes:
        raise ConfigError(
            f"{path} holds no purified network; `purifier fix` or purifier_core.fix.weights.save makes one."
        )
    state = next(iter(weights_file.states(content, path).values()))
    kind, granularity, sites = _checked(notes, path)
    model = copy.deepcopy(model)
    network: Wrapped
    try:
        check_sizes(state, path)
        if kind == "bound":
            uppers = {site: torch.empty_like(state[f"{site}.upper"]) for site in sites}
            network = bounds.wrap(model, uppers, granularity)
        else:
            rows = {site: state[f"{site}.head.weight"] for site in sites}
            heads = {s: skip_init(nn.Linear, t.shape[1], t.shape[0], dtype=t.dtype) for s, t in rows.items()}
            network = purifier.wrap(model, heads, granularity)
    except (KeyError, AttributeError, IndexError) as problem:
        raise ConfigError(f"{path} does not fit the model: {problem} is missing.") from problem
    device = next(iter(model.parameters()), torch.empty(0)).device
    insert(network.to(device).model, {"": state}, path)
    if isinstance(network, bounds.Bounded):
        network.quantile, network.changed = float(notes.get("quantile") or 1.0), notes.get("changed")
    return network.eval()


def write(network: Wrapped, path: Path, suffix: str, **notes: Any) -> None:
    """Write the file of a purified network in the format of `suffix`."""
    one_of("the ending of the file", suffix, WRITTEN)
    kind = "purify" if isinstance(network, Purified) else "bound"
    notes |= {"method": kind, "granularity": network.granularity, "sites": list(network.sites)}
    if isinstance(network, bounds.Bounded):
        notes |= {"quantile": network.quantile, "changed": network.changed}
    # copies: tensors that share memory are none for safetensors
    state = {n: t.detach().cpu().contiguous().clone() for n, t in network.model.state_dict().items()}
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path, metadata={"purifier": json.dumps(notes)})  # one entry: the order of several varies
    else:
        save_tensors({"state": state, "purifier": notes}, path)


def insert(model: nn.Module, states: dict[str, State], path: Path) -> str:
    """Load the first set of weights that fits into a model, in place; returns the entry of the file that it was under.

    Raises ConfigError that names what does not fit, or is no finite number.
    """
    own = model.state_dict()
    for key, state in states.items():
        for renamed in _renamed(state):
            if not _differences(own, renamed):
                check_sizes(renamed, path)
                check_values(renamed, path)
                model.load_state_dict({**own, **renamed})
                return key
    closest = min((r for s in states.values() for r in _renamed(s)), key=lambda r: len(own.keys() ^ r.keys()))
    raise ConfigError(f"{path} does not fit {type(model).__name__}: {'; '.join(_differences(own, closest))}.")


def _renamed(state: State) -> Iterator[State]:
    """The weights under their own names, and without what wrappers put before them."""
    yield state
    for first, second in product(PREFIXES, (*PREFIXES, "")):
        prefix = first + second
        inside = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if inside and (len(inside) == len(state) or first == "model."):  # Lightning keeps metrics beside its model
            yield inside


def _differences(own: State, state: State) -> list[str]:
    """What keeps a set of weights from fitting a model's own, in phrases."""
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    other = [
        f"{n} is {tuple(t.shape)} in the file and {tuple(own[n].shape)} in the model"
        for n, t in state.items()
        if n in own and own[n].shape != t.shape
    ]
    phrases = [f"missing are {some(missing)}"] if missing else []
    phrases += [f"unknown are {some(unknown)}"] if unknown else []
    return phrases + ([some(other)] if other else [])


def _checked(notes: dict[str, Any], path: Path) -> tuple[str, str, list[str]]:
    """The kind, granularity and sites in the notes of a purified file; ConfigError where they are none of ours."""
    kind, granularity, sites = notes.get("method"), notes.get("granularity"), notes.get("sites")
    numbers = [notes.get(name) for name in ("changed", "quantile")]
    if (
        kind not in ("bound", "purify")
        or granularity not in GRANULARITIES
        or not isinstance(sites, list)
        or not sites
        or not all(isinstance(site, str) and site for site in sites)
        or len(set(sites)) < len(sites)
        or not all(value is None or isinstance(value, (int, float)) for value in numbers)
    ):
        raise ConfigError(f"{path}: its notes on the purified network are damaged, or from another program.")
    return kind, granularity, sites
