"""Scan-repair beside what the field offers, under the same clean images."""

from dataclasses import dataclass
from typing import Any, ClassVar

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.beyond import Defenses
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import same_share
from purifier_core.lab.methods import ATTACKS, METHODS, repairs


@dataclass(frozen=True)
class Repairs(Defenses):
    """Scan-repair, which is ours, and three repairs of the field, against every attack and on clean networks.

    Command: `purifier run repairs --profile small --attack all --dataset all`. VGG-16, 10 % of poison; clean_size is on
    MNIST's scale, and gives the same share of another dataset. attack "none" is a clean network: there ACC must not
    fall. Expected: nothing yet, the records are to be made.
    """

    name: ClassVar[str] = "repairs"
    title: ClassVar[str] = "Repairs"

    clean_size: Any = 3000

    def allowed_attacks(self) -> tuple[str, ...]:
        """Every attack, "none" for a clean network, and "all" for all of these."""
        return (*ATTACKS, "none", "all")

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The attacks and datasets asked for, as pairs, a clean network last."""
        asked = super().rows(profile)
        if self.attack != "all":
            return asked
        datasets = dict.fromkeys(dataset for _, dataset in asked)
        return tuple((attack, dataset) for dataset in datasets for attack in (*ATTACKS, "none"))

    def columns(self) -> list[Column]:
        """No defense, bounds alone, Scan-repair, and the field's."""
        return [Column(defense) for defense in ("none", "bound_feature", *repairs())]

    def places(self, profile: str) -> list[tuple[Any, Column]]:
        """Every place."""
        return [(row, column) for row in self.rows(profile) for column in self.columns()]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one number."""
        attack, dataset = row
        size = same_share(self.clean_size, dataset) if METHODS[column.defense].data == "clean" else 0
        return Cell(dataset, self.network, attack, float(self.poison_ratio), column.defense, size, seed, profile)
