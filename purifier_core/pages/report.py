"""Tables, figures and readings from records. No torch: a laptop that never trains can draw everything."""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import pandas as pd

from purifier_core.lab.experiments.grids import Column, Experiment
from purifier_core.lab.methods import title
from purifier_core.lab.records import Store, published
from purifier_core.lab.results import Results, look_up, records_only
from purifier_core.pages import drawing
from purifier_core.pages.statistics import DECIDES, TAKEN, Estimate, measured, number, results_of, runs

METRICS = ("acc", "asr")


def estimates(results: Results) -> dict[tuple[Any, Column, str], Estimate]:
    """Ours, by (row, column, metric), without what is missing and what is no result of its defense."""
    by_place = {place: results_of(records) for place, records in results.by_place.items()}
    return {
        (*place, metric): measured(records, metric)
        for place, records in by_place.items()
        if records
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
    if experiment.axis == "dataset":
        return title(row)
    return f"{row} clean images" if experiment.axis == "clean_size" else f"poison ratio {100 * row:g} %"


def table(results: Results) -> pd.DataFrame:
    """For each row of the axis and each metric the published line, ours with its range, and ours minus published.

    Values are text in percent; "missing" where no record is, "–" where the paper has no number. The last line of a row
    has the number of seeds, where there are several anywhere.
    """
    experiment, by_place = results.experiment, results.by_place
    ours, paper = estimates(results), paper_values(experiment)
    rows: dict[tuple[Any, str, str], dict[str, str]] = {}
    for row in experiment.rows(results.profile):
        head = row_head(experiment, row)
        for metric in METRICS:
            lines = {
                column.label: _lines(
                    ours.get((row, column, metric)),
                    paper.get((row, column.name, metric)),
                    bool(by_place.get((row, column))),
                )
                for column in experiment.columns()
            }
            for source in _SOURCES:
                rows[head, metric.upper(), source] = {label: texts[source] for label, texts in lines.items()}
        by_label = {column.label: by_place.get((row, column), []) for column in experiment.columns()}
        if len(results.sizes) > 1:
            rows[head, "seeds", "profile, n"] = {
                h: f"{m[0].cell.profile}, {len(m)}" if m else "–" for h, m in by_label.items()
            }
        elif len(experiment.seeds) > 1:
            rows[head, "seeds", "n"] = {h: str(len(m)) for h, m in by_label.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows, names=[experiment.axis, "metric", "%"])
    return frame


_SOURCES = ("published", "ours", "lowest to highest", "difference")


def _lines(value: Estimate | None, stated: float | None, recorded: bool) -> dict[str, str]:
    """The four texts of one number of a table; a defense that is `recorded` without a value had no threshold."""
    texts = dict.fromkeys(_SOURCES, "–")
    if stated is not None:
        texts["published"] = f"{stated:.2f}"
    if value is None:
        return texts | {"ours": "no threshold" if recorded else "missing"}
    texts |= {"ours": f"{value.mean:.2f}", "lowest to highest": value.spread(2)}
    return texts | ({} if stated is None else {"difference": number(value.mean - stated, 2, "+")})


def at(size: str, results: Results, store: Store | None = None) -> Results:
    """The records of the same experiment at one profile."""
    return look_up(replace(results.experiment, profile=size), store, reading=True)


def decisive(results: Results) -> Results:
    """In the book, the same table's hardest row at the largest profile where every number has seeds enough to decide.

    Else, and outside the book, the results as they are.
    """
    if not records_only():
        return results
    for other in (at(size, results) for size in results.sizes):
        row = min(other.experiment.rows(other.profile))
        if all(len(other.by_place.get((row, column), [])) >= DECIDES for column in other.experiment.columns()):
            return other
    return results


def at_smaller_sizes(results: Results, view: Callable[[Results], pd.DataFrame], store: Store | None = None) -> str:
    """In the book, `view` of each smaller profile that has numbers which a larger one hides, as HTML; else empty."""
    if not records_only():
        return ""
    cells = {record.cell for record in results.records}
    known, largest = results.experiment.sizes, next(iter(results.sizes), "")
    smaller = known[known.index(largest) + 1 :] if largest in known else ()
    others = [at(size, results, store) for size in smaller]
    return "".join(
        f"<p><b>The same at <code>{other.profile}</code>.</b> {other.headline}</p>"
        f"{styled(view(other), '-'.join((other.experiment.name, other.experiment.attack, other.profile)))}"
        for other in others
        if not {record.cell for record in other.records} <= cells
    )


def styled(table: pd.DataFrame, name: str, kind: str = "results") -> str:
    """The table as HTML for notebook and book, with `name` as its id: scrollable, its cells marked by source. `kind`
    "results prose" is for cells of words."""
    marks = {"published": "published", "ours": "ours", "lowest to highest": "interval", "difference": "difference"}
    marks |= {"profile, n": "interval", "n": "interval"}
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


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal: nine columns at a time, so that the paper's nine stay together."""
    blocks = [table.iloc[:, start : start + 9] for start in range(0, table.shape[1], 9)]
    return "\n\n".join(block.to_string() for block in blocks)


def glued(results: Results) -> dict[str, Any]:
    """The values that the book's prose takes from this table, in percent; nan if missing.

    Table 3's are named t3_<defense>[_<init>]_acc and ..._asr, the paper's t3_published_<defense>_acc, and Table 4's
    t4_...; they belong to the row that the notebook shows by default.
    """
    experiment, ours, paper = results.experiment, estimates(results), paper_values(results.experiment)
    prefix = "t" + experiment.name.removeprefix("table")
    usual: Any = {field.name: field.default for field in fields(experiment)}[experiment.axis]
    seeds = ", ".join(map(str, sorted({r.cell.seed for r in results.used}))) or "none"
    values: dict[str, Any] = {
        f"{prefix}_profile": results.shown,
        f"{prefix}_seeds": seeds,
    }
    for column in experiment.columns():
        name = "_".join([prefix, column.defense, *dict(column.switches).values()])
        for metric in METRICS:
            value = ours.get((usual, column, metric))
            values[f"{name}_{metric}"] = math.nan if value is None else value.mean
            stated = paper.get((usual, column.name, metric), math.nan)
            values[f"{prefix}_published_{column.defense}_{metric}"] = stated
    return values


def provenance(results: Results) -> str:
    """One sentence: profile, seeds, data copies, devices, commits of the records shown."""
    if not results.records:
        return f"No records at profile {results.shown} yet."

    def each(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    records = results.used
    seeds = each(sorted({r.cell.seed for r in records}))
    missing = len(results.missing)
    if len(set(map(len, results.by_place.values()))) > 1:
        seeds += ", not all everywhere"
    commits = each(
        (r.provenance.get("commit") or "no commit")[:9] + ("+changes" if r.provenance.get("dirty") else "")
        for r in records
    )
    gaps = f" Missing: {missing}." if missing else ""
    return (
        f"Records shown: {len(records)}, profile {results.shown}; seeds {seeds}; data: "
        f"{each(r.data['copy'] for r in records)}; device: "
        f"{each(r.provenance['device'] for r in records)}; code: {commits}.{gaps}"
    )


def reading(results: Results) -> list[str]:
    """Two lines about a table's hardest row, the smallest on its axis, generated from the records."""
    ours, paper = estimates(results), paper_values(results.experiment)
    experiment = results.experiment
    row = min(experiment.rows(results.profile))
    pairs = {c: (ours[row, c, "acc"], ours[row, c, "asr"]) for c in experiment.columns() if (row, c, "acc") in ours}
    if not pairs:
        return [f"No record of this table at profile {results.shown} is there yet."]
    low = [f"{c.label} ({acc.mean:.1f} / {asr.mean:.1f})" for c, (acc, asr) in pairs.items() if asr.high < 10]
    high = [c.label for c, (_, asr) in pairs.items() if asr.low >= 100 * TAKEN]
    counts = sorted({acc.n for acc, _ in pairs.values()})
    number = runs(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    in_every_seed, mean = ("", "") if counts == [1] else (" in every seed", "mean ")
    lines = [
        f"At {row_label(experiment, row)} (profile {results.shown}; {number}), ASR is below 10 %{in_every_seed} for "
        f"{', '.join(low) or 'no method'} ({mean}ACC / ASR in percent), and {100 * TAKEN:g} % or "
        f"more{in_every_seed} for {', '.join(high) or 'none'}."
    ]
    gaps = {
        c: max(abs(v.mean - paper[row, c.name, metric]) for metric, v in zip(METRICS, pair, strict=True))
        for c, pair in pairs.items()
        if (row, c.name, "acc") in paper
    }
    if gaps:
        near = [c.label for c, gap in gaps.items() if gap <= 2]
        far = max(gaps, key=lambda c: gaps[c])
        lines.append(
            f"Means within 2 points of the published ACC and ASR: {', '.join(near) or 'none'}; farthest: {far.label}, "
            f"{gaps[far]:.1f} points away."
        )
    return lines


def figure(results: Results) -> Any:
    """ACC and ASR at the table's hardest row, the smallest on its axis: every seed, and the published value."""
    import matplotlib.pyplot as plt

    results = decisive(results)
    ours, paper = estimates(results), paper_values(results.experiment)
    row = min(results.experiment.rows(results.profile))
    columns = results.experiment.columns()
    drawing.theme()
    picture, axes = plt.subplots(
        1, 2, figsize=(drawing.WIDTH, 0.32 * len(columns) + 1.6), sharey=True, layout="constrained", dpi=160
    )
    for axis, metric, heading in zip(axes, METRICS, ("ACC: higher is better", "ASR: lower is better"), strict=True):
        for place, column in enumerate(columns):
            value, stated = ours.get((row, column, metric)), paper.get((row, column.name, metric))
            if stated is not None:
                axis.scatter(stated, place, **drawing.PUBLISHED_MARK, zorder=4)
            if value is not None:
                drawing.seeds(axis, value, place)
        for place in range(1, len(columns)):  # a line above each of Purifier's groups
            if dict(columns[place].switches) != dict(columns[place - 1].switches):
                axis.axhline(place - 0.5, color="0.2", linewidth=0.8)
        axis.set_xlim(-5, 105)
        axis.set_xlabel("percent")
        axis.set_title(heading, fontsize=10.5, loc="left")
    axes[0].set_yticks(range(len(columns)), [c.label for c in columns])
    axes[0].set_ylim(len(columns) - 0.4, -0.6)
    for axis in axes:
        axis.grid(axis="y", visible=False)
    drawing.legend(picture)
    number = results.experiment.name.removeprefix("table")
    title = f"Table {number}, {row_label(results.experiment, row)}, ours at {results.shown}"
    picture.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    plt.close(picture)  # the notebook shows the value that this returns, once
    return picture
