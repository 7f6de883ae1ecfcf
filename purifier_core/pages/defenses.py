"""Every defense against every attack on every dataset: where each one fails, ours included."""

from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.config import BOUNDS, GRANULARITIES
from purifier_core.experiments.grids import Column
from purifier_core.pages.gallery import LABELS as ATTACK_LABELS
from purifier_core.pages.overview import seconds
from purifier_core.pages.report import METRICS, TITLES, Estimate, estimate, grouped
from purifier_core.runner import Results

TAKEN = 50.0
REMOVED = 10.0
COST = 5.0

AIMED = {"adaptive_purifier": GRANULARITIES, "adaptive_bound": BOUNDS}
"""The defenses that each attacker knows."""

RULES = (
    f"A backdoor has *taken* if the undefended network has an ASR of {TAKEN:g} % or more; other rows decide nothing. A "
    f"defense *removes* it at an ASR of {REMOVED:g} % or less, *weakens* it at {TAKEN:g} % or less, and else *leaves* "
    f"it. It *costs accuracy* if ACC falls by more than {COST:g} points. Numbers: ASR in percent, means over seeds."
)

Pair = tuple[Estimate, Estimate]


def pairs(results: Results) -> dict[tuple[Any, Column], Pair]:
    """ACC and ASR in percent by ((attack, dataset), column); what is missing is left out."""
    found = {}
    for place, mine in grouped(results).items():
        acc, asr = (estimate({r.cell.seed: getattr(r, metric) for r in mine}) for metric in METRICS)
        found[place] = acc, asr
    return found


def row_label(row: tuple[str, str]) -> str:
    """An attack on a dataset in words."""
    attack, dataset = row
    return f"{TITLES[dataset]}, {ATTACK_LABELS[attack]}"


def taken(results: Results) -> list[Any]:
    """The rows in which a backdoor is there to be removed."""
    found = pairs(results)
    none = Column("none")
    return [
        row
        for row in results.experiment.rows(results.profile)
        if (row, none) in found and found[row, none][1].mean >= TAKEN
    ]


def outcome(before: Pair, after: Pair) -> tuple[str, bool]:
    """What became of the backdoor, and whether it cost accuracy, by the rules."""
    asr = after[1].mean
    word = "removes" if asr <= REMOVED else "weakens" if asr <= TAKEN else "leaves"
    return word, before[0].mean - after[0].mean > COST


def reading(results: Results) -> list[str]:
    """For each defense where it removes the backdoor, where it leaves it, and what that costs, by the rules."""
    found, rows = pairs(results), taken(results)
    lines = []
    for column in results.experiment.columns()[1:]:
        told = {row: outcome(found[row, Column("none")], found[row, column]) for row in rows if (row, column) in found}
        if not told:
            continue
        removed = [row for row, (word, costly) in told.items() if word == "removes" and not costly]
        dear = [row for row, (word, costly) in told.items() if word == "removes" and costly]
        line = f"**{column.label}** removes the backdoor in {len(removed) + len(dear)} of {len(told)} rows"
        costly = "one of these" if len(dear) == 1 else f"{len(dear)} of these"
        line += f", in {costly} at the cost of accuracy" if dear else ""
        for verb in ("weakens", "leaves"):
            asr = {row: found[row, column][1].mean for row, (word, _) in told.items() if word == verb}
            line += f". {verb.capitalize()} it on {_by_dataset(asr)}" if asr else ""
        lines.append(line + ".")
    return lines or [f"No record at profile {results.shown} is there yet."]


def _by_dataset(asr: dict[tuple[str, str], float]) -> str:
    """The attacks on each dataset with their ASR in percent, in words."""
    found: dict[str, list[str]] = {}
    for (attack, dataset), value in asr.items():
        name = ATTACK_LABELS[attack].partition(" (")[0].removeprefix("BadNets, ")
        found.setdefault(TITLES[dataset], []).append(f"{name} {value:.0f}")
    return "; ".join(f"{dataset}: {', '.join(names)}" for dataset, names in found.items())


def attackers(results: Results) -> list[str]:
    """What each attacker who knows a defense gains over BadNets there, and what it costs in accuracy to begin with."""
    found, none = pairs(results), Column("none")
    lines = []
    for row in results.experiment.rows(results.profile):
        attack, dataset = row
        plain = ("badnets", dataset)
        if attack not in AIMED or not {(row, none), (plain, none)} <= found.keys():
            continue
        told = [
            f"{column.label} {found[row, column][1].mean:.0f} ({found[plain, column][1].mean:.0f})"
            for column in map(Column, AIMED[attack])
            if {(row, column), (plain, column)} <= found.keys()
        ]
        acc = [found[place, none][0].mean for place in (row, plain)]
        line = f"**{row_label(row)}**: ACC without a defense {acc[0]:.1f} % ({acc[1]:.1f})"
        lines.append(f"{line}; ASR in percent after {', '.join(told)}." if told else f"{line}.")
    return lines


def table(results: Results) -> pd.DataFrame:
    """A line for each dataset, attack and defense, as text: ACC and ASR in percent, the change of ACC, the images that
    were trained on or seen, the seconds that it took, and the number of seeds."""
    found, records = pairs(results), grouped(results)
    lines = []
    for row in results.experiment.rows(results.profile):
        before = found.get((row, Column("none")))
        for column in results.experiment.columns():
            attack, dataset = row
            line = {"dataset": TITLES[dataset], "attack": ATTACK_LABELS[attack], "defense": column.label}
            if (row, column) not in found:
                lines.append(
                    line | dict.fromkeys(("ACC", "ASR", "ACC change", "images", "seconds", "seeds"), "missing")
                )
                continue
            acc, asr = found[row, column]
            mine = records[row, column]
            lines.append(
                line
                | {
                    "ACC": acc.text(),
                    "ASR": asr.text(),
                    "ACC change": f"{acc.mean - before[0].mean:+.1f}" if before else "–",
                    "images": f"{fmean(r.effort['images'] for r in mine):,.0f}",
                    "seconds": f"{fmean(map(seconds, mine)):,.0f}",
                    "seeds": str(len(mine)),
                }
            )
    return pd.DataFrame(lines)


def sortable(results: Results) -> str:
    """The table as HTML whose column heads sort it."""
    style = table(results).style.hide().set_uuid("defenses").set_table_attributes('class="results prose sortable"')
    style.cell_ids = False  # type: ignore[attr-defined]  # set by the constructor, unknown to the stubs
    return f'<div class="results-scroll tall">{style.to_html()}</div>'


def figure(results: Results) -> Any:
    """A heat map of ASR: rows are attacks on datasets, columns defenses; a number below it where accuracy fell."""
    import matplotlib.pyplot as plt
    import numpy as np
    import seaborn as sns

    found, columns = pairs(results), results.experiment.columns()
    rows = [row for row in results.experiment.rows(results.profile) if any((row, c) in found for c in columns)]
    values = np.array([[found[r, c][1].mean if (r, c) in found else np.nan for c in columns] for r in rows])
    sns.set_theme(style="white", context="notebook")
    drawing, axis = plt.subplots(figsize=(11, 0.52 * max(1, len(rows)) + 1.9), layout="constrained", dpi=160)
    if rows:
        sns.heatmap(
            values,
            vmin=0,
            vmax=100,
            cmap=sns.color_palette("blend:#e8f1f5,#f6d5a8,#c2410c,#5c1a08", as_cmap=True),
            linewidths=1.5,
            ax=axis,
            cbar_kws={"label": "ASR, percent", "fraction": 0.02, "pad": 0.01},
        )
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if (row, column) not in found:
                    axis.text(x + 0.5, y + 0.5, "–", ha="center", va="center", color="0.5")
                    continue
                acc, asr = found[row, column]
                before = found.get((row, Column("none")), (acc, asr))
                fell = before[0].mean - acc.mean > COST
                ink = "white" if asr.mean > 45 else "0.15"
                axis.text(x + 0.5, y + (0.36 if fell else 0.5), f"{asr.mean:.0f}", ha="center", va="center", color=ink)
                if fell:
                    lost = f"ACC {acc.mean - before[0].mean:.0f}"
                    axis.text(x + 0.5, y + 0.72, lost, ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks(np.arange(len(columns)) + 0.5, [c.label for c in columns], rotation=40, ha="left")
    axis.xaxis.tick_top()
    axis.set_yticks(np.arange(len(rows)) + 0.5, [row_label(row) for row in rows], rotation=0)
    axis.tick_params(length=0)
    ours = [x for x, c in enumerate(columns) if c.defense in BOUNDS]
    for place in (1, min(ours, default=0)):  # beside "No Defense", and before what is ours
        axis.axvline(place, color="0.1", linewidth=2)
    for y in range(1, len(rows)):
        if rows[y][1] != rows[y - 1][1]:
            axis.axhline(y, color="0.1", linewidth=2)
    plt.close(drawing)
    return drawing


def glued(results: Results) -> dict[str, Any]:
    """What other pages take from this one: how often each kind of defense removes a backdoor that took."""
    found, rows = pairs(results), taken(results)
    counts: dict[str, Any] = {"defenses_rows": len(rows), "defenses_profile": results.shown}
    for column in results.experiment.columns()[1:]:
        told = [outcome(found[r, Column("none")], found[r, column]) for r in rows if (r, column) in found]
        counts[f"defenses_{column.defense}_removes"] = sum(word == "removes" and not costly for word, costly in told)
    return counts
