"""The store of results: one JSON file for each cell, with its provenance, written whole or not at all."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError
from purifier_core.files import ROOM, ROOT, write_atomically
from purifier_core.lab.cells import Cell


def home() -> Path:
    """Where records (results/) and cached models (models/) lie: $PURIFIER_HOME, or the repository's data/."""
    return Path(os.environ.get("PURIFIER_HOME") or ROOT / "data")


@dataclass(frozen=True)
class Record:
    """One computed cell. `acc` and `asr` are fractions over `acc_images` and `asr_images` test images.

    data holds the fingerprint and the statement of the copy; effort the epochs, images seen, seconds of the
    defense and its epoch losses; a failed cell has an `error` (its traceback) and no metrics.
    """

    cell: Cell
    key: str
    data: dict[str, str]
    acc: float | None = None
    asr: float | None = None
    acc_images: int = 0
    asr_images: int = 0
    effort: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the cell ended in an error."""
        return self.error is not None

    @property
    def stale(self) -> bool:
        """Whether today's code would give this cell another number: then the record does not count."""
        return self.key != self.cell.key()


class CorruptRecord(ValueError):
    """A record file that is truncated, altered or not a record."""


def current(records: Iterable[Record]) -> tuple[dict[Cell, Record], dict[Cell, Record]]:
    """The finished and the failed records of today's code by cell; a cell that has both counts as finished."""
    of_today = [record for record in records if not record.stale]
    finished = {record.cell: record for record in of_today if not record.failed}
    return finished, {record.cell: record for record in of_today if record.failed and record.cell not in finished}


class Store:
    """The records below a folder; beside them the cached models, and the locks of those who compute."""

    def __init__(self, folder: Path | None = None) -> None:
        self.home = (folder or home()).absolute()  # a worker on another machine needs it so
        self.folder, self.models, self.locks = (self.home / name for name in ("results", "models", "locks"))
        self.checkpoints = self.home / "checkpoints"

    def path(self, cell: Cell, fingerprint: str, failed: bool = False) -> Path:
        """Where a cell's record lies: readable parts first, then the content key and the data's fingerprint."""
        name = "-".join([cell.defense, str(cell.clean_size), *(v for _, v in cell.switches), f"s{cell.seed}"])
        group = f"{cell.dataset}-{cell.network}-{cell.attack}-{cell.poison_ratio:g}"
        ending = ".failed.json" if failed else ".json"
        return self.folder / cell.profile / group / f"{name}-{cell.key()[:10]}-{fingerprint[:8]}{ending}"

    def find(self, cell: Cell, fingerprint: str = "") -> Record | None:
        """A cell's finished record, or None. With a fingerprint: only the record on the data that has it."""
        pattern = self.path(cell, fingerprint or "*")
        for path in sorted(pattern.parent.glob(pattern.name)):
            record = self._read_or_warn(path)
            if record is None or record.failed or record.stale:
                continue
            if record.cell == cell and fingerprint in ("", record.data["fingerprint"]):
                return record
        return None

    def all(self) -> Iterator[Record]:
        """Every readable record, failed and stale ones included; a corrupt one is skipped with a warning."""
        for path in sorted(self.folder.rglob("*.json")):
            if record := self._read_or_warn(path):
                yield record

    def finished(self, profile: str | None = None) -> list[Record]:
        """The finished records of today's code, of all profiles or one."""
        return [r for r in self.all() if not (r.failed or r.stale) and profile in (None, r.cell.profile)]

    def save(self, record: Record) -> Path:
        """Write a record atomically; a finished one replaces the cell's failed one."""
        path = self.path(record.cell, record.data.get("fingerprint", ""), record.failed)
        content = _file(json.loads(json.dumps(asdict(record))))
        write_atomically(path, lambda part: part.write_bytes(content), ROOM)
        if not record.failed:
            self.path(record.cell, record.data["fingerprint"], failed=True).unlink(missing_ok=True)
        return path

    def check_writable(self) -> None:
        """Raise ConfigError now, before hours of work, if nothing can be written."""
        for folder in (self.folder, self.models, self.locks):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"0" * 4096)
            except OSError as problem:
                raise ConfigError(f"{folder} cannot be written ({problem.strerror}); {ROOM}") from problem

    def _read_or_warn(self, path: Path) -> Record | None:
        try:
            return read(path)
        except CorruptRecord as problem:
            warnings.warn(f"ignored, and computed again when needed: {problem}", stacklevel=2)
            return None


def read(path: Path) -> Record:
    """Read one record file. Raises CorruptRecord unless it is whole and unaltered."""
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as problem:
        raise CorruptRecord(f"{path} cannot be read ({problem.strerror})") from problem


@cache
def _read(path: Path, _changed: int, _size: int) -> Record:
    """A file is parsed once, unless it changes: a page of the book looks up the same records many times."""
    return parse(path.read_bytes(), str(path))


def parse(written: bytes, name: str) -> Record:
    """The record in a file's content; `name` is for the message. Raises CorruptRecord as `read` does."""
    try:
        content = json.loads(written)
        del content["sha256"]
        if written != _file(content):
            raise CorruptRecord(f"{name} does not match its checksum")
        raw = content.pop("cell")
        raw["switches"] = tuple(tuple(pair) for pair in raw["switches"])
        return Record(cell=Cell(**raw), **content)
    except CorruptRecord:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CorruptRecord(f"{name} is not a whole record ({type(problem).__name__}: {problem})") from problem


def _file(content: dict[str, Any]) -> bytes:
    """A record file: the content and its checksum, spelled in the one way that `read` believes."""
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content | {"sha256": checksum}, indent=1) + "\n").encode()


def published(name: str) -> Any:
    """The paper's numbers for a table or figure, as a DataFrame with the columns of data/published/<name>.csv."""
    import pandas as pd

    return pd.read_csv(ROOT / "data" / "published" / f"{name}.csv")
