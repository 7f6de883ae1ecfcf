"""The supplement's tables and figures, each as a grid of cells with its parameters, source and command."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from purifier_core.config import (
    ATTACKS,
    COMPARED,
    GRANULARITIES,
    INITS,
    PAPER_TRAIN_SIZE,
    Cell,
    ConfigError,
    one_of,
    parse_names,
)
from purifier_core.grids import Column, Experiment, Table
from purifier_core.profiles import PROFILES


def _stand_in(dataset: str, profile: str) -> str:
    """That the digits stand in for other datasets, at a profile that has nothing else."""
    if dataset == "mnist" or PROFILES[profile].data != "embedded":
        return ""
    return f" Profile {profile} has no CIFAR-10 or GTSRB: 5,000 MNIST digits stand in."


def _share(clean_size: int, dataset: str) -> int:
    """A clean size on MNIST's scale as the same share of another dataset."""
    return round(clean_size * PAPER_TRAIN_SIZE[dataset] / PAPER_TRAIN_SIZE["mnist"])


@dataclass(frozen=True)
class Table3(Table):
    """Table 3: VGG-16 on MNIST with different sizes of clean data (supplement A.3).

    Command: `papermill notebooks/table3.ipynb out.ipynb -p clean_size 3000`. Expected at `paper`, as published:
    No Defense 99.27 / 99.94 (ACC / ASR in percent), the other columns in data/published/table3.csv. The paper
    states neither the attack nor the poison ratio of this table; BadNets at 10 % is the reading taken here.
    Expected time: minutes at `quick` on two cores; `purifier status` tells what each profile took.
    """

    name: ClassVar[str] = "table3"
    title: ClassVar[str] = "Table 3"
    axis: ClassVar[str] = "clean_size"
    every: ClassVar[tuple[Any, ...]] = (6000, 4500, 3000)
    allowed: ClassVar[tuple[str, ...]] = tuple(m for m in COMPARED if m != "abl")


@dataclass(frozen=True)
class Table4(Table):
    """Table 4: VGG-16 on MNIST with different poison ratios (supplement A.3).

    Command: `papermill notebooks/table4.ipynb out.ipynb -p poison_ratio 0.05`. Expected at `paper`, as published:
    data/published/table4.csv. The paper states neither the attack nor the clean size of this table; BadNets and
    3,000 images (5 %, the release's share) are the reading taken here.
    Expected time: minutes at `quick` on two cores; `purifier status` tells what each profile took.
    """

    name: ClassVar[str] = "table4"
    title: ClassVar[str] = "Table 4"
    axis: ClassVar[str] = "poison_ratio"
    every: ClassVar[tuple[Any, ...]] = (0.05, 0.01)
    allowed: ClassVar[tuple[str, ...]] = COMPARED

    poison_ratio: Any = 0.05


@dataclass(frozen=True)
class Figure13(Table):
    """Figure 13: (1 - ASR) / epochs of nine methods with VGG-16 on three datasets (supplement A.2).

    Command: `papermill notebooks/figure13.ipynb out.ipynb -p dataset cifar10`. Expected at `paper`, as published:
    data/published/figure13.csv. clean_size is on MNIST's scale; the other datasets give the same share (3000 is
    2,500 of CIFAR-10 and 1,960 of GTSRB). The figure's attack is not stated; its MNIST bars fit Table 3's row of
    3,000, so BadNets at 10 % is the reading taken here. A profile without downloads has MNIST's digits alone.
    """

    name: ClassVar[str] = "figure13"
    title: ClassVar[str] = "Figure 13"
    axis: ClassVar[str] = "dataset"
    every: ClassVar[tuple[Any, ...]] = ("cifar10", "mnist", "gtsrb")
    allowed: ClassVar[tuple[str, ...]] = COMPARED

    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, (*self.every, "all"))

    def note(self, profile: str) -> str:
        """That the digits stand in where a profile has no other data."""
        return _stand_in(self.dataset, profile)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The datasets asked for; a profile without downloads has MNIST alone."""
        return ("mnist",) if PROFILES[profile].data == "embedded" else super().rows(profile)

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one bar."""
        mnist = super().cell(column, row, seed, profile)
        return replace(mnist, dataset=row, clean_size=_share(self.clean_size, row))


@dataclass(frozen=True)
class Activations(Experiment):
    """What Figures 10 to 12 share: one network on one dataset, at its penultimate layer.

    dataset "auto" is CIFAR-10, and the embedded digits at a profile that has nothing else.
    """

    axis: ClassVar[str] = "dataset"
    network: ClassVar[str] = "resnet18"

    dataset: Any = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, ("auto", *PAPER_TRAIN_SIZE))

    def note(self, profile: str) -> str:
        """That the digits stand in where a profile has no other data."""
        return _stand_in(self.dataset, profile)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The one dataset; a profile without downloads has MNIST alone."""
        if PROFILES[profile].data == "embedded":
            return ("mnist",)
        return ("cifar10",) if self.dataset == "auto" else (self.dataset,)

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one panel."""
        return Cell(row, self.network, self.attack, float(self.poison_ratio), "none", 0, seed, profile)


@dataclass(frozen=True)
class Figure10(Activations):
    """Figure 10: the channels of ResNet-18's penultimate layer under clean and Trojan images (supplement A.1).

    Command: `papermill notebooks/figure10.ipynb out.ipynb -p profile small`. The supplement gives the figure as a
    picture alone: no axis values, no dataset, no poison ratio. CIFAR-10 and 10 % are the reading taken here.
    """

    name: ClassVar[str] = "figure10"
    title: ClassVar[str] = "Figure 10"

    attack: Any = "trojan"


@dataclass(frozen=True)
class Figure11(Activations):
    """Figure 11: the 4x4 map of mean activation at ResNet-18's penultimate layer, clean and triggered (A.1).

    Command: `papermill notebooks/figure11.ipynb out.ipynb -p profile small`. Expected at `paper`, as published:
    data/published/figure11.csv. The caption says BadNets, the panel Trojan; the caption is followed.
    """

    name: ClassVar[str] = "figure11"
    title: ClassVar[str] = "Figure 11"


@dataclass(frozen=True)
class Figure12(Figure10):
    """Figure 12: Figure 10's network with the feature-wise module (supplement A.1).

    Command: `papermill notebooks/figure12.ipynb out.ipynb -p profile small`. clean_size is on MNIST's scale; another
    dataset gives the same share (3000 is 2,500 of CIFAR-10), which the supplement does not state.
    """

    name: ClassVar[str] = "figure12"
    title: ClassVar[str] = "Figure 12"

    clean_size: Any = 3000
    init: Any = "full,random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "init", parse_names("init", self.init, INITS))

    def columns(self) -> list[Column]:
        """The undefended network, and the feature-wise module once for each init."""
        return [Column("none"), *(Column("feature", (("init", i),)) for i in self.init)]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of panels."""
        undefended = super().cell(column, row, seed, profile)
        size = _share(self.clean_size, row)
        return replace(undefended, defense=column.defense, clean_size=size, switches=column.switches)


@dataclass(frozen=True)
class Attacks(Experiment):
    """Every attack on every dataset: the backdoored VGG-16 before any defense, and one stamped image.

    Command: `purifier run attacks --profile small`. attack and dataset are one name or "all". A profile without
    downloads has MNIST's digits alone.
    """

    name: ClassVar[str] = "attacks"
    title: ClassVar[str] = "The attacks"
    axis: ClassVar[str] = "attack"

    attack: Any = "all"
    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, (*PAPER_TRAIN_SIZE, "all"))

    def note(self, profile: str) -> str:
        """That the digits stand in where a profile has no other data."""
        return _stand_in(self.dataset, profile)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The attacks and datasets asked for, as pairs."""
        datasets = tuple(PAPER_TRAIN_SIZE) if self.dataset == "all" else (self.dataset,)
        if PROFILES[profile].data == "embedded":
            datasets = ("mnist",)
        attacks = ATTACKS if self.attack == "all" else (self.attack,)
        return tuple((attack, dataset) for dataset in datasets for attack in attacks)

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of ACC and ASR."""
        attack, dataset = row
        return Cell(dataset, self.network, attack, float(self.poison_ratio), "none", 0, seed, profile)


@dataclass(frozen=True)
class Setting:
    """What a reading is taken on: data, network, clean size, and whether the clean images are augmented."""

    dataset: str
    network: str
    clean_size: int
    augment: bool = True


@dataclass(frozen=True)
class Readings(Experiment):
    """Three readings of Purifier: each module from each `init`, beside the same network trained on the clean set alone.

    Command: `papermill notebooks/readings.ipynb out.ipynb -p profile small`. On MNIST with VGG-16 at the paper's three
    clean sizes, with and without augmentation of the clean images, and on CIFAR-10 with both networks. Expected on
    MNIST: data/published/table3.csv, for the reading that it comes from.
    """

    name: ClassVar[str] = "readings"
    title: ClassVar[str] = "Readings"
    axis: ClassVar[str] = "dataset"

    seeds: Any = "0-2"
    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, ("mnist", "cifar10", "all"))

    def note(self, profile: str) -> str:
        """That the digits stand in where a profile has no other data."""
        return _stand_in(self.dataset, profile)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The settings; a profile without downloads has the smallest clean size of MNIST alone."""
        if PROFILES[profile].data == "embedded":
            return (Setting("mnist", "vgg16", 3000),)
        mnist = [Setting("mnist", "vgg16", size) for size in Table3.every]
        cifar = [Setting("cifar10", network, _share(3000, "cifar10")) for network in ("vgg16", "resnet18")]
        every = [*mnist, *cifar, *(replace(setting, augment=False) for setting in mnist)]
        return tuple(setting for setting in every if self.dataset in ("all", setting.dataset))

    def columns(self) -> list[Column]:
        """The control, and every module from every start."""
        return [Column("scratch"), *(Column(g, (("init", i),)) for i in INITS for g in GRANULARITIES)]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of ACC and ASR."""
        aug = () if row.augment else (("defence_aug", "off"),)
        return Cell(
            row.dataset,
            row.network,
            self.attack,
            float(self.poison_ratio),
            column.defense,
            row.clean_size,
            seed,
            profile,
            (*column.switches, *aug),
        )


EXPERIMENTS: dict[str, type[Experiment]] = {
    kind.name: kind for kind in (Table3, Table4, Figure10, Figure11, Figure12, Figure13, Attacks)
}


def from_notebook(name: str, namespace: Mapping[str, Any]) -> Experiment:
    """The experiment that a notebook's variables describe; call it directly after the parameters cell.

    Papermill only logs an unknown parameter, and checks no type. Here any variable that is no parameter of the
    experiment stops the notebook with a ConfigError that names the known ones.
    """
    kind = EXPERIMENTS[one_of("experiment", name, EXPERIMENTS)]
    known = sorted((f.name for f in fields(kind)), key=lambda name: name != kind.axis)  # the axis first
    hidden = {"In", "Out", "get_ipython", "exit", "quit", "open"}
    given = {
        k: v
        for k, v in namespace.items()
        if not k.startswith("_") and k not in hidden and not isinstance(v, types.ModuleType) and not callable(v)
    }
    for unknown in given.keys() - set(known):
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{unknown!r} is not a parameter of {name}; its parameters: {', '.join(known)}.{hint}")
    return kind(**given)
