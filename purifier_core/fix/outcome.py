"""What a run of `purifier fix` comes to: findings, the exit status, and the same as JSON for a pipeline."""

import math
from dataclasses import dataclass
from typing import Any

from purifier_core.fix.measure import Comparison, Rate
from purifier_core.fix.options import Options
from purifier_core.scanning import SUSPECTED, UNCLEAR, Findings

SCHEMA = "purifier-fix/1"
"""Name and version of the JSON. The number rises when an entry is renamed, removed, or changes its meaning."""

_ROUNDING = 1e-9  # of the difference of two shares

BUDGET = 0.01  # of predictions that bounds may change, where none is given


@dataclass(frozen=True)
class Finding:
    """One reason not to take the result as it is. kind: its name in the JSON; advice: what to do next."""

    kind: str
    text: str
    advice: str


def findings(options: Options, comparison: Comparison, scan: Findings | None = None) -> tuple[Finding, ...]:
    """What speaks against the result. scan: what a scan found, where there was one."""
    every = [_scanned(scan), _asr(options, comparison), _accuracy(options, comparison)]
    every += [_budget(options, comparison), _few(options, comparison)]
    return tuple(finding for finding in every if finding is not None)


def status(found: tuple[Finding, ...]) -> int:
    """The exit status: 0 repaired within budget, 1 a finding."""
    return 1 if found else 0


def headline(options: Options, comparison: Comparison, found: tuple[Finding, ...]) -> str:
    """The result in one line."""
    if found:
        return ". ".join(finding.text for finding in found)
    if "ASR" in (rates := comparison.rates()):
        worked = rates["ASR"][0].share > options.max_asr
        return "The given trigger " + (
            "no longer works, and little else changed." if worked else "does not work, and did not before."
        )
    if options.scan or options.repairs:
        return "Nothing stands out in the scan, and nothing speaks against the result."
    return "Nothing speaks against the result. Whether there is a backdoor was not measured."


def _scanned(scan: Findings | None) -> Finding | None:
    if scan is None:
        return None
    if scan.verdict == UNCLEAR:
        return Finding("scan_unclear", f"The scan cannot tell: {scan.reason}", "Let the scan tell, or do without it.")
    if scan.verdict != SUSPECTED:
        return None
    return Finding("backdoor_suspected", "The scan suspects a backdoor", "Do not use the weights that were given.")


def _asr(options: Options, comparison: Comparison) -> Finding | None:
    rates = comparison.rates()
    if "ASR" not in rates or rates["ASR"][1].share <= options.max_asr:
        return None
    return Finding(
        "asr_stays",
        f"The trigger still works: ASR {rates['ASR'][1]}, allowed {100 * options.max_asr:.1f} %",
        "Do not use the purified weights. Try another method, or train a new network on data that you trust.",
    )


def _accuracy(options: Options, comparison: Comparison) -> Finding | None:
    if comparison.drop is None or comparison.drop <= options.max_drop + _ROUNDING:
        return None
    return Finding(
        "accuracy_lost",
        f"Accuracy lost: {100 * comparison.drop:.1f} points, allowed {100 * options.max_drop:.1f}",
        "Give more clean images, or a method that changes less: bound-feature, or bound-* with --quantile 1.",
    )


def _budget(options: Options, comparison: Comparison) -> Finding | None:
    budget = _allowed(options)
    if budget is None or comparison.changed.share <= budget:
        return None
    return Finding(
        "budget_missed",
        f"The budget is missed: {comparison.changed} of the held-out predictions changed, allowed {100 * budget:.1f} %",
        "Give more clean images: bounds from few images cut what they have not seen. Or allow more with --budget.",
    )


def _few(options: Options, comparison: Comparison) -> Finding | None:
    """Too few images, where one alone is more than an allowed share."""
    shares = [
        share for share in (_allowed(options), options.max_drop if comparison.labels is not None else None) if share
    ]
    needed = math.ceil(1 / min(shares)) if shares else 1
    if comparison.changed.count >= needed:
        return None
    total, count = math.ceil(needed / options.held_out), comparison.changed.count
    return Finding(
        "too_few_images",
        f"Too few images to judge: {count} held out, and a share of {100 * min(shares):.1f} % takes {needed}",
        f"Give {total} clean images or more, of which {needed} are held out.",
    )


def _allowed(options: Options) -> float | None:
    """The share of predictions that may change; None where nothing was promised."""
    return (options.budget or BUDGET) if options.bounds and options.quantile is None else None


def as_json(facts: Any, comparison: Comparison, written: str) -> dict[str, Any]:
    """The results as plain values; the book describes every entry. written: SHA-256 of the purified weights."""
    options, findings = facts.options, facts.findings
    target = comparison.target
    rates: dict[str, Any] = {
        name: {"before": _rate(before), "after": _rate(after)} for name, (before, after) in comparison.rates().items()
    }
    return {
        "schema": SCHEMA,
        "status": status(findings),
        "findings": [{"kind": f.kind, "text": f.text, "advice": f.advice} for f in findings],
        "scan": facts.scan_verdict,
        "candidates": [] if facts.scan is None else candidates(facts.scan, facts.names),
        "model": options.model,
        "weights": {"file": str(options.weights), "sha256": facts.read, "entry": facts.entry},
        "purified": {"file": str(options.out), "sha256": written, "report": str(options.report)},
        "method": options.method,
        "sites": list(comparison.sites),
        "pixels": facts.pixels.as_dict(),
        "classes": {str(number): name for number, name in facts.names.items()},
        "outputs": facts.outputs,
        "target": None
        if target is None
        else {"index": target, "name": facts.names.get(target), "guessed": comparison.guessed},
        "images": {
            "method": facts.working,
            "held_out": comparison.changed.count,
            "triggered": 0 if comparison.triggered_before is None else len(comparison.triggered_before),
            "skipped": list(facts.skipped),
        },
        "rates": rates | {"changed": _rate(comparison.changed)},
        "allowed": {"changed": _allowed(options), "drop": options.max_drop, "asr": options.max_asr},
        "notes": list(facts.notes),
        "seconds": round(facts.seconds, 3),
        "seed": options.seed,
        "date": facts.date,
        "provenance": facts.provenance,
    }


def candidates(findings: Findings, names: dict[int, str]) -> list[dict[str, Any]]:
    """What a scan found in each family of stamps, as plain values, without the stamps."""
    return [candidate.as_dict() | {"name": names.get(candidate.target)} for candidate in findings.candidates]


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    return {"share": rate.share, "hits": rate.hits, "count": rate.count, "low": low, "high": high}
