"""`purifier fix` from its options to its files."""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from purifier_core.bounds import Bounded
from purifier_core.checks import ConfigError
from purifier_core.device import pick_device, prepare
from purifier_core.files import provenance, write_together
from purifier_core.fix import methods, outcome, report, weights, weights_file
from purifier_core.fix.measure import Comparison, compare, cuts
from purifier_core.fix.network import Prepared, channels_of, line, make, prepared, unprepared
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import choose as pixels_of
from purifier_core.fix.reading import Images, check_inputs, check_model, choose, printable, say, silent, target_of
from purifier_core.sites import Wrapped


def main(options: Options) -> int:
    """Purify, write the files, and print what changed; returns the exit status: 0 repaired, 1 a finding.

    Raises ConfigError, RuntimeError or OSError, and then has written nothing.
    """
    prepare(pick_device(options.device))
    try:
        with silent(options.quiet):
            _, findings = fix(options)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return 130
    except ConfigError as problem:  # names from files and folders may hold anything
        raise ConfigError(printable(str(problem))) from problem
    return outcome.status(findings)


def fix(options: Options) -> tuple[Comparison, tuple[outcome.Finding, ...]]:
    """Purify as told, write the weights, the report and the JSON, and return what was measured and found.

    Raises ConfigError for a wrong input, and DivergedError where training diverges.
    """
    started = time.perf_counter()
    import_all()
    check_writable((options.out, options.report, *([options.json] if options.json else [])), options)
    device = pick_device(options.device)
    model = make(options)
    entry = insert(model, options)
    pixels = pixels_of(options, channels_of(model), getattr(model, "pretrained_cfg", None))
    say(f"images: {pixels}")
    chosen = choose(options, pixels)
    network = prepared(model, pixels).to(device).eval()
    outputs = check_model(network, chosen.pictures.images[:2].to(device), chosen, options)
    target = target_of(options, chosen.folder.names, outputs)
    check_inputs(network, chosen, pixels, outputs, options)
    wrapped, scan = methods.purified(network, chosen, outputs, options)
    comparison, held_out, triggered = _measure(network, wrapped, chosen, target, options)
    findings = outcome.findings(options, comparison, scan)
    facts = report.Facts(
        options=options,
        pixels=pixels,
        names=chosen.folder.names,
        outputs=outputs,
        working=len(chosen.working),
        clean=held_out,
        triggered=triggered,
        effort=wrapped.effort,
        seconds=time.perf_counter() - started,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        read=_digest(options.weights),
        entry=entry,
        provenance=provenance(torch.cuda.get_device_name() if device.type == "cuda" else "cpu"),
        findings=findings,
        choice=methods.choice(wrapped),
        notes=chosen.notes,
        skipped=chosen.skipped,
        scan=scan,
    )
    _write(unprepared(wrapped), facts, comparison)
    for text in (*report.summary(facts, comparison), f"{options.out}", f"{options.report}"):
        say(text)
    return comparison, findings


def import_all() -> None:
    """Import what is used later, before any code of the reader's runs: nothing beside a model file is taken for it."""
    import safetensors.torch  # noqa: F401
    import scipy.optimize  # noqa: F401
    from PIL import Image

    Image.init()


def check_writable(paths: Sequence[Path], options: Options, force: bool = False) -> None:
    """Raise ConfigError, before anything is computed, for a file that cannot be written or must not be replaced."""
    if len({path.absolute().resolve() for path in paths}) < len(paths):
        raise ConfigError(f"two of {', '.join(map(str, paths))} are the same file.")
    for path in paths:
        if not path.parent.is_dir():
            raise ConfigError(f"the folder {path.parent} of {path.name} does not exist.")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file.")
        if path.exists() and not (options.force or force):
            raise ConfigError(f"{path} exists; give --force to overwrite it, or another name.")
        if path.exists() and options.weights.exists() and path.samefile(options.weights):
            raise ConfigError(f"{path} and --weights are the same file.")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as problem:
            raise ConfigError(
                f"the folder {path.parent} of {path.name} cannot be written ({problem.strerror})."
            ) from problem


def insert(model: nn.Module, options: Options) -> str:
    """Load the weights into the model; returns the entry of the file that they were under."""
    content, notes = weights_file.read(options.weights)
    if notes:
        raise ConfigError(f"{options.weights} is purified already; purifier_core.fix.weights.load brings it back.")
    states = weights_file.states(content, options.weights, options.weights_key)
    entry = weights.insert(model, states, options.weights)
    if len(states) > 1:
        say(f"weights: {entry!r} of {', '.join(map(repr, states))}; --weights-key takes another")
    return entry


def _measure(
    model: Prepared, wrapped: Wrapped, chosen: Images, target: int | None, options: Options
) -> tuple[Comparison, report.Shown, report.Shown | None]:
    """The comparison, and the held-out and triggered images with where bounds cut them."""
    device, batch = model.mean.device, options.batch_size
    held_out, triggered = chosen.pictures.images[chosen.held_out], None
    labels, stamped = chosen.labels(chosen.held_out), None
    if chosen.triggered is not None and chosen.stamped is not None:
        stamped = chosen.triggered.images.to(device)
    comparison = compare(
        model, wrapped, held_out.to(device), None if labels is None else labels.to(device), stamped, target, batch
    )
    if chosen.stamped_labels is not None:
        comparison = replace(comparison, triggered_labels=chosen.stamped_labels.to(device))

    def shown(paths: list[Path], images: torch.Tensor) -> report.Shown:
        heat = cuts(wrapped, images.to(device), batch) if isinstance(wrapped, Bounded) else None
        return report.Shown(paths, images, heat)

    if chosen.triggered is not None and chosen.stamped is not None:
        paths = [chosen.stamped.paths[place] for place in chosen.triggered.places.tolist()]
        triggered = shown(paths, chosen.triggered.images)
    names = tuple(site.removeprefix("network.") for site in comparison.sites)
    return replace(comparison, sites=names), shown(chosen.paths(chosen.held_out), held_out), triggered


def _write(network: Wrapped, facts: report.Facts, comparison: Comparison) -> None:
    """All files or none. The weights are placed last; where one file cannot be written, the old ones stay."""
    options = facts.options
    notes = {
        "size": facts.pixels.size,
        "pixels": facts.pixels.as_dict(),
        "classes": {str(n): c for n, c in facts.names.items()},
    }
    digest = ""

    def fill(part: Path) -> None:
        nonlocal digest
        weights.write(network, part, options.out.suffix, **notes)
        digest = _digest(part)

    def draw(part: Path) -> None:
        part.write_text(report.whole(facts, comparison, digest), encoding="utf-8")

    def dump(part: Path) -> None:
        content = outcome.as_json(facts, comparison, digest)
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    writers = {options.out: fill, options.report: draw} | ({options.json: dump} if options.json else {})
    try:
        write_together(writers)
    except Exception as problem:
        cause = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
        text = cause.strerror if isinstance(cause, OSError) else line(cause)
        raise ConfigError(f"{options.out} cannot be written ({text}); nothing was.") from problem


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
