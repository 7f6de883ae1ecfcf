"""Comparisons before and after as tables and a figure, for notebooks. No torch is needed to import it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def rates(found: Mapping[str, Any]) -> pd.DataFrame:
    """A column for each `measure.Comparison`: ACC and ASR before and after, and the share of changed predictions."""
    rows = {}
    for name, comparison in found.items():
        pairs = comparison.rates().items()
        rows[name] = {f"{rate} {when}": str(v) for rate, pair in pairs for when, v in zip(_WHEN, pair, strict=True)}
        rows[name]["predictions changed"] = str(comparison.changed)
    return pd.DataFrame(rows)


def units(one: Any, count: int = 8) -> pd.DataFrame:
    """The units of a comparison that suppress most, with the shares over clean and over triggered images."""
    rows = {}
    for site, clean, triggered in one.most()[:count]:
        rows[site] = {"clean": _percent(clean)} | ({} if triggered is None else {"triggered": _percent(triggered)})
    return pd.DataFrame.from_dict(rows, orient="index")


def heat(network: Any, clean: Any, triggered: Any) -> Any:
    """Six clean and six triggered images (N, 3, H, W), uint8, each above what a network's bounds cut off in it, in red.

    One scale for all of them: what is cut of a triggered image is seen against what is cut of a clean one.
    """
    import matplotlib.pyplot as plt
    import torch

    from purifier_core.fix.measure import cuts

    count = 6
    images = torch.cat([clean[:count], triggered[:count]])
    maps = cuts(network, images)
    drawing, axes = plt.subplots(4, count, figsize=(9, 6.4), dpi=120)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for place, (image, cut) in enumerate(zip(images, maps, strict=True)):
        row, column = divmod(place, count)
        axes[2 * row, column].imshow(image.permute(1, 2, 0).cpu().numpy())
        axes[2 * row + 1, column].imshow(cut.numpy(), cmap="Reds", vmin=0, vmax=float(maps.quantile(0.995)))
    for row, name in enumerate(("clean", "cut", "triggered", "cut")):
        axes[row, 0].set_ylabel(name)
    drawing.tight_layout()
    plt.close(drawing)
    return drawing


_WHEN = ("before", "after")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
