"""What `purifier fix` can be told. Nothing here imports torch."""

import argparse
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError, integer, one_of
from purifier_core.fix.pixels import statistics
from purifier_core.recipes import GRANULARITIES

METHODS = (*(f"bound-{g}" for g in GRANULARITIES), *GRANULARITIES, "scan-repair")
DEFAULT = "bound-feature"
WRITTEN = (".safetensors", ".pt", ".pth")
READ = (*WRITTEN, ".bin", ".ckpt")


def option(about: str, default: Any = MISSING, kind: type = str) -> Any:
    """A field that is an option of the command; without a default it is required."""
    return field(default=default, metadata={"about": about, "kind": kind})


@dataclass(frozen=True)
class Options:
    """One run of `purifier fix`. Raises ConfigError for a value that cannot be used."""

    model: str = option("package.module:factory, file.py:factory (both are code and run), timm:name, torchvision:name")
    weights: Path = option("its weights: " + ", ".join(READ), kind=Path)
    images: Path = option("clean images, in a folder for each class", kind=Path)
    out: Path = option("the file for the purified weights; the report goes beside it, as .html", kind=Path)
    method: str = option(f"{', '.join(METHODS)}; by default {DEFAULT}", DEFAULT)
    scan: bool = option("first look for a backdoor, and report it; scan-repair always does", False, bool)
    anyway: bool = option("scan-repair also unlearns what stands out most if the scan suspects nothing", False, bool)
    weights_key: str | None = option("the entry of a checkpoint that holds the weights, such as state_dict_ema", None)
    classes: int | None = option("call the factory with num_classes=N", None, int)
    unlabelled: bool = option("there are no class folders: take images anywhere below the folder", False, bool)
    class_names: Path | None = option("file with the model's class names in order: lines, or JSON", None, Path)
    class_index: bool = option("the folders' names are the model's class numbers", False, bool)
    natural: bool = option("number the folders with 2 before 10, not as text", False, bool)
    triggered: Path | None = option("images that all carry a trigger; measured only", None, Path)
    target: str | None = option("the attacker's class: its folder's name or its number", None)
    size: int | None = option("pixels of the images in height and width, by default 224", None, int)
    resize: int | None = option("resize the shorter side to this many pixels, then cut out the middle", None, int)
    crop: bool = option("cut out the middle instead of stretching the image", False, bool)
    normalize: str | None = option("imagenet (the default), none, half, 255, or numbers: mean,std", None)
    skip_bad_images: bool = option("leave out images that cannot be read, and list them", False, bool)
    trust_inputs: bool = option("go on where accuracy says that labels or pixels are wrong", False, bool)
    sites: str = option("the submodules to wrap, separated by commas; by default they are found", "")
    epochs: int | None = option("of each of the two stages, by default 20; for channel, cube, feature", None, int)
    lr: float | None = option("learning rate, by default 0.01; for channel, cube, feature", None, float)
    quantile: float | None = option("fixes the quantile of bound-*; by default it is chosen", None, float)
    budget: float | None = option("share of predictions that bound-* may change, by default 0.01", None, float)
    max_drop: float = option("accuracy that may be lost before it is a finding, by default 0.02", 0.02, float)
    max_asr: float = option("attack success rate that may stay before it is a finding, by default 0.1", 0.1, float)
    held_out: float = option("share of the images that only the measurement sees, by default 0.25", 0.25, float)
    seed: int = option("of the split and of the training, by default 0", 0, int)
    device: str = option("auto, cpu or cuda", "auto")
    batch_size: int = option("images at a time, by default 64", 64, int)
    json: Path | None = option("also write the results here, for a pipeline", None, Path)
    quiet: bool = option("print errors only", False, bool)
    force: bool = option("overwrite the files that are there", False, bool)

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("the ending of out", self.out.suffix, WRITTEN)
        one_of("the ending of weights", self.weights.suffix, READ)
        integer("seed", self.seed, 0, 2**31 - 1)
        integer("batch_size", self.batch_size, 2, 100_000)
        for name, least, most in (("size", 8, 4096), ("resize", 8, 4096), ("classes", 2, 10**6), ("epochs", 1, 10**6)):
            if (value := getattr(self, name)) is not None:
                integer(name, value, least, most)
        for name in ("lr", "quantile", "budget", "max_drop", "max_asr"):
            if (share := getattr(self, name)) is not None and not 0 < share <= 1:
                raise ConfigError(f"{name}={share!r} is out of range; allowed: above 0, up to 1.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out!r} is out of range; allowed: between 0 and 1.")
        if self.normalize is not None:
            statistics(self.normalize)
        self._check_combinations()

    def _check_combinations(self) -> None:
        idle: tuple[str, ...] = ("epochs", "lr") if self.bounds or self.repairs else ()
        idle += () if self.bounds else ("quantile", "budget")
        if unused := [f"--{name}" for name in idle if getattr(self, name) is not None]:
            raise ConfigError(f"{' and '.join(unused)}: not for method {self.method}, which does not use it.")
        if self.anyway and not self.repairs:
            raise ConfigError(f"--anyway: not for method {self.method}; scan-repair alone unlearns what a scan found.")
        if self.unlabelled and not self.bounds:
            raise ConfigError(f"method {self.method} needs labels; without them take {', '.join(METHODS[:3])}.")
        if self.unlabelled and self.scan:
            raise ConfigError("--scan needs labels, and --unlabelled gives none.")
        if self.quantile is not None and self.budget is not None:
            raise ConfigError("--budget chooses the quantile that --quantile fixes; give one of them.")
        if self.target is not None and self.triggered is None:
            raise ConfigError("--target only says what --triggered images are made for; give both.")
        orders = [name for name in ("class_names", "class_index", "natural", "unlabelled") if getattr(self, name)]
        if len(orders) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in orders)
            raise ConfigError(f"{flags} number the classes in different ways; give one of them.")
        if self.resize is not None and self.size is not None and self.resize < self.size:
            raise ConfigError(f"--resize {self.resize} is shorter than --size {self.size}, which is cut out of it.")
        if self.json is not None and self.json in (self.out, self.report):
            raise ConfigError(f"--json {self.json} is the name of another file that is written; give another.")

    @property
    def bounds(self) -> bool:
        """Whether the method needs no labels and trains nothing."""
        return self.method.startswith("bound-")

    @property
    def repairs(self) -> bool:
        """Whether the method looks for a backdoor first, and unlearns what stands out."""
        return self.method == "scan-repair"

    @property
    def fewest(self) -> int:
        """How many clean images the method needs, beside those that are held out."""
        return 10 if self.bounds else 20 if self.repairs else 2

    @property
    def granularity(self) -> str:
        """channel, cube or feature."""
        return "feature" if self.repairs else self.method.removeprefix("bound-")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.out.with_suffix(".html")


def add_to(verbs: Any) -> None:
    """Add the command to a parser's subcommands."""
    about = "purify a model of your own on a folder of clean images, and report"
    ends = "Exit status: 0 repaired within budget, 1 a finding that the report names, 2 wrong use."
    command: argparse.ArgumentParser = verbs.add_parser(
        "fix", help=about, description=about, epilog=ends, allow_abbrev=False
    )
    for setting in fields(Options):
        add_option(command, setting)


def add_option(command: argparse.ArgumentParser, one: Field) -> None:
    """Add the argument of one option."""
    flag, kind, text = "--" + one.name.replace("_", "-"), one.metadata["kind"], one.metadata["about"]
    if kind is bool:
        command.add_argument(flag, action="store_true", help=text)
    elif one.default is MISSING:
        command.add_argument(flag, type=kind, required=True, help=text)
    else:
        command.add_argument(flag, type=kind, default=one.default, help=text)
