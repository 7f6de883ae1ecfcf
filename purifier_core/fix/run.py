"""`purifier fix` from its options to its two files."""

import hashlib
import importlib
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from purifier_core.bound import Bounded, bound
from purifier_core.checks import ConfigError
from purifier_core.device import pick_device, prepare
from purifier_core.evaluation import DivergedError
from purifier_core.files import provenance, write_atomically
from purifier_core.fix import images as folders
from purifier_core.fix import report, weights
from purifier_core.fix.images import Folder, stack
from purifier_core.fix.measure import Comparison, compare
from purifier_core.fix.options import Options
from purifier_core.purifier import Purified, purify
from purifier_core.recipes import Recipe
from purifier_core.sites import Wrapped

_FEWEST = {True: 10, False: 2}  # images that bound, and that purify, ask for


@dataclass(frozen=True)
class Images:
    """What a run reads: images for the method, and those that only the measurement sees, by path."""

    folder: Folder
    working: torch.Tensor  # indices into the folder
    held_out: torch.Tensor
    triggered: list[Path]
    target: int | None

    def paths(self, index: torch.Tensor) -> list[Path]:
        """The paths of some of the folder's images."""
        return [self.folder.paths[i] for i in index.tolist()]

    def labels(self, index: torch.Tensor) -> torch.Tensor | None:
        """Their labels, where there are any."""
        return None if self.folder.labels is None else self.folder.labels[index]


def main(options: Options) -> int:
    """Purify, write both files, and print what changed; returns the exit status.

    Raises ConfigError, RuntimeError or OSError, and then has written nothing.
    """
    prepare(pick_device(options.device))
    try:
        fix(options)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return 130
    return 0


def fix(options: Options) -> Comparison:
    """Purify as told, write the weights and the report, and return what was measured.

    Raises ConfigError for a wrong input, and DivergedError where training diverges.
    """
    started = time.perf_counter()
    _check_writable(options)
    device = pick_device(options.device)
    model = _model(options)
    state, notes = weights.read(options.weights)
    if notes:
        raise ConfigError(f"{options.weights} is purified already; purifier_core.fix.weights.load brings it back.")
    weights.insert(model, state, options.weights)
    chosen = _choose(options)
    clean = stack(chosen.paths(chosen.working), options.size, options.normalize, "clean images").to(device)
    model = model.to(device).eval()
    outputs = _check_model(model, clean[:2], chosen, options)
    try:
        network = _purified(model, clean, chosen.labels(chosen.working), options)
    except (ConfigError, DivergedError):
        raise
    except (ValueError, TypeError, RuntimeError) as problem:
        raise ConfigError(f"{options.method} does not fit this model: {_line(problem)}") from problem
    del clean
    found = _measure(model, network, chosen, options, device)
    facts = report.Facts(
        options=options,
        classes=chosen.folder.classes,
        paths=chosen.paths(chosen.held_out),
        effort=network.effort,
        seconds=time.perf_counter() - started,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        read=_digest(options.weights),
        provenance=provenance(torch.cuda.get_device_name() if device.type == "cuda" else "cpu"),
        outputs=outputs,
        choice=_choice(network),
    )
    _write(network, facts, found)
    for line in (*report.summary(facts, found), f"{options.out}", f"{options.report}"):
        print(line)
    return found


def _check_writable(options: Options) -> None:
    folder = options.out.parent
    if not folder.is_dir():
        raise ConfigError(f"the folder {folder} of --out does not exist.")
    for path in (options.out, options.report):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file with --out.")
        if path.exists() and not options.force:
            raise ConfigError(f"{path} exists; give --force to overwrite it, or another --out.")
    if options.out.exists() and options.weights.exists() and options.out.samefile(options.weights):
        raise ConfigError("--out and --weights are the same file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise ConfigError(f"the folder {folder} of --out cannot be written ({problem.strerror}).") from problem


def _model(options: Options) -> nn.Module:
    """What the factory makes; any failure of its code becomes a ConfigError."""
    module, _, name = options.model.partition(":")
    if not module or not name:
        raise ConfigError(f"model={options.model!r} is not understood; write package.module:factory.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), name)
    except AttributeError as problem:
        raise ConfigError(f"model={options.model!r}: {module} has no {name}.") from problem
    except Exception as problem:
        raise ConfigError(f"model={options.model!r} cannot be imported: {_line(problem)}") from problem
    try:
        model = factory() if options.classes is None else factory(num_classes=options.classes)
    except Exception as problem:
        hint = "" if options.classes else " A factory that takes num_classes gets it by --classes."
        raise ConfigError(f"model={options.model!r} cannot be called: {_line(problem)}.{hint}") from problem
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={options.model!r} returns a {type(model).__name__}, no torch.nn.Module.")
    return model


def _choose(options: Options) -> Images:
    folder = folders.anywhere(options.images) if options.unlabelled else folders.by_class(options.images)
    count, least = len(folder.paths), _FEWEST[options.bounds]
    held_out = max(1, round(options.held_out * count))
    if count - held_out < least:
        raise ConfigError(
            f"{options.images} holds {count} images, of which {held_out} are held out for the measurement; "
            f"{options.method} needs at least {least} more."
        )
    if not options.bounds and len(folder.classes) < 2:
        raise ConfigError(f"{options.images} holds one class, {folder.classes[0]!r}; {options.method} needs two.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    triggered = folders.anywhere(options.triggered).paths if options.triggered else []
    target = None if options.target is None else _class(options.target, folder.classes)
    return Images(folder, order[held_out:], order[:held_out], triggered, target)


def _class(name: str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal():
        return int(name)
    raise ConfigError(f"target={name!r} is no class; known: {', '.join(classes) or 'numbers only, without labels'}.")


def _check_model(model: nn.Module, example: torch.Tensor, chosen: Images, options: Options) -> int:
    """How many classes the model knows; raises ConfigError where it does not fit the images."""
    shape = " x ".join(map(str, example.shape[1:]))
    try:
        with torch.no_grad():
            logits = model(example)
    except Exception as problem:
        raise ConfigError(f"the model does not take images of {shape}: {_line(problem)}. Is --size right?") from problem
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"the model gives {got} for 2 images of {shape}; needed: logits of shape (2, classes).")
    if not logits.isfinite().all():
        raise ConfigError("the model's outputs are no finite numbers; are these its weights?")
    known = logits.shape[1]
    if len(chosen.folder.classes) > known:
        raise ConfigError(f"{options.images} has {len(chosen.folder.classes)} class folders; the model knows {known}.")
    if chosen.target is not None and chosen.target >= known:
        raise ConfigError(f"target={options.target} is out of range; the model knows the classes 0 to {known - 1}.")
    return known


def _purified(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor | None, options: Options
) -> Bounded | Purified:
    sites = [site.strip() for site in options.sites.split(",")] if options.sites else None
    if options.bounds:
        return bound(
            model,
            images,
            options.granularity,
            options.quantile,
            budget=options.budget or 0.01,
            sites=sites,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    assert labels is not None
    recipe = Recipe(options.epochs or 20, options.lr or 0.01, batch_size=options.batch_size)
    return purify(
        model,
        images,
        labels.to(images.device),
        granularity=options.granularity,
        sites=sites,
        stages=(recipe, recipe),
        seed=options.seed,
    )


def _measure(model: nn.Module, network: Wrapped, chosen: Images, options: Options, device: torch.device) -> Comparison:
    images = stack(chosen.paths(chosen.held_out), options.size, options.normalize, "held-out images").to(device)
    stamped, labels = None, chosen.labels(chosen.held_out)
    if chosen.triggered:
        stamped = stack(chosen.triggered, options.size, options.normalize, "triggered images").to(device)
    labels = None if labels is None else labels.to(device)
    return compare(model, network, images, labels, stamped, chosen.target, options.batch_size)


def _choice(network: Bounded | Purified) -> str:
    if isinstance(network, Purified):
        return ""
    told = f", quantile {network.quantile:g}"
    if network.changed is not None:
        told += f", which changes {100 * network.changed:.1f} % of the predictions on a fifth of the method's images"
    return told


def _write(network: Wrapped, facts: report.Facts, found: Comparison) -> None:
    """Both files or neither; what was there before is lost only if both can be written."""
    options = facts.options
    notes = {"size": options.size, "normalize": options.normalize, "classes": list(facts.classes)}

    def both(part: Path) -> None:
        weights.write(network, part, options.out.suffix, **notes)
        page = report.page(facts, found, _digest(part))
        write_atomically(options.report, lambda half: half.write_text(page, encoding="utf-8"))
        placed.append(options.report)

    placed: list[Path] = []
    try:
        write_atomically(options.out, both)
    except BaseException as problem:
        for path in placed:
            with suppress(OSError):
                path.unlink()
        if not isinstance(problem, Exception):
            raise
        cause = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
        told = cause.strerror if isinstance(cause, OSError) else _line(cause)
        raise ConfigError(f"{options.out} cannot be written ({told}); nothing was.") from problem


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(problem: Exception) -> str:
    """The first line of an exception, with its type."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0]}" if text else type(problem).__name__
