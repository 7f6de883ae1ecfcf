"""How well a backdoored network is told from a clean one: the scan, and the detector that needs no images."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import drawing
from purifier_core.pages.repairs import NONE, OURS
from purifier_core.pages.statistics import took

DETECTORS = {"the scan": "p", "largest margins": "maximal"}
COLOURS = {"the scan": drawing.OURS, "largest margins": "#1d4ed8"}
_Z = 1.96  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Curve:
    """A ROC curve: the shares of clean networks suspected and of backdoored ones found, from the strictest threshold
    to the laxest; the area below it with an interval, and the networks of both kinds."""

    alarms: tuple[float, ...]
    found: tuple[float, ...]
    area: float
    low: float
    high: float
    clean: int
    backdoored: int


def networks(results: Results) -> tuple[list[Record], list[Record]]:
    """Scan-repair's records of clean networks, and of those whose backdoor took."""
    clean, backdoored = [], []
    for (row, column), records in results.by_place.items():
        if column != OURS:
            continue
        if row[0] == "none":
            clean += records
        elif took(results.by_place.get((row, NONE), [])):
            backdoored += records
    return clean, backdoored


def p_of(record: Record, detector: str) -> float:
    """The p-value that a detector gave the network of a record of Scan-repair."""
    value = record.diagnostics[DETECTORS[detector]]
    return value if isinstance(value, float | int) else value["p"]


def curve(clean: list[float], backdoored: list[float]) -> Curve:
    """The ROC curve of p-values; a small one is suspicious.

    The area is the share of pairs in which the backdoored network has the smaller p-value, ties half. Its variance is
    at most area * (1 - area) / n with n the networks of the rarer kind, whatever the distributions (Birnbaum and Klose,
    1957); the interval is Wilson's with that, and so rather too wide.
    """
    thresholds = sorted({*clean, *backdoored})
    alarms = [sum(p <= t for p in clean) / len(clean) for t in thresholds]
    hits = [sum(p <= t for p in backdoored) / len(backdoored) for t in thresholds]
    pairs = [(b < c) + (b == c) / 2 for b in backdoored for c in clean]
    area, n = sum(pairs) / len(pairs), min(len(clean), len(backdoored))
    middle = (area + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z * sqrt(area * (1 - area) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    ends = max(0.0, middle - reach), min(1.0, middle + reach)
    return Curve((0.0, *alarms), (0.0, *hits), area, *ends, len(clean), len(backdoored))


def curves(results: Results) -> dict[str, Curve]:
    """The curve of each detector; empty where there is no network of either kind."""
    clean, backdoored = networks(results)
    if not (clean and backdoored):
        return {}
    return {
        name: curve([p_of(record, name) for record in clean], [p_of(record, name) for record in backdoored])
        for name in DETECTORS
    }


def reading(results: Results) -> list[str]:
    """The areas with their intervals, in words."""
    rocs = curves(results)
    if not rocs:
        clean, backdoored = networks(results)
        counts = f"{len(clean)} clean networks and {len(backdoored)} backdoored ones"
        return [f"No curve yet: it takes networks of both kinds, and there are records of {counts}."]
    return [
        f"**{name}**: area {roc.area:.2f} ({roc.low:.2f} to {roc.high:.2f} with 95 % confidence), over "
        f"{roc.backdoored} backdoored networks and {roc.clean} clean ones."
        for name, roc in rocs.items()
    ]


def figure(results: Results) -> Any:
    """The curves of both detectors."""
    import matplotlib.pyplot as plt

    drawing.theme()
    picture, axis = plt.subplots(figsize=(drawing.WIDTH, 3.6), layout="constrained", dpi=160)
    axis.plot([0, 100], [0, 100], color="0.7", linewidth=1, linestyle=":")
    for name, roc in curves(results).items():
        across, up = ([100 * value for value in values] for values in (roc.alarms, roc.found))
        label = f"{name}: {roc.area:.2f}"
        axis.step(across, up, where="post", color=COLOURS[name], marker="o", markersize=3.5, label=label)
    axis.set_xlabel("clean networks suspected, percent")
    axis.set_ylabel("backdoored ones found, percent")
    axis.set_xlim(-3, 103)
    axis.set_ylim(-3, 103)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right", frameon=False, title="area below the curve")
    plt.close(picture)
    return picture
