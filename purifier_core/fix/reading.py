"""What a run of `purifier fix` reads: images, split in two, and whether they, the labels and the model fit."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from purifier_core.checks import ConfigError
from purifier_core.evaluation import logits_of, logits_only
from purifier_core.fix import gate
from purifier_core.fix import images as folders
from purifier_core.fix.classes import class_of
from purifier_core.fix.images import Folder, Pictures, stack
from purifier_core.fix.network import Prepared, line
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import Pixels


@dataclass(frozen=True)
class Images:
    """What a run reads: clean images with their paths and labels, split in two, and triggered ones."""

    folder: Folder
    pictures: Pictures
    working: torch.Tensor  # places among the pictures
    held_out: torch.Tensor
    stamped: Folder | None
    triggered: Pictures | None

    @property
    def stamped_labels(self) -> torch.Tensor | None:
        """The classes that the triggered images are of, where each lies in a folder of a class."""
        if self.stamped is None or self.triggered is None or self.stamped.labels is None:
            return None
        return self.stamped.labels[self.triggered.places]

    def labels(self, index: torch.Tensor) -> torch.Tensor | None:
        """The labels of some pictures, where there are any."""
        return None if self.folder.labels is None else self.folder.labels[self.pictures.places[index]]

    def paths(self, index: torch.Tensor) -> list[Path]:
        """The paths of some pictures."""
        return [self.folder.paths[place] for place in self.pictures.places[index].tolist()]

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out because it could not be read."""
        return self.pictures.skipped + (self.triggered.skipped if self.triggered else ())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or changed otherwise."""
        stamped = (*self.stamped.notes, *self.triggered.notes) if self.stamped and self.triggered else ()
        return (*self.folder.notes, *self.pictures.notes, *stamped)


def choose(options: Options, pixels: Pixels, measures: bool = True) -> Images:
    """The images that the options name, read, and split if some are held out for a measurement.

    Raises ConfigError where there are too few, or none.
    """
    folder = folders.anywhere(options.images) if options.unlabelled else folders.by_class(options)
    stamped = folders.of_classes(options.triggered, folder.names, options) if options.triggered else None
    if not options.bounds and len(folder.names) < 2:
        raise ConfigError(f"{options.images} holds one class, {folder.names}; two are needed.")
    _held_out(len(folder.paths), options, measures)
    pictures = stack(folder.paths, pixels, options.skip_bad_images, "clean images")
    held_out = _held_out(len(pictures.places), options, measures)
    triggered = stack(stamped.paths, pixels, options.skip_bad_images, "triggered images") if stamped else None
    if triggered is not None and not len(triggered.places):
        raise ConfigError(f"none of the images in {options.triggered} can be read.")
    order = torch.randperm(len(pictures.places), generator=torch.Generator().manual_seed(options.seed))
    chosen = Images(folder, pictures, order[held_out:], order[:held_out], stamped, triggered)
    for text in (*chosen.notes, *(f"skipped: {text}" for text in chosen.skipped)):
        say(text)
    return chosen


def _held_out(count: int, options: Options, measures: bool) -> int:
    """How many of the images are held out; ConfigError where too few are left for the method."""
    held_out = max(1, round(options.held_out * count)) if measures else 0
    if count - held_out >= options.fewest:
        return held_out
    if not measures:
        raise ConfigError(f"{options.images} holds {count} images; a scan needs at least {options.fewest}.")
    raise ConfigError(
        f"{options.images} holds {count} images, of which {held_out} are held out for the measurement; "
        f"{options.method} needs at least {options.fewest} more."
    )


def target_of(options: Options, names: dict[int, str], outputs: int) -> int | None:
    """The attacker's class, if it was given; raises ConfigError where it is no class of the model's."""
    if options.target is None:
        return None
    target = class_of(options.target, names)
    if target >= outputs:
        raise ConfigError(f"target={options.target} is out of range; the model knows the classes 0 to {outputs - 1}.")
    say(f"target: class {target}" + (f", the folder {names[target]!r}" if target in names else ""))
    return target


def check_model(model: Prepared, example: torch.Tensor, chosen: Images, options: Options) -> int:
    """How many classes the model knows; raises ConfigError where it does not fit the images."""
    shape = " x ".join(map(str, example.shape[1:]))
    try:
        with torch.no_grad():
            output = model(example.float() / 255)
    except Exception as problem:
        raise ConfigError(f"the model does not take images of {shape}: {line(problem)}. Is --size right?") from problem
    try:
        logits = logits_of(output)
    except TypeError as problem:
        raise ConfigError(f"{problem}.") from problem
    if logits is not output:
        part = "its logits are" if not isinstance(output, (tuple, list)) else f"the first of {len(output)} outputs is"
        say(f"the network gives a {type(output).__name__}; {part} taken")
    if logits.ndim != 2 or logits.shape[1] < 2:
        size = tuple(logits.shape)
        raise ConfigError(f"the model gives {size} for 2 images of {shape}; needed: logits of shape (2, classes).")
    if not logits.isfinite().all():
        raise ConfigError("the model's outputs are no finite numbers; are these its weights?")
    if not options.bounds or options.scan:
        logits_only(logits)
    outputs = logits.shape[1]
    if len(chosen.folder.names) > outputs:
        raise ConfigError(f"{options.images} has {len(chosen.folder.names)} class folders; the model knows {outputs}.")
    if chosen.folder.names and max(chosen.folder.names) >= outputs:
        raise ConfigError(f"a folder stands for class {max(chosen.folder.names)}; the model knows {outputs} classes.")
    return outputs


def check_inputs(model: Prepared, chosen: Images, pixels: Pixels, outputs: int, options: Options) -> None:
    """Raise ConfigError where the given model's accuracy says that labels or pixels are wrong (see `gate`)."""
    places = torch.arange(len(chosen.pictures.places))
    labels = chosen.labels(places)
    if labels is None:
        return
    images = chosen.pictures.images.to(model.mean.device)
    try:
        accuracy = gate.check(model.network, images, labels, pixels, chosen.folder.names, outputs, options.batch_size)
    except ConfigError as problem:
        if not options.trust_inputs:
            raise
        say(f"warning: {problem}")
    else:
        say(f"the given model is right on {accuracy} of {accuracy.count} labelled images")


@contextmanager
def silent(quiet: bool) -> Iterator[None]:
    """Inside, nothing is printed, progress included, if `quiet`; what is raised is left to the caller."""
    if not quiet:
        yield
        return
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def say(text: str) -> None:
    """Print a line; characters that cannot be printed are spelled out. A closed pipe does not end the run."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """The text with control characters and broken ones spelled out, so that no name can steer a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )
