"""Folders of images as tensors of bytes. What would be misread is refused by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from purifier_core.checks import ConfigError
from purifier_core.fix.classes import is_number, numbered, read_names
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import Pixels
from purifier_core.progress import progress

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif")
FORMATS = ("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF")
"""Pillow's names of what is read, whatever the ending says: others, such as EPS, would run other programs."""
MOST_PIXELS = 50_000_000  # of one image: 200 MB once it is decoded
MEMORY = 8 * 2**30  # bytes that all images may take


@dataclass(frozen=True)
class Folder:
    """Images by path. With class folders, labels (N,) are the classes' numbers, and names says whose they are."""

    paths: list[Path]
    labels: torch.Tensor | None = None
    names: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """Images (N, C, H, W) uint8, their places among the paths, what was left out, and what was done to some."""

    images: torch.Tensor
    places: torch.Tensor
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def anywhere(folder: Path) -> Folder:
    """Every image below a folder, at any depth; raises ConfigError where there is none, or a name is unsafe."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder.")
    files = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        _check_name(folder, inside)
        if path.is_symlink() and path.is_dir():
            raise ConfigError(f"{path} is a link to a folder; put the folder itself there, or name it with --images.")
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{path} is a link to a file that is not there.")
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            files.append(path)
    paths = [path for path in files if path.suffix.lower() in ENDINGS]
    if not paths:
        raise ConfigError(f"{folder} holds no images; known endings: {', '.join(ENDINGS)}.")
    kinds = Counter(path.suffix.lower() or "no ending" for path in files if path.suffix.lower() not in ENDINGS)
    others = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(5))
    return Folder(paths, notes=(f"left out of {folder}, as no images: {others}",) if kinds else ())


def of_classes(top: Path, names: dict[int, str], options: Options) -> Folder:
    """Every image below a folder, as `anywhere`; with labels where each lies in a folder with a class's name."""
    every, numbers = anywhere(top), {name: number for number, name in names.items()}
    inside = [path.relative_to(top).parts[0] for path in every.paths]
    if options.class_index:  # also of classes without clean images
        numbers |= {name: int(name) for name in inside if is_number(name)}
    elif options.class_names:
        numbers = read_names(options.class_names)
    if not all(name in numbers for name in inside):
        return every
    return replace(every, labels=torch.tensor([numbers[name] for name in inside]))


def by_class(options: Options) -> Folder:
    """The images of a folder with a folder for each class, numbered as the options say.

    Raises ConfigError where there are no class folders, or one holds no image.
    """
    top = options.images
    every = anywhere(top)
    classes = sorted(path.name for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ConfigError(f"{top} holds no class folders; without labels give --unlabelled and a bound-* method.")
    numbers = numbered(classes, options)
    inside = {name: [path for path in every.paths if path.relative_to(top).parts[0] == name] for name in numbers}
    for name, paths in inside.items():
        if not paths:
            raise ConfigError(f"{top / name} holds no images; known endings: {', '.join(ENDINGS)}.")
    notes = list(every.notes)
    if idle := len(every.paths) - sum(map(len, inside.values())):
        notes.append(f"{idle} images outside the class folders of {top} are left out")
    wrong = [name for name in classes if name.isdecimal() and int(name) != numbers[name]]
    if wrong and not (options.class_names or options.class_index or options.natural):
        notes.append(
            f"the folders are numbered as text, as ImageFolder does: {wrong[0]} is class {numbers[wrong[0]]}; "
            "--natural or --class-index number them by value"
        )
    labels = torch.cat([torch.full((len(paths),), numbers[name]) for name, paths in inside.items()])
    names = {number: name for name, number in numbers.items()}
    return Folder([path for paths in inside.values() for path in paths], labels, names, tuple(notes))


def stack(paths: Sequence[Path], pixels: Pixels, skip: bool = False, title: str = "images") -> Pictures:
    """Images as the model's normalisation takes them: uint8 (N, C, size, size).

    skip: leave out what cannot be read. Otherwise raises ConfigError for it, and where all would not fit into memory.
    """
    import numpy as np

    size = pixels.channels * pixels.size**2
    if len(paths) * size > MEMORY:
        most = MEMORY // size
        raise ConfigError(
            f"{len(paths)} images of {pixels.size} pixels are more than fit into 8 GiB; give up to {most}."
        )
    images = torch.empty(len(paths), pixels.channels, pixels.size, pixels.size, dtype=torch.uint8)
    skipped: list[str] = []
    places: list[int] = []
    turned = 0
    with progress(title, total=len(paths)) as bar:
        for place, path in enumerate(paths):
            bar.update(1)
            try:
                image, was_turned = read(path, pixels)
            except ConfigError as problem:
                if not skip:
                    raise ConfigError(f"{problem} --skip-bad-images leaves out such files.") from problem
                skipped.append(str(problem))
                continue
            content = np.array(image).reshape(pixels.size, pixels.size, pixels.channels)
            images[len(places)] = torch.from_numpy(content).permute(2, 0, 1)
            places.append(place)
            turned += was_turned
    notes = (f"{turned} {title} were turned upright, as their EXIF says",) if turned else ()
    return Pictures(images[: len(places)], torch.tensor(places, dtype=torch.long), tuple(skipped), notes)


def read(path: Path, pixels: Pixels) -> tuple[Any, bool]:
    """One image as a PIL image of the model's size, and whether its EXIF turned it.

    Raises ConfigError for an image that cannot be read or would be misread.
    """
    from PIL import Image, ImageOps

    try:
        Image.init()
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ConfigError(f"{path} has {image.width} x {image.height} pixels; at most 50 million are read.")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ConfigError(f"{path} holds {frames} frames; give one image a file.")
            turned = image.getexif().get(0x0112, 1) != 1
            upright = _eight_bits(ImageOps.exif_transpose(image), path)
            return _fitted(upright.convert("L" if pixels.channels == 1 else "RGB"), pixels), turned
    except ConfigError:
        raise
    except Exception as problem:  # PIL raises many types for a damaged file
        raise ConfigError(f"{path} cannot be read as an image ({type(problem).__name__}).") from problem


def _eight_bits(image: Any, path: Path) -> Any:
    """The image with 8 bits a channel and nothing transparent; ConfigError where that is not possible."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, or 32 bits that hold 16
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ConfigError(f"{path} has values of 32 bits; save it with 8 or 16 bits.")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ConfigError(f"{path} has float values, whose range is not known; save it with 8 or 16 bits.")
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = image.convert("RGBA")
        if opaque.getchannel("A").getextrema()[0] < 255:
            raise ConfigError(f"{path} has transparent pixels; save it on the background that the model knows.")
        return opaque.convert("RGB")
    return image


def _fitted(image: Any, pixels: Pixels) -> Any:
    from PIL import Image

    kind = Image.Resampling.BICUBIC if pixels.bicubic else Image.Resampling.BILINEAR
    size = pixels.size
    if pixels.resize is None:
        return image.resize((size, size), kind)
    scale = pixels.resize / min(image.size)
    width, height = (pixels.resize if pixels.square else max(pixels.resize, int(side * scale)) for side in image.size)
    if width * height > MOST_PIXELS:
        raise ConfigError(
            f"an image of {image.width} x {image.height} pixels would be enlarged to {width} x {height}; at most 50 "
            "million pixels are made."
        )
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), kind).crop((left, top, left + size, top + size))


def _check_name(folder: Path, inside: Path) -> None:
    name = str(inside)
    if not name.isprintable():  # control characters, and bytes that are not UTF-8
        raise ConfigError(f"a name below {folder} holds characters that cannot be printed: {name!a}; rename it.")
