"""Figure 13: the effect of a defense per epoch, the epochs that the published bars imply, and the cost behind it.

The figure's metric is 100 * (1 - ASR) / N with ASR as a fraction and N the epochs of the defense. It is at most
100 / N, takes no notice of accuracy, and counts epochs over sets of very different size.
"""

from typing import Any

import pandas as pd

from purifier_core.config import LABELS
from purifier_core.experiments.grids import Column
from purifier_core.pages.report import METRICS, estimate, grouped
from purifier_core.records import Record, published
from purifier_core.runner import Results

_TITLES = {"cifar10": "CIFAR10", "mnist": "MNIST", "gtsrb": "GTSRB"}  # as the paper prints them


def per_epoch(asr: float, epochs: float) -> float:
    """The figure's metric in percent, from ASR as a fraction and the epochs of the defense."""
    return 100 * (1 - asr) / epochs


def by_column(results: Results) -> dict[tuple[Any, Column], list[Record]]:
    """The records behind each bar, by dataset and column; the undefended model has none."""
    return {key: mine for key, mine in grouped(results).items() if key[1].defense != "none"}


def bars(results: Results) -> pd.DataFrame:
    """One line for each bar, published and ours: dataset, method, source, percent per epoch."""
    stated = published("figure13").set_index(["dataset", "method"]).one_minus_asr_per_epoch_percent
    lines = []
    for row in results.experiment.rows(results.profile):
        for column in results.experiment.columns():
            if column.defense != "none":  # the paper's one bar of a module stands beside each of ours
                value = stated[_TITLES[row], LABELS[column.defense]]
                lines.append({"dataset": _TITLES[row], "method": column.label, "source": "published", "value": value})
    for (name, column), found in by_column(results).items():
        value = sum(per_epoch(r.asr or 0.0, r.effort["epochs"]) for r in found) / len(found)
        lines.append({"dataset": _TITLES[name], "method": column.label, "source": "ours", "value": value})
    return pd.DataFrame(lines)


def table(results: Results) -> pd.DataFrame:
    """The bars as text: a line for each dataset and source, a column for each method, percent per epoch."""
    wide = bars(results).pivot_table(index=["dataset", "source"], columns="method", values="value", sort=False)
    return wide.sort_index(ascending=[True, False]).map(lambda v: "–" if pd.isna(v) else f"{v:.2f}")


def figure(results: Results) -> Any:
    """The grouped bars with their values, published above and ours below, on one scale."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    every = bars(results)
    order, hues = list(dict.fromkeys(every.method)), list(dict.fromkeys(every.dataset))
    drawing, axes = plt.subplots(2, 1, figsize=(9, 6.4), sharey=True, layout="constrained", dpi=160)
    for axis, source in zip(axes, ("published", "ours"), strict=True):
        shown = every[every.source == source]
        title = source if source == "published" else f"ours ({results.shown})"
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylabel("(1 - ASR) / epochs, %")
        if shown.empty:
            continue
        sns.barplot(
            shown, x="method", y="value", hue="dataset", order=order, hue_order=hues, ax=axis, palette="colorblind"
        )
        for bar in axis.containers:
            axis.bar_label(bar, fmt="%.2f", fontsize=7, padding=2, rotation=90)
        axis.set_xlabel("")
        axis.tick_params(axis="x", labelrotation=30, labelsize=9)
        axis.legend(title="", frameon=False, ncols=3, loc="upper left", fontsize=9)
        axis.margins(y=0.3)
    plt.close(drawing)
    return drawing


def reading(results: Results) -> list[str]:
    """One line for each dataset: the bars of ours that come nearest to their own ceiling of 100 / epochs."""
    lines = []
    for row in results.experiment.rows(results.profile):
        mine = {c: found for (name, c), found in by_column(results).items() if name == row}
        full = [c.label for c, found in mine.items() if all((r.asr or 0.0) <= 0.05 for r in found)]
        if mine:
            lines.append(
                f"{_TITLES[row]} (profile {results.shown}): within 5 % of their ceiling of 100 / epochs are "
                f"{', '.join(full) or 'none'}; there the bar tells the number of epochs, and nothing else."
            )
        start = [
            r for (name, c), found in grouped(results).items() if name == row and c.defense == "none" for r in found
        ]
        if start and (asr := 100 * sum(r.asr or 0.0 for r in start) / len(start)) < 90:
            lines.append(
                f"On {_TITLES[row]} the backdoor did not take: before any defense ASR is {asr:.1f} %. Its bars tell "
                "nothing about a defense."
            )
    return lines or [f"No record at profile {results.shown} is there yet."]


def cost(results: Results) -> Any:
    """ASR and ACC against what the metric hides: seconds of defense, and images seen in training."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sns.set_theme(style="whitegrid", context="notebook")
    found = by_column(results)
    columns = list(dict.fromkeys(column for _, column in found))
    colours = dict(zip(columns, sns.color_palette("husl", max(1, len(columns))), strict=False))
    markers = dict(zip(results.experiment.rows(results.profile), "osD", strict=False))
    drawing, axes = plt.subplots(2, 2, figsize=(9, 7), sharex="col", sharey="row", layout="constrained", dpi=160)
    for (name, column), mine in found.items():
        for across, key in enumerate(("seconds", "images")):
            for down, metric in enumerate(METRICS):
                x = sum(r.effort[key] for r in mine) / len(mine)
                value = estimate({r.cell.seed: getattr(r, metric) for r in mine})
                axes[down, across].errorbar(
                    x,
                    value.mean,
                    yerr=[[value.mean - value.low], [value.high - value.mean]],
                    fmt=markers[name],
                    color=colours[column],
                    markersize=7,
                )
    for down, metric in enumerate(METRICS):
        axes[down, 0].set_ylabel(f"{metric.upper()}, %")
        axes[down, 0].set_ylim(-4, 104)  # an interval over two seeds may reach far beyond
    for across, label in enumerate(("seconds of defense", "images seen in training")):
        axes[1, across].set_xlabel(label)
        axes[1, across].set_xscale("log")
        axes[1, across].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes[1, across].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes[1, across].xaxis.set_minor_formatter(NullFormatter())
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[c], label=c.label) for c in columns]
    handles += [plt.Line2D([], [], marker=m, linestyle="", color="0.3", label=_TITLES[n]) for n, m in markers.items()]
    drawing.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    plt.close(drawing)
    return drawing
