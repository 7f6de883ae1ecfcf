"""What the supplement claims, the rule by which records decide each claim, and the verdict that follows.

A verdict is computed here and typed nowhere. The same rule is put to the published numbers, where there are any. When
the rules were written, and what was changed since, stands in notebooks/claims.ipynb.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from purifier_core.config import GRANULARITIES, INITS, LABELS, NO_CLEAN_DATA
from purifier_core.experiments.grids import Column, Experiment, module
from purifier_core.experiments.supplement import Figure10, Figure11, Figure12, Table3, Table4
from purifier_core.pages import anomaly
from purifier_core.pages.report import METRICS, TAKEN, estimate, estimates, grouped, paper_values, provenance
from purifier_core.records import Store
from purifier_core.runner import Results, look_up

BASELINES = ("finetuning", "fine_pruning", "mcr", "nad", "anp")
DROP = 1.0
STABLE = 2.0
GOOD_ACC, GOOD_ASR = 90.0, 5.0

UNDECIDED = "not decided: records are missing"
WITHIN = "not decided: the difference lies within the interval over seeds"
Pair = tuple[float, float]  # ACC and ASR in percent


class Evidence:
    """The records that the rules ask, every seed of them, and the published numbers beside them."""

    def __init__(self, store: Store | None = None, profile: str = "auto") -> None:
        store = store or Store()

        def records(experiment: Experiment) -> Results:
            return look_up(replace(experiment, profile=profile), store, reading=True)

        self.sizes = records(Table3(clean_size="all", init="all"))
        self.ratios = records(Table4(poison_ratio="all", init="all"))
        self.pattern = records(Figure10())
        self.maps = records(Figure11())
        self.suppression = records(Figure12(init="all"))

    def ours(self, results: Results, column: Column) -> dict[Any, Pair] | None:
        """Means over seeds by row; None unless every row has a record."""
        found = estimates(results)
        rows = results.experiment.rows(results.profile)
        if not all((row, column, "acc") in found for row in rows):
            return None
        return {row: (found[row, column, "acc"].mean, found[row, column, "asr"].mean) for row in rows}

    def published(self, results: Results, defense: str) -> dict[Any, Pair]:
        """The paper's numbers by row."""
        stated, rows = paper_values(results.experiment), results.experiment.rows(results.profile)
        return {row: (stated[row, LABELS[defense], "acc"], stated[row, LABELS[defense], "asr"]) for row in rows}


@dataclass(frozen=True)
class Judgement:
    """What the rule says of the published numbers, of ours, and the verdict."""

    published: str
    ours: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """One claim: where it stands, what it says, the rule that decides it, and the rule as code."""

    where: str
    says: str
    rule: str
    judge: Callable[[Evidence], Judgement]


def stable(values: Mapping[Any, Pair]) -> bool:
    """Whether ACC and ASR each vary by at most STABLE points over the rows."""
    return all(max(v) - min(v) <= STABLE for v in zip(*values.values(), strict=True))


def good(values: Mapping[Any, Pair]) -> bool:
    """Whether ACC and ASR are good in every row."""
    return all(acc >= GOOD_ACC and asr <= GOOD_ASR for acc, asr in values.values())


def by_start(answers: Mapping[str, bool | str]) -> str:
    """The verdict on a claim about Purifier from the answer under each `init`; "full" is Purifier as described.

    An answer is True, False, or in words why there is none.
    """
    described = answers["full"]
    if isinstance(described, str):
        return described
    if described:
        return "holds"
    others = [init for init in INITS if init != "full" and answers[init] is True]
    return f"holds only when Purifier starts from init={' or '.join(others)}" if others else "does not hold"


def _modules(evidence: Evidence, results: Results, names: tuple[str, ...], rule: Callable[[Any], bool]) -> Judgement:
    """A rule that every one of some modules must satisfy, under each start and as published."""
    answers: dict[str, bool | str] = {}
    told = []
    for init in INITS:
        values = {g: evidence.ours(results, module(g, init)) for g in names}
        if any(v is None for v in values.values()):
            answers[init] = UNDECIDED
            continue
        passed = [g for g, v in values.items() if rule(v)]
        answers[init] = len(passed) == len(names)
        told.append(f"{init}: {', '.join(LABELS[g] for g in passed) or 'none'}")
    stated = [g for g in names if rule(evidence.published(results, g))]
    return Judgement(", ".join(LABELS[g] for g in stated) or "none", "; ".join(told), by_start(answers))


def _descends(evidence: Evidence) -> Judgement:
    results, found = evidence.sizes, grouped(evidence.sizes)
    most, least = max(Table3.every), min(Table3.every)
    fallen, whole = [], True
    for defense in BASELINES:
        many, few = ({r.cell.seed: r for r in found.get((row, Column(defense)), [])} for row in (most, least))
        seeds = sorted(many.keys() & few.keys())
        whole = whole and bool(seeds)
        for metric, sign in zip(METRICS, (-1, 1), strict=True):
            if not seeds:
                continue
            change = estimate({s: sign * (getattr(few[s], metric) - getattr(many[s], metric)) for s in seeds})
            if change.low >= DROP:
                fallen.append(f"{LABELS[defense]} in {metric.upper()}")
    stated = []
    for defense in BASELINES:
        values = evidence.published(results, defense)
        if values[most][0] - values[least][0] >= DROP or values[least][1] - values[most][1] >= DROP:
            stated.append(LABELS[defense])
    names = sorted({name.rsplit(" in ", 1)[0] for name in fallen})
    part = f"holds only for {', '.join(names)}" if names else "does not hold"
    verdict = "holds" if len(names) == len(BASELINES) else part
    return Judgement(", ".join(stated) or "none", ", ".join(fallen) or "none", verdict if whole else UNDECIDED)


def _best(evidence: Evidence) -> Judgement:
    """ACC - ASR, its mean over both poison ratios: which of the methods leads?"""
    results, found = evidence.ratios, grouped(evidence.ratios)
    rows = results.experiment.rows(results.profile)

    def score(values: Mapping[Any, Pair]) -> float:
        return sum(acc - asr for acc, asr in values.values()) / len(values)

    def by_seed(column: Column) -> dict[int, float]:
        """The score of each seed that has every row, as a fraction."""
        cells = [{r.cell.seed: (r.acc or 0.0) - (r.asr or 0.0) for r in found.get((row, column), [])} for row in rows]
        return {s: sum(c[s] for c in cells) / len(rows) for s in set.intersection(*map(set, cells))}

    def leader(columns: list[Column]) -> tuple[Column, dict[int, float]] | None:
        scores = {column: by_seed(column) for column in columns}
        if not all(scores.values()):
            return None
        return max(scores.items(), key=lambda item: sum(item[1].values()) / len(item[1]))

    rival = leader([Column(m) for m in (*BASELINES, "abl")])
    told = [f"others: {LABELS[rival[0].defense]} ({estimate(rival[1]).mean:.1f})"] if rival else []
    answers: dict[str, bool | str] = {}
    for init in INITS:
        first = leader([module(g, init) for g in GRANULARITIES])
        both = {s: first[1][s] - rival[1][s] for s in first[1].keys() & rival[1].keys()} if first and rival else {}
        if not both or not first:
            answers[init] = UNDECIDED
            continue
        told.append(f"{init}: {LABELS[first[0].defense]} ({estimate(first[1]).mean:.1f})")
        lead = estimate(both)
        sure = lead.low > 0 or lead.high < 0
        answers[init] = lead.mean > 0 if sure else WITHIN
    stated = {LABELS[m]: score(evidence.published(results, m)) for m in (*BASELINES, "abl", *GRANULARITIES)}
    best = max(stated, key=lambda m: stated[m])
    return Judgement(f"{best} ({stated[best]:.1f})", "; ".join(told), by_start(answers))


def _pattern(evidence: Evidence) -> Judgement:
    excess = anomaly.excess(evidence.pattern).get(Column("none"))
    if excess is None:
        return Judgement("a picture", "", UNDECIDED)
    verdict = anomaly.weak(evidence.pattern) or ("holds" if anomaly.seen(excess) else "does not hold")
    return Judgement("a picture", f"{100 * excess:.1f} % above every clean class", verdict)


def _harder(evidence: Evidence) -> Judgement:
    def ratio(clean: Any, triggered: Any) -> float:
        return anomaly.map_numbers(clean, triggered)["ratio"]

    layers = [r.diagnostics["activations"] for mine in anomaly.by_column(evidence.maps).values() for r in mine]
    ours = [ratio(layer["clean_map"], layer["triggered_map"]) for layer in layers]
    published = f"×{ratio(*anomaly.published_maps()):.2f}"
    if not ours:
        return Judgement(published, "", UNDECIDED)
    verdict = anomaly.weak(evidence.maps) or ("holds" if min(ours) > 1 else "does not hold")
    return Judgement(published, ", ".join(f"×{r:.2f}" for r in ours), verdict)


def _suppressed(evidence: Evidence) -> Judgement:
    excess = anomaly.excess(evidence.suppression)
    before = excess.get(Column("none"))
    if before is None:
        return Judgement("a picture", "", UNDECIDED)
    answers: dict[str, bool | str] = {}
    told = [f"without the module {100 * before:.1f} %"]
    for init in INITS:
        value = excess.get(module("feature", init))
        answers[init] = UNDECIDED if value is None else anomaly.suppressed(before, value)
        if value is not None:
            told.append(f"{init}: {100 * value:.1f} %")
    return Judgement("a picture", "; ".join(told), anomaly.weak(evidence.suppression) or by_start(answers))


CLAIMS = (
    Claim(
        "A.1, Figure 10",
        "A trigger activates the penultimate layer in a pattern of its own.",
        f"At least {100 * anomaly.EXCESS:g} % of the magnitude on triggered images lies above what any clean class "
        f"reaches. Decided only for a backdoor with an ASR of at least {100 * TAKEN:g} %.",
        _pattern,
    ),
    Claim(
        "A.1, Figure 11",
        "Triggered images activate the penultimate layer more strongly than clean ones.",
        "The mean magnitude on triggered images is larger than on clean ones, in every seed. Decided under the same "
        "condition.",
        _harder,
    ),
    Claim(
        "A.1, Figure 12",
        "The feature-wise module suppresses this pattern.",
        "The part above every clean class is at most half of what it is without the module. Decided under the same "
        "condition.",
        _suppressed,
    ),
    Claim(
        "A.3, Table 3",
        "With less clean data the baselines defend worse: finetuning, fine-pruning, MCR, NAD, ANP.",
        f"From 6,000 to 3,000 images ACC falls or ASR rises by at least {DROP:g} point, for ours by more than the "
        "interval over paired seeds; for all five.",
        _descends,
    ),
    Claim(
        "A.3, Table 3",
        "Purifier is insensitive to the amount of clean data: all three modules stay stable and good.",
        f"Over the three sizes ACC and ASR vary by at most {STABLE:g} points, with an ACC of at least {GOOD_ACC:g} % "
        f"and an ASR of at most {GOOD_ASR:g} %; for all three modules.",
        lambda e: _modules(e, e.sizes, GRANULARITIES, lambda v: stable(v) and good(v)),
    ),
    Claim(
        "A.3, Table 3",
        "This is so especially for the channel-wise and the feature-wise module.",
        "The rule of the line above, for these two.",
        lambda e: _modules(e, e.sizes, ("channel", "feature"), lambda v: stable(v) and good(v)),
    ),
    Claim(
        "A.3, Table 3",
        "ABL defends during training, on all the training data: it has no clean set whose size could vary.",
        "It is computed here without a clean set.",
        lambda e: Judgement("no column", "no clean set", "holds" if "abl" in NO_CLEAN_DATA else "does not hold"),
    ),
    Claim(
        "A.3, Table 4",
        "Purifier is not sensitive to the poison ratio.",
        f"Between 5 % and 1 % ACC and ASR differ by at most {STABLE:g} points; for all three modules.",
        lambda e: _modules(e, e.ratios, GRANULARITIES, stable),
    ),
    Claim(
        "A.3, Table 4",
        "Purifier has the best overall performance in ACC and ASR over both ratios.",
        "The best module leads every other defense in the mean of ACC - ASR over both ratios, by more than the "
        "interval over paired seeds.",
        _best,
    ),
)


def table(evidence: Evidence) -> pd.DataFrame:
    """A line for each claim: what it says, the rule, what the published numbers and ours give, the verdict."""
    lines = {}
    for claim in CLAIMS:
        found = claim.judge(evidence)
        lines[claim.where, claim.says] = {
            "rule": claim.rule,
            "published": found.published,
            "ours": found.ours or "missing",
            "verdict": found.verdict,
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["where", "claim"])
    return frame


def sources(evidence: Evidence) -> list[str]:
    """The provenance of what the rules ask."""
    asked = (evidence.pattern, evidence.maps, evidence.suppression, evidence.sizes, evidence.ratios)
    return [f"{results.experiment.title}. {provenance(results)}" for results in asked]
