"""Every table and figure of the supplement on one page: published, ours, and whether they agree. By rule, from records.

The rules are in `RULES`, in words, and are shown beside what they decide.
"""

import platform
import re
from collections import Counter
from collections.abc import Collection
from importlib import metadata

import pandas as pd

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import SUPPLEMENT
from purifier_core.lab.methods import ATTACKS, DATASETS, title
from purifier_core.lab.profiles import PROFILES, SIZES
from purifier_core.lab.records import Record, Store, current
from purifier_core.lab.results import Results, look_up, number
from purifier_core.pages import anomaly, bars
from purifier_core.pages.seeds import Decision, Run, ask, numbers_by_run, published_run
from purifier_core.pages.statistics import NEAR, TAKEN, estimate, took

RULES = f"""\
- A rule is put to each seed by itself. "How numbers are labelled", below, says what decides it.
- **Tables 3 and 4.** A method is *near* if its ACC and its ASR lie within {NEAR:g} percentage points of the published
  ones in every row. Methods are counted, not rows: separately for the undefended network, the *compared* defenses, and
  Purifier under each `init`. *Reproduces* if all are near, *mostly* at half or more, *in part* at fewer, *does not* at
  none. It is not decided if an undecided method could change the word.
- **Figure 10.** The anomaly is *seen* if at least {100 * anomaly.EXCESS:g} % of the magnitude on triggered images lies
  above what any clean class reaches. This threshold is ours.
- **Figure 11.** *Harder* if triggered images drive the layer harder on the mean; *same places* if the two maps
  correlate positively. Both hold for the published maps.
- **Figure 12.** The anomaly is *suppressed* if the part above every class is at most half as large as without the
  module.
- **Figures 10 to 12** decide nothing if the undefended network has an ASR below {100 * TAKEN:g} % in any seed.
- **Figure 13.** *Same order* on a dataset if the rank correlation (Spearman's) of our bars with the published ones is
  at least {bars.SAME_ORDER:g}. This threshold is ours.
"""


def table(store: Store | None = None) -> pd.DataFrame:
    """One line for each table and figure at each profile that has records of it; the index is the two names."""
    judge = {"figure10": _figure10, "figure11": _figure11, "figure12": _figure12, "figure13": _figure13}
    lines = {}
    for kind in SUPPLEMENT:
        by_size = [look_up(kind(profile=size), store, reading=True) for size in SIZES]
        for results in [results for results in by_size if results.records] or by_size[-1:]:
            rule = judge.get(kind.name, _table)
            published, ours, verdict = rule(results) if results.records else ("–", "missing", "–")
            seeds = ranges({record.cell.seed for record in results.used})
            gaps = f"; {len(results.missing)} missing" if results.missing else ""
            lines[kind.title, results.profile] = {
                "published": published,
                "ours": ours,
                "verdict": verdict,
                "records": f"seeds {seeds or 'none'}{gaps}",
            }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["supplement", "size"])
    return frame


def ranges(seeds: Collection[int]) -> str:
    """Seeds in short: "0-4, 7"."""
    starts = [seed for seed in sorted(seeds) if seed - 1 not in seeds]
    ends = [seed for seed in sorted(seeds) if seed + 1 not in seeds]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def linked() -> pd.DataFrame:
    """`table`, its names as links from a page of the book to the notebooks' pages."""
    frame = table()
    names = {kind.title: kind.name for kind in SUPPLEMENT}
    links = [(f'<a href="../notebooks/{names[title]}.html">{title}</a>', size) for title, size in frame.index]
    frame.index = pd.MultiIndex.from_tuples(links, names=frame.index.names)
    return frame


def progress(store: Store | None = None) -> pd.DataFrame:
    """What is done, missing and failed, and the seconds of the done, by experiment and profile.

    Under "no backdoor" are the cells without a record whose backdoor did not take: they could show nothing.
    """
    store = store or Store()
    failed = current(store.all())[1]
    lines = {}
    for name, kind in EXPERIMENTS.items():
        for profile in PROFILES:
            results = look_up(kind(profile=profile), store, reading=True)
            done, idle = len(results.records), len(without_backdoor(results))
            lines[name, profile] = {
                "cells": done + len(results.missing),
                "done": done,
                "missing": len(results.missing) - idle,
                "no backdoor": idle,
                "failed": sum(cell in failed for cell in results.missing),
                "seconds": round(sum(map(seconds, results.records))),
            }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["experiment", "profile"])
    return frame


def without_backdoor(results: Results) -> list[Cell]:
    """The missing cells whose backdoor did not take: their undefended network has records, and they say so."""
    undefended: dict[Cell, list[Record]] = {}
    for record in results.records:
        if record.cell.defense == "none" and record.cell.attack in ATTACKS:
            undefended.setdefault(number(record.cell), []).append(record)
    weak = {cell for cell, records in undefended.items() if not took(records)}
    return [cell for cell in results.missing if number(cell.backdoored()) in weak]


def seconds(record: Record) -> float:
    """What a record took, with the training of its backdoored model for the undefended cell, also if it was cached."""
    return max(record.provenance.get("wall_seconds", 0.0), record.effort["seconds"])


def one_seed(profile: str, store: Store | None = None) -> str:
    """A sentence on what one seed of everything costs at a profile: seed 0, each shared cell counted once."""
    cells = {c for kind in EXPERIMENTS.values() for c in kind(profile=profile, seeds=0).full_grid().cells(profile)}
    records = [r for r in (store or Store()).finished(profile) if r.cell in cells]
    hours = sum(map(seconds, records)) / 3600
    others = len(cells) - len(records)
    gaps = f" The {others} others have no record of seed 0; another seed may have one." if others else ""
    return (
        f"One seed of everything in this book at profile {profile} is {len(cells)} cells. The {len(records)} that are "
        f"recorded with seed 0 took {hours:.1f} hours of one process.{gaps}"
    )


def origins(store: Store | None = None) -> pd.DataFrame:
    """What the current records are made of: how many name each data copy, device, version and commit."""
    records = [r for r in (store or Store()).finished() if r.cell.profile != "quick"]
    counts = Counter(
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
    frame = pd.DataFrame({"records": {key: str(count) for key, count in sorted(counts.items())}})
    if counts:
        frame.index = pd.MultiIndex.from_tuples(sorted(counts), names=["", "as recorded"])
    return frame


def copies(store: Store | None = None) -> str:
    """A sentence for each data copy of the records: whether it is whole, and what of it is missing."""
    records = [r for r in (store or Store()).finished() if r.cell.profile != "quick"]
    lines = []
    for dataset, copy in dict.fromkeys((r.cell.dataset, r.data["copy"]) for r in records):
        counted = re.match(r"\S+, ([\d,]+) \+ ([\d,]+) images", copy)
        if counted is None:
            continue
        counts = [int(number.replace(",", "")) for number in counted.groups()]
        totals = [DATASETS[dataset].train, DATASETS[dataset].test]
        if counts == totals:
            lines.append(f"{title(dataset)} is whole: {counts[0]:,} training and {counts[1]:,} test images.")
        else:
            lines.append(
                f"{title(dataset)} is not: the copy has {counts[0]:,} of {totals[0]:,} training and {counts[1]:,} of "
                f"{totals[1]:,} test images. Poison ratios and clean sizes are shares of this copy."
            )
    return " ".join(sorted(lines, key=lambda line: " is not: " in line))


def versions() -> pd.DataFrame:
    """The versions that draw these pages."""
    packages = ("jupyter-book", "sphinx", "myst-nb", "pandas", "matplotlib", "seaborn", "numpy", "scipy")
    return pd.DataFrame({"version": {"Python": platform.python_version()} | {p: metadata.version(p) for p in packages}})


def _table(results: Results) -> tuple[str, str, str]:
    runs, stated = numbers_by_run(results), published_run(results)
    rows = results.experiment.rows(results.profile)

    def near(values: Run) -> bool:
        gaps = [abs(a - b) for place, pair in values.items() for a, b in zip(pair, stated[place], strict=True)]
        return max(gaps) <= NEAR

    groups: dict[str, dict[str, Decision]] = {}
    for column in results.experiment.columns():
        init = dict(column.switches).get("init")
        group = f"<code>{init}</code>" if init else "undefended" if column.defense == "none" else "compared"
        groups.setdefault(group, {})[column.name] = ask(runs, [(row, column) for row in rows], near)
    answers = [decision for methods in groups.values() for decision in methods.values()]
    if all(decision.answer is None for decision in answers):
        reasons = "; ".join(dict.fromkeys(decision.why for decision in answers))
        return "ACC and ASR of each defense", f"{len(answers)} methods", f"not decided: {reasons}"
    counted = {group: _count(methods) for group, methods in groups.items()}
    verdict = {group: _how_many(methods).text(_word(methods), "does not") for group, methods in groups.items()}
    return "ACC and ASR of each defense", _lines(counted), _lines(verdict)


def _lines(texts: dict[str, str]) -> str:
    """A line for each name, or one line if all say the same."""
    variants = set(texts.values())
    return variants.pop() if len(variants) == 1 else "<br>".join(f"{name}: {words}" for name, words in texts.items())


def _count(decisions: dict[str, Decision]) -> str:
    near = sum(decision.answer is True for decision in decisions.values())
    unsure = sum(decision.answer is None for decision in decisions.values())
    return f"{near} of {len(decisions)} near" + (f", {unsure} not decided" if unsure else "")


def _share(near: int, of: int) -> str:
    return "reproduces" if near == of else "mostly" if 2 * near >= of else "in part" if near else "does not"


def _word(decisions: dict[str, Decision]) -> str:
    return _share(sum(decision.answer is True for decision in decisions.values()), len(decisions))


def _how_many(decisions: dict[str, Decision]) -> Decision:
    """Whether any method is near; not decided if an undecided one could change the word."""
    near = sum(decision.answer is True for decision in decisions.values())
    unsure = [decision for decision in decisions.values() if decision.answer is None]
    if _share(near, len(decisions)) != _share(near + len(unsure), len(decisions)):
        return Decision(None, 0, unsure[0].why)
    return Decision(near > 0, min(decision.n for decision in decisions.values() if decision.answer is not None))


def _figure10(results: Results) -> tuple[str, str, str]:
    parts = anomaly.excesses(results)[Column("none")]
    ours = f"magnitude above every clean class, in percent: {estimate(parts).text()}"
    return "a picture, no numbers", ours, anomaly.seen(results).text("seen", "not seen")


def _figure11(results: Results) -> tuple[str, str, str]:
    stated, by_seed = anomaly.map_numbers(*anomaly.published_maps()), anomaly.maps_by_seed(results)
    ratio, correlation = (anomaly.over_seeds(by_seed, name).text(2) for name in ("ratio", "correlation"))
    verdict = [
        anomaly.harder(results).text("harder", "not harder"),
        anomaly.same_places(results).text("same places", "other places"),
    ]
    return (
        f"mean ×{stated['ratio']:.2f}, correlation {stated['correlation']:.2f}",
        f"mean × {ratio}<br>correlation {correlation}",
        "<br>".join(dict.fromkeys(verdict)),
    )


def _figure12(results: Results) -> tuple[str, str, str]:
    parts = anomaly.excesses(results)
    texts = {_code(column): estimate(part).text() for column, part in parts.items()}
    inits = results.experiment.init  # type: ignore[attr-defined]
    words = {
        f"<code>{init}</code>": anomaly.suppressed(results, init).text(
            anomaly.yes_of(init, "suppressed"), "not suppressed"
        )
        for init in inits
    }
    ours = f"magnitude above every clean class, in percent:<br>{_lines(texts)}"
    return "a picture, no numbers", ours, _lines(words)


def _code(column: Column) -> str:
    init = dict(column.switches).get("init")
    return f"<code>{init}</code>" if init else "without the module"


def _figure13(results: Results) -> tuple[str, str, str]:
    ours, verdict = {}, {}
    for init in results.experiment.init:  # type: ignore[attr-defined]
        for dataset in results.experiment.rows(results.profile):
            name = f"<code>{init}</code>, {title(dataset)}"
            correlations = bars.rank_correlations(results, dataset, init)
            ours[name] = ", ".join(f"{value:.2f}" for value in sorted(correlations.values())) or "missing"
            verdict[name] = bars.in_order(results, init)[title(dataset)].text("same order", "another order")
    return "bars of (1 - ASR) / epochs", f"rank correlation in each seed<br>{_lines(ours)}", _lines(verdict)
