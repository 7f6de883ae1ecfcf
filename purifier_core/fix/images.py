"""Folders of images as tensors, ready for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from purifier_core.checks import ConfigError
from purifier_core.progress import progress

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision and timm subtract them


@dataclass(frozen=True)
class Folder:
    """Images by path. With classes, labels (N,) number their sorted names from 0; without, there are no labels."""

    paths: list[Path]
    labels: torch.Tensor | None = None
    classes: tuple[str, ...] = ()


def anywhere(folder: Path) -> Folder:
    """Every image below a folder, at any depth; raises ConfigError where there is none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not paths:
        raise ConfigError(f"{folder} holds no images; known endings: {', '.join(ENDINGS)}.")
    return Folder(paths)


def by_class(folder: Path) -> Folder:
    """The images of a folder with a folder for each class, as torchvision's ImageFolder numbers them.

    Raises ConfigError where there are no class folders, or one holds no image.
    """
    every = anywhere(folder).paths
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not classes:
        raise ConfigError(f"{folder} holds no class folders; without labels give --unlabelled and a bound-* method.")
    found = [anywhere(folder / name).paths for name in classes]
    if (idle := len(every) - sum(map(len, found))) > 0:
        print(f"{idle} images outside the class folders of {folder} are left out.")
    labels = torch.cat([torch.full((len(paths),), number) for number, paths in enumerate(found)])
    return Folder([path for paths in found for path in paths], labels, classes)


def read(path: Path, size: int) -> Any:
    """One image as a PIL image of size x size pixels in RGB; raises ConfigError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except Exception as problem:  # PIL raises many types for a damaged file
        raise ConfigError(f"{path} cannot be read as an image ({type(problem).__name__}).") from problem


def stack(paths: Sequence[Path], size: int, normalize: str, title: str = "images") -> torch.Tensor:
    """Images as the model takes them: float (N, 3, size, size), normalised by ImageNet's statistics or from 0 to 1.

    Raises ConfigError for an image that cannot be read.
    """
    import numpy as np

    images = torch.empty(len(paths), 3, size, size)
    with progress(title, total=len(paths)) as bar:
        for number, path in enumerate(paths):
            images[number] = torch.from_numpy(np.array(read(path, size))).permute(2, 0, 1)
            bar.update(1)
    images.div_(255)
    if normalize == "imagenet":
        images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    return images
