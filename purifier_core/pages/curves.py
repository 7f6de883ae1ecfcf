"""Efficiency curves: ACC and ASR in the course of every defense, as their records hold them.

They are taken on fixed test images. They are only watched: nothing is chosen by them. Epoch 0, a dot, is the network
that the defense was given. A gap is a stage whose network is not the result: the Finetuning with which MCR and NAD
begin.
"""

import math
from typing import Any

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import title
from purifier_core.lab.records import Record, published
from purifier_core.lab.results import Results
from purifier_core.pages import drawing
from purifier_core.pages.efficiency import PRINTED, by_column
from purifier_core.pages.report import METRICS, paper_values
from purifier_core.pages.scrutiny import epochs_of

COLOURS = {"acc": "#0f766e", "asr": drawing.OURS}
ACROSS = 3


def curves(results: Results, dataset: str) -> dict[Column, list[Record]]:
    """The records that hold a curve on a dataset, by column; columns without one are left out."""
    columns = {
        column: [record for record in records if "curve" in record.diagnostics]
        for (row, column), records in by_column(results).items()
        if row == dataset
    }
    return {column: records for column, records in columns.items() if records}


def end_point(dataset: str, column: Column) -> dict[str, float]:
    """The published end of a curve, in percent, by metric; a metric that was not published is left out.

    On MNIST it is Table 3's row of 3,000 clean images. Elsewhere it is ASR alone, from the bar of Figure 13 and the
    number of epochs, if the published numbers leave only one.
    """
    name = column.name
    if dataset == "mnist":
        stated = paper_values(Table3())
        return {metric: stated[3000, name, metric] for metric in METRICS if (3000, name, metric) in stated}
    epochs = epochs_of(name)
    if epochs is None:
        return {}
    bars = published("figure13").set_index(["dataset", "method"]).one_minus_asr_per_epoch_percent
    return {"asr": max(0.0, float(100 - epochs * bars[PRINTED[dataset], name]))}


def figure(results: Results, dataset: str) -> Any:
    """A panel for each defense on a dataset: ACC and ASR by epoch, a thin line for each seed."""
    import matplotlib.pyplot as plt

    columns = curves(results, dataset)
    down = max(1, -(-len(columns) // ACROSS))
    drawing.theme()
    picture, axes = plt.subplots(
        down,
        ACROSS,
        figsize=(drawing.WIDTH, 1.55 * down + 0.9),
        sharey=True,
        squeeze=False,
        layout="constrained",
        dpi=160,
    )
    for axis in axes.flat[len(columns) :]:
        axis.set_axis_off()
    if not columns:
        axes[0, 0].text(0, 0.5, "No record with a curve is there yet.")
    for axis, (column, records) in zip(axes.flat, columns.items(), strict=False):
        _panel(axis, records, end_point(dataset, column))
        axis.set_title(column.label, loc="left", fontsize=10.5, pad=3)
    for line in axes:
        line[0].set_ylabel("%" if columns else "")
    picture.suptitle(f"{title(dataset)}, epochs of the defense", x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles = [plt.Line2D([], [], color=COLOURS[metric], label=metric.upper()) for metric in METRICS]
    handles.append(plt.Line2D([], [], linestyle=":", color="0.4", label="new stage"))
    handles.append(drawing.ring("published end"))
    picture.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, columnspacing=1, handlelength=1.2)
    plt.close(picture)
    return picture


def _panel(axis: Any, records: list[Record], stated: dict[str, float]) -> None:
    """The curves of one defense, the beginning of its later stages, and the published end point."""
    series = [record.diagnostics["curve"] for record in records]
    for curve in series:
        for metric in METRICS:
            look = {"color": COLOURS[metric], "alpha": 0.8, "clip_on": False}
            epochs, values = unbroken(curve, metric)
            axis.plot(epochs, values, linewidth=1.1, **look)
            if epochs[0] == 0:
                axis.plot(0, values[0], marker="o", markersize=3.5, **look)
    for stage in sorted({stage for curve in series for stage in curve.get("stages", ())}):
        axis.axvline(stage, color="0.4", linestyle=":", linewidth=1.2)
    end = max(curve["epochs"][-1] for curve in series)
    for metric, value in stated.items():
        mark = drawing.PUBLISHED_MARK | {"edgecolor": COLOURS[metric], "s": 60}
        axis.scatter(end, value, **mark, zorder=4, clip_on=False)
    axis.set_xlim(0, end)
    axis.set_ylim(0, 100)
    axis.set_yticks([0, 50, 100])
    axis.set_xticks([0, end // 2, end] if end > 1 else [0, end])


def unbroken(curve: dict[str, Any], metric: str) -> tuple[list[float], list[float]]:
    """The epochs and the percents of a line, with a break where the first stage was not watched."""
    epochs, values = list(curve["epochs"]), [100 * value for value in curve[metric]]
    stages = curve.get("stages", ())
    if len(epochs) > 1 and stages and epochs[1] > stages[0]:
        epochs.insert(1, epochs[1])
        values.insert(1, math.nan)
    return epochs, values


def reading(results: Results) -> list[str]:
    """A sentence: how many of the records have a curve, and on which images."""
    every = [(row, column, record) for (row, column), records in by_column(results).items() for record in records]
    with_curve = [record for *_, record in every if "curve" in record.diagnostics]
    line = f"A curve is in {len(with_curve)} of the {len(every)} records of defenses shown here; the others are absent."
    if not with_curve:
        return [line]
    clean, triggered = with_curve[0].diagnostics["curve"]["images"]
    return [f"{line} It is taken on {clean:,} clean and {triggered:,} triggered test images."]
