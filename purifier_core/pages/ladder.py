"""The ladder of widths: ACC and ASR against the width of the network, and what changes with it."""

from typing import Any

import pandas as pd

from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import drawing
from purifier_core.pages.report import METRICS
from purifier_core.pages.seeds import BRACKETS, Decision, decide
from purifier_core.pages.statistics import TAKEN, measured

COLOURS = {"acc": "#1d4ed8", "asr": drawing.OURS}


def width_name(width: float) -> str:
    """A width as a share of the paper's."""
    return "1" if width == 1 else f"1/{round(1 / width)}"


def table(results: Results) -> pd.DataFrame:
    """For each width and metric the mean and range of every method, as text in percent, and the number of seeds."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for width in results.experiment.rows(results.profile):
        by_column = {c.label: results.by_place.get((width, c), []) for c in results.experiment.columns()}
        for metric in METRICS:
            texts = {
                name: measured(records, metric).text() if records else "missing" for name, records in by_column.items()
            }
            lines[width_name(width), metric.upper()] = texts
        lines[width_name(width), "n"] = {name: str(len(records)) for name, records in by_column.items()}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["width", "%"])
    return frame


def stays(records: list[Record]) -> Decision:
    """Whether the backdoor stays, with an ASR of at least TAKEN, in every seed."""
    return decide({record.cell.seed: (record.asr or 0.0) >= TAKEN for record in records})


def reading(results: Results) -> list[str]:
    """For each method whether the backdoor stays at every width, and whether the answer changes with the width."""
    lines, turned, unsure = [], [], 0
    every = results.experiment.rows(results.profile)
    recorded = {row for row, _ in results.by_place}
    widths = [width for width in every if width in recorded]
    for column in results.experiment.columns():
        answers = {w: stays(results.by_place.get((w, column), [])) for w in widths}
        words = ", ".join(f"{width_name(w)} {d.text('stays', 'does not stay')}" for w, d in answers.items() if d.n)
        if words:
            lines.append(f"{column.label}: at width {words}.")
        sure = {decision.answer for decision in answers.values() if decision.answer is not None}
        turned += [column.label] if len(sure) > 1 else []
        unsure += bool(words) and any(decision.answer is None for decision in answers.values())
    if not lines:
        return [f"No record at profile {results.shown} is there yet."]
    change = f"With the width the answer changes for {', '.join(turned)}." if turned else "No decided answer changes."
    undecided = f"For {unsure} of {len(lines)} methods the answer is open at some width."
    missing = f"No record yet at width {', '.join(width_name(width) for width in every if width not in widths)}."
    gaps = [undecided] * (unsure > 0) + [missing] * (len(widths) < len(every))
    rule = f"The backdoor stays if ASR is {100 * TAKEN:g} % or more in every seed."
    return [" ".join([rule, change, *gaps, BRACKETS]), *lines]


def figure(results: Results) -> Any:
    """ACC and ASR against the width, a panel for each method: every seed a dot, one run hollow, a line by the means."""
    import matplotlib.pyplot as plt

    columns, widths = results.experiment.columns(), results.experiment.rows(results.profile)
    drawing.theme()
    rows = (len(columns) + 1) // 2
    size = (drawing.WIDTH, 1.35 * rows + 0.8)
    picture, axes = plt.subplots(rows, 2, figsize=size, sharex=True, sharey=True, layout="constrained", dpi=160)
    for axis, column in zip(axes.flat, columns, strict=False):
        for metric in METRICS:
            _draw(axis, {w: results.by_place[w, column] for w in widths if (w, column) in results.by_place}, metric)
        axis.set_title(column.label, loc="left", fontsize=10)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    first = axes.flat[0]
    first.set_xscale("log", base=2)
    first.set_xticks(widths, [width_name(width) for width in widths])
    first.set_ylim(-6, 106)
    for axis in axes[-1]:
        axis.set_xlabel("width, of the paper's")
    handles = [plt.Line2D([], [], color=COLOURS[metric], marker="o", label=metric.upper()) for metric in METRICS]
    picture.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    plt.close(picture)
    return picture


def _draw(axis: Any, by_width: dict[float, list[Record]], metric: str) -> None:
    values = {width: measured(records, metric) for width, records in by_width.items()}
    axis.plot(list(values), [value.mean for value in values.values()], color=COLOURS[metric], alpha=0.5, linewidth=2)
    for width, value in values.items():
        fill = "white" if value.n == 1 else COLOURS[metric]
        axis.scatter([width] * value.n, value.values, s=20, color=fill, edgecolor=COLOURS[metric], zorder=3)
