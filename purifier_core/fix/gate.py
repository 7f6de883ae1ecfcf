"""Before anything is trained: do the given model, labels and pixels belong together?

A repair that learns wrong labels would report a success that is none.
"""

from dataclasses import dataclass

import torch
from torch import nn

from purifier_core.checks import ConfigError
from purifier_core.evaluation import DivergedError, predict
from purifier_core.fix.measure import Rate, rate
from purifier_core.fix.network import Prepared
from purifier_core.fix.pixels import TRIED, Pixels

MOST = 1000  # images that are asked
GAIN = 0.05  # share of images by which another normalisation must be better
WAY_OUT = "--trust-inputs goes on anyhow."
ORDERS = "--class-names file, --class-index (folders named by number) or --natural (2 before 10)"


@dataclass(frozen=True)
class Reading:
    """Predictions (N,) for labels (N,). matched: the best one-to-one renumbering of the classes, {label: class}."""

    labels: torch.Tensor
    predicted: torch.Tensor
    matched: dict[int, int]

    @property
    def accuracy(self) -> Rate:
        """The images predicted as their label."""
        return rate(self.predicted.eq(self.labels))

    @property
    def hits(self) -> torch.Tensor:
        """Which images (N,) are predicted as their label after the renumbering."""
        return self.predicted.eq(torch.tensor([self.matched[label] for label in self.labels.tolist()]))


def check(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    pixels: Pixels,
    names: dict[int, str],
    outputs: int,
    batch_size: int = 64,
) -> Rate:
    """The accuracy of the given model on labelled images (N, C, H, W), uint8, on the model's device.

    Raises ConfigError, with the likely cause and the way out, where another normalisation is clearly better, where the
    labels look permuted, and where the accuracy is hardly above chance.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:MOST]
    images, labels = images[order.to(images.device)], labels[order]
    reading = read(model, images, labels, pixels.mean, pixels.std, batch_size)
    for name, (mean, std) in TRIED.items():
        if (mean, std) != (pixels.mean, pixels.std) and len(mean) in (1, images.shape[1]):
            try:
                other = read(model, images, labels, mean, std, batch_size)
            except DivergedError:  # numbers too large for this network: not what it wants
                continue
            if _clearly_better(other.hits, reading.hits):
                raise ConfigError(
                    f"the pixels look wrongly normalised: with --normalize {name} the model is right on "
                    f"{rate(other.hits)} of {len(labels)} images, with {pixels.normalize} ({pixels.source}) on "
                    f"{rate(reading.hits)}. {WAY_OUT}"
                )
    check_labels(reading, names, outputs)
    return reading.accuracy


def read(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
) -> Reading:
    """What the model predicts under one normalisation."""
    network = Prepared(model, mean, std).to(images.device).eval()
    predicted = predict(network, images, batch_size).cpu()
    return Reading(labels, predicted, match(labels, predicted))


def match(labels: torch.Tensor, predicted: torch.Tensor) -> dict[int, int]:
    """For each label the class that it would have under the one-to-one renumbering with the most hits."""
    from scipy.optimize import linear_sum_assignment

    rows, row = labels.unique(return_inverse=True)
    columns, column = torch.cat([labels, predicted]).unique(return_inverse=True)
    table = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    table.index_put_((row, column[len(labels) :]), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    table += 0.5 * rows[:, None].eq(columns)  # where nothing speaks against it, the label stays
    chosen = linear_sum_assignment(table.numpy(), maximize=True)
    return {int(rows[r]): int(columns[c]) for r, c in zip(*chosen, strict=True)}


def check_labels(given: Reading, names: dict[int, str], outputs: int) -> None:
    """Raise ConfigError where the labels look permuted, or the accuracy is hardly above chance."""
    accuracy, renumbered = given.accuracy, rate(given.hits)
    moved = _moved(given)
    much = renumbered.share >= 0.5 and renumbered.share - accuracy.share >= 0.2 and _beyond_chance(given)
    if moved and (much or len(moved) > 1):
        examples = "; ".join(
            f"the folder {names.get(label, label)!r}, numbered {label}, is predicted as class {given.matched[label]}"
            for label in moved[:3]
        )
        raise ConfigError(
            f"the labels look permuted: {examples}. As the folders are numbered the model is right on {accuracy} of "
            f"{accuracy.count} images; renumbered, on {renumbered}. Say the order: {ORDERS}. {WAY_OUT}"
        )
    chance = 1 / outputs
    enough = min(3 * chance, chance + (1 - chance) / 5)
    if accuracy.interval[1] < enough:
        raise ConfigError(
            f"the given model is right on {accuracy} of {accuracy.count} images, and chance is {100 * chance:.1f} %: "
            f"are these its weights, its classes ({ORDERS}) and its pixels (--normalize, --size, --crop)? {WAY_OUT}"
        )


def _moved(reading: Reading) -> list[int]:
    """The labels of five images or more that are mostly predicted as one other class, and hardly as their own."""
    moved = []
    for label, other in reading.matched.items():
        own = reading.predicted[reading.labels == label]
        shares = [own.eq(number).double().mean() for number in (other, label)]
        if label != other and len(own) >= 5 and shares[0] >= 0.6 and shares[1] <= 0.1:
            moved.append(label)
    return moved


def _beyond_chance(reading: Reading) -> bool:
    """Whether no renumbering of shuffled predictions hits more. With few images any renumbering gains."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shuffled = reading.predicted[torch.randperm(len(reading.predicted), generator=generator)]
        if Reading(reading.labels, shuffled, match(reading.labels, shuffled)).hits.sum() > reading.hits.sum():
            return False
    return True


def _clearly_better(other: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether hits (N,) are more by GAIN of the images, and by three standard errors (McNemar)."""
    won, lost = int((other & ~before).sum()), int((before & ~other).sum())
    return won - lost >= max(GAIN * len(before), 3 * (won + lost) ** 0.5)
