"""An experiment as a grid of cells: rows, columns, seeds. Parameters are checked here, for notebooks and CLI alike."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from purifier_core.checks import ConfigError, one_of
from purifier_core.lab.cells import Cell, check_clean_size, check_poison_ratio, parse_names, parse_seeds
from purifier_core.lab.methods import ATTACKS, METHODS, PAPER, attacks
from purifier_core.lab.profiles import PROFILES, SIZES
from purifier_core.recipes import GRANULARITIES, INITS


@dataclass(frozen=True)
class Column:
    """One column of a table: a defense with its switches, and its header."""

    defense: str
    switches: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The paper's name of the method."""
        return METHODS[self.defense].label

    @property
    def label(self) -> str:
        """The name, with Purifier's init beside it."""
        init = dict(self.switches).get("init")
        return self.name + (f" ({init})" if init else "")


def module(granularity: str, init: str) -> Column:
    """The column of a Purifier module from a start."""
    return Column(granularity, (("init", init),))


@dataclass(frozen=True)
class Experiment:
    """What every table and figure is: columns of defenses, and rows. The fields are the parameters.

    `curves`: whether to watch each defense after every epoch (`probes.Curve`), which changes no number.
    Raises ConfigError for every value that cannot be used.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    axis: ClassVar[str]  # the parameter that the rows are values of
    network: ClassVar[str] = "vgg16"
    sizes: ClassVar[tuple[str, ...]] = SIZES  # the profiles that the book reads it from, the largest first
    seeds_first: ClassVar[bool] = False  # whether a profile with seeds enough to decide goes before a larger one
    where_taken: ClassVar[bool] = False  # whether it shows only the seeds whose backdoor took

    profile: Any = "auto"
    seeds: Any = 0
    attack: Any = "badnets"
    poison_ratio: Any = 0.1
    device: Any = "auto"
    curves: Any = "on"

    def __post_init__(self) -> None:
        for name in {"clean_size", "poison_ratio"} & {f.name for f in fields(self)}:
            value = getattr(self, name)
            if isinstance(value, str):
                if value == "all" and name == self.axis:
                    continue
                raise ConfigError(f"{name}={value!r} is not a number; write one{self._or_all(name)}.")
            if name == "clean_size":
                check_clean_size(value, "mnist")
            else:
                check_poison_ratio(value)
        one_of("profile", self.profile, ("auto", *PROFILES))
        one_of("attack", self.attack, self.allowed_attacks())
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("curves", self.curves, ("on", "off"))
        object.__setattr__(self, "seeds", parse_seeds(self.seeds))

    def allowed_attacks(self) -> tuple[str, ...]:
        """The values of `attack`: the paper's, and every one and "all" where they are the rows."""
        return (*ATTACKS, "all") if self.axis == "attack" else attacks(PAPER)

    def _or_all(self, name: str) -> str:
        return ""

    def full_grid(self) -> "Experiment":
        """The experiment with all its rows."""
        return self

    def note(self, profile: str) -> str:
        """That the digits stand in for other datasets, at a profile that has nothing else; empty where they do not."""
        if getattr(self, "dataset", "mnist") == "mnist" or PROFILES[profile].data != "embedded":
            return ""
        return f" Profile {profile} has no CIFAR-10 or GTSRB: 5,000 MNIST digits stand in."

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The values of the axis that were asked for and that a profile has, in order."""
        raise NotImplementedError

    def columns(self) -> list[Column]:
        """The columns asked for, in order."""
        return [Column("none")]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one number."""
        raise NotImplementedError

    def made(self, column: Column, dataset: str, clean_size: int, seed: int, profile: str, **changes: Any) -> Cell:
        """The cell of a column with this experiment's network, attack and poison ratio, but for `changes`."""
        own: dict[str, Any] = {"network": self.network, "attack": self.attack, "switches": column.switches}
        own |= {"poison_ratio": self.poison_ratio, "seed": seed, "profile": profile}
        return Cell(dataset, defense=column.defense, clean_size=clean_size, **(own | changes))

    def places(self, profile: str) -> list[tuple[Any, Column]]:
        """Every (row, column) that has a number, row by row."""
        return [(row, column) for row in self.rows(profile) for column in self.columns()]

    def cells(self, profile: str) -> list[Cell]:
        """Every cell at one profile, without repeats, seed by seed."""
        places = self.places(profile)
        every = (self.cell(column, row, seed, profile) for seed in self.seeds for row, column in places)
        return list(dict.fromkeys(every))


@dataclass(frozen=True)
class Table(Experiment):
    """What the tables and Figure 13 share: rows along an axis that may be "all", which means `every`."""

    every: ClassVar[tuple[Any, ...]]
    allowed: ClassVar[tuple[str, ...]]  # the methods it may show

    clean_size: Any = 3000
    methods: Any = "all"
    init: Any = "full,random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", parse_names("methods", self.methods, self.allowed))
        object.__setattr__(self, "init", parse_names("init", self.init, INITS))

    def _or_all(self, name: str) -> str:
        return f", or 'all' for {', '.join(map(str, self.every))}" if name == self.axis else ""

    def full_grid(self) -> "Table":
        """The table with all its rows."""
        return replace(self, **{self.axis: "all"})

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The values of the axis that were asked for and that a profile has, in the table's order."""
        value = getattr(self, self.axis)
        return self.every if value == "all" else (value,)

    def columns(self) -> list[Column]:
        """The columns asked for: the paper's order, Purifier's three once for each init."""
        plain = [Column(m) for m in self.methods if m not in GRANULARITIES]
        return plain + [module(m, i) for i in self.init for m in self.methods if m in GRANULARITIES]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one number of the table."""
        values = {"clean_size": self.clean_size, "poison_ratio": self.poison_ratio} | {self.axis: row}
        return self.made(column, "mnist", values["clean_size"], seed, profile, poison_ratio=values["poison_ratio"])
