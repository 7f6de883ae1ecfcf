"""What the records tell of a method's inside: Purifier's units, and what ABL isolates."""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.experiments.grids import Experiment
from purifier_core.pages.report import grouped, row_head, row_label
from purifier_core.runner import Results


def units(results: Results, head: Callable[[Experiment, Any], Any] = row_head) -> pd.DataFrame:
    """What Purifier's units do, in percent: one row for each row and Purifier column, means over seeds.

    Where a column names several values, they are those of the heads in the order in which they run. `head` names a row.
    """
    rows = {}
    for (row, column), found in grouped(results).items():
        inside = [r for r in found if "clean" in r.diagnostics]
        if not inside:
            continue
        clean, hit = ([r.diagnostics[images] for r in inside] for images in ("clean", "triggered"))
        rows[head(results.experiment, row), column.label] = {
            "ACC": _mean(r.acc or 0.0 for r in inside),
            "heads' ACC": " / ".join(map(_mean, zip(*(c["heads"] for c in clean), strict=True))),
            "agrees with first head, clean": _mean(c["first_head_agreement"] for c in clean),
            "oracle-mask ACC": _mean(c["oracle"] for c in clean),
            "ASR": _mean(r.asr or 0.0 for r in inside),
            "heads' ASR": " / ".join(map(_mean, zip(*(h["heads"] for h in hit), strict=True))),
            "agrees, triggered": _mean(h["first_head_agreement"] for h in hit),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    if rows:
        table.index = pd.MultiIndex.from_tuples(list(rows), names=[results.experiment.axis, "module"])
    return table


def _mean(fractions: Iterable[float]) -> str:
    return f"{100 * fmean(fractions):.1f}"


def isolation(results: Results) -> list[str]:
    """A sentence for each row on the images that ABL isolated and then unlearned, seed by seed."""
    lines = []
    for (row, column), found in grouped(results).items():
        if column.defense != "abl":
            continue
        shares = ", ".join(f"{100 * r.diagnostics['isolation_precision']:.1f} %" for r in found)
        count = ", ".join(dict.fromkeys(f"{r.diagnostics['isolated']:,}" for r in found))
        chance = 100 * found[0].cell.poison_ratio / (1 + found[0].cell.poison_ratio)
        lines.append(
            f"ABL at {row_label(results.experiment, row)}: of the {count} images that it isolated, {shares} carry the "
            f"trigger (one value for each seed, {', '.join(str(r.cell.seed) for r in found)}); chance would give "
            f"{chance:.1f} %. What it isolated is what it unlearned."
        )
    return lines or ["No record of ABL is there yet."]
