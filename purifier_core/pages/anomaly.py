"""Figures 10 to 12: what a trigger does to the penultimate layer, as pictures and as numbers.

Everything is made of mean magnitudes |F| of the layer's output, as `probes.activations` records them. A mean is taken
by channel over all positions, or by position over all channels. It is taken over the clean images of other classes
than the target, over the stamped copies of the same images, and over the clean images of each class.
"""

from dataclasses import replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.records import Record, Store, published
from purifier_core.lab.results import Results, look_up
from purifier_core.pages.heatmap import short_attack
from purifier_core.pages.seeds import Decision, decide
from purifier_core.pages.statistics import Estimate, estimate, measured, took

EXCESS = 0.05
"""Figure 10's anomaly counts as seen if at least this part of the triggered magnitude lies above every clean class. The
threshold is ours: the supplement has none."""


def lit(layer: dict[str, Any]) -> list[int]:
    """The channels that the trigger lights beyond every class: their mean over triggered images is larger than over
    the clean images of any one class. No mixture of clean images has such a channel."""
    peak = np.max(layer["classes"], axis=0)
    return [c for c, (hit, clean) in enumerate(zip(layer["triggered"], peak, strict=True)) if hit > clean]


def distance(first: Any, second: Any) -> float:
    """Half the summed difference of two profiles, each divided by its sum: 0 for equal shapes, 1 for disjoint ones."""
    a, b = np.asarray(first, float), np.asarray(second, float)
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
        column: with_activations
        for (_, column), records in results.by_place.items()
        if (with_activations := [r for r in records if "activations" in r.diagnostics])
    }


def in_vain(results: Results) -> Decision | None:
    """Why the figure decides nothing: the undefended network's backdoor did not take in every seed. Else None."""
    records = by_column(results).get(Column("none"), [])
    if not records or took(records):
        return None
    asr = measured(records, "asr")
    return Decision(None, asr.n, f"the backdoor did not take, its ASR in percent is {asr.text()}")


def excesses(results: Results) -> dict[Column, dict[int, float]]:
    """The part of the triggered magnitude above the largest of any class, by column and seed."""
    return {
        column: {record.cell.seed: numbers(record.diagnostics["activations"])["excess"] for record in records}
        for column, records in by_column(results).items()
    }


def seen(results: Results) -> Decision:
    """Figure 10: whether the excess is at least EXCESS in every seed."""
    parts = excesses(results).get(Column("none"), {})
    return in_vain(results) or decide({seed: part >= EXCESS for seed, part in parts.items()})


def suppressed(results: Results, init: str) -> Decision:
    """Figure 12: whether the feature-wise module leaves at most half of the excess, in every seed that has both."""
    parts = excesses(results)
    before, after = parts.get(Column("none"), {}), parts.get(module("feature", init), {})
    seeds = before.keys() & after.keys()
    return in_vain(results) or decide({seed: 2 * after[seed] <= before[seed] for seed in seeds})


def yes_of(init: str, yes: str) -> str:
    """`yes` for a suppressed anomaly, but for a network from fresh weights, which never saw the trigger."""
    return "nothing to suppress, since it never saw the trigger" if init == "random" else yes


def maps_by_seed(results: Results) -> dict[int, dict[str, float]]:
    """Figure 11: the numbers of the two maps of the undefended network, by seed."""
    layers = {r.cell.seed: r.diagnostics["activations"] for r in by_column(results).get(Column("none"), [])}
    return {seed: map_numbers(layer["clean_map"], layer["triggered_map"]) for seed, layer in layers.items()}


def harder(results: Results) -> Decision:
    """Figure 11: whether triggered images drive the layer harder on the mean, in every seed."""
    return in_vain(results) or decide({seed: m["ratio"] > 1 for seed, m in maps_by_seed(results).items()})


def same_places(results: Results) -> Decision:
    """Figure 11: whether the clean and the triggered map correlate positively, in every seed."""
    return in_vain(results) or decide({seed: m["correlation"] > 0 for seed, m in maps_by_seed(results).items()})


def table(results: Results) -> pd.DataFrame:
    """The numbers beside the figure, a line for each network (for Figure 11 also the paper's), as text."""
    if results.experiment.name == "figure11":
        heads = {
            "clean": "mean, clean",
            "triggered": "mean, triggered",
            "ratio": "triggered / clean",
            "clean_max": "largest, clean",
            "triggered_max": "largest, triggered",
            "correlation": "correlation of the maps",
        }
        lines = {"published": {name: f"{v:.2f}" for name, v in map_numbers(*published_maps()).items()}}
        if seeds := maps_by_seed(results):
            lines["ours"] = {name: over_seeds(seeds, name).text(2) for name in heads}
    else:
        heads = {
            "asr": "ASR, %",
            "channels": "channels lit beyond every class, %",
            "share": "their share of the magnitude, triggered, %",
            "clean_share": "their share, clean, %",
            "excess": "magnitude above every class, %",
            "nearest": "distance from the nearest class, %",
            "between": "median distance of two classes, %",
        }
        lines = {}
        for column, records in by_column(results).items():
            by_seed = {r.cell.seed: percents(r) for r in records}
            lines[column.label] = {name: over_seeds(by_seed, name).text() for name in heads}
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(heads)).rename(columns=heads)


def percents(record: Record) -> dict[str, float]:
    """`numbers` of a record and its ASR, in percent."""
    fractions = {"asr": record.asr or 0.0} | numbers(record.diagnostics["activations"])
    return {name: 100 * value for name, value in fractions.items()}


def over_seeds(by_seed: dict[int, dict[str, float]], name: str) -> Estimate:
    """One number's mean and range over seeds, with its unit."""
    return estimate({seed: values[name] / 100 for seed, values in by_seed.items()})


def reading(results: Results) -> list[str]:
    """A sentence for each network and one for each question that the figure asks, from the records alone."""
    columns = by_column(results)
    if not columns:
        return [f"No record of this figure at profile {results.shown} is there yet."]
    if results.experiment.name == "figure11":
        ours, stated = maps_by_seed(results), map_numbers(*published_maps())
        ratio, correlation = (over_seeds(ours, name).text(2) for name in ("ratio", "correlation"))
        return [
            f"Profile {results.shown}: the trigger multiplies the mean magnitude by {ratio}, published "
            f"{stated['ratio']:.2f}. The two maps correlate at {correlation}, published {stated['correlation']:.2f}.",
            f"Triggered images drive the layer harder: {harder(results).text('yes', 'no')}.",
            f"They do so at the places that clean images light: {same_places(results).text('yes', 'no')}.",
        ]
    lines = []
    for column, records in columns.items():
        by_seed = {record.cell.seed: percents(record) for record in records}
        excess, nearest, between = (over_seeds(by_seed, name).text() for name in ("excess", "nearest", "between"))
        lines.append(
            f"{column.label}, profile {results.shown}, in percent: {excess} of the magnitude on triggered images lies "
            f"above what any class reaches. The triggered profile lies {nearest} from that of the nearest class; two "
            f"classes lie {between} apart in the median."
        )
    if results.experiment.name == "figure10":
        threshold = f"at least {100 * EXCESS:g} % above every class, a threshold of ours"
        return [*lines, f"The anomaly is seen ({threshold}): {seen(results).text('yes', 'no')}."]
    inits = [dict(column.switches)["init"] for column in columns if column.switches]
    return lines + [
        f"The module suppresses the anomaly, init={init}: {suppressed(results, init).text(yes_of(init, 'yes'), 'no')}."
        for init in inits
    ]


def another_attack(results: Results, store: Store | None = None) -> Results:
    """What is recorded of the same figure with BadNets; with Trojan where it shows BadNets itself."""
    other = "trojan" if results.experiment.attack == "badnets" else "badnets"
    return look_up(replace(results.experiment, attack=other, profile="auto"), store, reading=True)


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

    columns = by_column(results)
    if len(columns) > 1:  # Figure 12 shows the module; the network without it is Figure 10
        columns.pop(Column("none"), None)
    drawing, axes = plt.subplots(
        max(1, len(columns)), 2, figsize=(9, 2.9 * max(1, len(columns)) + 0.3), sharey=True, squeeze=False,
        layout="constrained", dpi=160,
    )  # fmt: skip
    triggered = f"{short_attack(results.experiment.attack)} images"
    series = {"clean": ("clean images", "#4c72b0"), "triggered": (triggered, "#c2410c")}
    for line, (column, records) in zip(axes, columns.items(), strict=False):
        layer = records[0].diagnostics["activations"]
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
    axes[0, 1].legend(frameon=False, fontsize=10, loc="upper right")
    return drawing


def _maps(results: Results) -> Any:
    """Annotated heat maps of the mean magnitude by position: published above, ours below, one scale for each line."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    pairs = {"published": published_maps()}
    for records in by_column(results).values():  # one column, the undefended network
        layer = records[0].diagnostics["activations"]
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
