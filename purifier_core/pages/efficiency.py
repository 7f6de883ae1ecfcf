"""Figure 13: the effect of a defense per epoch, the epochs that the published bars imply, and the cost behind it.

The figure's metric is 100 * (1 - ASR) / N with ASR as a fraction and N the epochs of the defense. It is at most
100 / N, takes no notice of accuracy, and counts epochs over sets of very different size.
"""

from typing import Any

import pandas as pd

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import title
from purifier_core.lab.records import Record, published
from purifier_core.lab.results import Results
from purifier_core.pages import drawing, inside
from purifier_core.pages.statistics import Estimate, estimate, measured, results_of, runs, took

PRINTED = {"cifar10": "CIFAR10", "mnist": "MNIST", "gtsrb": "GTSRB"}  # as the paper prints them


def per_epoch(asr: float, epochs: float) -> float:
    """The figure's metric in percent, from ASR as a fraction and the epochs of the defense."""
    return 100 * (1 - asr) / epochs


def by_column(results: Results) -> dict[tuple[Any, Column], list[Record]]:
    """The records behind each bar, by dataset and column; the undefended model has none."""
    return {key: records for key, records in results.by_place.items() if key[1].defense != "none"}


def by_seed(results: Results) -> dict[tuple[Any, Column], Estimate]:
    """Our bars in percent per epoch, seed by seed, by dataset and column; ANP without a threshold has none."""
    by_place = {place: results_of(records) for place, records in by_column(results).items()}
    return {
        place: estimate({r.cell.seed: per_epoch(r.asr or 0.0, r.effort["epochs"]) / 100 for r in records})
        for place, records in by_place.items()
        if records
    }


def bars(results: Results) -> pd.DataFrame:
    """One line for each bar, published and ours: dataset, method, source, percent per epoch (ours: the mean)."""
    stated = published("figure13").set_index(["dataset", "method"]).one_minus_asr_per_epoch_percent
    lines = []
    for row, column in results.experiment.places(results.profile):
        if column.defense != "none":  # the paper's one bar of a module stands beside each of ours
            value = stated[PRINTED[row], column.name]
            lines.append({"dataset": title(row), "method": column.label, "source": "published", "value": value})
    for (name, column), bar in by_seed(results).items():
        lines.append({"dataset": title(name), "method": column.label, "source": "ours", "value": bar.mean})
    return pd.DataFrame(lines)


def table(results: Results) -> pd.DataFrame:
    """The bars as text, percent per epoch: for each dataset the published line, ours, and the number of seeds, with
    their profile where there are several."""
    every = bars(results)
    stated = every[every.source == "published"].set_index(["dataset", "method"]).value
    ours, by_place = by_seed(results), by_column(results)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row, column in results.experiment.places(results.profile):
        if column.defense == "none":
            continue
        value = ours.get((row, column))
        texts = {
            "published": f"{stated[title(row), column.label]:.2f}",
            "ours": value.text(2) if value else "no threshold" if (row, column) in by_place else "missing",
        }
        records = by_place.get((row, column), [])
        if len(results.sizes) > 1:
            texts["profile, n"] = f"{records[0].cell.profile}, {len(records)}" if records else "–"
        else:
            texts["n"] = str(len(records))
        for source, text in texts.items():
            lines.setdefault((title(row), source), {})[column.label] = text
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["dataset", "%"])
    return frame


def figure(results: Results) -> Any:
    """The bars, a panel for each dataset: published as rings, ours as means with a dot for each seed."""
    import matplotlib.pyplot as plt

    stated = bars(results).query("source == 'published'").set_index(["dataset", "method"]).value
    ours, by_place = by_seed(results), by_column(results)
    rows, columns = results.experiment.rows(results.profile), _defenses(results)
    drawing.theme()
    size = (drawing.WIDTH, 0.34 * len(columns) + 1.7)
    picture, axes = plt.subplots(
        1, len(rows), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained", dpi=160
    )
    for axis, row in zip(axes[0], rows, strict=True):
        for place, column in enumerate(columns):
            axis.scatter(stated[title(row), column.label], place, **drawing.PUBLISHED_MARK, zorder=4)
            if value := ours.get((row, column)):
                axis.barh(place, value.mean, 0.5, color=drawing.OURS, alpha=0.25, linewidth=0)
                drawing.seeds(axis, value, place)
            else:
                gap = "no threshold" if (row, column) in by_place else "missing"
                axis.text(0, place + 0.34, gap, fontsize=10, color="0.35", va="center")
        axis.set_title(title(row), loc="left", fontsize=10.5)
        axis.set_xlabel("% per epoch")
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(columns)), [column.label for column in columns])
    axes[0, 0].set_ylim(len(columns) - 0.4, -0.6)
    axes[0, 0].set_xlim(left=-0.3)
    drawing.legend(picture)
    plt.close(picture)
    return picture


def _defenses(results: Results) -> list[Column]:
    return [column for column in results.experiment.columns() if column.defense != "none"]


def reading(results: Results) -> list[str]:
    """One line for each dataset: the bars of ours that come nearest to their own ceiling of 100 / epochs."""
    lines = []
    by_place = results.by_place
    for row in results.experiment.rows(results.profile):
        columns = {c: results_of(records) for (name, c), records in by_column(results).items() if name == row}
        undefended = by_place.get((row, Column("none")), [])
        if undefended and not took(undefended):
            lines.append(
                f"On {title(row)} the backdoor did not take: before any defense ASR is "
                f"{measured(undefended, 'asr').text()} %. Its bars tell nothing about a defense."
            )
        elif columns:
            full = [
                f"{c.label} ({runs(len(f))})"
                for c, f in columns.items()
                if f and all((r.asr or 0.0) <= 0.05 for r in f)
            ]
            by_size: dict[str, list[str]] = {}
            for column, records in columns.items():
                if records:
                    by_size.setdefault(records[0].cell.profile, []).append(column.label)
            sizes = ", else ".join(size for size in results.sizes if size in by_size)
            lines.append(
                f"{title(row)} (profile {sizes}): within 5 % of their ceiling of 100 / epochs in every seed "
                f"are {', '.join(full) or 'none'}. Such a bar tells the number of epochs, and nothing else."
            )
            if len(by_size) > 1:
                fewest = min(by_size, key=lambda size: len(by_size[size]))
                others = " and ".join(size for size in results.sizes if size in by_size and size != fewest)
                lines.append(
                    f"Bars of {title(row)} are of several sizes, so of several networks: {', '.join(by_size[fewest])} "
                    f"at {fewest}, the others at {others}. Compare within one size."
                )
    return [*lines, *inside.notes(results)] or [f"No record at profile {results.shown} is there yet."]


def cost(results: Results) -> Any:
    """What the metric hides: images seen in training, and seconds. A row for each method, a dot for each seed."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    by_place, columns, rows = by_column(results), _defenses(results), results.experiment.rows(results.profile)
    colours = dict(zip(rows, ("#0f766e", "#c2410c", "#4338ca"), strict=False))
    heights = {row: 0.24 * (number - (len(rows) - 1) / 2) for number, row in enumerate(rows)}
    drawing.theme()
    size = (drawing.WIDTH, 0.36 * len(columns) + 1.6)
    picture, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained", dpi=160)
    for axis, (key, words) in zip(axes, (("images", "images trained on"), ("seconds", "seconds")), strict=True):
        for (row, column), records in by_place.items():
            place = columns.index(column) + heights[row]
            colour = colours[row]
            filled = {"facecolor": colour if len(records) > 1 else "white", "edgecolor": colour, "linewidth": 1.2}
            axis.scatter([r.effort[key] for r in records], [place] * len(records), s=20, alpha=0.85, **filled)
        axis.set_xscale("log")
        axis.set_xlabel(words)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number_label(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        for place in range(len(columns) - 1):
            axis.axhline(place + 0.5, color="0.85", linewidth=0.8)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(columns)), [column.label for column in columns])
    axes[0].set_ylim(len(columns) - 0.5, -0.5)
    handles = [plt.Line2D([], [], linestyle="", marker="o", color=colours[row], label=title(row)) for row in rows]
    picture.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False)
    plt.close(picture)
    return picture


def _number_label(value: float) -> str:
    return f"{value / 1000:,.0f}k" if value >= 1000 else f"{value:g}"
