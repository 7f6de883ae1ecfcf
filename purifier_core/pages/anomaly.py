"""Figures 10 to 12: what a trigger does to the penultimate layer, as pictures and as numbers.

Everything is made of mean magnitudes |F| of the layer's output, as `probes.activations` records them: by channel
over all positions, or by position over all channels, and over the clean images of other classes than the target,
the stamped copies of the same images, and the clean images of each class.
"""

from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from purifier_core.experiments.grids import Column
from purifier_core.pages.report import TAKEN, estimate, grouped
from purifier_core.records import Record, published
from purifier_core.runner import Results

EXCESS = 0.05
"""The part of the triggered magnitude above every clean class from which on the anomaly of Figure 10 counts as seen."""


def lit(layer: dict[str, Any]) -> list[int]:
    """The channels that the trigger lights beyond every class: their mean over triggered images is larger than over
    the clean images of any one class. No mixture of clean images has such a channel."""
    peak = np.max(layer["classes"], axis=0)
    return [c for c, (hit, clean) in enumerate(zip(layer["triggered"], peak, strict=True)) if hit > clean]


def distance(one: Any, other: Any) -> float:
    """Half the summed difference of two profiles, each divided by its sum: 0 for equal shapes, 1 for disjoint ones."""
    a, b = np.asarray(one, float), np.asarray(other, float)
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def numbers(layer: dict[str, Any]) -> dict[str, float]:
    """What Figures 10 and 12 are meant to show, as fractions.

    channels: the share of channels that the trigger lights beyond every class; share and clean_share: their part of
    the total magnitude on triggered and on clean images; excess: the part of the triggered magnitude that lies above
    what any class reaches; nearest: the distance of the triggered profile from that of the nearest class; between: the
    median distance of two classes, the scale for it.
    """
    chosen = lit(layer)
    peak = np.max(layer["classes"], axis=0)
    classes = [profile for profile in layer["classes"] if sum(profile)]
    part = {name: sum(layer[name][c] for c in chosen) / sum(layer[name]) for name in ("triggered", "clean")}
    return {
        "channels": len(chosen) / len(layer["triggered"]),
        "share": part["triggered"],
        "clean_share": part["clean"],
        "excess": float(sum(layer["triggered"][c] - peak[c] for c in chosen)) / sum(layer["triggered"]),
        "nearest": min(distance(layer["triggered"], profile) for profile in classes),
        "between": median(distance(a, b) for a, b in combinations(classes, 2)),
    }


def map_numbers(clean: Any, triggered: Any) -> dict[str, float]:
    """What Figure 11 is meant to show: the means and maxima of both maps, and the correlation of their places."""
    a, b = np.asarray(clean, float), np.asarray(triggered, float)
    return {
        "clean": a.mean(),
        "triggered": b.mean(),
        "ratio": b.mean() / a.mean(),
        "clean_max": a.max(),
        "triggered_max": b.max(),
        "correlation": float(np.corrcoef(a.ravel(), b.ravel())[0, 1]),
    }


def published_maps() -> tuple[np.ndarray, np.ndarray]:
    """The paper's two maps (4, 4), clean and triggered."""
    panels = published("figure11").pivot_table(index=["panel", "row"], columns="col", values="mean_activation")
    return panels.loc["Clean"].to_numpy(), panels.loc["Trojan"].to_numpy()


def by_column(results: Results) -> dict[Column, list[Record]]:
    """The records behind each column of Figures 10 to 12, seed by seed."""
    return {
        column: found
        for (_, column), mine in grouped(results).items()
        if (found := [r for r in mine if "activations" in r.diagnostics])
    }


def weak(results: Results) -> str:
    """Why the figure decides nothing, where the undefended network's backdoor did not take; else empty."""
    mine = by_column(results).get(Column("none"), [])
    asr = sum(r.asr or 0.0 for r in mine) / len(mine) if mine else 1.0
    return "" if asr >= TAKEN else f"not decided: the backdoor did not take, its ASR is {100 * asr:.1f} %"


def excess(results: Results) -> dict[Column, float]:
    """The part of the triggered magnitude that lies above what any class reaches, by column, a mean over seeds."""
    every = {c: [numbers(r.diagnostics["activations"])["excess"] for r in m] for c, m in by_column(results).items()}
    return {column: sum(values) / len(values) for column, values in every.items()}


def seen(part: float) -> bool:
    """Whether a trigger shows itself by this excess."""
    return part >= EXCESS


def suppressed(before: float, after: float) -> bool:
    """Whether a module leaves at most half of the excess."""
    return 2 * after <= before


def table(results: Results) -> pd.DataFrame:
    """The numbers beside the figure, a line for each network (for Figure 11 also the paper's), as text."""
    found = by_column(results)
    if results.experiment.name == "figure11":
        lines = {"published": {name: f"{v:.2f}" for name, v in map_numbers(*published_maps()).items()}}
        for mine in found.values():  # one column, the undefended network
            each = [
                map_numbers(r.diagnostics["activations"]["clean_map"], r.diagnostics["activations"]["triggered_map"])
                for r in mine
            ]
            lines["ours"] = {n: _mean(mine, [e[n] for e in each]) for n in each[0]}
        heads = {
            "clean": "mean, clean",
            "triggered": "mean, triggered",
            "ratio": "triggered / clean",
            "clean_max": "largest, clean",
            "triggered_max": "largest, triggered",
            "correlation": "correlation of the maps",
        }
    else:
        lines = {}
        for column, mine in found.items():
            each = [numbers(r.diagnostics["activations"]) for r in mine]
            shown = {n: _mean(mine, [100 * e[n] for e in each], 1) for n in each[0]}
            asr = _mean(mine, [100 * (r.asr or 0.0) for r in mine], 1)
            lines[column.label] = {"asr": asr} | shown
        heads = {
            "asr": "ASR, %",
            "channels": "channels lit beyond every class, %",
            "share": "their share of the magnitude, triggered, %",
            "clean_share": "their share, clean, %",
            "excess": "magnitude above every class, %",
            "nearest": "distance from the nearest class, %",
            "between": "median distance of two classes, %",
        }
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(heads)).rename(columns=heads)


def reading(results: Results) -> list[str]:
    """A sentence for each network, from the records alone."""
    found = by_column(results)
    if not found:
        return [f"No record of this figure at profile {results.shown} is there yet."]
    lines = []
    for column, mine in found.items():
        layer, name = mine[0].diagnostics["activations"], column.label
        seed = f"profile {results.shown}, seed {mine[0].cell.seed}"
        if results.experiment.name == "figure11":
            now, stated = map_numbers(layer["clean_map"], layer["triggered_map"]), map_numbers(*published_maps())
            lines.append(
                f"The trigger multiplies the mean magnitude by {now['ratio']:.2f} ({seed}; published "
                f"{stated['ratio']:.2f}), and the two maps correlate at {now['correlation']:.2f} (published "
                f"{stated['correlation']:.2f})."
            )
            continue
        now = numbers(layer)
        lines.append(
            f"{name} ({seed}): the trigger lights {len(lit(layer))} of {len(layer['clean'])} channels beyond every "
            f"class; they hold {100 * now['share']:.1f} % of the magnitude on triggered images and "
            f"{100 * now['clean_share']:.1f} % on clean ones, and {100 * now['excess']:.1f} % lies above what any "
            f"class reaches. The triggered profile lies {100 * now['nearest']:.1f} % from that of the nearest class; "
            f"two classes lie {100 * now['between']:.1f} % apart in the median."
        )
    if problem := weak(results):
        lines.append(f"What a trigger does is {problem}.")
    return lines


def figure(results: Results) -> Any:
    """The figure of the first seed: Figures 10 and 12 by channel, Figure 11 by position."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    draw = _maps if results.experiment.name == "figure11" else _profiles
    drawing = draw(results)
    plt.close(drawing)
    return drawing


def _profiles(results: Results) -> Any:
    """Two panels for each network: bars are the fed images' magnitudes in decreasing order, dots the other images'."""
    import matplotlib.pyplot as plt

    found = by_column(results)
    if len(found) > 1:  # Figure 12 shows the module; the network without it is Figure 10
        found.pop(Column("none"), None)
    drawing, axes = plt.subplots(
        max(1, len(found)), 2, figsize=(9, 2.9 * max(1, len(found)) + 0.3), sharey=True, squeeze=False,
        layout="constrained", dpi=160,
    )  # fmt: skip
    triggered = f"{results.experiment.attack.capitalize()} images"
    series = {"clean": ("clean images", "#4c72b0"), "triggered": (triggered, "#c2410c")}
    for line, (column, mine) in zip(axes, found.items(), strict=False):
        layer = mine[0].diagnostics["activations"]
        top = max(*layer["clean"], *layer["triggered"])
        for axis, fed, other in zip(line, series, reversed(series), strict=True):
            order = np.argsort(layer[fed])[::-1]
            places = np.arange(len(order))
            bars, dots = (np.asarray(layer[name])[order] / top for name in (fed, other))
            axis.bar(places, bars, width=1.0, color=series[fed][1], alpha=0.75, linewidth=0)
            axis.scatter(places, dots, s=90 / len(order) ** 0.5, color=series[other][1], linewidth=0)
            axis.set_title(f"{column.label}, fed {series[fed][0]}", loc="left", fontsize=11)
            axis.set_xlabel(f"{len(order)} channels, by their magnitude in this panel", fontsize=10)
            axis.set_xlim(-1, len(order))
        line[0].set_ylabel("magnitude / largest")
    for words, colour in series.values():
        axes[0, 1].scatter([], [], s=40, color=colour, label=words)
    axes[0, 1].legend(frameon=False, fontsize=9, loc="upper right")
    return drawing


def _maps(results: Results) -> Any:
    """Annotated heat maps of the mean magnitude by position: published above, ours below, one scale for each line."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    pairs = {"published": published_maps()}
    for mine in by_column(results).values():  # one column, the undefended network
        layer = mine[0].diagnostics["activations"]
        maps = (np.asarray(layer["clean_map"]), np.asarray(layer["triggered_map"]))
        pairs[f"ours ({results.shown})"] = maps
    drawing, axes = plt.subplots(
        len(pairs), 2, figsize=(7, 3.2 * len(pairs)), squeeze=False, layout="constrained", dpi=160
    )
    for line, (source, maps) in zip(axes, pairs.items(), strict=True):
        top = max(m.max() for m in maps)
        for axis, values, fed in zip(line, maps, ("clean", "triggered"), strict=True):
            sns.heatmap(
                values, ax=axis, annot=True, fmt=".2f" if top >= 0.1 else ".3f", vmin=0, vmax=top, cmap="rocket_r",
                square=True, cbar=False, linewidths=0.5,
            )  # fmt: skip
            axis.set_title(f"{source}: {fed}", loc="left", fontsize=11)
    return drawing


def _mean(records: list[Record], values: list[float], digits: int = 2) -> str:
    """The mean over seeds, with the range."""
    return estimate({r.cell.seed: v / 100 for r, v in zip(records, values, strict=True)}).text(digits)
