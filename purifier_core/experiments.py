"""The supplement's tables and figures as sets of cells. Parameters are checked here, for notebooks and CLI alike."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from purifier_core.config import (
    ATTACKS,
    GRANULARITIES,
    INITS,
    LABELS,
    PAPER_TRAIN_SIZE,
    Cell,
    ConfigError,
    check_clean_size,
    check_poison_ratio,
    one_of,
)
from purifier_core.profiles import PROFILES


@dataclass(frozen=True)
class Column:
    """One column of a table: a defense with its switches, and its header."""

    defense: str
    switches: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The paper's name of the method, with Purifier's init beside it."""
        init = dict(self.switches).get("init")
        return LABELS[self.defense] + (f" ({init})" if init else "")


@dataclass(frozen=True)
class Table:
    """What the tables and Figure 13 share: columns of defenses, and rows along one axis. The fields are the parameters.

    axis names the parameter that may be "all", which means `every`. Raises ConfigError for every value that
    cannot be used.
    """

    name: ClassVar[str]
    axis: ClassVar[str]
    every: ClassVar[tuple[Any, ...]]
    allowed: ClassVar[tuple[str, ...]]
    network: ClassVar[str] = "vgg16"

    clean_size: Any = 3000
    profile: Any = "auto"
    seeds: Any = 0
    methods: Any = "all"
    attack: Any = "badnets"
    poison_ratio: Any = 0.1
    init: Any = "full,random"
    device: Any = "auto"

    def __post_init__(self) -> None:
        for name in ("clean_size", "poison_ratio"):
            value = getattr(self, name)
            if value == "all" and name == self.axis:
                continue
            if isinstance(value, str):
                raise ConfigError(f"{name}={value!r} is not a number; write one{self._or_all(name)}.")
            if name == "clean_size":
                check_clean_size(value, "mnist")
            else:
                check_poison_ratio(value)
        one_of("profile", self.profile, ("auto", *PROFILES))
        one_of("attack", self.attack, ATTACKS)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        object.__setattr__(self, "seeds", parse_seeds(self.seeds))
        object.__setattr__(self, "methods", parse_names("methods", self.methods, self.allowed))
        object.__setattr__(self, "init", parse_names("init", self.init, INITS))

    def _or_all(self, name: str) -> str:
        return f", or 'all' for {', '.join(map(str, self.every))}" if name == self.axis else ""

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The values of the axis that were asked for and that a profile has, in the table's order."""
        value = getattr(self, self.axis)
        return self.every if value == "all" else (value,)

    def columns(self) -> list[Column]:
        """The columns asked for: the paper's order, Purifier's three once for each init."""
        plain = [Column(m) for m in self.methods if m not in GRANULARITIES]
        return plain + [Column(m, (("init", i),)) for i in self.init for m in self.methods if m in GRANULARITIES]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one number of the table."""
        at = {"clean_size": self.clean_size, "poison_ratio": self.poison_ratio} | {self.axis: row}
        return Cell(
            "mnist",
            self.network,
            self.attack,
            float(at["poison_ratio"]),
            column.defense,
            at["clean_size"],
            seed,
            profile,
            column.switches,
        )

    def cells(self, profile: str) -> list[Cell]:
        """Every cell of the table at one profile, without repeats, seed by seed."""
        every = (
            self.cell(column, row, seed, profile)
            for seed in self.seeds
            for row in self.rows(profile)
            for column in self.columns()
        )
        return list(dict.fromkeys(every))


@dataclass(frozen=True)
class Table3(Table):
    """Table 3: VGG-16 on MNIST with different sizes of clean data (supplement A.3).

    Command: `papermill notebooks/table3.ipynb out.ipynb -p clean_size 3000`. Expected at `paper`, as published:
    No Defense 99.27 / 99.94 (ACC / ASR in percent), the other columns in data/published/table3.csv. The paper
    states neither the attack nor the poison ratio of this table; BadNets at 10 % is the reading taken here.
    Expected time: minutes at `quick` on two cores; `purifier status` tells what each profile took.
    """

    name: ClassVar[str] = "table3"
    axis: ClassVar[str] = "clean_size"
    every: ClassVar[tuple[Any, ...]] = (6000, 4500, 3000)
    allowed: ClassVar[tuple[str, ...]] = tuple(m for m in LABELS if m != "abl")


@dataclass(frozen=True)
class Table4(Table):
    """Table 4: VGG-16 on MNIST with different poison ratios (supplement A.3).

    Command: `papermill notebooks/table4.ipynb out.ipynb -p poison_ratio 0.05`. Expected at `paper`, as published:
    data/published/table4.csv. The paper states neither the attack nor the clean size of this table; BadNets and
    3,000 images (5 %, the release's share) are the reading taken here.
    Expected time: minutes at `quick` on two cores; `purifier status` tells what each profile took.
    """

    name: ClassVar[str] = "table4"
    axis: ClassVar[str] = "poison_ratio"
    every: ClassVar[tuple[Any, ...]] = (0.05, 0.01)
    allowed: ClassVar[tuple[str, ...]] = tuple(LABELS)

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
    axis: ClassVar[str] = "dataset"
    every: ClassVar[tuple[Any, ...]] = ("cifar10", "mnist", "gtsrb")
    allowed: ClassVar[tuple[str, ...]] = tuple(LABELS)

    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, (*self.every, "all"))

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The datasets asked for; of "all", a profile without downloads has MNIST alone."""
        if self.dataset == "all" and PROFILES[profile].data == "embedded":
            return ("mnist",)
        return super().rows(profile)

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one bar."""
        mnist = super().cell(column, row, seed, profile)
        size = round(self.clean_size * PAPER_TRAIN_SIZE[row] / PAPER_TRAIN_SIZE["mnist"])
        return replace(mnist, dataset=row, clean_size=size)


EXPERIMENTS: dict[str, type[Table]] = {"table3": Table3, "table4": Table4, "figure13": Figure13}


def from_notebook(name: str, namespace: Mapping[str, Any]) -> Table:
    """The experiment that a notebook's variables describe; call it directly after the parameters cell.

    Papermill only logs an unknown parameter, and checks no type. Here any variable that is no parameter of the
    experiment stops the notebook with a ConfigError that names the known ones.
    """
    kind = EXPERIMENTS[one_of("experiment", name, EXPERIMENTS)]
    known = [f.name for f in fields(kind)]
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


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Seeds from 3, "0-2", "0,4,7" or a list, in order and without repeats."""
    problem = ConfigError(f"seeds={value!r} is not understood; write 0, '0-2', '0,4,7' or [0, 1].")
    if isinstance(value, str):
        found: list[int] = []
        for part in value.split(","):
            ends = part.strip().split("-")
            if len(ends) > 2 or not all(e.strip().isdecimal() for e in ends):
                raise problem
            low, high = int(ends[0]), int(ends[-1])
            if high < low or high - low > 1000:
                raise problem
            found.extend(range(low, high + 1))
    elif isinstance(value, (list, tuple)):
        found = list(value)
    else:
        found = [value]
    if not found or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in found):
        raise problem
    return tuple(dict.fromkeys(found))


def parse_names(name: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Names from "all", "a", "a,b" or a list, in the order of `allowed`."""
    if value == "all":
        return allowed
    parts = [p.strip() for p in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ConfigError(f"{name}={value!r} is not understood; write 'all' or names among: {', '.join(allowed)}.")
    chosen = {one_of(name, part, (*allowed, "all")) for part in parts}
    return allowed if "all" in chosen else tuple(a for a in allowed if a in chosen)
