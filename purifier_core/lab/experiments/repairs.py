"""Scan-repair beside what the field offers, under the same clean images."""

from dataclasses import dataclass
from typing import Any, ClassVar

from purifier_core.lab.experiments.beyond import AttackGrid
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import ATTACKS, repairs


@dataclass(frozen=True)
class Repairs(AttackGrid):
    """Scan-repair, which is ours, and three repairs of the field, against every attack and on clean networks.

    Command: `purifier run repairs --profile small --attack all --dataset all`. VGG-16, 10 % of poison; clean_size is on
    MNIST's scale, and gives the same share of another dataset. attack "none" is a clean network: there ACC must not
    fall. Expected: nothing yet, the records are to be made.
    """

    name: ClassVar[str] = "repairs"
    title: ClassVar[str] = "Repairs"

    attack: Any = "badnets"
    dataset: Any = "mnist"
    clean_size: Any = 3000  # type: ignore[misc]  # a parameter here alone

    def allowed_attacks(self) -> tuple[str, ...]:
        """Every attack, "none" for a clean network, and "all" for all of these."""
        return (*ATTACKS, "none", "all")

    def every_attack(self) -> tuple[str, ...]:
        """Every attack, and a clean network last."""
        return (*ATTACKS, "none")

    def columns(self) -> list[Column]:
        """No defense, bounds alone, Scan-repair, and the field's."""
        return [Column(defense) for defense in ("none", "bound_feature", *repairs())]
