"""What the records tell of a method's inside: Purifier's units, and what ABL isolates."""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Column, Experiment
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.report import row_head, row_label
from purifier_core.pages.statistics import results_of, runs


def units(results: Results, head: Callable[[Experiment, Any], Any] = row_head) -> pd.DataFrame:
    """What Purifier's units do, in percent: one row for each row and Purifier column, means over seeds.

    Where a column names several values, they are those of the heads in the order in which they run. `head` names a row.
    """
    rows = {}
    for (row, column), records in results.by_place.items():
        inside = [r for r in records if "clean" in r.diagnostics]
        if not inside:
            continue
        clean, hit = ([r.diagnostics[images] for r in inside] for images in ("clean", "triggered"))
        rows[head(results.experiment, row), column.label] = {
            "ACC": _mean(r.acc or 0.0 for r in inside),
            "heads' ACC": " / ".join(map(_mean, zip(*(c["heads"] for c in clean), strict=True))),
            "agrees with first head, clean": _mean(c["first_head_agreement"] for c in clean),
            "oracle-mask ACC": _mean(c["oracle"] for c in clean),
            "ASR": _mean(r.asr or 0.0 for r in inside),
            "heads' ASR": " / ".join(map(_mean, zip(*(h["heads"] for h in hit), strict=True))),
            "agrees, triggered": _mean(h["first_head_agreement"] for h in hit),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    if rows:
        table.index = pd.MultiIndex.from_tuples(list(rows), names=[results.experiment.axis, "module"])
    return table


def _mean(fractions: Iterable[float]) -> str:
    return f"{100 * fmean(fractions):.1f}"


def place_label(results: Results, place: tuple[Any, Column]) -> str:
    """A place of a table by its row, in words."""
    return row_label(results.experiment, place[0])


def isolation(results: Results, label: Callable[[Results, Any], str] = place_label) -> list[str]:
    """A line on the images that ABL isolated and then unlearned, seed by seed. `label` names a place (row, column)."""
    places: dict[Cell, tuple[Any, list[Record]]] = {}  # by the first record: one that stands in two places is told once
    for place, records in results.by_place.items():
        if records[0].cell.defense == "abl":
            places.setdefault(records[0].cell, (place, records))
    shares = [f"{label(results, place)} {_isolated(records)}" for place, records in places.values()]
    if not shares:
        return []
    chances = dict.fromkeys(f"{100 * c.poison_ratio / (1 + c.poison_ratio):.1f} %" for c in places)
    return [
        "ABL unlearns the images that it isolated, poisoned or not. The share that carries the trigger, one value for "
        f"each seed (chance would give {', '.join(chances)}): {'; '.join(shares)}."
    ]


def _isolated(records: list[Record]) -> str:
    """What ABL isolated in some records, in words."""
    shares = ", ".join(f"{100 * r.diagnostics['isolation_precision']:.1f}" for r in records)
    counts = dict.fromkeys(f"{r.diagnostics['isolated']:,}" for r in records)
    return f"{shares} % of {', '.join(counts)}"


def thresholds(results: Results, label: Callable[[Results, Any], str] = place_label) -> list[str]:
    """A line on where ANP found no admissible threshold; its records there hold the untouched network."""
    refusals = []
    for place, records in results.by_place.items():
        if refused := len(records) - len(results_of(records)):
            count = runs(len(records)) if len(records) == 1 else f"{refused} of {runs(len(records))}"
            refusals.append(f"{label(results, place)} ({count})")
    if not refusals:
        return []
    return [f"ANP has no admissible threshold, and so no result: {'; '.join(refusals)}."]


def notes(results: Results, label: Callable[[Results, Any], str] = place_label) -> list[str]:
    """What has to stand beside the numbers of ABL and ANP."""
    return [*isolation(results, label), *thresholds(results, label)]
