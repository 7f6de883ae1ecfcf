"""No defense: the network as it is given. Where that is a clean one, it is the line to hold a repair against."""

import copy

from purifier_core.lab.defenses import Defended, Given
from purifier_core.training import Effort


def defend(given: Given) -> Defended:
    """A copy of the network."""
    return Defended(copy.deepcopy(given.model).eval(), Effort())
