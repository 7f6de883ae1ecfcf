"""Records in one file, to carry from the machine that computed them to another."""

import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError
from purifier_core.files import write_atomically
from purifier_core.lab.records import CorruptRecord, Record, Store, parse


def export(store: Store, path: Path, profile: str | None = None) -> int:
    """Write the finished records of today's code, of all profiles or one, into `path`; returns how many.

    The file's ending decides its kind: .zip or .tar.gz. Without a record no file is written. Raises ConfigError for
    another name, and OSError where the file cannot be written.
    """
    kind = _kind(path)
    chosen = store.finished(profile)
    files = [store.path(record.cell, record.data["fingerprint"]) for record in chosen]
    names = {file: f"results/{file.relative_to(store.folder).as_posix()}" for file in files}

    def write(part: Path) -> None:
        if kind == "zip":
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for file, name in names.items():
                    archive.write(file, name)
        else:
            with tarfile.open(part, "w:gz") as archive:
                for file, name in names.items():
                    archive.add(file, name)

    if names:
        write_atomically(path, write)
    return len(names)


def merge(store: Store, path: Path, replace: bool, say: Callable[[str], Any]) -> dict[str, int]:
    """Store the records of an archive; returns how many were "imported", "known" already, and "refused".

    Nothing is unpacked: each member is read as a record, and its cell alone decides where it is stored. Refused are
    damaged records, failed ones, those of other code, and, unless `replace`, those whose numbers differ from the
    stored ones; `say` gets a line for each. Raises ConfigError, and stores nothing, if the archive cannot be read to
    its end.
    """
    store.check_writable()
    count = dict.fromkeys(("imported", "known", "refused"), 0)
    for name, content in _members(path).items():
        try:
            record = _record(name, content)
        except CorruptRecord as problem:
            say(f"refused: {problem}")
            count["refused"] += 1
            continue
        stored = store.find(record.cell, record.data["fingerprint"])
        if stored and _numbers(stored) != _numbers(record) and not replace:
            say(f"refused: {name} has {_rates(record)}, the stored record has {_rates(stored)}; see --replace.")
            count["refused"] += 1
        elif stored and _numbers(stored) == _numbers(record):
            count["known"] += 1
        else:
            store.save(record)
            count["imported"] += 1
    return count


def _kind(path: Path) -> str:
    if path.name.endswith(".zip"):
        return "zip"
    if path.name.endswith((".tar.gz", ".tgz")):
        return "tar"
    raise ConfigError(f"{str(path)!r} is no archive's name; allowed: NAME.zip, NAME.tar.gz or NAME.tgz.")


def _members(path: Path) -> dict[str, bytes]:
    """Every file in an archive."""
    try:
        if _kind(path) == "zip":
            with zipfile.ZipFile(path) as archive:
                return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
        with tarfile.open(path, "r:gz") as archive:
            files = ((member, archive.extractfile(member)) for member in archive if member.isfile())
            return {member.name: file.read() for member, file in files if file}
    except FileNotFoundError as problem:
        raise ConfigError(f"{path} is not there; name an archive that `purifier export` wrote.") from problem
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as problem:
        raise ConfigError(
            f"{path} cannot be read to its end ({type(problem).__name__}: {problem}), so nothing was imported; "
            "transfer it again."
        ) from problem


def _record(name: str, content: bytes) -> Record:
    record = parse(content, name)
    if record.failed:
        raise CorruptRecord(f"{name} is the record of a failure")
    if record.stale:
        raise CorruptRecord(f"{name} comes from another version of the code")
    data = record.data if isinstance(record.data, dict) else {}
    if not re.fullmatch("[0-9a-f]{16}", str(data.get("fingerprint"))):  # it becomes part of a file's name
        raise CorruptRecord(f"{name} does not tell which data it was computed on")
    if not all(isinstance(value, float) and 0 <= value <= 1 for value in (record.acc, record.asr)):
        raise CorruptRecord(f"{name} holds no ACC and ASR from 0 to 1")
    return record


def _numbers(record: Record) -> tuple[Any, ...]:
    return record.acc, record.asr, record.acc_images, record.asr_images


def _rates(record: Record) -> str:
    return f"ACC {record.acc:.4f} and ASR {record.asr:.4f}"
