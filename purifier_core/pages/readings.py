"""Which start explains the published numbers, and does the purified network read the image or the mask?"""

import math
from statistics import fmean
from typing import Any

import pandas as pd

from purifier_core.lab.experiments.beyond import Setting
from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import METHODS, NETWORKS, title
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import drawing, report
from purifier_core.pages.report import METRICS, estimates
from purifier_core.pages.statistics import Estimate, decided, estimate, paired, runs
from purifier_core.recipes import GRANULARITIES, INITS

_ANSWERS = {"label": ("the image's class", "#0f766e"), "mask": ("the mask's class", "#c2410c")}


def setting_label(setting: Setting) -> str:
    """A setting in words."""
    plain = "" if setting.augment else ", not augmented"
    return f"{title(setting.dataset)}, {NETWORKS[setting.network].label}, {setting.clean_size:,}{plain}"


def paper_values() -> dict[tuple[int, str, str], float]:
    """Table 3's published percentages of Purifier by (clean size, granularity, metric)."""
    names = {METHODS[g].label: g for g in GRANULARITIES}
    every = report.paper_values(Table3())
    return {(size, names[m], metric): value for (size, m, metric), value in every.items() if m in names}


def table(results: Results) -> pd.DataFrame:
    """ACC and ASR in percent, mean and range: two lines for each setting and module, a column for each reading."""
    ours, paper, by_place = estimates(results), paper_values(), results.by_place
    lines = {}
    for setting in results.experiment.rows(results.profile):
        for granularity in GRANULARITIES:
            columns = {init: module(granularity, init) for init in INITS} | {"from scratch": Column("scratch")}
            counts = sorted({len(records) for c in columns.values() if (records := by_place.get((setting, c)))})
            for metric in METRICS:
                stated = paper.get((setting.clean_size, granularity, metric)) if setting.dataset == "mnist" else None
                values = {name: ours.get((setting, column, metric)) for name, column in columns.items()}
                lines[setting_label(setting), METHODS[granularity].label, metric.upper()] = {
                    "published": "–" if stated is None else f"{stated:.1f}",
                    **{name: value.text() if value else "missing" for name, value in values.items()},
                    "n": " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:])))) or "–",
                }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["clean images", "module", "%"])
    return frame


def comparisons(results: Results) -> dict[str, list[Setting]]:
    """The settings over which readings are compared with Table 3: all sizes together; then the size that is also taken
    without augmentation, by itself, with and without it."""
    rows = [r for r in results.experiment.rows(results.profile) if r.dataset == "mnist"]
    augmented, plain = ([r for r in rows if r.augment == augment] for augment in (True, False))
    sizes = {r.clean_size for r in plain}
    matches = [r for r in augmented if r.clean_size in sizes]
    groups = [augmented, *([matches, plain] if matches != augmented else [plain])]
    return {_sizes(group): group for group in groups if group}


def _sizes(settings: list[Setting]) -> str:
    return ", ".join(f"{s.clean_size:,}" for s in settings) + ("" if settings[0].augment else ", not augmented")


def distances(results: Results, rows: list[Setting]) -> dict[tuple[str, str], Estimate]:
    """The mean absolute difference from Table 3's published percentages in some rows, by (init, metric).

    Over the three modules and the rows; an estimate over seeds, of those that have every pair.
    """
    paper, by_place = paper_values(), results.by_place
    gaps: dict[tuple[str, str], Estimate] = {}
    for init in INITS:
        pairs = {(r, g): by_place.get((r, module(g, init)), []) for r in rows for g in GRANULARITIES}
        seeds = set.intersection(*({record.cell.seed for record in records} for records in pairs.values()))
        for metric in METRICS if seeds else ():
            by_seed = dict.fromkeys(sorted(seeds), 0.0)
            for (row, granularity), records in pairs.items():
                stated = paper[row.clean_size, granularity, metric] / 100
                for record in records:
                    if record.cell.seed in by_seed:
                        by_seed[record.cell.seed] += abs(getattr(record, metric) - stated) / len(pairs)
            gaps[init, metric] = estimate(by_seed)
    return gaps


def nearest(gaps: dict[tuple[str, str], Estimate]) -> list[str]:
    """The readings by the sum of their distances in ACC and ASR, the nearest first."""
    return sorted({init for init, _ in gaps}, key=lambda init: sum(gaps[init, m].mean for m in METRICS))


def distance_table(results: Results) -> pd.DataFrame:
    """`distances` as text: for each comparison a line for each reading, in percentage points, the nearest first."""
    lines = {}
    for name, rows in comparisons(results).items():
        gaps = distances(results, rows)
        for init in nearest(gaps):
            lines[name, init] = {metric.upper(): gaps[init, metric].text() for metric in METRICS}
            lines[name, init]["n"] = str(gaps[init, "acc"].n)
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=[*(m.upper() for m in METRICS), "n"])
    if lines:
        frame.index = pd.MultiIndex.from_tuples(list(lines), names=["clean images", "init"])
    return frame


def verdict(gaps: dict[tuple[str, str], Estimate]) -> str:
    """The reading that is nearest in every seed shared by all readings; "not decided: ..." by the one rule."""
    inits = nearest(gaps)
    sums = {
        init: dict(
            zip(
                gaps[init, "acc"].seeds,
                map(sum, zip(*(gaps[init, m].values for m in METRICS), strict=True)),
                strict=True,
            )
        )
        for init in inits
    }
    shared = sorted(set.intersection(*map(set, sums.values())))
    return decided([min(inits, key=lambda init: sums[init][seed]) for seed in shared])


def trend(results: Results) -> pd.DataFrame:
    """What ACC gains from 3,000 to 6,000 clean images, in points: published, and each reading, paired by seed."""
    paper, by_place = paper_values(), results.by_place
    small, large = (Setting("mnist", "vgg16", size) for size in (3000, 6000))
    lines = {}
    for g in GRANULARITIES:
        line = {"published": f"{paper[6000, g, 'acc'] - paper[3000, g, 'acc']:+.2f}"}
        for init in INITS:
            before, after = (by_place.get((end, module(g, init)), []) for end in (small, large))
            gain = paired(after, before, "acc")
            line[init] = gain.text(2, "+") if gain else "missing"
        lines[METHODS[g].label] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def reading(results: Results) -> list[str]:
    """The nearest reading in one sentence, and what the modules add to training from scratch in another."""
    lines = []
    for name, rows in comparisons(results).items():
        if gaps := distances(results, rows):
            init = nearest(gaps)[0]
            acc, asr = (gaps[init, metric] for metric in METRICS)
            answer = verdict(gaps)
            lines.append(
                f"{name} clean images: nearest to the published Purifier columns of Table 3 is init={init}, "
                f"{acc.text()} points away in ACC and {asr.text()} in ASR (profile {results.shown}; {runs(acc.n)}; "
                f"{'nearest in every seed' if answer == init else answer})."
            )
    ours = estimates(results)
    for setting in results.experiment.rows(results.profile):
        alone = ours.get((setting, Column("scratch"), "acc"))
        best = {g: value for g in GRANULARITIES if (value := ours.get((setting, module(g, "random"), "acc")))}
        if alone and best:
            name = max(best, key=lambda g: best[g].mean)
            lines.append(
                f"{setting_label(setting)}: the same network trained on the clean images alone reaches an ACC of "
                f"{alone.text()} %; with the best module from fresh weights, {METHODS[name].label}, "
                f"{best[name].text()} %."
            )
    return lines or [f"No record at profile {results.shown} is there yet."]


def cube(results: Results) -> list[str]:
    """In each setting, Cube under each start beside its first head alone and the published value, as a sentence."""
    ours, paper, by_place = estimates(results), paper_values(), results.by_place
    lines = []
    for setting in results.experiment.rows(results.profile):
        parts = []
        for init in INITS:
            column = module("cube", init)
            heads = [r.diagnostics["clean"]["heads"][0] for r in by_place.get((setting, column), [])]
            if heads:
                acc = ours[setting, column, "acc"]
                parts.append(f"{init} {acc.mean:.1f} ({acc.spread()}; its first head alone {100 * fmean(heads):.1f})")
        stated = paper.get((setting.clean_size, "cube", "acc")) if setting.dataset == "mnist" else None
        beside = f"; published {stated:.1f}" if stated is not None else ""
        if parts:
            lines.append(f"{setting_label(setting)}: Cube's ACC in percent: {', '.join(parts)}{beside}.")
    return lines or [f"No record at profile {results.shown} is there yet."]


def glued(results: Results) -> dict[str, Any]:
    """The values that the book's prose takes from here, in percent or points; nan if missing.

    readings_<init>_acc and ..._asr are the mean distances from Table 3 at its smallest clean size, with _plain without
    augmentation, and readings_mask_<granularity>_<init> the share of clean images that the network answers with the
    class of a wrong mask.
    """
    values: dict[str, Any] = {"readings_profile": results.shown}
    rows = [r for r in results.experiment.rows(results.profile) if r.dataset == "mnist" and r.clean_size == 3000]
    for row in rows:
        gaps = distances(results, [row])
        for init in INITS:
            name = f"readings_{init}" + ("" if row.augment else "_plain")
            for metric in METRICS:
                gap = gaps.get((init, metric))
                values[f"{name}_{metric}"] = gap.mean if gap else math.nan
    tests = masks(results, rows[0]) if rows else {}
    for g in GRANULARITIES:
        for init in INITS:
            shares = [r.diagnostics["clean"]["wrong_mask"]["mask"] for r in tests.get((g, init), [])]
            values[f"readings_mask_{g}_{init}"] = 100 * fmean(shares) if shares else math.nan
    return values


def masks(results: Results, setting: Setting) -> dict[tuple[str, str], list[Record]]:
    """The records with the test of the wrong mask, by (granularity, init)."""
    tests, by_place = {}, results.by_place
    for g in GRANULARITIES:
        for init in INITS:
            records = by_place.get((setting, module(g, init)), [])
            if with_test := [r for r in records if "wrong_mask" in r.diagnostics.get("clean", {})]:
                tests[g, init] = with_test
    return tests


def figure(results: Results) -> Any:
    """What the network answers to a clean image when every mask is that of one wrong class: the image's class, or the
    mask's; a dot for each seed."""
    import matplotlib.pyplot as plt

    settings = [s for s in results.experiment.rows(results.profile) if s.augment and masks(results, s)]
    settings = [s for s in settings if s.dataset != "mnist" or s.clean_size == 3000]
    lines = [(g, init) for g in GRANULARITIES for init in INITS]
    drawing.theme()
    picture, axes = plt.subplots(
        1,
        max(1, len(settings)),
        figsize=(drawing.WIDTH, 4.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
        dpi=160,
    )
    for axis, setting in zip(axes[0], settings, strict=False):
        tests = masks(results, setting)
        for place, line in enumerate(lines):
            if line not in tests:
                axis.text(2, place, "missing", color="0.4", va="center")
            for answer, (_, colour) in _ANSWERS.items():
                if line in tests:
                    shares = {r.cell.seed: r.diagnostics["clean"]["wrong_mask"][answer] for r in tests[line]}
                    drawing.seeds(axis, estimate(shares), place, colour)
        axis.set_title(f"{title(setting.dataset)},\n{NETWORKS[setting.network].label}", fontsize=10.5, loc="left")
        axis.set_xlim(-6, 106)
        axis.set_xlabel("% of images")
        axis.grid(axis="y", visible=False)
        for line_above in (2.5, 5.5):
            axis.axhline(line_above, color="0.2", linewidth=0.8)
    axes[0, 0].set_yticks(range(len(lines)), [f"{METHODS[g].label} ({init})" for g, init in lines])
    axes[0, 0].set_ylim(len(lines) - 0.4, -0.6)
    handles = [plt.Line2D([], [], linestyle="", marker="o", color=colour, label=w) for w, colour in _ANSWERS.values()]
    picture.legend(
        handles=handles, loc="outside lower left", ncols=2, frameon=False, title="answers with", alignment="left"
    )
    plt.close(picture)
    return picture
