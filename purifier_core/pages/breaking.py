"""How Scan-repair breaks: what an attacker still gets from a repaired network, beside what a clean one gives."""

from typing import Any

import pandas as pd

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.repairs import NONE, named, row_label
from purifier_core.pages.statistics import TAKEN, Estimate, estimate, measured, number, runs, took
from purifier_core.recipes import SUSPECTED

REPAIRED, CLEAN = Column("broken_repair"), Column("broken_clean")
ABOVE = 10.0

KINDS: dict[tuple[str, ...], str] = {
    (): "trigger",
    ("stamped", "8"): "trigger + 8/255",
    ("stamped", "16"): "trigger + 16/255",
    ("plain", "8"): "8/255 alone",
    ("plain", "16"): "16/255 alone",
    ("repoisoned", "0"): "finetuning, clean",
    ("repoisoned", "10"): "finetuning, 10 poisoned",
    ("repoisoned", "30"): "finetuning, 30 poisoned",
}
"""What is tried, by its place in a record."""

RULE = (
    f"An attack *passes* if the repaired network gives the attacker's class to over {ABOVE:g} points more of the test "
    f"images than a clean network does, on the mean over seeds. Seeds whose backdoor did not take (an ASR below "
    f"{100 * TAKEN:g} %) are left out."
)


def rate(records: list[Record], kind: tuple[str, ...]) -> Estimate | None:
    """The success of an attack in percent by seed; None where there is no record."""
    if not kind:
        return measured(records, "asr") if records else None
    first, second = kind
    shares = {r.cell.seed: r.diagnostics["attacked"][first][second] for r in records}
    return estimate(shares) if shares else None


def tried(results: Results) -> list[Any]:
    """The rows whose backdoor took and whose repaired network is recorded."""
    by_place = results.by_place
    rows = results.experiment.rows(results.profile)
    return [row for row in rows if (row, REPAIRED) in by_place and took(by_place.get((row, NONE), []))]


def table(results: Results) -> pd.DataFrame:
    """What each attack carries to the attacker's class, in percent, of the repaired network and of a clean one."""
    lines = {}
    for row in tried(results):
        for kind, name in KINDS.items():
            values = {c: rate(results.by_place.get((row, c), []), kind) for c in (REPAIRED, CLEAN)}
            lines[row_label(row), name] = {
                "after Scan-repair": _text(values[REPAIRED]),
                "a clean network": _text(values[CLEAN]),
            }
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=["after Scan-repair", "a clean network"])
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["attack", "what is tried"])
    return frame


def _text(value: Estimate | None) -> str:
    return value.text() if value else "missing"


def passes(results: Results) -> list[str]:
    """For each row what passes, and what the scan said of the networks; last, how much does not pass."""
    rows = tried(results)
    if not rows:
        return [f"No record of this page at profile {results.shown} is there yet."]
    lines, failures = [_hidden(row, results) for row in results.experiment.rows(results.profile)], 0
    lines = [line for line in lines if line]
    for row in rows:
        repaired, clean = (results.by_place.get((row, column), []) for column in (REPAIRED, CLEAN))
        gains = []
        for kind, name in KINDS.items():
            success, line = rate(repaired, kind), rate(clean, kind)
            if success and line and success.mean - line.mean > ABOVE:
                gains.append(f"{name} ({number(success.mean)} %, a clean network {number(line.mean)} %)")
            failures += bool(success and line and success.mean - line.mean <= ABOVE)
        outcome = f"Passes: {'; '.join(gains)}." if gains else "Nothing passes."
        lines.append(f"**{row_label(row)}** ({runs(len(repaired))}). {outcome} {_scanned(repaired)}")
    return [*lines, f"In {failures} other cases an attack gains at most {ABOVE:g} points over a clean network."]


def _hidden(row: Any, results: Results) -> str:
    """That an attacker who knows the scan has no backdoor here; empty where one took, where none was tried, and for
    another attack."""
    before = results.by_place.get((row, NONE), [])
    if row[0] != "adaptive_scan" or not before or took(before):
        return ""
    asr = number(measured(before, "asr").mean)
    return f"**{row_label(row)}** has no result: the backdoor itself did not take (ASR {asr} %, {runs(len(before))})."


def _scanned(records: list[Record]) -> str:
    """What the scan said of these networks."""
    suspected = sum(record.diagnostics["verdict"] == SUSPECTED for record in records)
    known = sum(map(named, records))
    count = len(records)
    return f"The scan suspected a backdoor in {suspected} of {count}, and named the attacker's class in {known}."


def reading(results: Results) -> list[str]:
    """`passes`, for the command."""
    return passes(results)
