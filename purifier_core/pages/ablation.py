"""What each behaviour of the released code changes, one at a time: differences paired by seed, and a forest plot."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pandas as pd

from purifier_core.lab.cells import SWITCHES
from purifier_core.lab.experiments.beyond import WITH, WITHOUT, Change
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import METHODS
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import drawing, inside
from purifier_core.pages.report import METRICS, estimates
from purifier_core.pages.statistics import DECIDES, Estimate, decided, paired, runs

MATTERS = 1.0
"""A change of fewer percentage points than this counts as none."""

ANP_POINT = Change("anp_point", "test", "anp")
"""No cell of its own: every record of ANP holds ACC and ASR at all thresholds, so another choice is a look-up."""

_ABOUT = {name: switch.about for name, switch in SWITCHES.items()} | {
    ANP_POINT.switch: "which threshold: held-out drop, or the largest ACC - ASR on the test set, where both are seen"
}


def label(change: Change) -> str:
    """A change in words: the switch, its value, and the method that it is turned on for."""
    target = f"{change.attack}, no defense" if change.attack else METHODS[change.defense].label
    beside = dict(change.base)
    notes = [f" ({beside['init']})"] if "init" in beside else []
    notes += [f" at width {Fraction(beside['width'])}"] if "width" in beside else []
    return f"{change.switch}={change.value}: {target}{''.join(notes)}"


def pairs(results: Results) -> dict[Change, list[tuple[Record, Record]]]:
    """The records without and with each change, paired by seed; a seed without both is left out."""
    by_place, by_change = results.by_place, {}
    for change in results.experiment.rows(results.profile):
        after = {r.cell.seed: r for r in by_place.get((change, WITH), [])}
        matches = [(r, after[r.cell.seed]) for r in by_place.get((change, WITHOUT), []) if r.cell.seed in after]
        if matches:
            by_change[change] = matches
        if change.defense == "anp" and ANP_POINT not in by_change:
            by_change[ANP_POINT] = [
                (r, on_test(r)) for r in by_place.get((change, WITHOUT), []) if "sweep" in r.diagnostics
            ]
    return {change: matches for change, matches in by_change.items() if matches}


def on_test(record: Record) -> Record:
    """A record of ANP at the threshold with the largest ACC - ASR on the test set."""
    best = max(record.diagnostics["sweep"].values(), key=lambda point: point["acc"] - point["asr"])
    return replace(record, acc=best["acc"], asr=best["asr"])


def effects(results: Results) -> dict[tuple[Change, str], Estimate]:
    """The difference that each change makes to ACC and ASR, in percentage points, paired by seed."""
    return {
        (change, metric): difference
        for change, matches in pairs(results).items()
        for metric in METRICS
        if (difference := paired([b for _, b in matches], [a for a, _ in matches], metric))
    }


def verdict(value: Estimate) -> str:
    """By the one rule: "up" or "down" if every seed moves by MATTERS or more that way, "none" if no seed does."""

    def way(change: float) -> str:
        return "none" if abs(change) < MATTERS else "up" if change > 0 else "down"

    return decided([way(change) for change in value.values])


def table(results: Results) -> pd.DataFrame:
    """A line for each change: ACC and ASR without and with it, and the difference with its range, as text."""
    differences, matches = effects(results), pairs(results)
    lines = {}
    for change in dict.fromkeys([*matches, *results.experiment.rows(results.profile)]):
        line: dict[str, str] = {"what it does": _ABOUT[change.switch], "seeds": str(len(matches.get(change, [])))}
        for metric in METRICS:
            value = differences.get((change, metric))
            sides = ["missing", "missing", "missing"]
            if value:
                means = [
                    100 * sum(getattr(r, metric) for r in side) / len(side)
                    for side in zip(*matches[change], strict=True)
                ]
                sides = [f"{means[0]:.1f}", f"{means[1]:.1f}", value.text(sign="+")]
            heads = (f"{metric.upper()} {what}" for what in ("without", "with", "difference"))
            line |= dict(zip(heads, sides, strict=True))
        lines[label(change)] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def reading(results: Results) -> list[str]:
    """Sentences: which changes move a number, which do not, which are undecided; then what ABL isolated."""
    differences = effects(results)
    changes = list(dict.fromkeys(change for change, _ in differences))
    if not changes:
        return [f"No record at profile {results.shown} is there yet."]
    verdicts = {change: [verdict(differences[change, metric]) for metric in METRICS] for change in changes}
    moved = [change for change, (acc, asr) in verdicts.items() if {acc, asr} & {"up", "down"}]
    still = [change for change, (acc, asr) in verdicts.items() if acc == asr == "none"]
    few = [c for c in changes if differences[c, "acc"].n < DECIDES]
    split = [c for c in changes if c not in (*moved, *still, *few)]
    counted = (f"{label(c)} ({runs(differences[c, 'acc'].n)})" for c in few)
    lines = [
        f"Moves ACC or ASR by {MATTERS:g} point or more, in every seed the same way (profile {results.shown}): "
        f"{'; '.join(map(label, moved)) or 'none'}.",
        f"Moves neither by {MATTERS:g} point in any seed: {'; '.join(map(label, still)) or 'none'}.",
        f"Not decided, the seeds disagree: {'; '.join(map(label, split)) or 'none'}.",
        f"Not decided, fewer than {DECIDES} seeds: {'; '.join(counted) or 'none'}.",
    ]
    return lines + inside.notes(results, _side)


def _side(_: Results, place: tuple[Change, Column]) -> str:
    change, column = place
    return label(change) if column == WITH else f"{METHODS[change.defense].label} as intended"


def rates(results: Results) -> pd.DataFrame:
    """The learning-rate question: ACC / ASR in percent of each module from the backdoored model, with both rates."""
    ours, lines = estimates(results), {}
    for change in results.experiment.rows(results.profile):
        if change.switch == "purifier_lr":
            sides = {}
            for column, name in ((WITHOUT, "released: 0.01, 0.01"), (WITH, "older: 0.001 falling, then 0.008")):
                pair = [ours.get((change, column, metric)) for metric in METRICS]
                sides[name] = " / ".join(value.text() for value in pair if value) or "missing"
            lines[METHODS[change.defense].label] = sides
    return pd.DataFrame.from_dict(lines, orient="index")


def batchnorm(results: Results) -> pd.DataFrame:
    """What BatchNorm's running statistics do in ABL's unlearning: a line for each treatment, ACC and ASR in percent."""
    ours, lines = estimates(results), {}
    for change in results.experiment.rows(results.profile):
        if change.switch == "abl_bn":
            sides = {"reference": WITHOUT, change.value: WITH}
            for name, column in sides.items():
                values = {metric.upper(): ours.get((change, column, metric)) for metric in METRICS}
                lines[name] = {head: value.text() if value else "missing" for head, value in values.items()}
    return pd.DataFrame.from_dict(lines, orient="index")


def figure(results: Results) -> Any:
    """The difference in ACC and in ASR that each change makes: a dot for each pair of seeds, and their mean."""
    import matplotlib.pyplot as plt

    differences = effects(results)
    lines = _lines(list(dict.fromkeys(change for change, _ in differences)))
    drawing.theme()
    size = (drawing.WIDTH, 0.25 * len(lines) + 1.6)
    picture, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained", dpi=160)
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, (_, change) in enumerate(lines):
            if change:
                value = differences[change, metric]
                colour = drawing.OURS if verdict(value) in ("up", "down") else "0.45"
                drawing.seeds(axis, value, place, colour)
        axis.axvline(0, color="0.2", linewidth=1)
        axis.set_xlim(-106, 106)
        axis.set_xlabel(f"change of {metric.upper()}, points")
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(lines)), [text for text, _ in lines])
    for tick, (_, change) in zip(axes[0].get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if change else "bold")
    axes[0].set_ylim(max(1, len(lines)) - 0.4, -0.6)
    drawing.legend(picture, published=False)
    plt.close(picture)
    return picture


def _lines(changes: list[Change]) -> list[tuple[str, Change | None]]:
    """From top to bottom: a switch with its intended value, then the changes that turn it."""
    lines: list[tuple[str, Change | None]] = []
    for change in changes:
        head, _, target = label(change).partition(": ")
        if (head, None) not in lines:
            lines.append((head, None))
        lines.append((target, change))
    return lines
