"""What `purifier scan` can be told: the part of `purifier fix`'s options that says what to read. Without torch."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from purifier_core.fix.options import Options, add_option

READING: tuple[str, ...] = (
    "model",
    "weights",
    "images",
    "weights_key",
    "classes",
    "class_names",
    "class_index",
    "natural",
    "size",
)
READING += ("resize", "crop", "normalize", "skip_bad_images", "trust_inputs", "seed", "device", "json", "quiet")


def add_to(verbs: Any) -> None:
    """Add the command to a parser's subcommands."""
    about = "look for a backdoor in a model of your own with a folder of clean images"
    ends = "Exit status: 0 nothing stands out, 1 a backdoor is suspected or the scan cannot tell, 2 wrong use."
    command = verbs.add_parser("scan", help=about, description=about, epilog=ends, allow_abbrev=False)
    for setting in fields(Options):
        if setting.name in READING:
            add_option(command, setting)
    command.add_argument("--pictures", type=Path, metavar="FOLDER", help="write each family's best stamp here, as PNG")


def options_of(chosen: dict[str, Any]) -> Options:
    """The options of a run. Those that a scan does not use are as for the repair that begins with one."""
    return Options(out=Path("a-scan-writes-no-weights.safetensors"), method="scan-repair", **chosen)
