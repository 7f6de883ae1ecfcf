"""The drawing of Purifier's three granularities, as inline SVG that takes its colours from the page.

The map drawn is a toy: 4 channels of 4 x 4 positions and 5 classes, so that head input and mask keep their
true proportions (4, 16 and 64 numbers). Weights and activations are arbitrary but fixed.
"""

from collections.abc import Callable
from html import escape

SIDE, DEPTH, CLASSES, CHOSEN = 4, 4, 5, 1
CELL, SHIFT_X, SHIFT_Y = 13, 15, 9
LEFT, WIDTH, HEIGHT = 20, 252, 448

Fill = Callable[[int, int, int], str]  # the look of cell (channel, row, column)

GRANULARITIES = {
    # name: what it weights, how it pools, length of the head's input, shape of the mask
    "channel": ("one weight for each channel", "mean over H and W", DEPTH, "C × 1 × 1"),
    "cube": ("one weight for each position", "mean over C", SIDE * SIDE, "1 × H × W"),
    "feature": ("one weight for each entry", "no pooling, flattened", DEPTH * SIDE * SIDE, "C × H × W"),
}
LENGTHS = {"channel": "C", "cube": "H · W", "feature": "C · H · W"}


def drawing(alt: str) -> str:
    """Three panels, one for each granularity; `alt` is read out in their place."""
    panels = "".join(_panel(name) for name in GRANULARITIES)
    return f'<div class="granularities" role="img" aria-label="{escape(alt)}">{panels}</div>'


def _panel(name: str) -> str:
    about, pooling, length, shape = GRANULARITIES[name]
    step = CELL if length <= SIDE * SIDE else CELL * SIDE * SIDE / length
    place = _index(name)
    chosen = [_weight(CHOSEN, i) for i in range(length)]
    seen: Fill = lambda c, i, j: "hit" if place(c, i, j) == place(0, 0, SIDE - 1) else _grey(c, i, j)  # noqa: E731
    mask: Fill = lambda c, i, j: _signed(chosen[place(c, i, j)])  # noqa: E731
    masked: Fill = lambda c, i, j: _signed(chosen[place(c, i, j)] * (0.35 + 0.65 * _activation(c, i, j)))  # noqa: E731

    parts = [
        _text(LEFT, 18, name.capitalize(), "title"),
        _text(LEFT, 37, about, "quiet"),
        _block(LEFT, 50, seen, range(DEPTH)),
        _text(LEFT - 13, 107, "H", "axis"),
        _text(LEFT + 21, 144, "W", "axis"),
        _text(LEFT + 14, 62, "C", "axis"),
        _text(136, 84, "feature map F", "strong"),
        _text(136, 102, "C × H × W"),
        _arrow(152, pooling),
        *(_rect(LEFT + i * step, 180, step, 12, _hit(i, place), step < 5) for i in range(length)),
        _text(LEFT, 209, f"head input v: {LENGTHS[name]} numbers"),
        _arrow(216, "linear head"),
    ]
    for k in range(CLASSES):
        look = "" if k == CHOSEN else " class='faint'"
        cells = (_rect(LEFT + i * step, 244 + 9 * k, step, 9, _signed(_weight(k, i)), step < 5) for i in range(length))
        parts.append(f"<g{look}>{''.join(cells)}</g>")
    parts += [
        f'<rect class="row" x="{LEFT - 1}" y="{244 + 9 * CHOSEN - 0.5}" width="{length * step + 2:g}" height="10"/>',
        _text(LEFT, 306, "head weight: one row for each class"),
        _arrow(313, "the row of class k, reshaped"),
        _block(LEFT, 338, mask, {"channel": range(DEPTH), "cube": range(1)}.get(name, range(DEPTH)), name == "channel"),
        _text(LEFT, 438, f"mask: {shape}", "strong"),
        f'<path class="line" d="M{LEFT + 104} 391h12m-4 -4l4 4l-4 4"/>',
        _block(LEFT + 128, 338, masked, range(DEPTH)),
        _text(LEFT + 148, 438, "F × mask", "strong"),
    ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _index(name: str) -> Callable[[int, int, int], int]:
    """Where in the head's input the entry (channel, row, column) of the map ends up."""
    return {
        "channel": lambda c, i, j: c,
        "cube": lambda c, i, j: SIDE * i + j,
        "feature": lambda c, i, j: SIDE * SIDE * c + SIDE * i + j,
    }[name]


def _hit(i: int, place: Callable[[int, int, int], int]) -> str:
    return "hit" if i == place(0, 0, SIDE - 1) else "grey g2"


def _activation(c: int, i: int, j: int) -> float:
    return ((5 * c + 3 * i + 7 * j + i * j) % 8) / 7


def _weight(k: int, i: int) -> float:
    return (((i * i * 7 + i * 11 + k * 5 + 3) * 13) % 17 - 8) / 8


def _grey(c: int, i: int, j: int) -> str:
    return f"grey g{round(4 * _activation(c, i, j))}"


def _signed(weight: float) -> str:
    return f"{'plus' if weight > 0 else 'minus'} s{min(4, 1 + int(4 * abs(weight)))}"


def _block(x: float, y: float, fill: Fill, channels: range, tiles: bool = False) -> str:
    """A stack of slices, the first channel in front; with `tiles`, one cell for each slice."""
    cells = []
    for c in reversed(channels):
        left, top = x + SHIFT_X * c, y + SHIFT_Y * (DEPTH - 1 - c)
        if tiles:
            cells.append(_rect(left, top + SIDE * CELL / 2, CELL, CELL, fill(c, 0, 0)))
            continue
        side = SIDE * CELL
        cells.append(f'<rect class="paper" x="{left:g}" y="{top:g}" width="{side}" height="{side}"/>')
        for i in range(SIDE):
            for j in range(SIDE):
                cells.append(_rect(left + CELL * j, top + CELL * i, CELL, CELL, fill(c, i, j)))
    return "".join(cells)


def _rect(x: float, y: float, width: float, height: float, look: str, bare: bool = False) -> str:
    look += " bare" if bare else ""
    return f'<rect class="cell {look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'


def _text(x: float, y: float, words: str, look: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{look}">{escape(words)}</text>'


def _arrow(y: float, words: str) -> str:
    return f'<path class="line" d="M{LEFT + 8} {y:g}v20m-4 -5l4 5l4 -5"/>' + _text(LEFT + 22, y + 15, words, "quiet")
