"""Tables, figures and readings from records. No torch: a laptop that never trains can draw everything."""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pandas as pd

from purifier_core.config import LABELS
from purifier_core.experiments.grids import Column, Experiment
from purifier_core.pages.statistics import DECIDES as DECIDES
from purifier_core.pages.statistics import TAKEN as TAKEN
from purifier_core.pages.statistics import Estimate as Estimate
from purifier_core.pages.statistics import decided as decided
from purifier_core.pages.statistics import estimate as estimate
from purifier_core.pages.statistics import measured as measured
from purifier_core.pages.statistics import paired as paired
from purifier_core.pages.statistics import runs as runs
from purifier_core.pages.statistics import took as took
from purifier_core.records import Record, published
from purifier_core.runner import Results

METRICS = ("acc", "asr")
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "gtsrb": "GTSRB"}
PUBLISHED_MARK: dict[str, Any] = {"s": 95, "facecolor": "none", "edgecolor": "0.2", "linewidth": 1.6}
OUR_MARK: dict[str, Any] = {"fmt": "o", "markersize": 6, "color": "#c2410c"}


def grouped(results: Results) -> dict[tuple[Any, Column], list[Record]]:
    """The records behind each number, seed by seed, by (row, column); what is missing is left out."""
    records = {record.cell: record for record in results.records}
    experiment, found = results.experiment, {}
    for row in experiment.rows(results.profile):
        for column in experiment.columns():
            for profile in filter(None, (results.profile, results.filler)):
                cells = [experiment.cell(column, row, seed, profile) for seed in experiment.seeds]
                if mine := [records[cell] for cell in cells if cell in records]:
                    found[row, column] = mine
                    break
    return found


def estimates(results: Results) -> dict[tuple[Any, Column, str], Estimate]:
    """Ours, by (row, column, metric); what is missing is left out."""
    return {
        (row, column, metric): measured(mine, metric)
        for (row, column), mine in grouped(results).items()
        for metric in METRICS
    }


def paper_values(experiment: Experiment) -> dict[tuple[int, str, str], float]:
    """The published percentages by (row, method name, metric)."""
    table = published(experiment.name)
    axis = table[experiment.axis] if experiment.axis in table else table[f"{experiment.axis}_percent"] / 100
    return {
        (row, method, metric): value
        for metric in METRICS
        for row, method, value in zip(axis, table.method, table[f"{metric}_percent"], strict=True)
    }


def row_head(experiment: Experiment, row: Any) -> Any:
    """A value of the table's axis as it heads its rows."""
    return f"{100 * row:g} %" if experiment.axis == "poison_ratio" else row


def row_label(experiment: Experiment, row: Any) -> str:
    """A value of the table's axis in words."""
    return f"{row} clean images" if experiment.axis == "clean_size" else f"poison ratio {100 * row:g} %"


def table(results: Results) -> pd.DataFrame:
    """For each row of the axis and each metric the published line, ours with its range, and ours minus published.

    Values are text in percent; "missing" where no record is, "–" where the paper has no number.
    """
    ours, paper = estimates(results), paper_values(results.experiment)
    behind = grouped(results)
    rows: dict[tuple[Any, str, str], dict[str, str]] = {}
    for row in results.experiment.rows(results.profile):
        for metric in METRICS:
            lines: dict[str, dict[str, str]] = {"published": {}, "ours": {}, "lowest to highest": {}, "difference": {}}
            for column in results.experiment.columns():
                head = column.label
                value, stated = ours.get((row, column, metric)), paper.get((row, LABELS[column.defense], metric))
                lines["published"][head] = "–" if stated is None else f"{stated:.2f}"
                lines["ours"][head] = "missing" if value is None else f"{value.mean:.2f}"
                lines["lowest to highest"][head] = "–" if value is None else value.spread(2)
                both = value is not None and stated is not None
                lines["difference"][head] = f"{value.mean - stated:+.2f}" if both else "–"  # type: ignore[union-attr,operator]
            if results.filler:
                mine = {c.label: behind.get((row, c), []) for c in results.experiment.columns()}
                lines["profile, n"] = {h: f"{m[0].cell.profile}, {len(m)}" if m else "–" for h, m in mine.items()}
            rows |= {
                (row_head(results.experiment, row), metric.upper(), source): line for source, line in lines.items()
            }
    found = pd.DataFrame.from_dict(rows, orient="index")
    found.index = pd.MultiIndex.from_tuples(rows, names=[results.experiment.axis, "metric", "%"])
    return found


def styled(table: pd.DataFrame, name: str, kind: str = "results") -> str:
    """The table as HTML for notebook and book, with `name` as its id: scrollable, its cells marked by source. `kind`
    "results prose" is for cells of words."""
    marks = {"published": "published", "ours": "ours", "lowest to highest": "interval", "difference": "difference"}
    marks["profile, n"] = "interval"
    classes = pd.DataFrame(
        [
            ["missing" if value == "missing" else marks.get(index[-1], "") for value in row]
            for index, row in zip(table.index, table.to_numpy(), strict=True)
        ],
        index=table.index,
        columns=table.columns,
    )
    style = table.style.set_uuid(name).set_td_classes(classes).set_table_attributes(f'class="{kind}"')
    style.cell_ids = False  # type: ignore[attr-defined]  # set by the constructor, unknown to the stubs
    return f'<div class="results-scroll">{style.to_html()}</div>'


def as_text(table: pd.DataFrame, width: int = 9) -> str:
    """The table for a terminal: `width` columns at a time, so that the paper's nine stay together."""
    blocks = [table.iloc[:, start : start + width] for start in range(0, table.shape[1], width)]
    return "\n\n".join(block.to_string() for block in blocks)


def glued(results: Results) -> dict[str, Any]:
    """The values that the book's prose takes from this table, in percent; nan if missing.

    Table 3's are named t3_<defense>[_<init>]_acc and ..._asr, the paper's t3_published_<defense>_acc, the figure
    t3_figure, and Table 4's t4_...; they belong to the row that the notebook shows by default.
    """
    experiment, ours, paper = results.experiment, estimates(results), paper_values(results.experiment)
    prefix = "t" + experiment.name.removeprefix("table")
    usual: Any = {field.name: field.default for field in fields(experiment)}[experiment.axis]
    seeds = ", ".join(map(str, sorted({r.cell.seed for r in results.records}))) or "none"
    values: dict[str, Any] = {
        f"{prefix}_profile": results.shown,
        f"{prefix}_seeds": seeds,
        f"{prefix}_figure": figure(results),
    }
    for column in experiment.columns():
        name = "_".join([prefix, column.defense, *dict(column.switches).values()])
        for metric in METRICS:
            value = ours.get((usual, column, metric))
            values[f"{name}_{metric}"] = math.nan if value is None else value.mean
            stated = paper.get((usual, LABELS[column.defense], metric), math.nan)
            values[f"{prefix}_published_{column.defense}_{metric}"] = stated
    return values


def provenance(results: Results) -> str:
    """One sentence: profile, seeds, data copies, devices, commits of the records shown."""
    if not results.records:
        return f"No records at profile {results.shown} yet."

    def each(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    seeds = each(sorted({r.cell.seed for r in results.records}))
    missing = len(results.missing)
    if missing and results.experiment.rows_apart:
        places = len(results.experiment.rows(results.profile)) * len(results.experiment.columns())
        seeds, missing = f"{seeds}, not all in every row", places - len(grouped(results))
    commits = each(
        (r.provenance.get("commit") or "no commit")[:9] + ("+changes" if r.provenance.get("dirty") else "")
        for r in results.records
    )
    gaps = f" Missing: {missing}." if missing else ""
    return (
        f"Records shown: {len(results.records)}, profile {results.shown}; seeds {seeds}; data: "
        f"{each(r.data['copy'] for r in results.records)}; device: "
        f"{each(r.provenance['device'] for r in results.records)}; code: {commits}.{gaps}"
    )


def reading(results: Results) -> list[str]:
    """Two lines about a table's hardest row, the smallest on its axis, generated from the records."""
    ours, paper = estimates(results), paper_values(results.experiment)
    experiment = results.experiment
    row = min(experiment.rows(results.profile))
    shown = {
        c: (ours[row, c, "acc"].mean, ours[row, c, "asr"].mean) for c in experiment.columns() if (row, c, "acc") in ours
    }
    if not shown:
        return [f"No record of this table at profile {results.shown} is there yet."]
    low = [f"{c.label} ({acc:.1f} / {asr:.1f})" for c, (acc, asr) in shown.items() if asr < 10]
    high = [c.label for c, (_, asr) in shown.items() if asr >= 90]
    lines = [
        f"At {row_label(experiment, row)} (profile {results.shown}; seeds: {len(experiment.seeds)}), ASR is below 10 % "
        f"for {', '.join(low) or 'no method'} (ACC / ASR in percent), and still 90 % or more for "
        f"{', '.join(high) or 'none'}."
    ]
    gaps = {
        c: max(abs(value - paper[row, LABELS[c.defense], metric]) for metric, value in zip(METRICS, pair, strict=True))
        for c, pair in shown.items()
        if (row, LABELS[c.defense], "acc") in paper
    }
    if gaps:
        near = [c.label for c, gap in gaps.items() if gap <= 2]
        far = max(gaps, key=lambda c: gaps[c])
        lines.append(
            f"Within 2 points of the published ACC and ASR: {', '.join(near) or 'none'}; farthest: {far.label}, "
            f"{gaps[far]:.1f} points away."
        )
    return lines


def figure(results: Results) -> Any:
    """ACC and ASR of every column at the table's hardest row, the smallest on its axis, published against ours."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    ours, paper = estimates(results), paper_values(results.experiment)
    row = min(results.experiment.rows(results.profile))
    columns = results.experiment.columns()
    sns.set_theme(style="whitegrid", context="notebook")
    drawing, axes = plt.subplots(
        1, 2, figsize=(7, 0.32 * len(columns) + 1.6), sharey=True, layout="constrained", dpi=160
    )
    for axis, metric, title in zip(axes, METRICS, ("ACC: higher is better", "ASR: lower is better"), strict=True):
        for place, column in enumerate(columns):
            value, stated = ours.get((row, column, metric)), paper.get((row, LABELS[column.defense], metric))
            if value is not None and stated is not None:
                axis.plot([stated, value.mean], [place, place], color="0.7", linewidth=2, zorder=1)
            if stated is not None:
                axis.scatter(stated, place, **PUBLISHED_MARK, zorder=3)
            if value is not None:
                axis.errorbar(
                    value.mean,
                    place,
                    xerr=[[value.mean - value.low], [value.high - value.mean]],
                    fmt="o",
                    markersize=7,
                    color="#c2410c",
                    capsize=3,
                    zorder=2,
                )
        for place in range(1, len(columns)):  # a line above each of Purifier's groups
            if dict(columns[place].switches) != dict(columns[place - 1].switches):
                axis.axhline(place - 0.5, color="0.2", linewidth=0.8)
        axis.set_xlim(-4, 104)
        axis.set_xlabel("percent")
        axis.set_title(title, fontsize=11, loc="left")
    axes[0].set_yticks(range(len(columns)), [c.label for c in columns])
    axes[0].invert_yaxis()
    axes[0].scatter([], [], **PUBLISHED_MARK, label="published")
    axes[0].errorbar([], [], **OUR_MARK, label=f"ours ({results.shown})")
    drawing.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    number = results.experiment.name.removeprefix("table")
    drawing.suptitle(
        f"Table {number}, {row_label(results.experiment, row)}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    plt.close(drawing)  # the notebook shows the value that this returns, once
    return drawing
