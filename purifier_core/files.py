"""Files written whole or not at all, and where results come from: code, versions, machine."""

import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""The repository: `data/` is found from the package, whatever the working directory."""

ROOM = (
    "make room or permit writing there, or set PURIFIER_HOME to a folder that can hold records and models; "
    "what is recorded stays, and the same run goes on with the rest."
)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and put it in place in one step.

    Raises OSError, with the way out, where the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as problem:
        raise OSError(problem.errno, f"{problem.strerror}; {ROOM}", str(path)) from problem
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save_tensors(content: Any, path: Path) -> None:
    """torch.save by way of memory, so that a full disk is an OSError that says so; torch itself does not say why."""
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    path.write_bytes(file.getbuffer())


def provenance(device: str) -> dict[str, Any]:
    """The code, the versions and the machine that a record comes from."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pillow"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "-uno"))} | {
        "versions": versions,
        "device": device,
        "platform": sys.platform,
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
