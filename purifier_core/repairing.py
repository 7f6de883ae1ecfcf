"""A backdoor taken out of a network: unlearn what the scan found, then bound what is left. Ours, not the paper's.

1. `scan` names the classes that a universal stamp reaches too easily. Where none stands out, nothing is changed.
2. A bank of stamps for each of them: more searches, and after every epoch new ones against the network as it is then.
3. Training on clean images, plain and stamped, both with the labels that they have; the given network is the teacher.
   Some of it in BatchNorm's training mode, so that the trigger stays away when the network is finetuned.
4. `bound` cuts off what clean images do not reach.

The parts are known: unlearning of universal perturbations (I-BAU, Zeng et al., 2022; SAU, Wei et al., 2023; NPD, Zhu et
al., 2023), distillation, and bounded activations.
"""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.bounds import Bounded, bound
from purifier_core.checks import ConfigError
from purifier_core.evaluation import logits_of, logits_only, to_float
from purifier_core.inputs import check_range, images_of, labels_of
from purifier_core.recipes import UNLEARNING, Unlearning
from purifier_core.scanning import Candidate, Findings, hard, scan
from purifier_core.sites import unwrapped
from purifier_core.stamps import STRENGTHS, Clean, Stamps, blocks, search
from purifier_core.training import NO_AUGMENT, Augment, Effort, batch_statistics_alone, fit

_PATCHES = (36, 16, 48, 24)  # of 1,024 pixels: the sizes that patches are searched with
_KEPT = (12, 24, 36, 48)  # and those with which they are put on an image


class Bank:
    """Stamps of any family, each put on images in many variants. `first` stays; `newest` is what was added last."""

    def __init__(self, clean: Clean, mixed: float, dropout: float) -> None:
        self.clean, self.mixed, self.dropout = clean, mixed, dropout
        self.first: list[Stamps] = []
        self.newest: list[Stamps] = []

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Float images (N, C, H, W), each under a stamp drawn for it: half from the first ones, half from the newest.

        Weak stamps have a strength drawn from STRENGTHS. Patches keep their strongest 12 to 48 of 1,024 pixels; half of
        them lack blocks of a grid. Noise replaces some of the pixels of most stamps.
        """
        old = torch.rand(len(x), generator=generator) < 0.5 if self.newest else torch.ones(len(x), dtype=torch.bool)
        stamped = x.clone()
        for stamps, chosen in ((self.first, old), (self.newest, ~old)):
            places = chosen.nonzero().flatten().to(x.device)
            if len(places):
                stamped[places] = self._put(stamps, x[places], generator)
        return stamped

    def get_state(self) -> list[dict[str, Any]]:
        """The newest stamps, for `checkpoints`."""
        return [vars(stamps).copy() for stamps in self.newest]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `get_state` gave."""
        self.newest = [Stamps(**values) for values in state]

    def _put(self, every: list[Stamps], x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(sum(map(len, every)), (len(x),), generator=generator)
        masks = torch.cat([stamps.masks for stamps in every])[drawn]
        patterns = torch.cat([stamps.patterns for stamps in every])[drawn]
        patch = torch.tensor([stamps.family == "patch" for stamps in every for _ in range(len(stamps))])[drawn]
        patches, weak = self._patches(masks, generator), self._weak(masks, generator)
        masks = torch.where(patch.to(x.device)[:, None, None, None], patches, weak)
        often, most = torch.rand(2, len(x), generator=generator)
        share = torch.where(often < self.mixed, self.mixed * most, 0.0)[:, None, None, None]
        replaced = torch.rand(len(x), 1, *x.shape[2:], generator=generator) < share
        noise = torch.rand(x.shape, generator=generator).to(x)
        noise = self.clean.low + (self.clean.high - self.clean.low) * noise
        return x + masks * (torch.where(replaced.to(x.device), noise, patterns) - x)

    def _patches(self, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes = torch.tensor([self.clean.size(size / 1024) for size in _KEPT])
        size = sizes[torch.randint(len(_KEPT), (len(masks),), generator=generator)].to(masks.device)
        ranks = masks.flatten(1).argsort(1, descending=True).argsort(1)
        strongest = (ranks < size[:, None]).view_as(masks).float()
        intact = torch.rand(len(masks), 1, 1, 1, generator=generator) < 0.5
        grid = blocks(len(masks), self.clean.images.shape[1:], self.dropout, generator)
        return strongest * torch.where(intact, torch.ones(()), grid).to(masks.device)

    def _weak(self, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        low, high = STRENGTHS
        strengths = low + (high - low) * torch.rand(len(masks), 1, 1, 1, generator=generator)
        return strengths.to(masks).expand_as(masks)


class Repaired(Bounded):
    """A repaired network: `findings` is what was unlearned, `effort` what it took, the scan included."""

    findings: Findings


def repair(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    findings: Findings | None = None,
    *,
    anyway: bool = False,
    sites: Sequence[str] | None = None,
    how: Unlearning = UNLEARNING,
    augment: Augment = NO_AUGMENT,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model` without the backdoor that a scan found, in eval mode; a plain copy where none stands out.

    images: clean ones (N, C, H, W), uint8, or float as the model takes them, on the model's device; labels (N,).
    findings: what `scan` found in this model, by default a scan with these images and this seed. anyway: unlearn what
    stands out most, and bound, even where the scan suspects nothing. sites: of the bounds, as `bound` takes them. A
    changed network is a `Repaired`, which drops in where the model was.

    Time: some 65,000 images, plain and stamped, through the network and back (40,000 where it has no BatchNorm), and a
    search of stamps after every epoch; a minute or two for VGG-16 an eighth wide on a CPU. At most 5,000 of the images
    are trained on.

    Raises ConfigError as `scan` and `bound` do.
    """
    started = time.perf_counter()
    images = images_of(images, 20)
    labels = labels_of(labels, len(images)).to(images.device)
    original = copy.deepcopy(unwrapped(model)).eval().requires_grad_(False)
    check_range(labels, logits_only(logits_of(original(to_float(images[:2])))).shape[1])
    if len(labels.unique()) < 2:
        raise ConfigError("the images are of one class; a stamp is unlearned on those of others.")
    before = findings.seconds if findings else 0.0
    findings = findings or scan(original, images, labels, seed=seed)
    candidates = findings.candidates if anyway else findings.suspects
    if not candidates:
        return copy.deepcopy(model).eval()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: how.most].to(images.device)
    network, effort = unlearn(original, Clean.of(images, labels)[order], candidates, how, augment, seed)
    bounded = bound(network, images, "feature", sites=sites, seed=seed)
    repaired = Repaired(bounded.model, bounded.sites, bounded.granularity).eval()
    repaired.quantile, repaired.changed = bounded.quantile, bounded.changed
    effort.seconds = time.perf_counter() - started + before
    repaired.findings, repaired.effort = findings, effort
    return repaired


def unlearn(
    given: nn.Module, clean: Clean, candidates: Sequence[Candidate], how: Unlearning, augment: Augment, seed: int
) -> tuple[nn.Module, Effort]:
    """A copy of the network `given` (in eval mode) that answers images under the candidates' stamps as without them.

    BatchNorm's statistics stay as they are. The loss on images x, their stamped copies S(x) and their labels y is
    CE(f(x), z) + CE(f(S(x)), z) + distilled * KL(g(x) || f(x)), g the given network and z = (g(x) + onehot y) / 2.

    With `training_mode` the last two terms come once more, of the network as a later training sees it: BatchNorm takes
    the statistics of x and of that share of S(x). Else finetuning can bring the trigger back, on clean images alone.
    """
    draws = torch.Generator().manual_seed(seed)
    bank = Bank(clean, how.mixed, how.dropout)
    bank.first = [hard(candidate.stamp, clean) for candidate in candidates]
    bank.first += _searched(given, clean, candidates, how, how.searches, how.steps, draws)
    recipe = how.recipe(len(clean.images))
    network = copy.deepcopy(given).eval().requires_grad_(True)
    normalising = nn.ModuleList(m for m in network.modules() if isinstance(m, _BatchNorm))

    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            probabilities = logits_of(given(x)).softmax(1)
        labels = (probabilities + F.one_hot(y, probabilities.shape[1])) / 2
        images = to_float(torch.cat([x, bank(x, draws)]))

        def divergence(plain: torch.Tensor) -> torch.Tensor:
            return how.distilled * F.kl_div(plain.log_softmax(1), probabilities, reduction="batchmean")

        plain, stamped = logits_of(network(images)).split(len(x))
        total = F.cross_entropy(plain, labels) + F.cross_entropy(stamped, labels) + divergence(plain)
        few = round(how.training_mode * len(x))
        if not (few and normalising):
            return total
        with batch_statistics_alone(network):
            normalising.train()
            plain, stamped = logits_of(network(images[: len(x) + few])).split(len(x))
            normalising.eval()
        return total + F.cross_entropy(stamped, labels[:few]) + divergence(plain)

    def renew(network: nn.Module, epoch: int) -> None:
        if epoch < recipe.epochs:
            bank.newest = _searched(network, clean, candidates, how, 1, how.renewed, draws, epoch)

    effort = fit(
        network,
        clean.images,
        clean.labels,
        recipe,
        seed=seed,
        augment=augment,
        loss=loss,
        watch=renew,
        carried=[draws, bank],
        title="unlearning",
    )
    return network, effort


def _searched(
    network: nn.Module,
    clean: Clean,
    candidates: Sequence[Candidate],
    how: Unlearning,
    count: int,
    steps: int,
    generator: torch.Generator,
    turn: int = 0,
) -> list[Stamps]:
    """`count` new stamps for each candidate's class and family, patches in several sizes in turn."""
    new_stamps = []
    for candidate in candidates:
        for number in range(turn, turn + count):
            size = clean.size(_PATCHES[number % len(_PATCHES)] / 1024)
            stamps = search(
                network,
                clean,
                candidate.family,
                [candidate.target],
                steps=steps,
                per_class=how.per_step,
                generator=generator,
                size=size,
                dropout=how.dropout,
            )
            new_stamps.append(stamps)
    return new_stamps
