"""What everything costs: the benchmark's records, and the images, operations and seconds of every method.

Seconds belong to the machine that they were taken on. Images and floating-point operations do not.
"""

import json
import math
from statistics import fmean, median
from typing import Any

import pandas as pd

from purifier_core.files import ROOT
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.comparison import Defenses
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import SUPPLEMENT, Table3
from purifier_core.lab.methods import METHODS, OURS
from purifier_core.lab.profiles import PROFILES, SIZES
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import look_up
from purifier_core.pages.overview import seconds

_WIDTHS = {1 / 8: "1/8", 1.0: "1"}


def benchmarks() -> dict[str, dict[str, Any]]:
    """The newest record of `benchmarks/speed.py` for each device, number of threads and precision, by file name."""
    newest: dict[Any, tuple[str, dict[str, Any]]] = {}
    for path in sorted((ROOT / "data" / "benchmarks").glob("*.json")):
        record = json.loads(path.read_text())
        newest[record["provenance"]["device"], record["machine"]["threads"], record["precision"]] = (path.stem, record)
    return dict(newest.values())


def speed() -> pd.DataFrame:
    """A line for each benchmark, width and number of cells at once, as text: images per second of both, their ratio,
    the share of the matrix product's speed, and the peak memory of both."""
    lines = {}
    for benchmark in benchmarks().values():
        where = benchmark["provenance"]["device"]
        if where == "cpu":
            maker = benchmark["machine"]["processor"].replace("(R)", "").removesuffix(" Processor")
            where = f"{maker}, {benchmark['machine']['threads']} threads"
        where = where if benchmark["precision"] == "fp32" else f"{where}, {benchmark['precision']}"
        for cells, part in ((1, benchmark["training"]), (benchmark["cells"], benchmark["together"])):
            for width, numbers in part.items():
                rates, memory = numbers["images_per_second"], benchmark["memory_mib"][width]
                share = numbers["gflop_per_second"] / benchmark["matrix_product_gflop_per_second"]
                lines[where, f"{width}, {cells} at once" if cells > 1 else width] = {
                    "images/s": f"{rates['ours']:,.0f}",
                    "plain loop": f"{rates['plain']:,.0f}",
                    "ratio (range)": _ratio(numbers["ratio"]),
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
    for name, benchmark in benchmarks().items():
        package, plain = (median(benchmark["defense"]["seconds"][side]) for side in ("ours", "plain"))
        lines.append(
            f"{name}: a whole Finetuning (3,000 images, 20 epochs, width 1/8, with its evaluations) takes the plain "
            f"loop {_ratio(benchmark['defense']['ratio'])} times as long, {plain:.0f} against {package:.0f} seconds."
        )
        if "backdoored_seconds" in benchmark:
            seconds_taken = benchmark["backdoored_seconds"]
            lines[-1] += f" A backdoored VGG-16 of the paper's size takes {seconds_taken:.0f} seconds."
        lines[-1] += f" {benchmark['data']}."
    return lines or ["No benchmark is recorded yet."]


def operations(cell: Cell, images: float) -> float:
    """Floating-point operations on a number of images, in units of 10^12: forward and backward, and of a bound forward
    alone. nan if no benchmark has counted the network."""
    method = METHODS[cell.defense]
    kind = "forward" if method.group == OURS and not method.trains else "training"
    for benchmark in benchmarks().values():
        if counted := benchmark["flops"][cell.network].get(_WIDTHS.get(cell.width, "")):
            return images * counted[kind] / 1e12
    return float("nan")


def methods(store: Store | None = None) -> pd.DataFrame:
    """What each method trains on and takes against BadNets at 10 % with 3,000 clean images: means over seeds, as text,
    by profile, the largest first."""
    lines: dict[Any, dict[str, str]] = {}
    in_table = {column.defense for column in Table3().columns()}
    for profile in Table3.sizes:
        for experiment in (Table3(methods="all", profile=profile), Defenses(profile=profile)):
            for (_, column), records in look_up(experiment, store, reading=True).by_place.items():
                cell = records[0].cell
                row = (cell.dataset, cell.attack) == ("mnist", "badnets") and cell.clean_size in (0, 3000)
                if row and (isinstance(experiment, Table3) or column.defense not in in_table):
                    label = "the backdoored network" if column == Column("none") else column.label
                    lines[profile, label] = _cost(records)
    frame = pd.DataFrame.from_dict(lines, orient="index")
    if lines:
        frame.index = pd.MultiIndex.from_tuples(list(lines), names=["profile", "method"])
    return frame


def _cost(records: list[Record]) -> dict[str, str]:
    images = fmean(r.effort["images"] for r in records)
    return {
        "epochs": f"{fmean(r.effort['epochs'] for r in records):.1f}",
        "images": f"{images:,.0f}",
        "10^12 operations": f"{operations(records[0].cell, images):.2f}",
        "seconds, training": f"{fmean(r.effort.get('training_seconds', r.effort['seconds']) for r in records):,.0f}",
        "seconds, all": f"{fmean(map(seconds, records)):,.0f}",
        "seeds": str(len(records)),
    }


def growth(store: Store | None = None) -> pd.DataFrame:
    """Images trained on at each clean size of Table 3 at profile small, by method, as text."""
    results = look_up(Table3(clean_size="all", profile="small"), store, reading=True)
    sizes = sorted(results.experiment.rows(results.profile))
    by_place = results.by_place
    lines = {}
    for column in results.experiment.columns():
        if column != Column("none"):
            images = [[r.effort["images"] for r in by_place.get((size, column), [])] for size in sizes]
            heads = [f"{size:,}" for size in sizes]
            lines[column.label] = {
                h: f"{fmean(m):,.0f}" if m else "missing" for h, m in zip(heads, images, strict=True)
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def whole(store: Store | None = None) -> list[str]:
    """The cost of one seed of the supplement, and of everything, at each profile with records."""
    every = (store or Store()).finished()
    lines = []
    for profile in PROFILES:
        for name, kinds in (("the supplement", SUPPLEMENT), ("everything in this book", EXPERIMENTS.values())):
            cells = {c for kind in kinds for c in kind(profile=profile, seeds=0).full_grid().cells(profile)}
            records = [r for r in every if r.cell in cells]
            if records and profile != "quick":
                lines.append(_sum(f"One seed of {name} at {profile}", records, len(cells)))
    return lines or ["No record is there yet."]


def memory(store: Store | None = None) -> list[str]:
    """The most memory that a process held at each profile, of the records that measured it."""
    lines = []
    for profile in reversed(SIZES):
        records = (store or Store()).finished(profile)
        if peaks := [r.provenance["peak_mib"] for r in records if r.provenance.get("peak_mib")]:
            lines.append(
                f"Memory at {profile}: at most {max(peaks) / 1024:.1f} GiB in a process, measured in {len(peaks):,} of "
                f"{len(records):,} records."
            )
    return lines


def _sum(what: str, records: list[Record], of: int) -> str:
    """The cost of what is recorded of a whole, and how much of it that is."""
    images = sum(r.effort["images"] for r in records)
    work = [operations(r.cell, r.effort["images"]) for r in records]
    counted = [number for number in work if not math.isnan(number)]
    unknown = f" (not counted in {len(work) - len(counted)} of them)" if len(counted) < len(work) else ""
    hours = sum(map(seconds, records)) / 3600
    done = f"its {of} cells" if len(records) == of else f"the {len(records)} of its {of} cells that are recorded"
    return (
        f"{what}: {done} took {images / 1e6:.1f} million images to train on, {sum(counted):,.0f} × 10^12 "
        f"floating-point operations{unknown}, and {hours:.1f} hours of one process."
    )
