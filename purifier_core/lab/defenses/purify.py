"""Purifier itself, as the lab calls it: `purifier_core.purifier` is the method."""

from purifier_core.lab.defenses import Defended, Given
from purifier_core.purifier import purify


def defend(given: Given) -> Defended:
    """The module that the cell's defense names."""
    purified = purify(
        *given.data,
        granularity=given.cell.defense,
        init=given.cell.switch("init"),
        stages=given.stages(),
        bn_frozen_stats=given.cell.switch("bn_frozen_stats") == "yes",
        graph=True,
        **given.options,
    )
    return Defended(purified, purified.effort)
