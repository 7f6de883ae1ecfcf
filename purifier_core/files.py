"""Files written whole or not at all, and where results come from: code, versions, machine."""

import io
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""The repository: `data/` is found from the package, whatever the working directory."""

PLACE = "make room or permit writing there."
"""The way out where a file cannot be written."""

ROOM = (
    "make room or permit writing there, or set PURIFIER_HOME to a folder that can hold records and models; "
    "what is recorded stays, and the same run goes on with the rest."
)
"""The way out where a run cannot keep what it computes."""


def write_atomically(path: Path, write: Callable[[Path], Any], way_out: str = PLACE) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and put it in place in one step.

    Raises OSError, with the way out, where the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(part, write)
        os.replace(part, path)
    except OSError as problem:
        raise OSError(problem.errno, f"{problem.strerror}; {way_out}", str(path)) from problem
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_together(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Fill several files in the given order, flush them, then put them in place in the opposite order.

    The first one is thus placed last: whoever sees it new sees the others new. Where one cannot be written or placed,
    all are as they were before. Files get the permissions of the user's umask. Raises OSError and what `write` raises.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in writers}
    backups = {path: path.with_name(f".{path.name}.{os.getpid()}.kept") for path in writers}
    placed: list[Path] = []
    try:
        for path, write in writers.items():
            _fill(parts[path], write)
        for path in reversed(list(writers)):
            if path.exists():
                _keep(path, backups[path])
            placed.append(path)
            os.replace(parts[path], path)
    except BaseException:
        for path in placed:
            if backups[path].exists():
                os.replace(backups[path], path)
            elif not parts[path].exists():  # it was placed where nothing had been
                path.unlink(missing_ok=True)
        raise
    finally:
        for path in (*parts.values(), *backups.values()):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _fill(part: Path, write: Callable[[Path], Any]) -> None:
    part.touch()
    mode = part.stat().st_mode
    write(part)
    part.chmod(mode)  # some writers make a file of their own, for the owner alone
    with part.open("rb") as handle:
        os.fsync(handle.fileno())


def _keep(path: Path, backup: Path) -> None:
    """The file once more under another name, without a copy where the file system has hard links."""
    try:
        os.link(path, backup)
    except OSError:
        shutil.copy2(path, backup)


def save_tensors(content: Any, path: Path) -> None:
    """torch.save by way of memory, so that a full disk is an OSError that says so; torch itself does not say why."""
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    path.write_bytes(file.getbuffer())


def provenance(device: str) -> dict[str, Any]:
    """The code, the versions and the machine that a record comes from. "dirty": whether the code has changes beyond the
    commit. A record that a run writes does not count. Installed without its repository, the code has no commit."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pillow"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    changes = _git("status", "--porcelain", "-uno", "--", "purifier_core", "benchmarks", "constraints.txt")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes)} | {
        "versions": versions,
        "device": device,
        "platform": sys.platform,
    }


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():  # a repository further up is another's
        return None
    try:
        result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
