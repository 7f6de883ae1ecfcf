"""Every defense against every attack on every dataset: where each one fails, ours included."""

from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import ATTACKS, title
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import heatmap, inside
from purifier_core.pages.heatmap import NONE, short_attack
from purifier_core.pages.overview import seconds
from purifier_core.pages.report import METRICS
from purifier_core.pages.statistics import (
    DECIDES,
    TAKEN,
    decided,
    measured,
    number,
    paired,
    results_of,
    runs,
    took,
    without_threshold,
)
from purifier_core.recipes import GRANULARITIES

REMOVED = 10.0
WEAKENED = 50.0
COST = 5.0
UNBOUNDED = "has no threshold"

AIMED = {
    "adaptive_purifier": GRANULARITIES,
    "adaptive_bound": tuple(f"bound_{granularity}" for granularity in GRANULARITIES),
}
"""The defenses that each attacker knows."""

RULES = (
    f"A backdoor *took* if the undefended network has an ASR of {100 * TAKEN:g} % or more. A seed in which it did not "
    "is left out, and named; so is a row in which it took in no seed. A defense *stops* it at an ASR of "
    f"{REMOVED:g} % or less, *weakens* it at {WEAKENED:g} % or less, and else *leaves* it. It *costs accuracy* if ACC "
    f"falls by more than {COST:g} points, each seed against the same seed without a defense. It *removes* a backdoor "
    f"if it stops it and costs no accuracy. An outcome that at least {DECIDES} seeds agree on is decided; any other is "
    "told, and not counted."
)


def row_label(row: tuple[str, str]) -> str:
    """An attack on a dataset in words."""
    attack, dataset = row
    return f"{title(dataset)}, {ATTACKS[attack].label if attack in ATTACKS else 'clean network'}"


def _short_label(row: tuple[str, str]) -> str:
    attack, dataset = row
    return f"{title(dataset)} {short_attack(attack)}"


def taken(results: Results) -> list[Any]:
    """The rows in which the backdoor took."""
    by_place = results.by_place
    return [row for row in results.experiment.rows(results.profile) if took(by_place.get((row, NONE), []))]


def not_taken(results: Results) -> list[str]:
    """One line that names the rows in which the backdoor did not take, with the ASR of the undefended network."""
    by_place, rows = results.by_place, taken(results)
    texts = [
        f"{row_label(row)}: {measured(by_place[row, NONE], 'asr').text()}"
        for row in results.experiment.rows(results.profile)
        if (row, NONE) in by_place and row not in rows
    ]
    return [f"Did not take, and so shows nothing of a defense (ASR in percent): {'; '.join(texts)}."] if texts else []


def notes(results: Results) -> list[str]:
    """Notes for the heat map: attacks that did not take, what ABL isolated, rows without a threshold of ANP."""
    return [*not_taken(results), *inside.notes(_only_taken(results), lambda _, place: _short_label(place[0]))]


def _only_taken(results: Results) -> Results:
    """The results without the records of the rows in which the backdoor did not take."""
    rows = taken(results)
    remainder = [record for (row, _), records in results.by_place.items() if row in rows for record in records]
    return Results(results.experiment, results.profile, results.reason, remainder)


def outcome(before: list[Record], after: list[Record]) -> tuple[str, bool | str]:
    """By the rules: whether the backdoor was stopped, and whether that cost accuracy; or "not decided: ...".

    Only the seeds that are in both lists enter.
    """
    seeds = {record.cell.seed for record in before}
    matches = [record for record in after if record.cell.seed in seeds]
    change = paired(matches, before, "acc")
    falls = [value < -COST for value in change.values] if change else []
    return decided([_word(record) for record in matches]), decided(falls)


def _word(record: Record) -> str:
    if without_threshold(record):
        return UNBOUNDED
    asr = 100 * (record.asr or 0.0)
    return "stops" if asr <= REMOVED else "weakens" if asr <= WEAKENED else "leaves"


def removals(before: Iterable[Record], after: Iterable[Record]) -> dict[int, bool]:
    """By seed with an undefended partner: whether a defense removes the backdoor, which is to stop it at no cost."""
    partners = {record.cell.seed: record for record in before}
    return {
        record.cell.seed: 100 * (record.asr or 0.0) <= REMOVED
        and 100 * ((partners[record.cell.seed].acc or 0.0) - (record.acc or 0.0)) <= COST
        for record in after
        if record.cell.seed in partners
    }


def outcomes(results: Results, column: Column) -> dict[Any, tuple[str, bool | str]]:
    """`outcome` by row, for the rows in which the backdoor took and the column has a record."""
    by_place = results.by_place
    return {
        row: outcome(by_place[row, NONE], by_place[row, column]) for row in taken(results) if (row, column) in by_place
    }


def reading(results: Results) -> list[str]:
    """`notes`, then for each defense where it stops the backdoor, where it leaves it, and at what cost, by rule."""
    by_place = results.by_place
    lines = notes(results)
    for column in results.experiment.columns()[1:]:
        verdicts = outcomes(results, column)
        if not verdicts:
            continue
        sure = [row for row, (word, _) in verdicts.items() if not word.startswith("not decided")]
        costs = [verdicts[row][1] for row in sure if verdicts[row][0] == "stops"]
        dear, unclear = costs.count(True), len(costs) - costs.count(True) - costs.count(False)
        line = f"**{column.label}**"
        line += f" stops the backdoor in {len(costs)} of {len(sure)} decided rows" if sure else ": no row is decided"
        line += f", {dear} of them at the cost of accuracy" if dear else ""
        line += f"; the seeds do not agree on the cost in {unclear}" if unclear else ""
        for word, opening in _OPENINGS.items():
            rows = {row: results_of(by_place[row, column]) for row in verdicts if verdicts[row][0] == word}
            line += f". {opening}: {_by_dataset(rows)}" if rows else ""
        few = Counter(len(by_place[row, column]) for row in verdicts if len(by_place[row, column]) < DECIDES)
        line += "".join(f". Not decided, {runs(n)}: {count} rows" for n, count in sorted(few.items()))
        lines.append(line + ".")
    return lines or [f"No record at profile {results.shown} is there yet."]


_OPENINGS = {
    "weakens": "Weakens it",
    "leaves": "Leaves it",
    UNBOUNDED: "Has no admissible threshold",
    "not decided: the seeds disagree": "The seeds disagree",
}


def _by_dataset(records: dict[tuple[str, str], list[Record]]) -> str:
    """The attacks on each dataset, with their mean ASR in percent where there is a result, in words."""
    by_dataset: dict[str, list[str]] = {}
    for row, group in records.items():
        dataset = title(row[1])
        asr = f" {measured(group, 'asr').mean:.0f}" if group else ""
        by_dataset.setdefault(dataset, []).append(short_attack(row[0]) + asr)
    return "; ".join(f"{dataset} {', '.join(names)}" for dataset, names in by_dataset.items())


def attackers(results: Results) -> list[str]:
    """What each attacker who knows a defense gains over BadNets against it, and the accuracy that its training costs.

    Every difference is paired by seed.
    """
    by_place = results.by_place
    lines = []
    for row in taken(results):
        attack, dataset = row
        plain = ("badnets", dataset)
        if attack not in AIMED or (plain, NONE) not in by_place:
            continue
        rates = [
            f"{column.label} {_beside(by_place[row, column], by_place[plain, column], 'asr')}"
            for column in map(Column, AIMED[attack])
            if {(row, column), (plain, column)} <= by_place.keys()
        ]
        line = (
            f"**{row_label(row)}**: ACC without a defense {_beside(by_place[row, NONE], by_place[plain, NONE], 'acc')}"
        )
        lines.append(f"{line}; ASR after {', '.join(rates)}." if rates else f"{line}.")
    return lines


def _beside(records: list[Record], reference: list[Record], metric: str) -> str:
    """A mean in percent and its difference from another, as text."""
    change, mean = paired(records, reference, metric), measured(records, metric).mean
    return number(mean) + (f" ({number(change.mean, sign='+')}, {change.spread(sign='+')})" if change else "")


def table(results: Results) -> pd.DataFrame:
    """A line for each dataset, attack and defense, as text: ACC and ASR in percent, the change of ACC paired by seed,
    the images that were trained on or seen, the seconds that it took, and the number of seeds.

    Attacks that did not take are left out.
    """
    by_place, hidden = results.by_place, set(results.experiment.rows(results.profile)) - set(taken(results))
    places, lines = results.experiment.places(results.profile), []
    for row in results.experiment.rows(results.profile):
        if row in hidden and (row, NONE) in by_place:
            continue
        for column in results.experiment.columns():
            attack, dataset = row
            line = {"dataset": title(dataset), "attack": ATTACKS[attack].label, "defense": column.label}
            records = by_place.get((row, column), [])
            gap = "missing" if (row, column) in places else "–"
            lines.append(
                line | (_numbers(records, by_place.get((row, NONE), [])) if records else dict.fromkeys(_HEADS, gap))
            )
    return pd.DataFrame(lines, columns=["dataset", "attack", "defense", *_HEADS])


_HEADS = ("ACC", "ASR", "ACC change", "images", "seconds", "seeds")


def _numbers(records: list[Record], before: list[Record]) -> dict[str, str]:
    """The numbers of one line of the table, as text."""
    results = results_of(records)
    texts = dict.fromkeys(("ACC", "ASR", "ACC change"), "no threshold")
    if results:
        change = paired(results, before, "acc")
        texts = {metric.upper(): measured(results, metric).text() for metric in METRICS}
        texts["ACC change"] = change.text(sign="+") if change else "–"
    return texts | {
        "images": f"{fmean(r.effort['images'] for r in records):,.0f}",
        "seconds": f"{fmean(map(seconds, records)):,.0f}",
        "seeds": runs(len(records)).removesuffix(" seeds"),
    }


def sortable(results: Results) -> str:
    """The table as HTML whose column heads sort it."""
    style = table(results).style.hide().set_uuid("defenses").set_table_attributes('class="results prose sortable"')
    style.cell_ids = False  # type: ignore[attr-defined]  # set by the constructor, unknown to the stubs
    return f'<div class="results-scroll tall">{style.to_html()}</div>'


def figure(results: Results) -> Any:
    """A heat map of ASR over the attacks that took; those that did not are named below it."""
    return heatmap.figure(results, taken(results), COST, not_taken(results))


def glued(results: Results) -> dict[str, Any]:
    """Numbers for other pages: in how many rows each defense removes a backdoor that took, and how many are decided."""
    counts: dict[str, Any] = {"defenses_rows": len(taken(results)), "defenses_profile": results.shown}
    for column in results.experiment.columns()[1:]:
        undefended = ((row, results.by_place[row, NONE]) for row in taken(results))
        answers = [removals(before, results.by_place.get((row, column), [])) for row, before in undefended]
        sure = [answer for answer in (decided([*by_seed.values()]) for by_seed in answers) if isinstance(answer, bool)]
        counts[f"defenses_{column.defense}_removes"] = sum(sure)
        counts[f"defenses_{column.defense}_decided"] = len(sure)
    return counts
