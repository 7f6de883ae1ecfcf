"""Scan and repair, as the lab calls them: `purifier_core.scanning` and `purifier_core.repairing` are the method."""

from dataclasses import replace
from typing import Any

from purifier_core.lab.defenses import Defended, Given
from purifier_core.maximal import maximal_margins
from purifier_core.repairing import Repaired, repair
from purifier_core.scanning import Findings, scan
from purifier_core.training import Effort


def defend(given: Given) -> Defended:
    """The repaired network, and what the scan found; where nothing stands out it is the given one.

    The detector without images judges the same network beside it, outside of the scan's seconds: from 10 starts a class
    where there are 10 classes, and fewer where there are more.
    """
    findings = scan(*given.data, how=given.profile.scanning, seed=given.seed)
    classes = len(findings.margins["pixel"])
    starts = max(3, 100 // classes)
    channels, height, width = given.images.shape[1:]
    maximal = maximal_margins(given.model, (channels, height, width), starts=starts, seed=given.seed)
    judged = {"target": maximal.target, "p": maximal.p, "starts": starts, "seconds": round(maximal.seconds, 2)}
    defended = _repaired(given, findings)
    return replace(defended, diagnostics=defended.diagnostics | {"maximal": judged}, aside=maximal.seconds)


def defend_anyway(given: Given) -> Defended:
    """The repaired network, whatever the scan says: of each family of stamps the foremost class is unlearned."""
    return _repaired(given, scan(*given.data, how=given.profile.scanning, seed=given.seed), anyway=True)


def _repaired(given: Given, findings: Findings, anyway: bool = False) -> Defended:
    model = repair(*given.data, findings, anyway=anyway, how=given.profile.unlearning, seed=given.seed)
    notes: dict[str, Any] = {
        "verdict": findings.verdict,
        "reason": findings.reason,
        "p": findings.p,
        "suspects": [candidate.as_dict() for candidate in findings.suspects],
        "candidates": [candidate.as_dict() for candidate in findings.candidates],
        "scan_seconds": round(findings.seconds, 2),
    }
    if not isinstance(model, Repaired):
        return Defended(model, Effort(seconds=findings.seconds), notes)
    notes |= {"quantile": model.quantile, "changed": model.changed, "sites": list(model.sites)}
    return Defended(model, model.effort, notes)
