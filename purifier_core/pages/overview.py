"""Every table and figure of the supplement on one page: published, ours, and whether they agree. By rule, from records.

The rules are in `RULES`, in words, and are shown beside what they decide.
"""

import platform
from collections import Counter
from importlib import metadata

import pandas as pd

from purifier_core.config import GRANULARITIES, LABELS
from purifier_core.experiments import EXPERIMENTS
from purifier_core.experiments.supplement import SUPPLEMENT
from purifier_core.pages import anomaly, efficiency
from purifier_core.pages.report import METRICS, TAKEN, estimates, paper_values
from purifier_core.profiles import PROFILES
from purifier_core.records import Record, Store, current
from purifier_core.runner import Results, look_up, widened

NEAR = 2.0

RULES = f"""\
- **Tables 3 and 4.** A pair of ACC and ASR is *near* if both lie within {NEAR:g} percentage points of the mean over our
  seeds. Counted over all rows, apart for the *compared* defenses (and the undefended model) and for Purifier under each
  `init`: *reproduces* if all are near, *mostly* at half or more, *in part* at fewer, *does not* at
  none.
- **Figure 10.** The anomaly is *seen* if at least {100 * anomaly.EXCESS:g} % of the magnitude on triggered images lies
  above what any clean class reaches.
- **Figure 11.** *Same direction* if triggered images drive the layer harder on the mean, as published.
- **Figures 10 and 12** decide nothing where the undefended network has an ASR below {100 * TAKEN:g} %.
- **Figure 12.** The anomaly is *suppressed* if the part above every class is at most half of what it is without the
  module.
- **Figure 13.** The rank correlation (Spearman's) of our bars with the published ones, in each dataset: *same order*
  from 0.8, *similar order* from 0.5, else *another order*.
"""


def table(store: Store | None = None) -> pd.DataFrame:
    """One line for each table and figure; the index is its name."""
    lines = {}
    for kind in SUPPLEMENT:
        results = look_up(kind(), store)
        judge = {"figure10": _figure10, "figure11": _figure11, "figure12": _figure12, "figure13": _figure13}
        published, ours, verdict = judge.get(kind.name, _table)(results) if results.records else ("–", "missing", "–")
        seeds = sorted({r.cell.seed for r in results.records})
        lines[kind.title] = {
            "published": published,
            "ours": ours,
            "verdict": verdict,
            "records": f"{results.shown}; seeds {', '.join(map(str, seeds)) or 'none'}"
            + (f"; {len(results.missing)} missing" if results.missing else ""),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def linked(store: Store | None = None) -> pd.DataFrame:
    """`table`, its names as links from a page of the book to the notebooks' pages."""
    found = table(store)
    titles = {kind.title: kind.name for kind in SUPPLEMENT}
    found.index = pd.Index([f'<a href="../notebooks/{titles[t]}.html">{t}</a>' for t in found.index], name="supplement")
    return found


def progress(store: Store | None = None) -> pd.DataFrame:
    """What is done, missing and failed, and the seconds of the done, by experiment and profile."""
    done, failed = current((store or Store()).all())
    lines = {}
    for name, kind in EXPERIMENTS.items():
        for profile in PROFILES:
            cells = widened(kind(), profile, set(done)).cells(profile)
            there = [done[c] for c in cells if c in done]
            lines[name, profile] = {
                "cells": len(cells),
                "done": len(there),
                "missing": len(cells) - len(there),
                "failed": sum(c in failed for c in cells),
                "seconds": round(sum(map(seconds, there))),
            }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["experiment", "profile"])
    return frame


def seconds(record: Record) -> float:
    """What a record took, with the training of its backdoored model for the undefended cell, also if it was cached."""
    return max(record.provenance.get("wall_seconds", 0.0), record.effort["seconds"])


def one_seed(profile: str, store: Store | None = None) -> str:
    """A sentence on what one seed of everything costs at a profile: seed 0, each shared cell counted once."""
    cells = {c for kind in EXPERIMENTS.values() for c in kind(profile=profile, seeds=0).whole().cells(profile)}
    found = [r for r in (store or Store()).all() if r.cell in cells and not (r.failed or r.stale)]
    hours = sum(map(seconds, found)) / 3600
    gaps = f", and {len(cells) - len(found)} are missing" if len(found) < len(cells) else ""
    return (
        f"One seed of everything in this book at profile {profile} is {len(cells)} cells; the "
        f"records of seed 0 took {hours:.1f} hours of one process{gaps}."
    )


def origins(store: Store | None = None) -> pd.DataFrame:
    """What the current records are made of: how many name each data copy, device, version and commit."""
    records = [r for r in (store or Store()).all() if not (r.failed or r.stale) and r.cell.profile != "quick"]
    every = Counter(
        (heading, str(value))
        for r in records
        for heading, value in {
            "data": f"{r.data['copy']}; fingerprint {r.data['fingerprint']}",
            "device": r.provenance["device"],
            "Python": r.provenance["versions"]["python"],
            "torch": r.provenance["versions"]["torch"],
            "commit": (r.provenance["commit"] or "none")[:9],
        }.items()
    )
    found = pd.DataFrame({"records": {key: str(count) for key, count in sorted(every.items())}})
    if every:
        found.index = pd.MultiIndex.from_tuples(sorted(every), names=["", "as recorded"])
    return found


def versions() -> pd.DataFrame:
    """The versions that draw these pages."""
    packages = ("jupyter-book", "sphinx", "myst-nb", "pandas", "matplotlib", "seaborn", "numpy", "scipy")
    return pd.DataFrame({"version": {"Python": platform.python_version()} | {p: metadata.version(p) for p in packages}})


def _table(results: Results) -> tuple[str, str, str]:
    ours, paper = estimates(results), paper_values(results.experiment)
    near: dict[str, list[bool]] = {}
    for column in results.experiment.columns():
        group = dict(column.switches)["init"] if column.defense in GRANULARITIES else "compared"
        for row in results.experiment.rows(results.profile):
            values = [(ours.get((row, column, m)), paper.get((row, LABELS[column.defense], m))) for m in METRICS]
            pairs = [(mine.mean, stated) for mine, stated in values if mine is not None and stated is not None]
            if len(pairs) == len(METRICS):
                near.setdefault(group, []).append(all(abs(a - b) <= NEAR for a, b in pairs))
    words = {g: f"<code>{g}</code>" if g != "compared" else g for g in near}
    counted = "<br>".join(f"{words[g]}: {sum(n)} of {len(n)} near" for g, n in near.items())
    verdict = "<br>".join(f"{words[g]}: {_how_many(sum(n) / len(n))}" for g, n in near.items())
    return "ACC and ASR of each defense", counted, verdict


def _how_many(part: float) -> str:
    return "reproduces" if part == 1 else "mostly" if part >= 0.5 else "in part" if part else "does not"


def _figure10(results: Results) -> tuple[str, str, str]:
    (excess,) = anomaly.excess(results).values()
    told = f"{100 * excess:.1f} % of the magnitude lies above every clean class"
    verdict = f"the anomaly is {'seen' if anomaly.seen(excess) else 'not seen'}"
    return "a picture, no numbers", told, anomaly.weak(results) or verdict


def _figure11(results: Results) -> tuple[str, str, str]:
    ((first, *_),) = anomaly.by_column(results).values()
    layer = first.diagnostics["activations"]
    stated, ours = (
        anomaly.map_numbers(*anomaly.published_maps()),
        anomaly.map_numbers(layer["clean_map"], layer["triggered_map"]),
    )
    said = [f"mean ×{n['ratio']:.2f}, correlation {n['correlation']:.2f}" for n in (stated, ours)]
    return said[0], said[1], "same direction" if ours["ratio"] > 1 else "opposite direction"


def _figure12(results: Results) -> tuple[str, str, str]:
    excess = {column.label: value for column, value in anomaly.excess(results).items()}
    before = excess.pop("No Defense")
    shown = "<br>".join(f"{_code(name)}: {100 * value:.1f} %" for name, value in excess.items())
    verdict = "<br>".join(
        f"{_code(name)}: {'suppressed' if anomaly.suppressed(before, value) else 'not suppressed'}"
        for name, value in excess.items()
    )
    told = f"above every class: without the module {100 * before:.1f} %<br>{shown}"
    return "a picture, no numbers", told, anomaly.weak(results) or verdict


def _code(label: str) -> str:
    return f"<code>{label.split('(')[1].rstrip(')')}</code>"


def _figure13(results: Results) -> tuple[str, str, str]:
    bars = efficiency.bars(results).pivot_table(index=["dataset", "method"], columns="source", values="value")
    if "ours" not in bars:
        return "bars", "missing", "missing"
    found = {}
    for init in results.experiment.init:  # type: ignore[attr-defined]
        mine = bars[[("(" not in method) or f"({init})" in method for _, method in bars.index]]
        found[init] = {
            str(dataset): part["ours"].corr(part["published"], method="spearman")
            for dataset, part in mine.dropna().groupby(level=0)
        }
    ours = "<br>".join(
        f"<code>{init}</code>: " + ", ".join(f"{d} {v:.2f}" for d, v in by.items()) for init, by in found.items()
    )
    verdict = "<br>".join(
        f"<code>{init}</code>: " + ", ".join(f"{d} {_order(v)}" for d, v in by.items()) for init, by in found.items()
    )
    return "bars of (1 - ASR) / epochs", f"rank correlation<br>{ours}", verdict


def _order(correlation: float) -> str:
    return "same order" if correlation >= 0.8 else "similar order" if correlation >= 0.5 else "another order"
