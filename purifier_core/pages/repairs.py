"""Scan-repair beside the repairs of the field: what each leaves of a backdoor, and of the network."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import pandas as pd

from purifier_core.lab import methods
from purifier_core.lab.cells import TARGET_CLASS
from purifier_core.lab.experiments.comparison import Repairs
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import ATTACKS, DATASETS, title
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import drawing
from purifier_core.pages.defenses import row_label
from purifier_core.pages.heatmap import short_attack
from purifier_core.pages.statistics import TAKEN, Estimate, estimate, measured, number, paired, runs, took
from purifier_core.recipes import SUSPECTED

NONE, OURS, ANYWAY = Column("none"), Column("scan_repair"), Column("scan_repair_anyway")
METRICS = ("ACC", "ASR", "RA")
FEWER = (600, 120)
"""Clean images on MNIST's scale, beside the page's own number: 1 and 0.2 % of the training images."""
LEFT, COST, ROWS, FOUND, ALARMS = 2.0, 1.0, 80, 90, 5

RULES = (
    f"The bar was set before there was any number. Of the rows whose backdoor took (ASR of the undefended network at "
    f"least {100 * TAKEN:g} %; a seed in which it did not take is left out, and named), Scan-repair leaves at least "
    f"{ROWS} % *as a clean network is*: an ASR at most {LEFT:g} points above a clean network's own under the same "
    f"trigger, and an ACC at most {COST:g} point lower than before, both as means over seeds. The scan finds the "
    f"backdoor in at least {FOUND} % of their networks, and suspects at most {ALARMS} % of clean networks. To find it "
    "is to name the attacker's class; all-to-all has none, and there any suspicion counts. RA is the share of "
    "triggered images that are classified rightly: an ASR of 0 with a low RA is no repair."
)


def own(results: Results, row: tuple[str, str], metric: str) -> Estimate | None:
    """ "asr" or "ra" of clean networks of the row's dataset under the row's trigger; None where none is recorded."""
    attack, dataset = row
    records = results.by_place.get((("none", dataset), NONE), [])
    by_seed = {r.cell.seed: r.diagnostics["own"] for r in records if attack in r.diagnostics.get("own", {})}
    return estimate({seed: by_attack[attack][metric] for seed, by_attack in by_seed.items()}) if by_seed else None


def table(results: Results) -> pd.DataFrame:
    """Means and ranges over seeds in percent, by row, metric and method, of the rows with a record; the last column is
    a clean network under the same trigger. "scan": in how many seeds the scan named the backdoor, or suspected one."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in recorded(results):
        label = f"{row_label(row)}{_untaken(results, row)}"
        for metric in METRICS:
            lines[label, metric] = {
                column.label: _text(results, row, column, metric) for column in results.experiment.columns()
            } | {"a clean network": _told(own(results, row, metric.lower()) if metric != "ACC" else None)}
        lines[label, "scan"] = {
            column.label: scanned(results.by_place.get((row, column), [])) for column in results.experiment.columns()
        } | {"a clean network": "–"}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(lines, names=["attack", "%"])
    return frame


def _untaken(results: Results, row: tuple[str, str]) -> str:
    """What is added to the name of a row whose backdoor is known not to have taken."""
    before = results.by_place.get((row, NONE), [])
    return "" if row[0] == "none" or not before or took(before) else " (did not take)"


def fewer(results: Results, store: Store | None = None) -> pd.DataFrame:
    """Scan-repair by its number of clean images: means and ranges over seeds in percent, by row and metric, of the rows
    with a record at one of FEWER."""
    grid = cast(Repairs, results.experiment)
    sizes = dict.fromkeys((grid.clean_size, *FEWER))
    at = {size: look_up(replace(grid, clean_size=size), store) for size in sizes}
    heads = {size: f"{size:,} ({100 * size / DATASETS['mnist'].train:g} %)" for size in sizes}
    lines = {
        (row_label(row), metric): {heads[size]: _text(at[size], row, OURS, metric) for size in sizes}
        for row in grid.rows(results.profile)
        if any((row, OURS) in at[size].by_place for size in FEWER)
        for metric in METRICS
    }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(lines, names=["attack", "%"])
    return frame


def recorded(results: Results) -> list[Any]:
    """The rows that have a record of a repair; a clean network's as soon as its own ASR is there."""
    rows = {row for row, column in results.by_place if column.defense in methods.repairs() or row[0] == "none"}
    return [row for row in results.experiment.rows(results.profile) if row in rows]


def absent(results: Results) -> str:
    """The rows without a record of a repair, in one line; empty where there are none."""
    if not recorded(results):
        return "No repair is recorded yet."
    gaps = [row_label(row) for row in results.experiment.rows(results.profile) if row not in recorded(results)]
    return f"No repair is recorded yet of: {'; '.join(gaps)}." if gaps else ""


def scanned(records: list[Record]) -> str:
    """In how many of Scan-repair's records the scan named the backdoor's class; of clean networks and of all-to-all,
    where no class is to be named, in how many it suspected any."""
    scans = [record for record in records if "verdict" in record.diagnostics]
    if not scans:
        return "–"
    clean = [record.diagnostics["verdict"] == SUSPECTED for record in scans if record.cell.attack == "none"]
    hits = clean or [named(record) for record in scans]
    any_counts = clean or ATTACKS[scans[0].cell.attack].all_to_all
    return f"{'suspected' if any_counts else 'named'} {sum(hits)} of {len(hits)}"


def _text(results: Results, row: Any, column: Column, metric: str) -> str:
    if records := results.by_place.get((row, column), []):
        return _told(rates(records, metric))
    return "missing" if (row, column) in results.experiment.places(results.profile) else "–"


def _told(value: Estimate | None) -> str:
    return value.text() if value else "–"


def rates(records: Iterable[Record], metric: str) -> Estimate | None:
    """ACC, ASR or RA in percent by seed; None where no record has it."""
    entries = {r.cell.seed: r.diagnostics.get("ra") if metric == "RA" else getattr(r, metric.lower()) for r in records}
    by_seed = {seed: rate for seed, rate in entries.items() if rate is not None}
    return estimate(by_seed) if by_seed else None


@dataclass(frozen=True)
class Row:
    """What Scan-repair did in one row whose backdoor took: how far ASR lies above a clean network's own, and the change
    of ACC, both in points; `found` in how many of `seeds` the scan suspected the backdoor's class."""

    label: str
    left: float | None
    change: float | None
    found: int
    seeds: int

    @property
    def misses(self) -> str:
        """Why the row misses the bar, in words; empty where it does not."""
        reasons = []
        if self.left is not None and self.left > LEFT:
            reasons.append(f"ASR {number(self.left)} points above a clean network's")
        if self.change is not None and self.change < -COST:
            reasons.append(f"ACC {number(-self.change)} points lower, seed by seed")
        return ", ".join(reasons)

    @property
    def judged(self) -> bool:
        """Whether both numbers are there."""
        return self.left is not None and self.change is not None


def judged(results: Results, repair: Column = OURS) -> list[Row]:
    """Every row whose backdoor took and that Scan-repair, or its other form, has a record of."""
    lines = []
    for row in results.experiment.rows(results.profile):
        before, after = (results.by_place.get((row, column), []) for column in (NONE, repair))
        if row[0] == "none" or not after or not took(before):
            continue
        line, change = own(results, row, "asr"), paired(after, before, "acc")
        left = measured(after, "asr").mean - line.mean if line else None
        hits = [named(record) for record in after]
        lines.append(Row(row_label(row), left, change.mean if change else None, sum(hits), len(hits)))
    return lines


def named(record: Record) -> bool:
    """Whether the scan suspected a backdoor and its class; all-to-all has none, and any suspicion counts."""
    if record.diagnostics["verdict"] != SUSPECTED:
        return False
    attack = ATTACKS[record.cell.attack]
    return attack.all_to_all or any(suspect["target"] == TARGET_CLASS for suspect in record.diagnostics["suspects"])


def passes(results: Results) -> list[str]:
    """What passes the repair, first: each row that misses the bar, what the scan did not find, and false alarms."""
    from scipy.stats import binomtest

    rows = judged(results)
    if not rows:
        return [f"No record of Scan-repair at profile {results.shown} is there yet."]
    lines = [f"**{row.label}** passes: {row.misses}." for row in rows if row.judged and row.misses]
    missed = [f"{row.label} ({row.seeds - row.found} of {row.seeds})" for row in rows if row.found < row.seeds]
    if missed:
        lines.append(f"The scan did not find the backdoor in {'; '.join(missed)}.")
    clean = [r for (row, c), records in results.by_place.items() if row[0] == "none" and c == OURS for r in records]
    alarmed = sum(record.diagnostics["verdict"] == SUSPECTED for record in clean)
    if clean:
        low, high = (100 * end for end in binomtest(alarmed, len(clean)).proportion_ci(method="exact"))
        interval = f"{low:.0f} to {high:.0f} % with 95 % confidence"
        lines.append(f"The scan suspected {alarmed} of {runs_of(len(clean))} of this grid ({interval}).")
    return [*lines, bar(rows), *anyway(results)]


def anyway(results: Results) -> list[str]:
    """What comes of the repair whatever the scan says: the rows that meet the bar, and what clean networks lose."""
    rows = [row for row in judged(results, ANYWAY) if row.judged]
    if not rows:
        return []
    met = sum(not row.misses for row in rows)
    line = f"Repaired anyway, whatever the scan says: {met} of {len(rows)} rows are as a clean network is."
    clean = {
        row: records for (row, column), records in results.by_place.items() if row[0] == "none" and column == ANYWAY
    }
    changes = [paired(records, results.by_place.get((row, NONE), []), "acc") for row, records in clean.items()]
    worst = min((change.mean for change in changes if change), default=None)
    if worst is not None:
        line += f" A clean network's ACC changes by {number(worst)} points at worst (mean of a dataset's seeds)."
    return [line]


def runs_of(count: int) -> str:
    """A number of clean networks in words."""
    return "one clean network" if count == 1 else f"{count} clean networks"


def bar(rows: list[Row]) -> str:
    """How the rows stand to the bar, in one line."""
    complete = [row for row in rows if row.judged]
    networks, hits = sum(row.seeds for row in rows), sum(row.found for row in rows)
    sentence = f"The scan found the backdoor in {hits} of {networks} networks ({_against(hits / networks, FOUND)})"
    if not complete:
        return f"{sentence}. No row has a clean network of its own beside it yet."
    met = sum(not row.misses for row in complete)
    seeds = sorted({row.seeds for row in complete})
    each = runs(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    share = _against(met / len(complete), ROWS)
    return f"**As a clean network is: {met} of {len(complete)} rows** ({share}), of {each} each. {sentence}."


def _against(share: float, bar: int) -> str:
    return f"{100 * share:.0f} %; the bar of {bar} % is {'met' if 100 * share >= bar else 'not met'}"


def reading(results: Results) -> list[str]:
    """What passes, then what the scan found in each row."""
    lines = passes(results)
    for (row, column), records in results.by_place.items():
        if column == OURS:
            label = f"{row_label(row)}{_untaken(results, row)}"
            lines.append(f"{label}, {runs(len(records))}: {'; '.join(map(_found, records))}.")
    return [*lines, *filter(None, [absent(results)])]


def _found(record: Record) -> str:
    best: dict[str, Any] = min(record.diagnostics["candidates"], key=lambda candidate: candidate["p"])
    stamp = f"class {best['target']} ({best['family']}, score {best['score']:.1f}, p {best['p']:.2g})"
    return f"seed {record.cell.seed} {record.diagnostics['verdict']}, {stamp}"


def figure(results: Results) -> Any:
    """ASR and RA by row: each seed of Scan-repair a dot, the means of the others grey, a clean network's own a ring."""
    import matplotlib.pyplot as plt

    rows = [row for row in recorded(results) if row[0] != "none"]
    drawing.theme()
    size = (drawing.WIDTH, 0.34 * max(1, len(rows)) + 1.9)
    picture, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained", dpi=160)
    for axis, metric, heading in zip(axes, METRICS[1:], ("ASR", "RA"), strict=True):
        for place, row in enumerate(rows):
            for column, mark in FIELD.items():
                if rate := rates(results.by_place.get((row, column), []), metric):
                    axis.scatter(rate.mean, place, marker=mark, s=28, color="0.45", linewidth=1.1, zorder=2)
            if line := own(results, row, metric.lower()):
                axis.scatter(line.mean, place, **drawing.PUBLISHED_MARK, zorder=4)
            if value := rates(results.by_place.get((row, OURS), []), metric):
                drawing.seeds(axis, value, place)
        axis.set_xlim(-5, 105)
        axis.set_xlabel("percent")
        axis.set_title(heading, fontsize=10.5, loc="left")
        axis.grid(axis="y", visible=False)
    labels = [f"{title(row[1])}, {short_attack(row[0])}{_untaken(results, row)}" for row in rows]
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(max(1, len(rows)) - 0.4, -0.6)
    marks = [plt.Line2D([], [], ls="", marker=mark, color="0.45", label=c.label) for c, mark in FIELD.items()]
    ours = plt.Line2D([], [], ls="", marker="o", markersize=4.5, color=drawing.OURS, label="Scan-repair, a seed")
    handles = [ours, *marks, drawing.ring("a clean network's own")]
    picture.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, columnspacing=1.0)
    plt.close(picture)
    return picture


FIELD = {
    NONE: "|",
    Column("bound_feature"): "_",
    ANYWAY: "2",
    Column("i_bau"): "+",
    Column("npd"): "x",
    Column("ft_sam"): "^",
}
