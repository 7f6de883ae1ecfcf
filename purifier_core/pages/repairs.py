"""Scan-repair beside what the field offers: what each leaves of a backdoor, and what of the network."""

from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.lab.methods import ATTACKS, title
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.statistics import measured, number, runs


def row_label(row: tuple[str, str]) -> str:
    """An attack on a dataset in words."""
    attack, dataset = row
    return f"{title(dataset)}, {ATTACKS[attack].label if attack in ATTACKS else 'clean network'}"


def table(results: Results) -> pd.DataFrame:
    """Means over seeds in percent, by row, metric and method. RA: triggered images that are classified rightly."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in results.experiment.rows(results.profile):
        for metric in ("ACC", "ASR", "RA"):
            texts = {
                column.label: _text(results.found.get((row, column), []), metric)
                for column in results.experiment.columns()
            }
            lines[row_label(row), metric] = texts
    found = pd.DataFrame.from_dict(lines, orient="index")
    found.index = pd.MultiIndex.from_tuples(lines, names=["attack", "%"])
    return found


def _text(records: list[Record], metric: str) -> str:
    if not records:
        return "missing"
    if metric == "RA":
        rates = [100 * record.diagnostics["ra"] for record in records if "ra" in record.diagnostics]
        return number(fmean(rates)) if rates else "–"
    return number(measured(records, metric.lower()).mean)


def reading(results: Results) -> list[str]:
    """What the scan found in each row, and where Scan-repair stands."""
    lines = []
    for (row, column), records in results.found.items():
        if column.defense == "scan_repair" and records:
            lines.append(f"{row_label(row)}, {runs(len(records))}: {'; '.join(map(_found, records))}.")
    return lines or [f"No record of Scan-repair at profile {results.shown} is there yet."]


def _found(record: Record) -> str:
    best: dict[str, Any] = min(record.diagnostics["candidates"], key=lambda candidate: candidate["p"])
    told = f"class {best['target']} ({best['family']}, score {best['score']:.1f}, p {best['p']:.2g})"
    return f"seed {record.cell.seed} {record.diagnostics['verdict']}, {told}"
