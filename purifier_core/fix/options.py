"""What `purifier fix` can be told. Nothing here imports torch."""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError, integer, one_of
from purifier_core.recipes import GRANULARITIES

METHODS = (*(f"bound-{g}" for g in GRANULARITIES), *GRANULARITIES)
DEFAULT = "bound-feature"
NORMALIZE = ("imagenet", "none")
WEIGHTS = (".safetensors", ".pt", ".pth")


def option(about: str, default: Any = MISSING, kind: type = str) -> Any:
    """A field that is an option of the command; without a default it is required."""
    return field(default=default, metadata={"about": about, "kind": kind})


@dataclass(frozen=True)
class Options:
    """One run of `purifier fix`. Raises ConfigError for a value that cannot be used."""

    model: str = option("what makes the network: package.module:factory, found from the current folder too")
    weights: Path = option("its weights: " + ", ".join(WEIGHTS), kind=Path)
    images: Path = option("clean images, in a folder for each class", kind=Path)
    out: Path = option("where the purified weights go; the report goes beside it, as .html", kind=Path)
    method: str = option(f"{', '.join(METHODS)}; by default {DEFAULT}", DEFAULT)
    unlabelled: bool = option("there are no class folders: take images anywhere below the folder", False, bool)
    triggered: Path | None = option("images that are all stamped with a trigger; measured only", None, Path)
    target: str | None = option("the attacker's class, by name or number, if known", None)
    classes: int | None = option("call the factory with num_classes=N", None, int)
    size: int = option("resize images to so many pixels, by default 224", 224, int)
    normalize: str = option("imagenet (the default), or none: pixels from 0 to 1", "imagenet")
    sites: str = option("the submodules to wrap, separated by commas; by default they are found", "")
    epochs: int | None = option("of each of the two stages, by default 20; not for bound-*", None, int)
    lr: float | None = option("learning rate, by default 0.01; not for bound-*", None, float)
    quantile: float | None = option("fixes the quantile of bound-*; by default it is chosen", None, float)
    budget: float | None = option("share of predictions that bound-* may change, by default 0.01", None, float)
    held_out: float = option("share of the images that only the measurement sees, by default 0.25", 0.25, float)
    seed: int = option("of the split and of the training, by default 0", 0, int)
    device: str = option("auto, cpu or cuda", "auto")
    batch_size: int = option("images at a time, by default 64", 64, int)
    force: bool = option("overwrite the files that are there", False, bool)

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("normalize", self.normalize, NORMALIZE)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("the ending of out", self.out.suffix, WEIGHTS)
        one_of("the ending of weights", self.weights.suffix, WEIGHTS)
        integer("size", self.size, 8, 4096)
        integer("seed", self.seed, 0, 2**31 - 1)
        integer("batch_size", self.batch_size, 2, 100_000)
        for name, least in (("classes", 2), ("epochs", 1)):
            if (value := getattr(self, name)) is not None:
                integer(name, value, least, 1_000_000)
        for name in ("lr", "quantile", "budget"):
            if (share := getattr(self, name)) is not None and not 0 < share <= 1:
                raise ConfigError(f"{name}={share!r} is out of range; allowed: above 0, up to 1.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out!r} is out of range; allowed: between 0 and 1.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        idle = ("epochs", "lr") if self.bounds else ("quantile", "budget")
        if given := [f"--{name}" for name in idle if getattr(self, name) is not None]:
            raise ConfigError(f"{' and '.join(given)}: not for method {self.method}, which does not use it.")
        if self.unlabelled and not self.bounds:
            raise ConfigError(f"method {self.method} needs labels; without them take {', '.join(METHODS[:3])}.")
        if self.quantile is not None and self.budget is not None:
            raise ConfigError("--budget chooses the quantile that --quantile fixes; give one of them.")
        if self.target is not None and self.triggered is None:
            raise ConfigError("--target only says what --triggered images are made for; give both.")

    @property
    def bounds(self) -> bool:
        """Whether the method needs no labels and trains nothing."""
        return self.method.startswith("bound-")

    @property
    def granularity(self) -> str:
        """channel, cube or feature."""
        return self.method.removeprefix("bound-")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.out.with_suffix(".html")


def add_to(verbs: Any) -> None:
    """Add the command to a parser's subcommands."""
    about = "purify a model of your own on a folder of clean images, and report"
    command: argparse.ArgumentParser = verbs.add_parser("fix", help=about, description=about, allow_abbrev=False)
    for one in fields(Options):
        flag, kind, text = "--" + one.name.replace("_", "-"), one.metadata["kind"], one.metadata["about"]
        if kind is bool:
            command.add_argument(flag, action="store_true", help=text)
        elif one.default is MISSING:
            command.add_argument(flag, type=kind, required=True, help=text)
        else:
            command.add_argument(flag, type=kind, default=one.default, help=text)
