"""`purifier scan` from its options to its verdict."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from purifier_core.checks import ConfigError
from purifier_core.device import pick_device, prepare
from purifier_core.files import write_atomically
from purifier_core.fix import outcome
from purifier_core.fix.network import channels_of, make, prepared
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import choose as pixels_of
from purifier_core.fix.reading import check_inputs, check_model, choose, printable, say, silent
from purifier_core.fix.run import check_writable, import_all, insert
from purifier_core.scanning import NOTHING, Findings, scan, verdict
from purifier_core.stamps import picture

SCHEMA = "purifier-scan/1"
"""Name and version of the JSON. The number rises when an entry is renamed, removed, or changes its meaning."""


def main(options: Options, pictures: Path | None) -> int:
    """Scan, print the verdict, write what was asked for; returns the exit status: 0 nothing stands out, 1 else.

    Raises ConfigError, RuntimeError or OSError.
    """
    prepare(pick_device(options.device))
    try:
        with silent(options.quiet):
            check_writable([options.json] if options.json else [], options, force=True)
            if pictures is not None and pictures.exists() and not pictures.is_dir():
                raise ConfigError(f"{pictures} is a file; --pictures names a folder.")
            findings, names = search(options)
            for text in verdict(findings, names):
                say(text)
            _write(findings, names, options.json, pictures)
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    except ConfigError as problem:  # names from files and folders may hold anything
        raise ConfigError(printable(str(problem))) from problem
    return status(findings)


def status(findings: Findings) -> int:
    """The exit status: 0 where nothing stands out, 1 else."""
    return int(findings.verdict != NOTHING)


def search(options: Options) -> tuple[Findings, dict[int, str]]:
    """What the scan of the options' network finds, and the names of its classes."""
    import_all()
    device = pick_device(options.device)
    model = make(options)
    insert(model, options)
    pixels = pixels_of(options, channels_of(model), getattr(model, "pretrained_cfg", None))
    say(f"images: {pixels}")
    chosen = choose(options, pixels, measures=False)
    network = prepared(model, pixels).to(device).eval()
    outputs = check_model(network, chosen.pictures.images[:2].to(device), chosen, options)
    check_inputs(network, chosen, pixels, outputs, options)
    labels = chosen.labels(torch.arange(len(chosen.pictures.places)))
    assert labels is not None
    return scan(network, chosen.pictures.images.to(device), labels, seed=options.seed), chosen.folder.names


def _write(findings: Findings, names: dict[int, str], path: Path | None, pictures: Path | None) -> None:
    if path is not None:
        content = {name: getattr(findings, name) for name in ("verdict", "reason", "p", "seconds", "margins")}
        content = {"schema": SCHEMA, "status": status(findings)} | content
        content["candidates"] = outcome.candidates(findings, names)
        write_atomically(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n"))
    if pictures is not None:
        for candidate in findings.candidates:
            write_atomically(pictures / f"{candidate.family}.png", partial(_draw, picture(candidate.stamp)))


def _draw(pixels: torch.Tensor, path: Path) -> None:
    from PIL import Image

    turned = pixels.permute(1, 2, 0).cpu().numpy()
    Image.fromarray(turned[:, :, 0] if turned.shape[2] == 1 else turned).save(path, format="PNG")
