"""What one command each did with the networks of the zoo, from data/zoo/commands.json."""

import json
from typing import Any

import pandas as pd

from purifier_core.files import ROOT
from purifier_core.recipes import NOTHING, SUSPECTED

PATH = ROOT / "data" / "zoo" / "commands.json"
TOOK = 0.5  # of the ASR before: less is no backdoor that took
GONE = 0.1  # of the ASR after

Outcome = dict[str, Any]


def recorded() -> dict[str, Outcome]:
    """What is recorded, by network."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def table(every: dict[str, Outcome] | None = None) -> pd.DataFrame:
    """A row for each network that was tried: the scan's verdict, and the rates before and after, in percent."""
    rows = {name: _row(one) for name, one in (recorded() if every is None else every).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def reading(every: dict[str, Outcome] | None = None) -> list[str]:
    """How many backdoors were found and are gone, how many clean networks stayed, and which failed, by name."""
    every = recorded() if every is None else every
    if not every:
        return ["No outcome is recorded yet."]
    took = {name: one for name, one in every.items() if _asr(one, "before") >= TOOK}
    clean = {name: one for name, one in every.items() if "ASR" not in one["rates"]}
    weak = [name for name in every if name not in took and name not in clean]
    missed = [name for name, one in took.items() if not _named(one)]
    stayed = [name for name, one in took.items() if _asr(one, "after") > GONE]
    alarms = [name for name, one in clean.items() if one["scan"] != NOTHING]
    lines = [
        f"Of {len(took)} networks with a backdoor that took, the scan names the attacker's class in "
        f"{len(took) - len(missed)}{_but(missed)}.",
        f"After the repair the ASR is at most {100 * GONE:.0f} % in {len(took) - len(stayed)} of them{_but(stayed)}.",
        f"Of {len(clean)} clean networks nothing stands out in {len(clean) - len(alarms)}{_but(alarms)}.",
    ]
    missing = [path.parent.name for path in sorted(PATH.parent.glob("*/card.json")) if path.parent.name not in every]
    lines += [f"The attack itself did not take in {', '.join(weak)}."] if weak else []
    return lines + ([f"Not tried yet: {', '.join(missing)}."] if missing else [])


def _row(one: Outcome) -> dict[str, str]:
    row = {"the scan": _said(one)}
    for rate in ("ACC", "ASR", "RA"):
        pair = one["rates"].get(rate)
        row[f"{rate}, before → after"] = " → ".join(_percent(pair[when]) for when in _WHEN) if pair else "–"
    seconds = {"CPU seconds": f"{one['cpu_seconds']:.0f}"}
    return row | {"exit status": str(one["status"])} | seconds


def _said(one: Outcome) -> str:
    if one["scan"] != SUSPECTED:
        return one["scan"]
    best = min(one["candidates"], key=lambda candidate: candidate["p"])
    return f"{one['scan']}: class {best['target']}, {best['family']}"


def _named(one: Outcome) -> bool:
    """Whether the scan suspects a backdoor, and the class that stands out most is the attacker's."""
    best = min(one["candidates"], key=lambda candidate: candidate["p"])
    return one["scan"] == SUSPECTED and best["target"] == one["target"]["index"]


def _asr(one: Outcome, when: str) -> float:
    return one["rates"]["ASR"][when]["share"] if "ASR" in one["rates"] else 0.0


def _percent(rate: Outcome) -> str:
    return f"{100 * rate['share']:.1f}"


def _but(names: list[str]) -> str:
    return f" (not {', '.join(names)})" if names else ""


_WHEN = ("before", "after")
