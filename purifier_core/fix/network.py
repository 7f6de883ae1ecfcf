"""The reader's network from what names it, and with its normalisation in front."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import Pixels
from purifier_core.sites import Wrapped, unwrapped

ZOOS = ("timm", "torchvision")


class Prepared(nn.Module):
    """A network that takes pixels from 0 to 1: it normalises them first."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.network((x - self.mean) / self.std)


def unprepared(wrapped: Wrapped) -> Wrapped:
    """Take the normalisation out of a wrapped `Prepared`, in place: the rest takes what the network took."""
    inner = wrapped.model.get_submodule("network")
    wrapped.model = inner
    wrapped.sites = tuple(site.removeprefix("network.") for site in wrapped.sites)
    return wrapped


def make(options: Options) -> nn.Module:
    """What --model names, ready for units; any failure of its code becomes a ConfigError."""
    source, _, name = options.model.partition(":")
    if not source or not name:
        raise ConfigError(
            f"model={options.model!r} is not understood; write package.module:factory, file.py:factory, timm:name or "
            "torchvision:name."
        )
    arguments = {} if options.classes is None else {"num_classes": options.classes}
    try:
        if source in ZOOS:
            model = _from_zoo(source, name, arguments)
        else:
            with _folder_of(source):
                factory = getattr(_module(source), name, None)
                if factory is None:
                    raise ConfigError(f"model={options.model!r}: {source} has no {name}.")
                model = _call(factory, arguments, options)
    except ConfigError:
        raise
    except (Exception, SystemExit) as problem:
        raise ConfigError(f"model={options.model!r} cannot be imported: {line(problem)}") from problem
    try:
        return unwrapped(model)
    except ValueError as problem:
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise ConfigError(f"model={options.model!r} returns a {kind}, no torch.nn.Module.") from problem
        raise ConfigError(f"model={options.model!r}: {problem}.") from problem


def _call(factory: Any, arguments: dict[str, int], options: Options) -> Any:
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as problem:
        hint = "" if arguments else " A factory that takes num_classes gets it by --classes."
        raise ConfigError(f"model={options.model!r} cannot be called: {line(problem)}.{hint}") from problem


def _from_zoo(source: str, name: str, arguments: dict[str, int]) -> nn.Module:
    """A network of timm or torchvision without weights; nothing is fetched."""
    library: Any
    try:
        library = importlib.import_module("timm" if source == "timm" else "torchvision.models")
    except ImportError as problem:
        raise ConfigError(f"model={source}:{name} needs the package {source}: pip install {source}.") from problem
    if name not in library.list_models():
        raise ConfigError(f"{source} has no network {name!r}; {library.__name__}.list_models() lists them.")
    if source == "timm":
        return library.create_model(name, pretrained=False, **arguments)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return library.get_model(name, weights=None, **arguments, **extra)


@contextmanager
def _folder_of(source: str) -> Iterator[None]:
    """Inside, the folder that the factory comes from is the last place that imports look at.

    It is there for the factory alone, and not at all for a module that is installed.
    """
    folder = str(Path(source).parent.absolute()) if source.endswith(".py") else os.getcwd()
    if not source.endswith(".py") and importlib.util.find_spec(source.partition(".")[0]) is not None:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _module(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"{source} is not there.")
    spec = importlib.util.spec_from_file_location(f"_factory_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{source} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def channels_of(model: nn.Module) -> int:
    """1 for a network whose first convolution takes grey images, else 3; ConfigError for other numbers."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels not in (1, 3):
        raise ConfigError(f"the network's first convolution takes {channels} channels; images have 1 or 3.")
    return channels


def prepared(model: nn.Module, pixels: Pixels) -> Prepared:
    """The network with its normalisation in front."""
    return Prepared(model, pixels.mean, pixels.std)


def line(problem: BaseException) -> str:
    """The first line of an exception, with its type."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0]}" if text else type(problem).__name__
