"""What each behaviour of the released code changes, one at a time: differences paired by seed, and a forest plot."""

from dataclasses import replace
from typing import Any

import pandas as pd

from purifier_core.config import LABELS, SWITCHES
from purifier_core.experiments.beyond import WITH, WITHOUT, Change
from purifier_core.pages.report import METRICS, Estimate, decided, estimate, estimates, grouped
from purifier_core.records import Record
from purifier_core.runner import Results

MATTERS = 1.0
"""A change of fewer percentage points than this counts as none, if its interval says so too."""

ANP_POINT = Change("anp_point", "test", "anp")
"""Not a cell of its own: every record of ANP holds ACC and ASR at all thresholds, so another choice is a look-up."""

_ABOUT = {name: switch.about for name, switch in SWITCHES.items()} | {
    ANP_POINT.switch: "which threshold: held-out drop, or the largest ACC - ASR on the test set, where both are seen"
}


def label(change: Change) -> str:
    """A change in words: the switch and its value, and what it is turned on for."""
    target = f"{change.attack}, no defense" if change.attack else LABELS[change.defense]
    init = dict(change.base).get("init")
    return f"{change.switch}={change.value}: {target}{f' ({init})' if init else ''}"


def pairs(results: Results) -> dict[Change, list[tuple[Record, Record]]]:
    """The records without and with each change, seed by seed; a seed that lacks one of them is left out."""
    found, every = grouped(results), {}
    for change in results.experiment.rows(results.profile):
        after = {r.cell.seed: r for r in found.get((change, WITH), [])}
        both = [(r, after[r.cell.seed]) for r in found.get((change, WITHOUT), []) if r.cell.seed in after]
        if both:
            every[change] = both
        if change.defense == "anp" and ANP_POINT not in every:
            every[ANP_POINT] = [(r, on_test(r)) for r in found.get((change, WITHOUT), []) if "sweep" in r.diagnostics]
    return {change: both for change, both in every.items() if both}


def on_test(record: Record) -> Record:
    """A record of ANP at the threshold with the largest ACC - ASR on the test set."""
    best = max(record.diagnostics["sweep"].values(), key=lambda point: point["acc"] - point["asr"])
    return replace(record, acc=best["acc"], asr=best["asr"])


def effects(results: Results) -> dict[tuple[Change, str], Estimate]:
    """The difference that each change makes to ACC and ASR, in percentage points, paired by seed."""
    return {
        (change, metric): estimate({a.cell.seed: getattr(b, metric) - getattr(a, metric) for a, b in both})
        for change, both in pairs(results).items()
        for metric in METRICS
    }


def matters(value: Estimate) -> bool:
    """Whether every seed moves by at least MATTERS in the same direction, and the seeds are enough to decide."""
    return (
        decided([v >= MATTERS for v in value.values]) is True or decided([v <= -MATTERS for v in value.values]) is True
    )


def negligible(value: Estimate) -> bool:
    """Whether every seed stays within MATTERS, and the seeds are enough to decide."""
    return decided([abs(v) < MATTERS for v in value.values]) is True


def table(results: Results) -> pd.DataFrame:
    """A line for each change: ACC and ASR without and with it, and the difference with its interval, as text."""
    found, both = effects(results), pairs(results)
    lines = {}
    for change in dict.fromkeys([*both, *results.experiment.rows(results.profile)]):
        line: dict[str, str] = {"what it does": _ABOUT[change.switch], "seeds": str(len(both.get(change, [])))}
        for metric in METRICS:
            value = found.get((change, metric))
            sides = ["missing", "missing", "missing"]
            if value:
                means = [
                    100 * sum(getattr(r, metric) for r in side) / len(side) for side in zip(*both[change], strict=True)
                ]
                sides = [f"{means[0]:.1f}", f"{means[1]:.1f}", value.text(sign="+")]
            heads = (f"{metric.upper()} {what}" for what in ("without", "with", "difference"))
            line |= dict(zip(heads, sides, strict=True))
        lines[label(change)] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def reading(results: Results) -> list[str]:
    """Which changes move a number, and which do not."""
    found = effects(results)
    changes = list(dict.fromkeys(change for change, _ in found))
    if not changes:
        return [f"No record at profile {results.shown} is there yet."]
    moved = [c for c in changes if any(matters(found[c, m]) for m in METRICS)]
    still = [c for c in changes if all(negligible(found[c, m]) for m in METRICS)]
    open_ones = [c for c in changes if c not in moved and c not in still]
    return [
        f"Moves ACC or ASR by {MATTERS:g} point or more (profile {results.shown}), its interval leaving out zero where "
        f"there is one: {'; '.join(map(label, moved)) or 'none'}.",
        f"Moves neither by {MATTERS:g} point, nor does its interval reach that far: "
        f"{'; '.join(map(label, still)) or 'none'}.",
        f"Not told by these seeds: {'; '.join(map(label, open_ones)) or 'none'}.",
    ]


def rates(results: Results) -> pd.DataFrame:
    """The learning-rate question: ACC / ASR in percent of each module from the backdoored model, with either rates."""
    ours, lines = estimates(results), {}
    for change in results.experiment.rows(results.profile):
        if change.switch == "purifier_lr":
            sides = {}
            for column, name in ((WITHOUT, "released: 0.01, 0.01"), (WITH, "older: 0.001 falling, then 0.008")):
                pair = [ours.get((change, column, metric)) for metric in METRICS]
                sides[name] = " / ".join(value.text() for value in pair if value) or "missing"
            lines[LABELS[change.defense]] = sides
    return pd.DataFrame.from_dict(lines, orient="index")


def figure(results: Results) -> Any:
    """A forest plot: the difference in ACC and in ASR that each change makes, with its interval over seeds."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    found = effects(results)
    changes = list(dict.fromkeys(change for change, _ in found))
    drawing, axes = plt.subplots(
        1, 2, figsize=(9, 0.27 * len(changes) + 1.5), sharey=True, layout="constrained", dpi=160
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, change in enumerate(changes):
            value = found[change, metric]
            axis.errorbar(
                value.mean,
                place,
                xerr=[[value.mean - value.low], [value.high - value.mean]],
                fmt="o",
                markersize=6,
                capsize=3,
                color="#c2410c" if matters(value) else "0.55",
            )
        axis.axvline(0, color="0.2", linewidth=1)
        axis.set_xlim(-104, 104)
        axis.set_xlabel(f"change of {metric.upper()}, points", fontsize=10)
    axes[0].set_yticks(range(len(changes)), [label(c) for c in changes], fontsize=8)
    axes[0].set_ylim(max(1, len(changes)) - 0.5, -0.5)
    plt.close(drawing)
    return drawing
