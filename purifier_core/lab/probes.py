"""What a record tells beyond ACC and ASR: Purifier's units, the penultimate layer's activations, a stamped picture."""

import base64
import time
from typing import Any

import torch
from torch import nn

from purifier_core.evaluation import answering, classes, evaluate, evaluated_in_bf16, predict, share, to_float
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.methods import DATASETS
from purifier_core.lab.poisoning import wanted
from purifier_core.purifier import Purified
from purifier_core.recipes import GRANULARITIES

PROFILED = "resnet18"
"""The network of Figures 10 to 12: its records hold the activations of the last convolution block."""


AGREEING = 1000
"""Test images on which the answers under bf16 are compared with those in fp32."""

WATCHED = 1000
"""A defense is watched after every epoch on at most this many clean test images, and as many triggered ones."""


class Curve:
    """ACC and ASR of a defense after every epoch, on a fixed part of the test set: watched, and never chosen by.

    `epochs` counts from the first stage of the defense; `before` are the epochs of a stage that is not watched, since
    its network is not the result. `every`: a stage is watched after each `every` epochs. `target`: the attacker's
    class, or that of each triggered image. An instance is the `watch` of a defense.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        triggered: torch.Tensor,
        before: float = 0.0,
        every: int = 1,
        target: int | torch.Tensor = TARGET_CLASS,
    ) -> None:
        draws = torch.Generator().manual_seed(0)
        clean, stamped = (torch.randperm(len(x), generator=draws)[:WATCHED].to(x.device) for x in (images, triggered))
        self.images, self.labels, self.triggered = images[clean], labels[clean], triggered[stamped]
        self.target = target[stamped] if isinstance(target, torch.Tensor) else target
        self.begun, self.last, self.seconds = before, 0, 0.0
        self.every = every
        self.stages = [before] if before else []
        self.points: list[tuple[float, float, float]] = []

    def start(self, model: nn.Module) -> None:
        """Note the network as it was given, as epoch 0."""
        self._note(model, 0.0)

    def __call__(self, model: nn.Module, epoch: int) -> None:
        if epoch <= self.last:  # the epochs of a stage are counted anew
            self.begun += self.last
            self.stages.append(self.begun)
        self.last = epoch
        if epoch % self.every == 0:
            self._note(model, self.begun + epoch)

    def _note(self, model: nn.Module, epoch: float) -> None:
        begun = time.perf_counter()
        rates = evaluate(model, self.images, self.labels, self.triggered, self.target)
        self.points.append((epoch, rates["acc"], rates["asr"]))
        self.seconds += time.perf_counter() - begun

    def get_state(self) -> dict[str, Any]:
        """All that was noted, for `checkpoints`."""
        return {name: getattr(self, name) for name in ("begun", "last", "seconds", "stages", "points")}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def recorded(self) -> dict[str, Any] | None:
        """The curve for a record, None where no epoch was watched. Rates are fractions, `stages` the epochs at which a
        further stage began, `images` the clean and the triggered ones that were watched, `seconds` what that took."""
        if not any(epoch for epoch, _, _ in self.points):
            return None
        epochs, acc, asr = (list(values) for values in zip(*self.points, strict=True))
        images = [len(self.images), len(self.triggered)]
        seconds = round(self.seconds, 2)
        return {"epochs": epochs, "acc": acc, "asr": asr, "stages": self.stages, "images": images, "seconds": seconds}


def agreement(model: nn.Module, images: torch.Tensor) -> float:
    """The share of uint8 `images` (N, 3, H, W) to which the network gives one answer under bf16 and in fp32."""
    answers = []
    for rounded in (False, True):
        with evaluated_in_bf16(rounded):
            answers.append(predict(model, images))
    return share(answers[0] == answers[1])


def probe(cell: Cell, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, triggered: torch.Tensor) -> dict:
    """The diagnostics of a computed cell. `triggered` is its ASR set, in the order of `images`. `ra`, robust accuracy,
    is the share of it that is classified rightly."""
    target = wanted(cell.attack, labels, DATASETS[cell.dataset].classes)
    turned = labels != target
    diagnostics: dict[str, Any] = {"ra": rates(model, labels, triggered, target)["ra"]}
    if isinstance(model, Purified):
        diagnostics["clean"] = diagnose(model, images, labels)
        diagnostics["triggered"] = diagnose(model, triggered, target[turned], foreign=False)
    if cell.defense in ("none", *GRANULARITIES) and cell.network == PROFILED:
        site: Any = _inside(model).last_conv
        diagnostics["activations"] = activations(model, site, images, labels, triggered, turned)
    if cell.defense == "none":
        diagnostics["sample"] = {"clean": picture(images[turned][0]), "triggered": picture(triggered[0])}
    return diagnostics


def rates(model: nn.Module, labels: torch.Tensor, triggered: torch.Tensor, aims: torch.Tensor) -> dict[str, float]:
    """ASR and RA on an ASR set `triggered`, from the labels of all images (N,) and what the attacker wants of them."""
    answers, turned = predict(model, triggered), labels != aims
    return {"asr": share(answers == aims[turned]), "ra": share(answers == labels[turned])}


@torch.inference_mode()
def diagnose(
    purified: Purified, images: torch.Tensor, labels: torch.Tensor, foreign: bool = True, batch_size: int = 1000
) -> dict:
    """What the units do on uint8 `images` whose masks' true labels are `labels`.

    Returns the share of images that the network (`network`), each head (`heads`) and the network with the true label's
    masks (`oracle`) predict as `labels`, and the share on which the network's prediction equals the first head's
    (`first_head_agreement`). `wrong_mask`: every mask is that of one other class, drawn by a fixed seed; the shares of
    images then predicted as `labels` (`label`) and as the mask's class (`mask`). A network that reads the image gives
    the first, one that reads the mask the second.

    Without `foreign` there are only the masks that the network picks itself, so no `oracle` and no `wrong_mask`. With
    the target class as labels of triggered images, `network` is ASR and `heads` are the heads'.
    """
    hits = torch.zeros(len(purified.sites), device=images.device)
    right = agree = oracle = label = mask = torch.zeros((), device=images.device)
    count = purified.units()[0].head.out_features
    shift = torch.randint(1, count, (len(labels),), generator=torch.Generator().manual_seed(0)).to(labels.device)
    others = (labels + shift) % count
    with answering(images.device):
        for x, y, other in zip(*(t.split(batch_size) for t in (images, labels, others)), strict=True):
            batch = to_float(x)
            logits, heads = purified.with_heads(batch)
            guesses = [a.argmax(1) for a in heads]
            answers = classes(logits)
            hits = hits + torch.stack([(g == y).sum() for g in guesses])
            right, agree = right + (answers == y).sum(), agree + (answers == guesses[0]).sum()
            if not foreign:
                continue
            oracle = oracle + (purified(batch, y).argmax(1) == y).sum()
            misled = purified(batch, other).argmax(1)
            label, mask = label + (misled == y).sum(), mask + (misled == other).sum()
    total = len(images)
    shares = {
        "network": float(right) / total,
        "heads": [float(h) / total for h in hits],
        "first_head_agreement": float(agree) / total,
    }
    if foreign:
        shares["oracle"] = float(oracle) / total
        shares["wrong_mask"] = {"label": float(label) / total, "mask": float(mask) / total}
    return shares


@torch.inference_mode()
def activations(
    model: nn.Module,
    site: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    triggered: torch.Tensor,
    turned: torch.Tensor,
    batch_size: int = 1000,
) -> dict[str, Any]:
    """The mean magnitude |F| at the submodule `site`, whose output F is (N, C, H, W), with five significant digits.

    classes (K, C): by channel over the images of each class and all positions. clean (C) and clean_map (H, W): over the
    images where `turned` (N,) is True, by channel and by position. triggered and triggered_map: over `triggered`, the
    stamped copies of those.
    """
    outputs: list[torch.Tensor] = []
    hook = _inside(model).get_submodule(site).register_forward_hook(lambda _m, _i, out: outputs.append(out.abs()))

    def mean(x: torch.Tensor) -> torch.Tensor:
        total: Any = 0
        for piece in x.split(batch_size):
            outputs.clear()
            model(to_float(piece))
            total = total + outputs[0].double().sum(0)
        return total / max(1, len(x))

    try:
        by_class = torch.stack([mean(images[labels == k]) for k in range(int(labels.max()) + 1)])  # (K, C, H, W)
        stamped = mean(triggered)
    finally:
        hook.remove()
    weights = torch.bincount(labels[turned], minlength=len(by_class)).double()
    clean = (by_class * weights[:, None, None, None]).sum(0) / weights.sum()
    return {
        "site": site,
        "classes": _digits(by_class.mean((2, 3))),
        "clean": _digits(clean.mean((1, 2))),
        "triggered": _digits(stamped.mean((1, 2))),
        "clean_map": _digits(clean.mean(0)),
        "triggered_map": _digits(stamped.mean(0)),
    }


def _inside(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, Purified) else model


def picture(image: torch.Tensor) -> str:
    """A uint8 image (3, H, W) as a PPM file in base64; Pillow reads such a file, and writing it takes no library."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return base64.b64encode(b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()).decode()


def _digits(values: torch.Tensor) -> Any:
    if values.ndim > 1:
        return [_digits(row) for row in values]
    return [float(f"{v:.5g}") for v in values.tolist()]
