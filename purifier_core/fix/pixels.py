"""How a model wants its pixels: size, crop and normalisation, as told, or from a configuration beside the weights.

Nothing here imports torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError

NAMED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "255": ((0.0,), (1 / 255,)),
}
"""Mean and standard deviation of pixels from 0 to 1. half gives pixels from -1 to 1; 255 leaves them as bytes."""

TRIED = NAMED | {
    "0.4914,0.4822,0.4465,0.2470,0.2435,0.2616": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "0.1307,0.3081": ((0.1307,), (0.3081,)),
    "0.4815,0.4578,0.4082,0.2686,0.2613,0.2758": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}
"""What networks are often trained with: also CIFAR-10's, MNIST's and CLIP's statistics."""


@dataclass(frozen=True)
class Pixels:
    """Images of size x size pixels in 1 or 3 channels, less the mean and divided by the std.

    resize: the shorter side, before the middle is cut out; None stretches the image. square: stretched to resize x
    resize instead, and then cut. source: of the normalisation.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, ...] = NAMED["imagenet"][0]
    std: tuple[float, ...] = NAMED["imagenet"][1]
    channels: int = 3
    bicubic: bool = False
    square: bool = False
    source: str = "the default"

    @property
    def normalize(self) -> str:
        """The normalisation by its name, or its numbers."""
        names = [name for name, values in NAMED.items() if values == (self.mean, self.std)]
        return names[0] if names else ",".join(f"{value:g}" for value in (*self.mean, *self.std))

    def as_dict(self) -> dict[str, Any]:
        """The values, for notes in a file."""
        return asdict(self)

    def __str__(self) -> str:
        shape = f"{self.resize} x {self.resize}" if self.square else f"a shorter side of {self.resize}"
        cut = f", the middle of {shape}" if self.resize else ", stretched"
        kind = "grey" if self.channels == 1 else "RGB"
        return f"{kind}, {self.size} x {self.size} pixels{cut}, normalised by {self.normalize} ({self.source})"


def statistics(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std by name, or from numbers: one of each, or one of each for every channel.

    Raises ConfigError for anything else.
    """
    if text in NAMED:
        return NAMED[text]
    problem = ConfigError(
        f"normalize={text!r} is not known; allowed: {', '.join(NAMED)}, or numbers: mean,std, or three means and then "
        "three stds, for pixels from 0 to 1."
    )
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise problem from None
    half = len(numbers) // 2
    if len(numbers) not in (2, 6) or not all(0 < std < 1e6 for std in numbers[half:]):
        raise problem
    return tuple(numbers[:half]), tuple(numbers[half:])


def choose(options: Any, channels: int, own: Mapping[str, Any] | None) -> Pixels:
    """The pixels that a model wants: as told, else as a configuration beside its weights says, else as it says itself.

    own: timm's configuration of the model, where it has one. Raises ConfigError for values that cannot be used.
    """
    pixels = Pixels(channels=channels)
    if channels == 1:
        pixels = replace(pixels, mean=(0.0,), std=(1.0,))
    both_given = options.size is not None and options.normalize is not None
    if own and not both_given:
        pixels = _timm(pixels, own, "timm's configuration of this network")
    for name, read in (("preprocessor_config.json", _hugging_face), ("config.json", _timm_file)):
        path = options.weights.parent / name
        if path.is_file() and not both_given and (content := _json(path)):
            pixels = read(pixels, content, str(path))
    if options.size is not None:
        pixels = replace(pixels, size=options.size, resize=None, square=False)
    if options.crop or options.resize is not None:
        pixels = replace(pixels, resize=options.resize or pixels.size, square=False)
    if options.normalize is not None:
        mean, std = statistics(options.normalize)
        pixels = replace(pixels, mean=mean, std=std, source="as told")
    if pixels.resize is not None and pixels.resize < pixels.size:
        raise ConfigError(f"the shorter side of {pixels.resize} pixels is less than --size {pixels.size}; set both.")
    if len(pixels.mean) not in (1, channels):
        raise ConfigError(f"the network takes {channels} channel; give --normalize with one mean and one std.")
    return pixels


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > 2**20:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _timm_file(pixels: Pixels, content: Mapping[str, Any], source: str) -> Pixels:
    inner = content.get("pretrained_cfg")
    return _timm(pixels, inner, source) if isinstance(inner, dict) else pixels


def _timm(pixels: Pixels, content: Mapping[str, Any], source: str) -> Pixels:
    try:
        size = int((content.get("input_size") or (3, 224, 224))[-1])
        share = float(content.get("crop_pct") or 1.0)
        mean, std = _numbers(content.get("mean", pixels.mean)), _numbers(content.get("std", pixels.std))
    except (TypeError, ValueError, ArithmeticError, LookupError) as problem:
        raise ConfigError(f"{source} is not understood; give --size and --normalize.") from problem
    return replace(
        pixels,
        size=size,
        resize=int(size / share),
        mean=mean,
        std=std,
        bicubic=content.get("interpolation") == "bicubic",
        source=source,
    )


def _hugging_face(pixels: Pixels, content: Mapping[str, Any], source: str) -> Pixels:
    """What an image processor of Hugging Face's makes. Some kinds do more than their file says; comments name them."""
    if content.get("do_flip_channel_order"):  # MobileViT
        raise ConfigError(
            f"{source} wants blue before green before red. Have the factory's network do x.flip(1) first, take "
            "do_flip_channel_order out of the file, and give --normalize none."
        )
    try:
        size, resize = _sides(content)
        normalised = content.get("do_normalize", True)
        mean = _numbers(content["image_mean"] if normalised else 0)
        std = _numbers(content["image_std"] if normalised else 1)
        if normalised and content.get("include_top"):  # EfficientNet divides twice
            std = tuple(s * s for s in std)
        scale = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
        offset = 1.0 if content.get("rescale_offset") else 0.0
        mean, std = tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)
    except (TypeError, ValueError, ArithmeticError, LookupError) as problem:
        raise ConfigError(f"{source} is not understood; give --size and --normalize.") from problem

    full = content.get("size")
    square = resize is not None and isinstance(full, dict) and "height" in full  # DeiT
    bicubic = content.get("resample") == 3
    return replace(pixels, size=size, resize=resize, mean=mean, std=std, bicubic=bicubic, square=square, source=source)


def _sides(content: Mapping[str, Any]) -> tuple[int, int | None]:
    """The size of the images, and to which one they are resized before the middle is cut out; None where it is not."""
    full, share = content.get("size", 224), content.get("crop_pct")
    size = _side(full)
    if isinstance(full, dict) and "shortest_edge" in full:
        if share and (
            content.get("do_center_crop") or size < 384
        ):  # PoolFormer, and ConvNeXT, which stretches from 384
            return size, int(size / float(share))
        if str(content.get("image_processor_type", "")).startswith("Levit"):
            size = int(256 / 224 * size)
    if not content.get("do_center_crop"):
        return size, None
    cut = _side(content.get("crop_size", 224))
    return cut, max(size, cut)


def _side(size: Any) -> int:
    """The one side of a size: a number, a dictionary or a pair; ValueError where height and width differ."""
    values = size.values() if isinstance(size, dict) else [size] if isinstance(size, int) else size
    sides = {int(side) for side in values}
    if len(sides) != 1:
        raise ValueError("height and width differ")
    return sides.pop()


def _numbers(values: Any) -> tuple[float, ...]:
    """One number for all channels where they are equal."""
    numbers = tuple(float(value) for value in (values if isinstance(values, (list, tuple)) else [values]))
    return numbers[:1] if len(set(numbers)) == 1 else numbers
