"""The efficiency study (supplement A.2): what the bars of Figure 13 say, as questions to each seed.

A bar is 100 (1 - ASR) / N in percent, N being the epochs of the defense. Ours divide by the epochs of
our own schedules.
"""

from collections.abc import Hashable, Mapping

import pandas as pd

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.methods import DATASETS, title
from purifier_core.lab.records import published
from purifier_core.lab.results import Results
from purifier_core.pages.efficiency import PRINTED, per_epoch
from purifier_core.pages.seeds import Decision, Judgement, all_of, by_run, by_start, decide, for_each_start
from purifier_core.recipes import GRANULARITIES, INITS

SAME_ORDER = 0.8
"""Two rows of bars have the same order from this rank correlation up. The threshold is ours."""

LED = ("mnist", "gtsrb")
"""The datasets on which a module of Purifier has the highest published bar."""

Bars = Mapping[Column, float]


def stated(dataset: str, columns: list[Column]) -> dict[Column, float]:
    """The published bars of a dataset. A module has one published bar, which stands under each of its starts."""
    table = published("figure13")
    bars = table[table.dataset == PRINTED[dataset]].set_index("method").one_minus_asr_per_epoch_percent
    return {column: float(bars[column.name]) for column in columns}


def methods(results: Results, init: str) -> list[Column]:
    """The compared defenses, and Purifier's modules from one start."""
    compared = [c for c in results.experiment.columns() if c.defense not in ("none", *GRANULARITIES)]
    return compared + [module(g, init) for g in GRANULARITIES]


def ours(results: Results, dataset: str, columns: list[Column]) -> dict[Hashable, dict[Column, float]]:
    """Our bars on a dataset, of each run that has all of them."""
    bars = {}
    for key, run in by_run(results).items():
        records = {column: run[dataset, column] for column in columns if (dataset, column) in run}
        if len(records) == len(columns):
            bars[key] = {c: per_epoch(r.asr or 0.0, r.effort["epochs"]) for c, r in records.items()}
    return bars


def rank_correlations(results: Results, dataset: str, init: str) -> dict[Hashable, float]:
    """Spearman's rank correlation of our bars with the published ones, by run."""
    columns = methods(results, init)
    paper = pd.Series(stated(dataset, columns))
    runs = ours(results, dataset, columns)
    return {key: float(pd.Series(bars).corr(paper, method="spearman")) for key, bars in runs.items()}


def in_order(results: Results, init: str) -> dict[str, Decision]:
    """By dataset, whether our bars have the published order in every seed."""
    return {
        title(dataset): decide({k: r >= SAME_ORDER for k, r in rank_correlations(results, dataset, init).items()})
        for dataset in results.experiment.rows(results.profile)
    }


def module_leads(bars: Bars) -> bool:
    """Whether the highest bar is that of a module of Purifier."""
    return max(bars, key=lambda column: bars[column]).defense in GRANULARITIES


def order(results: Results) -> Judgement:
    """The judgement on the order of the bars."""
    answers = {init: in_order(results, init) for init in INITS}
    verdict = by_start({init: all_of(decisions) for init, decisions in answers.items()})
    return Judgement("the reference", for_each_start(answers), verdict)


def lead(results: Results) -> Judgement:
    """The judgement on Purifier's lead within an epoch."""
    answers = {}
    for init in INITS:
        columns = methods(results, init)
        answers[init] = {
            title(dataset): decide({k: module_leads(bars) for k, bars in ours(results, dataset, columns).items()})
            for dataset in LED
        }
    leading = [title(d) for d in DATASETS if module_leads(stated(d, methods(results, "full")))]
    failing = [title(d) for d in LED if title(d) not in leading]
    verdict = by_start({init: all_of(decisions) for init, decisions in answers.items()})
    return Judgement(", ".join(leading), for_each_start(answers), verdict, failing)
