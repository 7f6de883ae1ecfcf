"""The committed records beside a run of a smaller profile, so that nobody takes that run for a result."""

from dataclasses import dataclass
from itertools import product
from textwrap import fill
from typing import Any

import pandas as pd

from purifier_core.files import ROOT
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, enough_first, number, recorded
from purifier_core.pages.report import METRICS, estimates, paper_values, row_label, styled
from purifier_core.pages.statistics import NEAR, Estimate, measured, runs

LARGEST_FIRST = tuple(reversed(PROFILES))


@dataclass(frozen=True)
class Beside:
    """One row of a run's table, and the same columns of the committed records of a larger profile."""

    results: Results
    profile: str
    row: Any
    records: dict[Column, list[Record]]


def beside(results: Results, store: Store | None = None) -> Beside | None:
    """The best committed records of the run's columns; None where the run itself is at their profile, or a larger one.

    The row is the run's hardest, the smallest on its axis; if that is not recorded, the whole table's hardest. A
    profile counts if every column has a record; one with seeds enough to decide goes before a larger one.
    """
    experiment, columns = results.experiment, results.experiment.columns()
    rows = min(experiment.rows(results.profile)), min(experiment.full_grid().rows(results.profile))
    larger = LARGEST_FIRST[: LARGEST_FIRST.index(results.profile)]
    numbers = {(row, c): number(experiment.cell(c, row, 0, results.profile)) for row in rows for c in columns}
    by_number = recorded(store or Store(ROOT / "data"), list(numbers.values()), larger)
    candidates = []
    for profile, row in product(larger, rows):
        records = {column: by_number.get((numbers[row, column], profile), []) for column in columns}
        if all(records.values()):
            candidates.append(Beside(results, profile, row, records))
    best = enough_first(candidates, lambda candidate: min(map(len, candidate.records.values())))
    return best[0] if best else None


def table(comparison: Beside) -> pd.DataFrame:
    """One line for each column of the run: ACC and ASR of the run, of the records with their range, and published."""
    ours, paper = estimates(comparison.results), paper_values(comparison.results.experiment)
    heads = [(metric.upper(), source) for metric in METRICS for source in ("run", "records", "paper")]
    lines = []
    for column, records in comparison.records.items():
        line = []
        for metric in METRICS:
            run, stated = (
                ours.get((comparison.row, column, metric)),
                paper.get((comparison.row, column.name, metric)),
            )
            line += ["–" if run is None else f"{run.mean:.1f}", measured(records, metric).text()]
            line += ["–" if stated is None else f"{stated:.1f}"]
        lines.append([*line, str(len(records))])
    labels = [column.label for column in comparison.records]
    return pd.DataFrame(lines, labels, pd.MultiIndex.from_tuples([*heads, ("", "n")]))


def heading(comparison: Beside) -> str:
    """What the table holds."""
    title, row = comparison.results.experiment.title, row_label(comparison.results.experiment, comparison.row)
    return f"{title}, {row}: this run, the committed records, and the paper, in percent"


def sentence(comparison: Beside) -> str:
    """One sentence: what the reader of the run sees, and which numbers to judge by."""
    run = {(c, m): value for (row, c, m), value in estimates(comparison.results).items() if row == comparison.row}
    records = {(c, m): measured(group, m) for c, group in comparison.records.items() for m in METRICS}
    counts = {len(group) for group in comparison.records.values()}
    seeds = runs(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds"
    kind = "a smoke test" if comparison.results.profile == "quick" else "a smaller experiment"
    return (
        f"The run above is {kind} ({_size(comparison.results.profile)}): take the finding from the records (profile "
        f"{comparison.profile}, {seeds}; {_size(comparison.profile)}). There {_near(comparison, records)} of "
        f"{len(comparison.records)} lines lie within {NEAR:g} points of the published ACC and ASR; in this run "
        f"{_near(comparison, run)} do."
    )


def _size(profile: str) -> str:
    return PROFILES[profile].about.partition(": ")[2]


def _near(comparison: Beside, values: dict[tuple[Column, str], Estimate]) -> int:
    """The number of columns whose two means are near the published ones."""
    paper = paper_values(comparison.results.experiment)

    def near(column: Column, metric: str) -> bool:
        value, stated = values.get((column, metric)), paper.get((comparison.row, column.name, metric))
        return value is not None and stated is not None and abs(value.mean - stated) <= NEAR

    return sum(all(near(column, metric) for metric in METRICS) for column in comparison.records)


def html(results: Results) -> str:
    """The table and its sentence for a notebook; empty where there is nothing to set beside the run."""
    comparison = beside(results)
    if comparison is None:
        return ""
    return f"<p><b>{heading(comparison)}</b></p>{styled(table(comparison), 'committed')}<p>{sentence(comparison)}</p>"


def text(results: Results, width: int = 100) -> str:
    """The same for a terminal of `width` columns."""
    comparison = beside(results)
    if comparison is None:
        return ""
    return "\n".join(["", heading(comparison), table(comparison).to_string(), "", fill(sentence(comparison), width)])
