"""What the records tell of a method's inside: Purifier's units, and what ABL isolates."""

import pandas as pd

from purifier_core.pages.report import grouped, row_head, row_label
from purifier_core.runner import Results


def units(results: Results) -> pd.DataFrame:
    """What Purifier's units do, in percent: one row for each row and Purifier column, means over seeds."""
    rows = {}
    for (row, column), found in grouped(results).items():
        inside = [
            (r.acc or 0.0, r.diagnostics["clean"], r.diagnostics["triggered"])
            for r in found
            if "clean" in r.diagnostics
        ]
        if not inside:
            continue
        rows[row_head(results.experiment, row), column.label] = {
            "ACC": [acc for acc, _, _ in inside],
            "first head's ACC": [clean["heads"][0] for _, clean, _ in inside],
            "agrees with first head, clean": [clean["first_head_agreement"] for _, clean, _ in inside],
            "agrees, triggered": [hit["first_head_agreement"] for _, _, hit in inside],
            "oracle-mask ACC": [clean["oracle"] for _, clean, _ in inside],
        }
    text = {g: {k: f"{100 * sum(v) / len(v):.1f}" for k, v in row.items()} for g, row in rows.items()}
    table = pd.DataFrame.from_dict(text, orient="index")
    table.index = (
        pd.MultiIndex.from_tuples(list(rows), names=[results.experiment.axis, "module"]) if rows else table.index
    )
    return table


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
