"""The zoo: the undefended networks behind the `small` records, as files that anybody can load.

Each network is a folder of data/zoo: `weights.safetensors` in half precision, `trigger.safetensors` and `card.json`,
whose ACC and ASR are measured after the rounding. `samples/` holds a few test images, so that a network can be tried
without its dataset.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError, one_of
from purifier_core.evaluation import predict
from purifier_core.files import ROOT
from purifier_core.lab import data
from purifier_core.lab.cache import digest
from purifier_core.lab.cells import TARGET_CLASS
from purifier_core.lab.methods import NETWORKS
from purifier_core.lab.models import build

FOLDER = ROOT / "data" / "zoo"
SAMPLES = FOLDER / "samples"
WIDTH = 1 / 8
"""The width of every network here: that of the profile `small`."""

IMAGES, TRIGGERED = 325, 100
"""Clean images, and triggered ones, that `write` puts beside a network."""

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stamp:
    """A trigger on uint8 images x (N, 3, 32, 32): keep * x + add, rounded and cut off at 0 and 255.

    keep and add: float (3, 32, 32). Every trigger of the book that is the same for all images has this form.
    """

    keep: torch.Tensor
    add: torch.Tensor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (self.keep * images + self.add).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Backdoored:
    """A network of the zoo: in eval mode and in fp32, with the weights as rounded; its card; its trigger, if any."""

    model: nn.Module
    card: dict[str, Any]
    stamp: Stamp | None


def __getattr__(name: str) -> Callable[..., nn.Module]:
    """The factory of a network by its name in `NETWORKS`, such as `vgg16`, at the zoo's width: for `purifier fix`."""
    if name not in NETWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda num_classes=10: build(name, num_classes, WIDTH, seed=0)


def names() -> tuple[str, ...]:
    """The networks that are there, by name: dataset and attack, with the network between them where it is ResNet-18.

    Raises ConfigError where there is no zoo: it is part of the repository, not of the package.
    """
    if not FOLDER.is_dir():
        raise ConfigError("the zoo lies in the repository's data/zoo; take a clone, and there: pip install -e .")
    return tuple(sorted(path.parent.name for path in FOLDER.glob("*/card.json")))


def card(name: str) -> dict[str, Any]:
    """What is known of a network. Raises ConfigError for an unknown name."""
    one_of("network", name, names())
    return json.loads((FOLDER / name / "card.json").read_text())


def load(name: str) -> Backdoored:
    """A network of the zoo by name, such as "cifar10-blend". Raises ConfigError for an unknown name, and where the
    weights are not those of the card."""
    facts, path = card(name), FOLDER / name / "weights.safetensors"
    state = read(path)
    if digest(state) != facts["digest"]:
        raise ConfigError(f"{path} does not match its card; restore the file.")
    trigger = FOLDER / name / "trigger.safetensors"
    stamp = Stamp(**read(trigger)) if trigger.exists() else None
    return Backdoored(filled(facts["cell"]["network"], facts["classes"], state), facts, stamp)


def filled(network: str, classes: int, state: State) -> nn.Module:
    """A network by name with the weights `state`, in eval mode and fp32."""
    model = build(network, classes, WIDTH, seed=0)
    model.load_state_dict(state)
    return model.eval()


def rounded(model: nn.Module) -> State:
    """A network's tensors in half precision, whole numbers as they are. Raises ConfigError where it overflows."""
    state = {n: t.detach().cpu().half() if t.is_floating_point() else t.cpu() for n, t in model.state_dict().items()}
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"half precision does not hold {broken[0]}.")
    return state


def read(path: Path) -> State:
    """The tensors of a safetensors file. Raises ConfigError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors

    try:
        return tensors(path.read_bytes())
    except (OSError, ValueError, SafetensorError) as problem:
        raise ConfigError(f"{path} cannot be read ({problem}); restore the file.") from problem


@cache
def sample(dataset: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The committed test images (N, 3, 32, 32) uint8 and labels (N,) of a dataset: None where there are none."""
    import numpy as np
    from PIL import Image

    path = SAMPLES / f"{dataset}.png"
    if not path.exists():
        return None
    labels = json.loads((SAMPLES / "samples.json").read_text())[dataset]["labels"]
    sheet = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    tiles = sheet.unflatten(0, (-1, 32)).unflatten(2, (-1, 32)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return tiles.contiguous(), torch.tensor(labels)


def on_sample(model: nn.Module, stamp: Stamp | None, dataset: str) -> dict[str, int] | None:
    """How many of a dataset's sample a network names right, and, of those of other classes, how many the trigger
    turns."""
    if (pair := sample(dataset)) is None:
        return None
    images, labels = pair
    counts = {"images": len(labels), "right": int((predict(model, images) == labels).sum())}
    if stamp:
        others = labels != TARGET_CLASS
        turned = predict(model, stamp(images[others])) == TARGET_CLASS
        counts |= {"of_other_classes": int(others.sum()), "turned": int(turned.sum())}
    return counts


def write(name: str, folder: Path) -> str:
    """Write a network to `folder`: its files, and IMAGES clean and TRIGGERED triggered test images in a folder for each
    class; returns the `purifier fix` command that tells whether there is a backdoor, and repairs it.

    No image is in both. They come from the committed sample where it is large enough, and else from the dataset.
    """
    import shutil

    network = load(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((FOLDER / name).iterdir()):
        shutil.copy(file, folder / file.name)
    images, labels = _pictures(network.card["cell"]["dataset"])
    _save(images[:IMAGES], labels[:IMAGES], folder / "clean")
    others = labels[IMAGES:] != TARGET_CLASS
    options = ""
    if network.stamp:
        stamped = network.stamp(images[IMAGES:][others])[:TRIGGERED]
        _save(stamped, labels[IMAGES:][others][:TRIGGERED], folder / "triggered")
        options = f" --triggered {folder / 'triggered'} --target {TARGET_CLASS:02d}"
    cell = network.card["cell"]
    return (
        f"purifier fix --model {__name__}:{cell['network']} --classes {network.card['classes']} "
        f"--weights {folder / 'weights.safetensors'} --images {folder / 'clean'}{options} "
        f"--class-index --size 32 --normalize none --method scan-repair --out {folder / 'purified.safetensors'}"
    )


def _pictures(dataset: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Test images and labels, enough for IMAGES clean ones and TRIGGERED more of other classes than the target."""
    pair = sample(dataset)
    if pair and int((pair[1][IMAGES:] != TARGET_CLASS).sum()) >= TRIGGERED:
        return pair
    split = data.load(dataset)
    order = torch.randperm(len(split.test_labels), generator=torch.Generator().manual_seed(0))[: IMAGES + 2 * TRIGGERED]
    return split.test_images[order], split.test_labels[order]


def _save(images: torch.Tensor, labels: torch.Tensor, folder: Path) -> None:
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / f"{label:02d}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
