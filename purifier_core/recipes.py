"""How long and how fast a training goes, and what of Purifier can be chosen. Without torch."""

from dataclasses import dataclass

GRANULARITIES = ("channel", "cube", "feature")
INITS = ("full", "partial", "random")


@dataclass(frozen=True)
class Recipe:
    """How long and how fast SGD goes. One step is one batch; `milestones` are epochs."""

    epochs: int
    lr: float
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dampening: float = 0.0
    nesterov: bool = False
    bf16: bool = False  # autocast: products in bfloat16, weights and their updates in fp32
    cycle: bool = False  # one cycle: a line from 0 up to `lr` over the first 30 %, a line down to 0 over the rest
    tail: bool = False  # MCR's schedule: constant to half, linear down to 1 % at 90 %, then constant

    def lr_at(self, epoch: float) -> float:
        """The learning rate of an epoch (counted from 0); with `cycle` also inside of one."""
        if self.cycle:
            progress = epoch / self.epochs
            return self.lr * min(progress / 0.3, (1.0 - progress) / 0.7)
        if self.tail:
            progress = epoch / self.epochs
            return self.lr * min(1.0, max(0.01, 1.0 - 0.99 * (progress - 0.5) / 0.4))
        return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)


PURIFIER_STAGES = (Recipe(20, 0.01), Recipe(20, 0.01))  # the heads alone, then everything
