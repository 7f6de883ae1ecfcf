"""The sensitivity study (supplement A.3): rules on Tables 3 and 4, put to the published numbers and to each seed."""

from collections.abc import Mapping, Sequence

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import METHODS
from purifier_core.lab.results import Results
from purifier_core.pages.seeds import (
    Judgement,
    Pair,
    Place,
    all_of,
    ask,
    by_start,
    decide,
    for_each_start,
    in_words,
    numbers_by_run,
    published_run,
)
from purifier_core.pages.statistics import estimate
from purifier_core.recipes import GRANULARITIES, INITS

BASELINES = ("finetuning", "fine_pruning", "mcr", "nad", "anp")
DROP = 1.0
STABLE = 2.0
GOOD_ACC, GOOD_ASR = 90.0, 5.0

Values = Mapping[Place, Pair]


def stable(values: Values) -> bool:
    """Whether ACC and ASR each vary by at most STABLE points over the rows."""
    return all(max(v) - min(v) <= STABLE for v in zip(*values.values(), strict=True))


def good(values: Values) -> bool:
    """Whether ACC and ASR are good in every row."""
    return all(acc >= GOOD_ACC and asr <= GOOD_ASR for acc, asr in values.values())


def insensitive(values: Values) -> bool:
    """Whether a module is stable and good over the rows."""
    return stable(values) and good(values)


def insensitivity(results: Results, names: Sequence[str]) -> Judgement:
    """Whether every one of some modules is insensitive, under each start and as published."""
    runs, stated = numbers_by_run(results), published_run(results)
    rows = results.experiment.rows(results.profile)

    def places(granularity: str, init: str) -> list[Place]:
        return [(row, module(granularity, init)) for row in rows]

    answers = {init: {METHODS[g].label: ask(runs, places(g, init), insensitive) for g in names} for init in INITS}
    verdict = by_start({init: all_of(decisions) for init, decisions in answers.items()})
    passing, failing = [], []
    for g in names:
        values = {place: stated[place] for place in places(g, "full")}
        lowest = min(acc for acc, _ in values.values())
        if insensitive(values):
            passing.append(METHODS[g].label)
        else:
            failing.append(f"{METHODS[g].label} (lowest ACC {lowest:.2f} %)")
    stating = ", ".join(passing) or "none"
    return Judgement(stating, for_each_start(answers), verdict, failing)


def _worse(values: Values) -> bool:
    """Whether a defense is worse with the least clean data than with the most: in ACC or in ASR, by DROP points."""
    by_size = {size: value for (size, _), value in values.items()}
    most, least = by_size[max(Table3.every)], by_size[min(Table3.every)]
    return most[0] - least[0] >= DROP or least[1] - most[1] >= DROP


def _at_ceiling(values: Sequence[Pair]) -> bool:
    """Whether ASR cannot rise by DROP points."""
    return bool(values) and all(asr > 100 - DROP for _, asr in values)


def descent(results: Results) -> Judgement:
    """Whether every compared defense is worse with the least clean data than with the most."""
    runs, stated = numbers_by_run(results), published_run(results)
    most, least = max(Table3.every), min(Table3.every)
    decisions, full, published, published_full = {}, [], {}, []
    for defense in BASELINES:
        name, ends = METHODS[defense].label, [(size, Column(defense)) for size in (most, least)]
        decisions[name] = ask(runs, ends, _worse)
        published[name] = _worse({place: stated[place] for place in ends})
        full += [name] if _at_ceiling([run[ends[0]] for run in runs.values() if ends[0] in run]) else []
        published_full += [name] if _at_ceiling([stated[ends[0]]]) else []
    ceiling = f"no room to rise, ASR above {100 - DROP:g} % with {most:,} images already"
    ours = in_words(decisions) + (f"; {ceiling}: {', '.join(full)}" if full else "")
    stating = ", ".join(name for name, worse in published.items() if worse) or "none"
    stating += f"; {ceiling}: {', '.join(published_full)}" if published_full else ""
    verdict = all_of(decisions)
    part = [name for name, decision in decisions.items() if decision.answer]
    no = f"holds only for {', '.join(part)}" if part else "does not hold"
    return Judgement(stating, ours, verdict.text(no=no), [name for name, worse in published.items() if not worse])


def _score(values: Values, column: Column) -> float:
    """ACC - ASR of a method, its mean over the rows."""
    pairs = [pair for (_, c), pair in values.items() if c == column]
    return sum(acc - asr for acc, asr in pairs) / len(pairs)


def lead(results: Results) -> Judgement:
    """ACC - ASR, its mean over both poison ratios: does a module of Purifier lead?"""
    runs, stated = numbers_by_run(results), published_run(results)
    rows = results.experiment.rows(results.profile)
    rivals = [Column(name) for name in (*BASELINES, "abl")]

    def margin(values: Values, columns: list[Column]) -> float:
        return max(_score(values, c) for c in columns) - max(_score(values, c) for c in rivals)

    def leader(values: Values, columns: list[Column]) -> str:
        best = max(columns, key=lambda c: _score(values, c))
        return f"{best.name} {_score(values, best):.1f}"

    answers, lines = {}, []
    for init in INITS:
        modules = [module(g, init) for g in GRANULARITIES]
        places = {(row, column) for row in rows for column in (*modules, *rivals)}
        ahead = [margin(run, modules) for run in runs.values() if places <= run.keys()]
        answers[init] = decide({i: points > 0 for i, points in enumerate(ahead)})
        if ahead:
            lead = estimate({i: points / 100 for i, points in enumerate(ahead)})
            lines.append(f"{init}: ahead by {lead.text(sign='+')} points")
    modules = [module(g, "full") for g in GRANULARITIES]
    stating = f"{leader(stated, modules)} against {leader(stated, rivals)}"
    failing = [] if margin(stated, modules) > 0 else ["Purifier"]
    return Judgement(stating, "<br>".join(lines), by_start(answers), failing)
