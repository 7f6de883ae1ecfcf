"""Attacks on datasets against defenses, as grids: the attacks alone, every defense, and the repairs."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from purifier_core.checks import one_of
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Column, Experiment
from purifier_core.lab.experiments.supplement import same_share
from purifier_core.lab.methods import ATTACKS, BROKEN, COLUMNS, DATASETS, OURS, PAPER, attacks, ours, repairs
from purifier_core.lab.profiles import PROFILES


@dataclass(frozen=True)
class AttackGrid(Experiment):
    """What the tables of attacks share: rows of (attack, dataset), one network, columns of defenses.

    attack and dataset are one name or "all". A profile without downloads has MNIST's digits alone.
    """

    axis: ClassVar[str] = "attack"
    seeds_first: ClassVar[bool] = True
    clean_size: ClassVar[Any] = 3000

    attack: Any = "all"
    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, (*DATASETS, "all"))

    def every_attack(self) -> tuple[str, ...]:
        """What "all" attacks are."""
        return attacks(PAPER)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The attacks and datasets asked for, as pairs."""
        datasets = tuple(DATASETS) if self.dataset == "all" else (self.dataset,)
        if PROFILES[profile].data == "embedded":
            datasets = ("mnist",)
        names = self.every_attack() if self.attack == "all" else (self.attack,)
        return tuple((attack, dataset) for dataset in datasets for attack in names)

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of ACC and ASR, with the share of clean images that `clean_size` is of MNIST."""
        attack, dataset = row
        return self.made(column, dataset, same_share(self.clean_size, dataset), seed, profile, attack=attack)


@dataclass(frozen=True)
class Attacks(AttackGrid):
    """Every attack on every dataset: the backdoored VGG-16 before any defense, and one stamped image.

    Command: `purifier run attacks --profile small`.
    """

    name: ClassVar[str] = "attacks"
    title: ClassVar[str] = "The attacks"


@dataclass(frozen=True)
class Defenses(AttackGrid):
    """Every defense against every attack on every dataset, attackers who know the defense included.

    Command: `purifier run defenses --profile small`. VGG-16, 10 % of poison. Columns: the paper's methods, Purifier
    from the backdoored network, and bounded activations, which are ours.
    """

    name: ClassVar[str] = "defenses"
    title: ClassVar[str] = "Defenses"
    where_taken: ClassVar[bool] = True

    attack: Any = "badnets"
    dataset: Any = "mnist"

    def full_grid(self) -> "Defenses":
        """Every attack on every dataset."""
        return replace(self, attack="all", dataset="all")

    def every_attack(self) -> tuple[str, ...]:
        """The paper's attacks and ours."""
        return attacks(PAPER, OURS)

    def columns(self) -> list[Column]:
        """No defense, the paper's, and ours."""
        return [Column(defense) for defense in (*COLUMNS, *ours())]

    def places(self, profile: str) -> list[tuple[Any, Column]]:
        """All but ABL against an attacker who knows: it trains its own network, from images that are BadNets'."""
        adaptive = {name for name, attack in ATTACKS.items() if attack.teacher}
        every = super().places(profile)
        return [(row, column) for row, column in every if not (column.defense == "abl" and row[0] in adaptive)]


@dataclass(frozen=True)
class Repairs(AttackGrid):
    """Scan-repair, which is ours, and three repairs of the field, against every attack and on clean networks.

    Command: `purifier run repairs --profile small --attack all --dataset all`. VGG-16, 10 % of poison; clean_size is on
    MNIST's scale, and gives the same share of another dataset. attack "none" is a clean network: there ACC must not
    fall, and without a repair its own ASR is the line for every attack's. Beside a single attack it stands for that
    alone. Expected: with Scan-repair an ASR within 2 points of that line and ACC within 1 point, in 8 of 10 rows.
    """

    name: ClassVar[str] = "repairs"
    title: ClassVar[str] = "Repairs"
    where_taken: ClassVar[bool] = True

    attack: Any = "badnets"
    dataset: Any = "mnist"
    clean_size: Any = 3000  # type: ignore[misc]  # a parameter here alone

    def full_grid(self) -> "Repairs":
        """Every attack on every dataset."""
        return replace(self, attack="all", dataset="all")

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The attacks and datasets asked for, as pairs, and a clean network of each dataset."""
        pairs = super().rows(profile)
        return tuple(dict.fromkeys([*pairs, *(("none", dataset) for _, dataset in pairs)]))

    def places(self, profile: str) -> list[tuple[Any, Column]]:
        """All, but the clean network alone where it is only the line for another attack."""
        every, alone = super().places(profile), self.attack not in ("all", "none")
        return [(row, column) for row, column in every if not (alone and row[0] == "none" and column != Column("none"))]

    def allowed_attacks(self) -> tuple[str, ...]:
        """Every attack, "none" for a clean network, and "all" for all of these."""
        return (*ATTACKS, "none", "all")

    def every_attack(self) -> tuple[str, ...]:
        """Every attack, and a clean network last."""
        return (*ATTACKS, "none")

    def columns(self) -> list[Column]:
        """No defense, bounds alone, Scan-repair, and the field's."""
        return [Column(defense) for defense in ("none", "bound_feature", *repairs())]


@dataclass(frozen=True)
class Breaking(AttackGrid):
    """How Scan-repair breaks: an attacker who knows the scan, and attacks on the repaired network, each beside a clean
    network's value.

    Command: `purifier run breaking --profile small --attack all --dataset all`. BadNets, Trojan, Blend and SIG, and
    BadNets by the attacker who knows the scan.
    """

    name: ClassVar[str] = "breaking"
    title: ClassVar[str] = "How it breaks"
    where_taken: ClassVar[bool] = True

    attack: Any = "badnets"
    dataset: Any = "mnist"

    def allowed_attacks(self) -> tuple[str, ...]:
        """Those with a single target class, and "all" for five of them."""
        return (*(name for name, attack in ATTACKS.items() if not attack.all_to_all), "all")

    def full_grid(self) -> "Breaking":
        """The five attacks on every dataset."""
        return replace(self, attack="all", dataset="all")

    def every_attack(self) -> tuple[str, ...]:
        """What "all" attacks are."""
        return ("badnets", "trojan", "blend", "sig", *attacks(BROKEN))

    def columns(self) -> list[Column]:
        """The undefended network, the repaired one and a clean one, both attacked."""
        return [Column("none"), Column("broken_repair"), Column("broken_clean")]
