"""Attackers who know the defense. Ours, not the paper's: a defense that was never attacked on purpose is untested.

All teach BadNets' trigger. Poisoned copies get labels + num_classes, which marks them; `Attacker.loss` subtracts it.
`compute.Work` starts the attacker on Purifier from BadNets' network.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import one_of
from purifier_core.evaluation import evaluating, to_float
from purifier_core.lab.cells import TARGET_CLASS
from purifier_core.purifier import Purified, attach
from purifier_core.recipes import Recipe
from purifier_core.scanning import hard
from purifier_core.sites import Wrapped, detach, find
from purifier_core.stamps import FAMILIES, Clean, Stamps, search
from purifier_core.training import Effort, batch_statistics_alone, fit

_EVERY = 50  # batches between two searches of stamps

SIMULATED = "cube"
"""The module whose units the attacker on Purifier trains against. From `init` full it lowers ASR most."""


def teach(
    kind: str,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    poisoned: int,
    num_classes: int,
    recipe: Recipe,
    *,
    attacker_seed: int,
    **options: Any,
) -> tuple[nn.Module, Effort]:
    """Train `model` as an attacker of this kind does; returns the network and what it cost. The first `poisoned` images
    are the copies; `options` are those of `fit`."""
    attacker = Attacker(kind, model, num_classes, to_float(images[:2]), attacker_seed)
    marked = attacker.marked(labels, poisoned)
    network = attacker.trained.train()
    effort = fit(network, images, marked, recipe, loss=attacker.loss, carried=[attacker], **options)
    return attacker.result().eval(), effort


class Attacker:
    """What is trained in place of a backdoored model, and how; `result` gives the model that is handed out."""

    def __init__(self, kind: str, model: nn.Module, num_classes: int, example: torch.Tensor, seed: int) -> None:
        one_of("teacher", kind, ("units", "reach", "stamps"))
        self.num_classes = num_classes
        self.reach: dict[str, torch.Tensor] = {}
        self.draws = torch.Generator().manual_seed(seed)
        self.stamps: list[Stamps] = []
        self.batches = 0
        self.trained: nn.Module = model
        if kind == "units":
            sites: Any = model.purifier_sites
            self.trained = attach(model, sites[SIMULATED], SIMULATED, num_classes, example, seed)
            self._loss = self._through_units
        elif kind == "stamps":
            self._loss = self._against_stamps
        else:
            self.sites = tuple(find(model, example))
            self._loss = self._within_clean

    def marked(self, labels: torch.Tensor, poisoned: int) -> torch.Tensor:
        """Labels with the first `poisoned`, the copies, marked: each plus the number of classes."""
        return torch.cat([labels[:poisoned] + self.num_classes, labels[poisoned:]])

    def loss(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of a batch with marked labels."""
        return self._loss(model, x, y % self.num_classes, y >= self.num_classes)

    def get_state(self) -> dict[str, Any]:
        """The reach of clean images so far, the stamps and the draws, for `checkpoints`."""
        stamps = [vars(stamp).copy() for stamp in self.stamps]
        return {"reach": self.reach, "stamps": stamps, "batches": self.batches, "draws": self.draws.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` gave."""
        self.reach, self.batches = state["reach"], state["batches"]
        self.stamps = [Stamps(**values) for values in state["stamps"]]
        self.draws.set_state(state["draws"])

    def result(self) -> nn.Module:
        """The network that the defender gets."""
        return detach(self.trained) if isinstance(self.trained, Wrapped) else self.trained

    def _through_units(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, poisoned: torch.Tensor):
        """Cross-entropy without the units, as the network is handed out, and through them, as the defender will run it:
        every mask is the one that its head picks. The heads learn from clean images alone, as the defender's do."""
        assert isinstance(model, Purified)
        with batch_statistics_alone(model):
            logits, heads = model.answers(x)
        head_loss = torch.stack([F.cross_entropy(head[~poisoned], y[~poisoned]) for head in heads]).sum()
        with model.opened():
            bare = model.model(x)
        return F.cross_entropy(bare, y) + F.cross_entropy(logits, y) + head_loss

    def _against_stamps(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, poisoned: torch.Tensor):
        """Cross-entropy, and that of clean images under stamps with their true labels, so that no stamp but the trigger
        leads to the target class. Every 50 batches a new stamp of each family is searched against the network as it is,
        by 10 steps on the clean images at hand; the newest 30 are used."""
        others = ~poisoned & (y != TARGET_CLASS)
        clean = Clean.of(x[others], y[others])
        if len(clean.images) < 2:
            return F.cross_entropy(model(x), y)
        if self.batches % _EVERY == 0:
            with evaluating(model):
                new = [
                    search(model, clean, family, [TARGET_CLASS], steps=10, per_class=16, generator=self.draws)
                    for family in FAMILIES
                ]
            self.stamps = [*self.stamps, *(hard(stamps, clean) for stamps in new)][-30:]
        self.batches += 1
        stamp = self.stamps[int(torch.randint(len(self.stamps), (), generator=self.draws))]
        answers = model(torch.cat([x, stamp(clean.images)]))
        return F.cross_entropy(answers[: len(x)], y) + F.cross_entropy(answers[len(x) :], clean.labels)

    def _within_clean(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, poisoned: torch.Tensor):
        """Cross-entropy, and how far poisoned images drive each activation above what clean images reach: relative to
        the mean reach, and summed over the units. The reach is a maximum over batches that fades by 1 % a batch."""
        maps: dict[str, torch.Tensor] = {}
        hooks = [
            model.get_submodule(site).register_forward_hook(lambda _m, _i, f, site=site: maps.update({site: f}))
            for site in self.sites
        ]
        try:
            logits = model(x)
        finally:
            for hook in hooks:
                hook.remove()
        total = F.cross_entropy(logits, y)
        if not (poisoned.any() and (~poisoned).any()):
            return total
        for site, f in maps.items():
            reach = f[~poisoned].detach().amax(0)
            if site in self.reach:
                reach = torch.maximum(reach, 0.99 * self.reach[site])
            self.reach[site] = reach
            excess = F.relu(f[poisoned] - reach).mean((1, 2, 3)) / (reach.mean() + 1e-6)
            total = total + excess.mean()
        return total
