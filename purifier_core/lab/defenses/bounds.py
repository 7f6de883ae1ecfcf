"""Bounded activations, as the lab calls them: `purifier_core.bounds` is the method."""

from purifier_core.bounds import bound
from purifier_core.lab.defenses import Defended, Given


def defend(given: Given) -> Defended:
    """The bounds at the granularity that the cell's defense names."""
    granularity = given.cell.defense.removeprefix("bound_")
    bounded = bound(given.model, given.images, granularity, seed=given.seed, batch_size=500)
    notes = {"quantile": bounded.quantile, "changed": bounded.changed, "sites": list(bounded.sites)}
    return Defended(bounded, bounded.effort, notes)
