"""What the figures share: every seed is a dot, the mean a bar, a single run hollow."""

from typing import Any

from purifier_core.pages.statistics import Estimate

WIDTH = 4.6
"""Inches: on a phone's 390 pixels a text of 10 points is then about 10 pixels high."""

OURS = "#c2410c"
PUBLISHED_MARK: dict[str, Any] = {"s": 80, "facecolor": "none", "edgecolor": "0.2", "linewidth": 1.5}


def theme(style: str = "whitegrid") -> None:
    """Set the fonts and the grid of a figure."""
    import seaborn as sns

    sizes = {"font.size": 10, "axes.labelsize": 10, "axes.titlesize": 11, "legend.fontsize": 10}
    sns.set_theme(style=style, context="paper", rc=sizes | {"xtick.labelsize": 10, "ytick.labelsize": 10})


def seeds(axis: Any, value: Estimate, place: float, colour: str = OURS) -> None:
    """One dot for each seed around the height `place`, spread to either side, and the mean as a bar.

    One run alone is a hollow dot without a bar.
    """
    if value.n == 1:
        axis.scatter(value.mean, place, s=26, facecolor="white", edgecolor=colour, linewidth=1.4, zorder=3)
        return
    heights = [place + 0.2 * (2 * k / (value.n - 1) - 1) for k in range(value.n)]
    axis.plot([value.mean, value.mean], [place - 0.38, place + 0.38], color=colour, alpha=0.5, linewidth=2.5, zorder=2)
    axis.scatter(value.values, heights, s=20, color=colour, edgecolor="white", linewidth=0.4, zorder=3)


def legend(drawing: Any, colour: str = OURS, published: bool = True, **options: Any) -> None:
    """The legend of what `seeds` draws, and of the published ring, below the panels."""
    import matplotlib.pyplot as plt

    def line(label: str, **look: Any) -> Any:
        return plt.Line2D([], [], linestyle="", color=colour, label=label, **look)

    handles = [
        line("a seed", marker="o", markersize=4.5),
        line("their mean", marker="|", markersize=11, markeredgewidth=2.5, alpha=0.5),
        line("one run", marker="o", markersize=5.5, markerfacecolor="white"),
    ]
    options = {"loc": "outside lower left", "ncols": 4, "columnspacing": 1.2, "handletextpad": 0.3} | options
    drawing.legend(handles=[*([ring("published")] if published else []), *handles], frameon=False, **options)


def ring(label: str) -> Any:
    """The published ring for a legend."""
    import matplotlib.pyplot as plt

    return plt.Line2D(
        [], [], linestyle="", marker="o", markersize=8, markerfacecolor="none", markeredgecolor="0.2", label=label
    )
