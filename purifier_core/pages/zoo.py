"""What one command each did with the networks of the zoo, from data/zoo/commands.json."""

import json
from typing import Any

import pandas as pd

from purifier_core.files import ROOT
from purifier_core.pages.defenses import COST
from purifier_core.pages.scan_settings import tuned_on
from purifier_core.pages.statistics import TAKEN, named
from purifier_core.recipes import NOTHING, SUSPECTED

PATH = ROOT / "data" / "zoo" / "commands.json"
GONE = 0.1  # of the ASR after

Outcome = dict[str, Any]


def recorded() -> dict[str, Outcome]:
    """What is recorded, by network."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def table(outcomes: dict[str, Outcome] | None = None) -> pd.DataFrame:
    """A row for each network that was tried: the scan's verdict, and the rates before and after, in percent."""
    rows = {name: _row(outcome) for name, outcome in (recorded() if outcomes is None else outcomes).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def reading(outcomes: dict[str, Outcome] | None = None) -> list[str]:
    """How many backdoors were found and are gone, how many clean networks stayed, and which failed, by name."""
    outcomes = recorded() if outcomes is None else outcomes
    if not outcomes:
        return ["No outcome is recorded yet."]
    took = _taken(outcomes)
    clean = {name: outcome for name, outcome in outcomes.items() if "ASR" not in outcome["rates"]}
    weak = [name for name in outcomes if name not in took and name not in clean]
    missed = [name for name, outcome in took.items() if not _named(outcome)]
    stayed = _passing(took)
    alarms = [name for name, outcome in clean.items() if outcome["scan"] != NOTHING]
    sizes = [outcome["images"] for outcome in outcomes.values()]
    held_out, triggered = (max(size.get(part, 0) for size in sizes) for part in ("held_out", "triggered"))
    tuned = [name for name in took if _tuned_on(name)]
    fair = [f"On {named(tuned)} a setting of the scan or the repair was chosen: they flatter both."] if tuned else []
    lines = [
        f"ACC is of {held_out} clean images that were held out, ASR and RA of {triggered} triggered ones.",
        f"Of {len(took)} networks with a backdoor that took, the scan names the attacker's class in "
        f"{len(took) - len(missed)}{_but(missed)}.",
        *fair,
        f"After the repair the ASR is at most {100 * GONE:.0f} % in {len(took) - len(stayed)} of them{_but(stayed)}.",
        f"Of {len(clean)} clean networks nothing stands out in {len(clean) - len(alarms)}{_but(alarms)}.",
    ]
    missing = [path.parent.name for path in sorted(PATH.parent.glob("*/card.json")) if path.parent.name not in outcomes]
    lines += [f"The attack itself did not take in {', '.join(weak)}."] if weak else []
    return lines + ([f"Not tried yet: {', '.join(missing)}."] if missing else [])


def advice(outcomes: dict[str, Outcome] | None = None) -> str:
    """Which repair to use, for what, and what passes it."""
    took = _taken(recorded() if outcomes is None else outcomes)
    if not took:
        return "No repair of a backdoored network is recorded yet."
    passing = _passing(took)
    method, held_out = (max(outcome["images"][part] for outcome in took.values()) for part in ("method", "held_out"))
    gone = [outcome for name, outcome in took.items() if name not in passing]
    dear = [outcome for outcome in gone if _fall(outcome) > COST]
    cost = f"; in {len(dear)} of these ACC falls by more than {COST:g} points" if dear else ""
    others = [name for name in took if not _tuned_on(name)]
    fair = (
        f" A setting was chosen on {len(took) - len(others)} of the {len(took)}; of the other {len(others)} it reaches "
        f"this in {sum(name not in passing for name in others)}."
        if len(others) < len(took)
        else ""
    )
    rest = f"{named(passing)} {'pass' if len(passing) > 1 else 'passes'}" if passing else "none passes"
    return (
        "**To repair a network of your own** take Scan-repair, `purifier fix --method scan-repair`, for a trigger that "
        f"is the same on every image. With {method} clean images, and {held_out} held out, it leaves an ASR of at most "
        f"{100 * GONE:.0f} % in {len(gone)} of the {len(took)} networks of the zoo whose backdoor took{cost}; {rest} "
        f"it.{fair} In a network that you distrust although the scan suspects nothing, `--anyway` unlearns what stands "
        "out most."
    )


def _taken(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    return {name: outcome for name, outcome in outcomes.items() if _asr(outcome, "before") >= TAKEN}


def _tuned_on(name: str) -> bool:
    """Whether a setting of the scan or of the repair was chosen on a network."""
    path = PATH.parent / name / "card.json"
    cell = json.loads(path.read_text())["cell"] if path.exists() else {}
    return (cell.get("dataset"), cell.get("attack"), cell.get("seed")) in tuned_on()


def _passing(took: dict[str, Outcome]) -> list[str]:
    return [name for name, outcome in took.items() if _asr(outcome, "after") > GONE]


def _fall(outcome: Outcome) -> float:
    """How much ACC is lost, in points."""
    acc = outcome["rates"]["ACC"]
    return 100 * (acc["before"]["share"] - acc["after"]["share"])


def _row(outcome: Outcome) -> dict[str, str]:
    row = {"the scan": _said(outcome)}
    for rate in ("ACC", "ASR", "RA"):
        pair = outcome["rates"].get(rate)
        row[f"{rate}, before → after"] = " → ".join(_percent(pair[when]) for when in _WHEN) if pair else "–"
    seconds = {"CPU seconds": f"{outcome['cpu_seconds']:.0f}"}
    return row | {"exit status": str(outcome["status"])} | seconds


def _said(outcome: Outcome) -> str:
    if outcome["scan"] != SUSPECTED:
        return outcome["scan"]
    best = min(outcome["candidates"], key=lambda candidate: candidate["p"])
    return f"{outcome['scan']}: class {best['target']}, {best['family']}"


def _named(outcome: Outcome) -> bool:
    """Whether the scan suspects a backdoor, and the class that stands out most is the attacker's."""
    best = min(outcome["candidates"], key=lambda candidate: candidate["p"])
    return outcome["scan"] == SUSPECTED and best["target"] == outcome["target"]["index"]


def _asr(outcome: Outcome, when: str) -> float:
    return outcome["rates"]["ASR"][when]["share"] if "ASR" in outcome["rates"] else 0.0


def _percent(rate: Outcome) -> str:
    return f"{100 * rate['share']:.1f}"


def _but(names: list[str]) -> str:
    return f" (not {', '.join(names)})" if names else ""


_WHEN = ("before", "after")
