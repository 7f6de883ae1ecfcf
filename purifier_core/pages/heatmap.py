"""A heat map of ASR: every defense against every attack, each seed a stripe."""

import textwrap
from typing import Any

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.methods import ATTACKS, ours, title
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import drawing
from purifier_core.pages.statistics import measured, paired, results_of

_COLOURS = "blend:#bcd9e3,#f6d5a8,#c2410c,#5c1a08"
_DARK = 45.0  # from this ASR on the ink is white

NONE = Column("none")


def figure(results: Results, rows: list[Any], cost: float, below: list[str]) -> Any:
    """A heat map of ASR: `rows` are attacks, by dataset; columns are defenses. `below` are lines of text.

    One stripe for each seed, one run hollow, and the mean as a number. If accuracy fell by more than `cost` points,
    this change stands below it.
    """
    import matplotlib.pyplot as plt

    by_place, columns = results.by_place, results.experiment.columns()
    lines = _lines(rows)
    drawing.theme("white")
    picture, axis = plt.subplots(figsize=(5.4, 0.36 * len(lines) + 2.9), layout="constrained", dpi=160)
    places = _across(columns)
    for height, (text, row) in enumerate(lines):
        if row is None:
            axis.text(0, height + 0.8, text, fontweight="bold", fontsize=10)
            continue
        for column, place in zip(columns, places, strict=True):
            records = by_place.get((row, column), [])
            _cell(axis, place, height, records, _fall(records, by_place.get((row, NONE), []), cost))
    axis.set_xlim(-0.05, places[-1] + 1.05)
    axis.set_ylim(max(1, len(lines)) + 0.05, -0.05)
    axis.set_xticks([place + 0.5 for place in places], [c.label for c in columns], rotation=90)
    axis.xaxis.tick_top()
    ticks = [(height, text) for height, (text, row) in enumerate(lines) if row is not None]
    axis.set_yticks([height + 0.5 for height, _ in ticks], [text for _, text in ticks])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    _legend(picture, axis)
    notes = "\n".join(textwrap.fill(line, 68) for line in below)
    picture.supxlabel(notes, x=0.01, ha="left", fontsize=10)
    plt.close(picture)
    return picture


def _lines(rows: list[Any]) -> list[tuple[str, Any]]:
    """From top to bottom: a dataset's name without a row, then its attacks, each with its row."""
    lines: list[tuple[str, Any]] = []
    for attack, dataset in rows:
        if (title(dataset), None) not in lines:
            lines.append((title(dataset), None))
        lines.append((short_attack(attack), (attack, dataset)))
    return lines


def short_attack(attack: str) -> str:
    """The label of an attack in short."""
    return ATTACKS[attack].label.partition(" (")[0].removeprefix("BadNets, ")


def _across(columns: list[Column]) -> list[float]:
    """Where the columns begin: a gap after "No Defense", and one before our own."""
    own = [number for number, column in enumerate(columns) if column.defense in ours()]
    return [n + 0.3 * (n > 0) + 0.3 * bool(own and n >= own[0]) for n in range(len(columns))]


def _fall(records: list[Record], before: list[Record], cost: float) -> str:
    """The change of ACC in points, paired by seed, if it is a fall of more than `cost`; else empty."""
    change = paired(results_of(records), before, "acc")
    return f"{change.mean:.0f}" if change and change.mean < -cost else ""


def _cell(axis: Any, x: float, y: float, records: list[Record], fall: str) -> None:
    """One cell of the map, one unit wide and high, with the text of a fall of accuracy."""
    import matplotlib.pyplot as plt

    box, middle = (x + 0.03, y + 0.03), {"ha": "center", "va": "center"}
    results = results_of(records)
    if not results:
        if records:
            axis.add_patch(plt.Rectangle(box, 0.94, 0.94, facecolor="0.93", edgecolor="0.7", hatch="////", linewidth=0))
        axis.text(x + 0.5, y + 0.5, "none" if records else "–", fontsize=8.5, color="0.25", **middle)
        return
    value, colour = measured(results, "asr"), _colours()
    if value.n == 1:
        edge = colour(value.mean / 100)
        axis.add_patch(plt.Rectangle((x + 0.08, y + 0.08), 0.84, 0.84, facecolor="white", edgecolor=edge, linewidth=2))
        inks = {"0.15"}
    else:
        width = 0.94 / value.n
        for k, asr in enumerate(sorted(value.values)):
            stripe = (box[0] + k * width, box[1])
            axis.add_patch(plt.Rectangle(stripe, width, 0.94, facecolor=colour(asr / 100), linewidth=0))
        inks = {"white" if asr > _DARK else "0.15" for asr in value.values}
    height = 0.32 if fall else 0.5
    _ink(axis.text(x + 0.5, y + height, f"{value.mean:.0f}", fontsize=9, **middle), inks)
    _ink(axis.text(x + 0.5, y + 0.74, fall, fontsize=8.5, fontstyle="italic", **middle), inks)


def _colours() -> Any:
    import seaborn as sns

    return sns.color_palette(_COLOURS, as_cmap=True)


def _ink(text: Any, inks: set[str]) -> None:
    """Colour a number so that it is read on every stripe below it; a halo where light and dark stripes meet."""
    from matplotlib.patheffects import withStroke

    text.set_color("0.15" if len(inks) > 1 else next(iter(inks)))
    if len(inks) > 1:
        text.set_path_effects([withStroke(linewidth=2.2, foreground="white")])


def _legend(picture: Any, axis: Any) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.cm import ScalarMappable

    scale = ScalarMappable(plt.Normalize(0, 100), _colours())
    bar = picture.colorbar(scale, ax=axis, orientation="horizontal", aspect=45, pad=0.02)
    bar.set_label("ASR in percent, a stripe for each seed")
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)  # else it is a bitmap among vectors
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#c2410c", linewidth=2, label="one run"),
        plt.Rectangle((0, 0), 1, 1, facecolor="0.93", edgecolor="0.7", hatch="////", label="ANP: no threshold"),
        plt.Line2D([], [], linestyle="", marker="$-9$", color="0.15", markersize=11, label="ACC lost, points"),
    ]
    picture.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, columnspacing=1.2)
