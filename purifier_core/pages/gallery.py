"""The attacks: what each trigger looks like on each dataset, and how well it takes in an undefended network."""

import base64
import io
from typing import Any

import numpy as np
import pandas as pd

from purifier_core.lab.methods import ATTACKS, PAPER, attacks, title
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.report import METRICS
from purifier_core.pages.statistics import TAKEN, measured, took


def by_attack(results: Results) -> dict[tuple[str, str], list[Record]]:
    """The records of each (attack, dataset), seed by seed."""
    return {row: records for (row, _), records in results.by_place.items()}


def table(results: Results) -> pd.DataFrame:
    """ACC and ASR in percent of the undefended network, and the number of seeds: a column for each attack, as text."""
    by_row = by_attack(results)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for attack, dataset in results.experiment.rows(results.profile):
        records = by_row.get((attack, dataset), [])
        for metric in METRICS:
            text = measured(records, metric).text(2) if records else "missing"
            lines.setdefault((title(dataset), metric.upper()), {})[ATTACKS[attack].label] = text
        lines.setdefault((title(dataset), "n"), {})[ATTACKS[attack].label] = str(len(records))
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["dataset", "%"])
    return frame


def reading(results: Results) -> list[str]:
    """Which attacks took, and which did not, from the records alone."""
    lines = []
    for dataset in dict.fromkeys(dataset for _, dataset in results.experiment.rows(results.profile)):
        undefended = {attack: records for (attack, name), records in by_attack(results).items() if name == dataset}
        strong = [ATTACKS[attack].label for attack, records in undefended.items() if took(records)]
        others = {attack: records for attack, records in undefended.items() if not took(records)}
        some = [_asr(a, r) for a, r in others.items() if any(took([record]) for record in r)]
        none = [_asr(a, r) for a, r in others.items() if not any(took([record]) for record in r)]
        if undefended:
            line = f"{title(dataset)} (profile {results.shown}): an ASR of {100 * TAKEN:g} % or more in every seed for "
            parts = [f"{line}{', '.join(strong) or 'none'}", some and f"In some seeds: {', '.join(some)}"]
            parts += [none and f"In no seed: {', '.join(none)}"]
            lines.append(". ".join(part for part in parts if part) + ".")
    return lines or [f"No record at profile {results.shown} is there yet."]


def _asr(attack: str, records: list[Record]) -> str:
    return f"{ATTACKS[attack].label} (ASR {measured(records, 'asr').text()})"


def figure(results: Results) -> Any:
    """One test image of each dataset as it is and stamped by every attack, and below it what the stamp changed."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="white", context="notebook")
    examples = {row: records[0] for row, records in by_attack(results).items() if "sample" in records[0].diagnostics}
    datasets = list(dict.fromkeys(dataset for _, dataset in examples)) or ["mnist"]
    drawing, axes = plt.subplots(
        2 * len(datasets),
        1 + len(attacks(PAPER)),
        figsize=(9, 3.1 * len(datasets) + 0.3),
        squeeze=False,
        layout="constrained",
        dpi=160,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, dataset in enumerate(datasets):
        above, below = axes[2 * number], axes[2 * number + 1]
        for place, attack in enumerate(attacks(PAPER), start=1):
            if number == 0:
                above[place].set_title(ATTACKS[attack].label.replace(" (", "\n("), fontsize=10)
            if record := examples.get((attack, dataset)):
                clean, stamped = (_pixels(record.diagnostics["sample"][name]) for name in ("clean", "triggered"))
                above[0].imshow(clean)
                above[0].set_title(f"{title(dataset)}, clean", fontsize=10)
                above[place].imshow(stamped)
                change = stamped.astype(float) - clean
                below[place].imshow(np.clip(0.5 + change / 2 / max(1.0, np.abs(change).max()), 0, 1))
        below[0].text(1, 0.5, "change,\nscaled", ha="right", va="center", fontsize=10, transform=below[0].transAxes)
    plt.close(drawing)
    return drawing


def _pixels(sample: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sample))))
