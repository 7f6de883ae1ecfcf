"""The records as one table for other tools: one row for each record, every column described. Without torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from purifier_core.checks import one_of
from purifier_core.files import write_atomically
from purifier_core.lab.methods import DATASETS, NETWORKS
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store

ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Column:
    """One column: the type of its values, what it means, and where it stands in a record. Missing values are empty."""

    kind: str
    about: str
    value: Callable[[Record], Any]


def _of_cell(name: str) -> Callable[[Record], Any]:
    return attrgetter(f"cell.{name}")


def _inside(part: str, *path: str) -> Callable[[Record], Any]:
    """A nested value of a record's dictionary, or None."""

    def value(record: Record) -> Any:
        entry: Any = getattr(record, part)
        for name in path:
            entry = entry.get(name) if isinstance(entry, dict) else None
        return entry

    return value


def _switches(record: Record) -> str:
    return ";".join(f"{name}={value}" for name, value in record.cell.switches)


COLUMNS = {
    "dataset": Column("string", ", ".join(DATASETS), _of_cell("dataset")),
    "network": Column("string", ", ".join(NETWORKS), _of_cell("network")),
    "attack": Column("string", "the backdoor; none is a clean network", _of_cell("attack")),
    "poison_ratio": Column(
        "number", "stamped copies, as a share of the training images that they are added to", _of_cell("poison_ratio")
    ),
    "defense": Column("string", "the method; none is the undefended network", _of_cell("defense")),
    "clean_size": Column(
        "integer",
        "clean images of the defense on the scale of the original training set; 0 where it takes none",
        _of_cell("clean_size"),
    ),
    "switches": Column(
        "string", "what departs from the intended method, as name=value, separated by semicolons", _switches
    ),
    "seed": Column("integer", "of everything that is drawn", _of_cell("seed")),
    "profile": Column("string", f"the size of the experiment: {', '.join(PROFILES)}", _of_cell("profile")),
    "acc": Column("number", "clean accuracy: the share of clean test images named right, 0 to 1", attrgetter("acc")),
    "asr": Column(
        "number",
        "attack success rate: the share of triggered test images of other classes named as the attacker wants, 0 to 1: "
        "as class 5, all-to-all as the class after their own",
        attrgetter("asr"),
    ),
    "acc_images": Column("integer", "images behind acc", attrgetter("acc_images")),
    "asr_images": Column("integer", "images behind asr", attrgetter("asr_images")),
    "epochs": Column("number", "passes over the data that the method trains on", _inside("effort", "epochs")),
    "images": Column("integer", "images that its training saw, with repeats", _inside("effort", "images")),
    "seconds": Column(
        "number", "of the method, the choice of an operating point included", _inside("effort", "seconds")
    ),
    "wall_seconds": Column(
        "number", "of the whole cell, measurement and watching included", _inside("provenance", "wall_seconds")
    ),
    "device": Column("string", "what computed it: cpu, or the GPU's name", _inside("provenance", "device")),
    "threads": Column("integer", "of the CPU", _inside("provenance", "threads")),
    "started": Column("integer", "seconds since 1970-01-01, UTC", _inside("provenance", "started")),
    "commit": Column("string", "of the code", _inside("provenance", "commit")),
    "dirty": Column("boolean", "whether the code had changes beyond the commit", _inside("provenance", "dirty")),
    "python": Column("string", "its version", _inside("provenance", "versions", "python")),
    "torch": Column("string", "its version", _inside("provenance", "versions", "torch")),
    "backdoored_model": Column(
        "string", "checksum of the undefended network that it starts from", _inside("provenance", "backdoored_model")
    ),
    "data": Column("string", "checksum of all pixels and labels", _inside("data", "fingerprint")),
    "copy": Column("string", "which copy of the dataset that is", _inside("data", "copy")),
    "key": Column("string", "of everything that decides the result; equal keys, equal experiment", attrgetter("key")),
}
"""By name, in order."""


def rows(store: Store, profile: str | None = None) -> list[dict[str, Any]]:
    """The finished records of today's code, of all profiles or one, as dictionaries in the order of their cells."""
    return [{name: column.value(record) for name, column in COLUMNS.items()} for record in store.finished(profile)]


def export(store: Store, path: Path, profile: str | None = None) -> int:
    """Write the table to `path`, .csv or .parquet, and its description beside it; returns the number of rows.

    The description is a Frictionless data package. Without a record nothing is written. Raises ConfigError for
    another ending, and OSError where a file cannot be written.
    """
    import pandas as pd

    one_of("the ending of table", path.suffix, ENDINGS)
    if not (content := rows(store, profile)):
        return 0
    kinds = {"string": "string", "number": "Float64", "integer": "Int64", "boolean": "boolean"}
    table = pd.DataFrame(content).astype({name: kinds[column.kind] for name, column in COLUMNS.items()})
    writing = table.to_csv if path.suffix == ".csv" else table.to_parquet
    write_atomically(path, partial(writing, index=False))
    text = json.dumps(description(path.name), indent=1) + "\n"
    write_atomically(path.with_suffix(".datapackage.json"), lambda part: part.write_text(text))
    return len(content)


def description(file: str) -> dict[str, Any]:
    """The data package of a table in `file`: every column's type and meaning."""
    columns = [{"name": name, "type": column.kind, "description": column.about} for name, column in COLUMNS.items()]
    return {
        "name": "purifier-reproduced",
        "title": "Purifier, reproduced: ACC and ASR of every method, attack, dataset and seed",
        "licenses": [{"name": "MIT"}],
        "resources": [
            {
                "name": "results",
                "path": file,
                "schema": {"fields": columns, "missingValues": [""], "primaryKey": ["key", "data"]},
            }
        ],
    }
