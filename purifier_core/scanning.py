"""Is there a backdoor in a network, and to which class? Ours, not the paper's, and not new in its parts.

For every class the scan searches a stamp that carries any image there (`stamps`). Most classes can be reached a little;
a backdoor's class is reached far more easily than all others. The search is Neural Cleanse's (Wang et al., 2019) but
for what is compared: the *margin* that a stamp of given size reaches, not the size that it needs.

The score of a family of stamps is the lead of the foremost class's margin over the next one's. Its unit is how much
margins differ without a backdoor: the standard deviation of the others among the ten foremost, and never less than a
tenth of the margin that the network has on clean images. Only the foremost ten count: of many classes most lie far
below. The tenth keeps a lead from seeming large where those ten lie close.

A patch is judged in a second way, since a backdoor may lift the margins of all classes: by the share of images that it
carries to its class. In a clean network a patch of 3.5 % of the image leaves some images where they were.
`recipes.Scanning` holds how large scores and shares are in clean networks.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, exp, expm1, hypot, lgamma
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError, one_of
from purifier_core.evaluation import held_out, logits_of, logits_only, to_float
from purifier_core.inputs import check_range, images_of, labels_of
from purifier_core.progress import progress
from purifier_core.recipes import NOTHING as NOTHING
from purifier_core.recipes import SCANNING, Scanning
from purifier_core.recipes import SUSPECTED as SUSPECTED
from purifier_core.recipes import UNCLEAR as UNCLEAR
from purifier_core.sites import unwrapped
from purifier_core.stamps import FAMILIES, PATCH, Clean, Stamps, margins, search

_FOREMOST = 10  # classes that are compared
MEASURED = 200
"""Held-out images of other classes on which a stamp is measured, at most."""
_ALL = 64  # with more classes than this, a short search picks those that are searched in full
_PICKED = 32


@dataclass(frozen=True)
class Candidate:
    """The class that stands out most in one family of stamps.

    score: see above. p: of clean networks, see `p_value`. success: the share of held-out images of other classes that
    the stamp carries to `target`. margin: their mean margin there.
    """

    family: str
    target: int
    score: float
    p: float
    success: float
    margin: float
    stamp: Stamps

    def as_dict(self) -> dict[str, Any]:
        """Everything but the stamp, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "stamp"}

    def stands_out(self, how: Scanning) -> bool:
        """Whether clean networks seldom show such a class, and its stamp works like a trigger."""
        return self.p < how.level and self.success >= how.works


@dataclass(frozen=True)
class Findings:
    """What a scan found; printed, it says so in words. `reason` says why the verdict is `cannot tell`, `margins` holds
    each family's by class, `natural` is the mean lead of the network's answers to clean images."""

    verdict: str
    candidates: tuple[Candidate, ...]
    margins: dict[str, dict[int, float]]
    natural: float
    seconds: float
    reason: str = ""
    how: Scanning = SCANNING

    def __str__(self) -> str:
        return "\n".join(verdict(self))

    @property
    def p(self) -> float:
        """The smallest p-value of the candidates whose stamp works; 1 where none does."""
        return min((c.p for c in self.candidates if c.success >= self.how.works), default=1.0)

    @property
    def suspects(self) -> tuple[Candidate, ...]:
        """The candidates that stand out, where the verdict is that there is a backdoor."""
        return tuple(c for c in self.candidates if c.stands_out(self.how)) if self.verdict == SUSPECTED else ()


def scan(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    families: Sequence[str] = FAMILIES,
    how: Scanning = SCANNING,
    seed: int = 0,
) -> Findings:
    """Look for a class to which a universal stamp carries images far more easily than to any other.

    images: clean ones (N, C, H, W), uint8, or float as the model takes them, on the model's device; labels (N,). The
    stamps are measured on a fifth of them, held out of the search. A few hundred suffice. `model` stays as it is.

    Time: each family takes 2 * 40 * K * clamp(256 / K, 4, 16) images through the network and back for K
    classes, 10 s for each of VGG-16 an eighth wide on a CPU. Memory does not grow with K. With more than 64
    classes a short search (6 steps of 2 images a class) picks 32, which are searched in full.

    Raises ConfigError for images or labels that cannot be used, for fewer than 20 images, and for a network that gives
    probabilities, or what is no finite number, in place of logits.
    """
    started = time.perf_counter()
    images = images_of(images, 20)
    labels = labels_of(labels, len(images)).to(images.device)
    model = copy.deepcopy(unwrapped(model)).eval()
    for family in families:
        one_of("family", family, FAMILIES)
    generator = torch.Generator().manual_seed(seed)
    clean = Clean.of(images, labels)[torch.randperm(len(images), generator=generator).to(images.device)]
    working, measuring = (clean[part] for part in held_out(len(images)))
    with torch.no_grad():
        pieces = [logits_of(model(to_float(piece))) for piece in measuring.images.split(100)]
    logits = logits_only(torch.cat(pieces))
    classes, right = logits.shape[1], float((logits.argmax(1) == measuring.labels).float().mean())
    foremost = logits.topk(min(2, classes)).values
    natural = float((foremost[:, 0] - foremost[:, -1]).mean())
    check_range(labels, classes)
    if min(len(part.labels.unique()) for part in (working, measuring)) < 2:
        raise ConfigError("the images are of one class, or all but some are; a stamp is searched on those of others.")
    candidates, by_class = [], {}
    with torch.enable_grad(), progress("scan", total=len(families) * how.restarts * classes) as bar:
        for family in families:
            stamps, reached, success = _searched(model, working, measuring, family, classes, how, generator, bar)
            first = int(reached.argmax())
            score, target, rate = outlyingness(reached, natural), stamps.targets[first], float(success[first])
            count = min(MEASURED, int((measuring.labels != target).sum()))
            p = p_value(score, round(rate * count), count, how) if family == "patch" else p_value(score, how=how)
            by_class[family] = dict(zip(stamps.targets, reached.tolist(), strict=True))
            candidates.append(Candidate(family, target, score, p, rate, float(reached[first]), stamps[first]))
    suspected = any(candidate.stands_out(how) for candidate in candidates)
    reason = _unclear(len(images), classes, right)
    if not reason and not suspected:
        reason = _doubt(candidates, how)
    return Findings(
        UNCLEAR if reason else SUSPECTED if suspected else NOTHING,
        tuple(candidates),
        by_class,
        natural,
        time.perf_counter() - started,
        reason,
        how,
    )


def _unclear(count: int, classes: int, right: float) -> str:
    """Why the scan cannot tell; empty where it can."""
    if classes < 5:
        return f"{classes} classes are too few to compare"
    if count < 100:
        return f"{count} images are too few; give at least 100"
    if right < 0.4:
        return f"the network gives the labels' classes to {right:.0%} of the images only; do the labels fit it?"
    return ""


def _doubt(candidates: Sequence[Candidate], how: Scanning) -> str:
    """Why it is not sure that nothing stands out; empty where it is. A class leads as few do in clean networks, but its
    stamp works on some images alone: the search may have fallen short."""
    for candidate in sorted(candidates, key=lambda candidate: candidate.p):
        if candidate.p < how.level and how.doubted <= candidate.success < how.works:
            return (
                f"class {candidate.target} leads as in few clean networks (p {candidate.p:.2g}), but its stamp "
                f"({candidate.family}) carries {candidate.success:.0%} of other images there, not {how.works:.0%}"
            )
    return ""


def _searched(
    model: nn.Module,
    working: Clean,
    measuring: Clean,
    family: str,
    classes: int,
    how: Scanning,
    generator: torch.Generator,
    bar: Any,
) -> tuple[Stamps, torch.Tensor, torch.Tensor]:
    """Each class's best stamp of a family over the restarts, its margin and its success on held-out images."""
    targets = list(range(classes))
    if classes > _ALL:
        short = search(model, working, family, targets, steps=6, per_class=2, generator=generator)
        reached, _ = margins(model, measuring, hard(short, measuring), most=8)
        targets = sorted(reached.topk(_PICKED).indices.tolist())
    per_class = min(16, max(4, 256 // classes))
    tries = []
    for _ in range(how.restarts):
        stamps = search(model, working, family, targets, steps=how.steps, per_class=per_class, generator=generator)
        tries.append((stamps, *margins(model, measuring, hard(stamps, measuring), MEASURED)))
        bar.update(classes)
    best = torch.stack([reached for _, reached, _ in tries]).argmax(0).tolist()

    def chosen(values: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([values[best[place]][place] for place in range(len(targets))])

    masks, patterns = chosen([s.masks for s, *_ in tries]), chosen([s.patterns for s, *_ in tries])
    stamps = Stamps(family, tuple(targets), masks, patterns)
    return stamps, chosen([reached for _, reached, _ in tries]), chosen([success for *_, success in tries])


def hard(stamps: Stamps, clean: Clean) -> Stamps:
    """The stamps as they are measured: a patch's strongest pixels alone, at full strength."""
    return stamps.strongest(clean.size(PATCH)) if stamps.family == "patch" else stamps


def outlyingness(reached: torch.Tensor, natural: float = 0.0) -> float:
    """How far the largest of K margins stands out of the ten largest: see above. natural: the margin on clean images.
    With fewer than four margins there is nothing to compare: 0."""
    if len(reached) < 4:
        return 0.0
    first, *others = reached.double().topk(min(_FOREMOST, len(reached))).values
    spread = hypot(float(torch.stack(others).std()), natural / 10)
    return float(first - others[0]) / max(spread, 1e-12)


def p_value(score: float, hits: int = 0, count: int = 0, how: Scanning = SCANNING) -> float:
    """The share of clean networks that show as much: twice the smaller of two shares, since both are looked at.

    One is of the networks whose largest score is at least `score`. The other is of those whose best patch carries at
    least `hits` of `count` images: none are given for a stamp that is no patch.
    """
    by_score = -expm1(-exp(min(700.0, (how.location - score) / how.scale)))
    by_patch = beta_binomial_tail(hits, count, how.patch_carries, how.patch_leaves)
    return min(1.0, 2 * by_score, 2 * by_patch)


def beta_binomial_tail(hits: int, count: int, a: float, b: float) -> float:
    """The chance of at least `hits` of `count` images, each with the same chance, drawn from Beta(a, b)."""

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    return sum(comb(count, x) * exp(log_beta(x + a, count - x + b) - log_beta(a, b)) for x in range(hits, count + 1))


def verdict(findings: Findings, names: Mapping[int, str] | None = None) -> list[str]:
    """What a scan found in words: the verdict, and a line for each family. names: of the classes."""
    names = names or {}
    lines = [f"{findings.verdict}{f': {findings.reason}' if findings.reason else ''} ({findings.seconds:.0f} s)"]
    for candidate in findings.candidates:
        named = f"class {candidate.target}" + (f", {names[candidate.target]!r}" if candidate.target in names else "")
        mark = "stands out" if candidate.stands_out(findings.how) else "does not stand out"
        lines.append(
            f"{candidate.family}: {named} {mark}: score {candidate.score:.1f}, p {candidate.p:.2g}; its stamp carries "
            f"{candidate.success:.0%} of other images there"
        )
    return lines
