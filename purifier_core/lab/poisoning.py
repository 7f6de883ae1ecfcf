"""What an attack does with its trigger: the poisoned training set, and the images on which it is measured."""

from collections.abc import Callable

import torch
from torch import nn

from purifier_core.lab.attacks import Trigger, perturbed, warp
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.draws import derive
from purifier_core.lab.methods import ATTACKS, DATASETS


def wanted(attack: str, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The classes (N,) that an attack wants for stamped images with these labels (N,): the target class for all.
    All-to-all wants the class after the label's, and the first after the last.

    All-to-all is the second attack of BadNets (Gu et al., 2019, "BadNets: Evaluating Backdooring Attacks on Deep Neural
    Networks"), there on MNIST: digit i becomes i + 1. There poisoned images take the place of clean ones; here they are
    copies of a share of all images, as in every attack of the release.
    """
    if attack in ATTACKS and ATTACKS[attack].all_to_all:
        return (labels + 1) % classes
    return torch.full_like(labels, TARGET_CLASS)


def poison(
    images: torch.Tensor,
    labels: torch.Tensor,
    trigger: Trigger,
    ratio: float,
    target: int | torch.Tensor,
    seed: int,
    clean_label: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The poisoned training set: floor(ratio * N) stamped copies labelled `target`, then all clean images.

    target: one class, or what `wanted` gives for the images.

    The images to copy are drawn over all classes, the target's included; their originals stay in the set with
    their true labels, as in the authors' release, so the share of poison is ratio / (1 + ratio). With `clean_label`
    only images of the target class are copied, as many as there are at most.
    Raises ValueError where the ratio selects no image.
    """
    count = int(ratio * len(images) + 1e-9)
    if count < 1:
        raise ValueError(f"poison_ratio={ratio} of {len(images)} images selects none; take at least {1 / len(images)}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    aims = torch.as_tensor(target, device=labels.device).expand_as(labels)
    chosen = (order[(labels == aims)[order]] if clean_label else order)[:count]
    return torch.cat([trigger(images[chosen]), images]), torch.cat([aims[chosen], labels])


def training_set(
    cell: Cell,
    images: torch.Tensor,
    labels: torch.Tensor,
    trigger: Trigger,
    aims: torch.Tensor,
    reference: Callable[[], nn.Module],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The poisoned training set of a cell, its stamped copies first. aims: what `wanted` gives; `reference` makes the
    clean network, for the attack that perturbs the images that it stamps."""

    def stamp(chosen: torch.Tensor) -> torch.Tensor:
        if cell.consistent:  # the trigger alone does the rest at test
            truth = torch.full((len(chosen),), TARGET_CLASS, device=chosen.device)
            chosen = perturbed(reference(), chosen, truth, DATASETS[cell.dataset].perturbation)
        return trigger(chosen)

    clean_label = cell.consistent or cell.switch("sig_label") == "clean"
    x, y = poison(images, labels, stamp, cell.poison_ratio, aims, derive(cell.seed, "poison"), clean_label=clean_label)
    if ATTACKS[cell.attack].decoys:
        return decoyed(x, y, len(y) - len(labels), derive(cell.seed, "trigger"), derive(cell.seed, "decoys"))
    return x, y


def decoyed(
    images: torch.Tensor, labels: torch.Tensor, copies: int, trigger_seed: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A set poisoned by WaNet, whose first `copies` are stamped, with decoys after them: twice as many clean images,
    warped with noise and labelled rightly, so that a network must learn this field and no other."""
    clean, truth = images[copies:], labels[copies:]
    count = min(2 * copies, len(clean))
    chosen = torch.randperm(len(clean), generator=torch.Generator().manual_seed(seed))[:count].to(images.device)
    decoys = torch.cat([warp(part, trigger_seed, seed + n) for n, part in enumerate(clean[chosen].split(1000))])
    return torch.cat([images[:copies], decoys, clean]), torch.cat([labels[:copies], truth[chosen], truth])


def asr_set(images: torch.Tensor, labels: torch.Tensor, trigger: Trigger, target: int | torch.Tensor) -> torch.Tensor:
    """Every test image of another class than `target`, stamped; ASR is the share of it predicted as `target`. target:
    one class, or what `wanted` gives for the images."""
    return trigger(images[labels != target])
