"""Comparisons before and after as tables and a figure, for notebooks. No torch is needed to import it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def rates(found: Mapping[str, Any]) -> pd.DataFrame:
    """A column for each `measure.Comparison`: ACC and ASR before and after, and the share of changed predictions."""
    rows = {}
    for name, one in found.items():
        pairs = one.rates().items()
        rows[name] = {f"{rate} {when}": str(v) for rate, pair in pairs for when, v in zip(_WHEN, pair, strict=True)}
        rows[name]["predictions changed"] = str(one.changed)
    return pd.DataFrame(rows)


def units(one: Any, count: int = 8) -> pd.DataFrame:
    """The units of a comparison that suppress most, with the shares over clean and over triggered images."""
    rows = {}
    for site, clean, triggered in one.most()[:count]:
        rows[site] = {"clean": _percent(clean)} | ({} if triggered is None else {"triggered": _percent(triggered)})
    return pd.DataFrame.from_dict(rows, orient="index")


def gallery(images: Any, one: Any, count: int = 12) -> Any:
    """The clean images (N, 3, H, W), uint8, that a comparison finds suppressed most, with share and prediction."""
    import matplotlib.pyplot as plt

    shares = one.suppressed.by_image
    places = shares.argsort(descending=True)[:count].tolist()
    drawing, axes = plt.subplots(
        -(-len(places) // 6), min(6, len(places)), figsize=(9, 1.95 * -(-len(places) // 6)), squeeze=False, dpi=120
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, place in zip(axes.flat, places, strict=False):
        before, after = int(one.before[place]), int(one.after[place])
        axis.imshow(images[place].permute(1, 2, 0).cpu().numpy())
        predicted = f"{before}" if before == after else f"{before} → {after}"
        axis.set_title(f"{_percent(float(shares[place]))}\nas {predicted}", fontsize=9)
    drawing.tight_layout()
    plt.close(drawing)
    return drawing


_WHEN = ("before", "after")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
