"""What everything costs: the benchmark's records, and the images, operations and seconds of every method.

Seconds belong to the machine that they were taken on. Images and floating-point operations do not.
"""

import json
from collections.abc import Iterable
from statistics import fmean, median
from typing import Any

import pandas as pd

from purifier_core.files import ROOT
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import SUPPLEMENT, Table3, Table4
from purifier_core.lab.methods import METHODS
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import look_up
from purifier_core.pages.overview import seconds

_WIDTHS = {1 / 8: "1/8", 1.0: "1"}


def benchmarks() -> dict[str, dict[str, Any]]:
    """The newest record of `benchmarks/speed.py` for each device, number of threads and precision, by file name."""
    found: dict[Any, tuple[str, dict[str, Any]]] = {}
    for path in sorted((ROOT / "data" / "benchmarks").glob("*.json")):
        one = json.loads(path.read_text())
        found[one["provenance"]["device"], one["machine"]["threads"], one["precision"]] = (path.stem, one)
    return dict(found.values())


def speed() -> pd.DataFrame:
    """A line for each benchmark, width and number of cells at once, as text: images per second of both, their ratio,
    the share of the matrix product's speed, and the peak memory of both."""
    lines = {}
    for one in benchmarks().values():
        where = one["provenance"]["device"]
        if where == "cpu":
            maker = one["machine"]["processor"].replace("(R)", "").removesuffix(" Processor")
            where = f"{maker}, {one['machine']['threads']} threads"
        where = where if one["precision"] == "fp32" else f"{where}, {one['precision']}"
        for cells, part in ((1, one["training"]), (one["cells"], one["together"])):
            for width, found in part.items():
                rates, memory = found["images_per_second"], one["memory_mib"][width]
                share = found["gflop_per_second"] / one["matrix_product_gflop_per_second"]
                lines[where, f"{width}, {cells} at once" if cells > 1 else width] = {
                    "images/s": f"{rates['ours']:,.0f}",
                    "plain loop": f"{rates['plain']:,.0f}",
                    "ratio (range)": _ratio(found["ratio"]),
                    "of the matrix product": f"{share:.0%}",
                    "MiB (plain loop)": f"{memory['ours']:,.0f} ({memory['plain']:,.0f})",
                }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    if lines:
        frame.index = pd.MultiIndex.from_tuples(list(lines), names=["machine", "width, cells"])
    return frame


def _ratio(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def whole_runs() -> list[str]:
    """Sentences: the seconds of a whole Finetuning in each benchmark, and of a backdoored model if it trained one."""
    lines = []
    for name, one in benchmarks().items():
        ours, theirs = (median(one["defense"]["seconds"][side]) for side in ("ours", "plain"))
        lines.append(
            f"{name}: a whole Finetuning (3,000 images, 20 epochs, width 1/8, with its evaluations) takes the plain "
            f"loop {_ratio(one['defense']['ratio'])} times as long, {theirs:.0f} against {ours:.0f} seconds."
        )
        if "backdoored_seconds" in one:
            lines[-1] += f" A backdoored VGG-16 of the paper's size takes {one['backdoored_seconds']:.0f} seconds."
        lines[-1] += f" {one['data']}."
    return lines or ["No benchmark is recorded yet."]


def operations(cell: Cell, images: float) -> float:
    """Floating-point operations of training on a number of images, forward and backward, in units of 10^12; nan if no
    benchmark has counted the network."""
    for one in benchmarks().values():
        if counted := one["flops"][cell.network].get(_WIDTHS.get(cell.width, "")):
            return images * counted["training"] / 1e12
    return float("nan")


def methods(store: Store | None = None) -> pd.DataFrame:
    """What each method trains on and takes with 3,000 clean images (ABL: Table 4), means over seeds, as text."""
    lines = {}
    for experiment, wanted in ((Table3(methods="all"), None), (Table4(methods="none,abl"), "abl")):
        for (_, column), found in look_up(experiment, store, reading=True).found.items():
            row = found[0].cell.clean_size in (0, 3000)
            if row and column.label not in lines and wanted in (None, column.defense):
                lines[column.label] = _cost(found)
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame.rename(index={METHODS["none"].label: "the backdoored network"})


def _cost(found: list[Record]) -> dict[str, str]:
    images = fmean(r.effort["images"] for r in found)
    return {
        "epochs": f"{fmean(r.effort['epochs'] for r in found):.1f}",
        "images trained on": f"{images:,.0f}",
        "10^12 operations": f"{operations(found[0].cell, images):.2f}",
        "seconds, training": f"{fmean(r.effort.get('training_seconds', r.effort['seconds']) for r in found):,.0f}",
        "seconds, all": f"{fmean(map(seconds, found)):,.0f}",
        "seeds": str(len(found)),
    }


def growth(store: Store | None = None) -> pd.DataFrame:
    """Images trained on at each clean size of Table 3, by method, as text."""
    results = look_up(Table3(clean_size="all"), store, reading=True)
    sizes = sorted(results.experiment.rows(results.profile))
    found = results.found
    lines = {}
    for column in results.experiment.columns():
        if column != Column("none"):
            mine = [[r.effort["images"] for r in found.get((size, column), [])] for size in sizes]
            heads = [f"{size:,}" for size in sizes]
            lines[column.label] = {h: f"{fmean(m):,.0f}" if m else "missing" for h, m in zip(heads, mine, strict=True)}
    return pd.DataFrame.from_dict(lines, orient="index")


def whole(store: Store | None = None) -> list[str]:
    """The cost of one seed of the supplement, and of everything, at each profile with records."""
    every = [r for r in (store or Store()).all() if not (r.failed or r.stale)]
    lines = []
    for profile in PROFILES:
        for name, kinds in (("the supplement", SUPPLEMENT), ("everything in this book", EXPERIMENTS.values())):
            cells = {c for kind in kinds for c in kind(profile=profile, seeds=0).whole().cells(profile)}
            found = [r for r in every if r.cell in cells]
            if found and profile != "quick":
                lines.append(_sum(f"One seed of {name} at {profile}", found, len(cells)))
    return lines or ["No record is there yet."]


def _sum(what: str, found: Iterable[Record], of: int) -> str:
    found = list(found)
    images = sum(r.effort["images"] for r in found)
    work = sum(operations(r.cell, r.effort["images"]) for r in found)
    gaps = f" ({of - len(found)} of them missing)" if of > len(found) else ""
    hours = sum(map(seconds, found)) / 3600
    peak = max((r.provenance.get("peak_mib", 0) for r in found), default=0)
    memory = f", which holds at most {peak / 1024:.1f} GiB" if peak else ""
    return (
        f"{what}: {of} cells{gaps}, {images / 1e6:.1f} million images trained on, {work:,.0f} × 10^12 floating-point "
        f"operations, {hours:.1f} hours of one process{memory}."
    )
