"""The published numbers among themselves: what they imply, and where they do not fit together. No record is read."""

import math
from typing import Any

import pandas as pd

from purifier_core.lab.records import published


def oddities() -> list[str]:
    """What the published tables say of themselves, computed from them alone."""
    three, four = published("table3"), published("table4")
    fits = [row for row, methods in admissible_epochs().iterrows() if "none" not in set(methods)]
    pruned = [
        (
            t[t.method == "Fine-pruning"].acc_percent.to_numpy() > t[t.method == "No Defense"].acc_percent.to_numpy()
        ).tolist()
        for t in (three, four)
    ]
    wins = sum(map(sum, pruned))
    least = four[four.poison_ratio_percent == 5].set_index("method").acc_percent
    both = [method for method in three.method.unique() if method in least.index]
    lower = [m for m in both if least[m] < three[three.method == m].acc_percent.min()]
    tuned = three[three.method.isin(["Finetuning", "Fine-pruning", "NAD"])].groupby("method").acc_percent
    flat = (tuned.max() - tuned.min()).max()
    return [
        f"Rows of Table 3 in which every method fits its bars: {', '.join(map(str, fits)) or 'none'}.",
        f"Fine-pruning raises ACC above the undefended model in {wins} of {sum(map(len, pruned))} rows of both tables; "
        "it ends in a finetuning.",
        f"ACC of Finetuning, Fine-pruning and NAD varies by at most {flat:.2f} points over the three clean sizes.",
        f"At 5 % of poison, in Table 4, ACC is lower than in any row of Table 3 for: {', '.join(lower) or 'none'}.",
    ]


def implied_epochs() -> pd.DataFrame:
    """The epochs N that each published bar admits, from the published numbers alone.

    MNIST: the bar and Table 3's ASR at 3,000 clean images (for ABL Table 4's at 5 %), both rounded to two decimals,
    bound N from both sides. Any dataset: since ASR is at least 0, N is at most 100 / bar.
    """
    asr = published("table3").query("clean_size == 3000").set_index("method").asr_percent.to_dict()
    asr["ABL"] = published("table4").query("poison_ratio_percent == 5").set_index("method").asr_percent["ABL"]
    rows = {}
    for method, group in published("figure13").groupby("method", sort=False):
        value = group.set_index("dataset").one_minus_asr_per_epoch_percent
        low, high = _bounds(asr[str(method)], value["MNIST"])
        rows[method] = {
            "ASR, %": f"{asr[str(method)]:.2f}",
            "bar on MNIST, %": f"{value['MNIST']:.2f}",
            "N on MNIST": f"{low:.1f} to {high:.1f}" if high < float("inf") else f"at least {low:.1f}",
            "N on any dataset": f"at most {min(100 / (v - 0.005) for v in value if v > 0.005):.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def admissible_epochs() -> pd.DataFrame:
    """Which whole numbers of epochs fit each row of Table 3 and the bars of Figure 13 together, or "none".

    From MNIST's bar and the row's ASR, and from every other bar of the method, whose ASR is at least 0.
    """
    lines: dict[Any, dict[str, str]] = {}
    for row in published("table3").itertuples():
        if span := _span(str(row.method), row.asr_percent):
            first, last = span
            text = "none" if first > last else str(first) if first == last else f"{first} to {last}"
            lines.setdefault(f"{row.clean_size:,} images", {})[str(row.method)] = text
    return pd.DataFrame.from_dict(lines, orient="index")


def epochs_of(method: str) -> int | None:
    """The epochs of a method, where Table 3's row of 3,000 and the bars of Figure 13 leave one number; else None."""
    table = published("table3").query("clean_size == 3000").set_index("method").asr_percent
    span = _span(method, table[method]) if method in table else None
    return span[0] if span and span[0] == span[1] else None


def _span(method: str, asr_percent: float) -> tuple[int, int] | None:
    """The fewest and the most whole epochs that a method's bars admit with an ASR on MNIST; None without bars."""
    bars = published("figure13")
    value = bars[bars.method == method].set_index("dataset").one_minus_asr_per_epoch_percent
    if value.empty:
        return None
    low, high = _bounds(asr_percent, value["MNIST"])
    most = min(100 / (v - 0.005) if v > 0.005 else float("inf") for v in value)
    low, high = round(low, 9), round(min(high, most, 10_000), 9)  # whole where they are whole in decimals
    return math.ceil(low), math.floor(high)


def _bounds(asr_percent: float, bar: float) -> tuple[float, float]:
    """The N for which (100 - ASR) / N rounds to `bar`, when ASR itself is rounded to two decimals."""
    most, least = 100 - asr_percent + 0.005, max(0.0, 100 - asr_percent - 0.005)
    return least / (bar + 0.005), most / (bar - 0.005) if bar > 0.005 else float("inf")
