"""Scan and repair, as the lab calls them: `purifier_core.scanning` and `purifier_core.repairing` are the method."""

from typing import Any

from purifier_core.lab.defenses import Defended, Given
from purifier_core.repairing import Repaired, repair
from purifier_core.scanning import Candidate, scan
from purifier_core.training import Effort


def defend(given: Given) -> Defended:
    """The repaired network, and what the scan found; where nothing stands out it is the given one."""
    findings = scan(*given.data, how=given.profile.scanning, seed=given.seed)
    model = repair(*given.data, findings, how=given.profile.unlearning, seed=given.seed)
    notes: dict[str, Any] = {
        "verdict": findings.verdict,
        "candidates": [_told(candidate) for candidate in findings.candidates],
        "scan_seconds": round(findings.seconds, 2),
    }
    if isinstance(model, Repaired):
        notes |= {"quantile": model.quantile, "changed": model.changed, "sites": list(model.sites)}
        return Defended(model, model.effort, notes)
    return Defended(model, Effort(seconds=findings.seconds), notes)


def _told(candidate: Candidate) -> dict[str, Any]:
    """A candidate for a record, without its stamp."""
    return {name: value for name, value in vars(candidate).items() if name != "stamp"}
