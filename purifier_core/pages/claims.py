"""What the supplement claims, the rule by which records decide each claim, and the verdict that follows.

A verdict is computed here and typed nowhere. The same rule is put to the published numbers, if there are any.
notebooks/claims.ipynb says when the rules were written, and what changed since.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from purifier_core.lab.experiments.grids import Column, Experiment
from purifier_core.lab.experiments.supplement import Figure10, Figure11, Figure12, Figure13, Table3, Table4
from purifier_core.lab.methods import DATASETS, title
from purifier_core.lab.profiles import SIZES
from purifier_core.lab.records import Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import anomaly, bars, sensitivity
from purifier_core.pages.report import provenance
from purifier_core.pages.seeds import Decision, Judgement, by_start
from purifier_core.pages.statistics import TAKEN, estimate
from purifier_core.recipes import GRANULARITIES, INITS

_INSENSITIVE = (
    f"ACC and ASR vary by at most {sensitivity.STABLE:g} points, with an ACC of at least {sensitivity.GOOD_ACC:g} % "
    f"and an ASR of at most {sensitivity.GOOD_ASR:g} %"
)


class Evidence:
    """The records of one profile that the rules are put to, with every seed."""

    def __init__(self, profile: str, store: Store | None = None) -> None:
        store = store or Store()

        def records(experiment: Experiment) -> Results:
            return look_up(replace(experiment, profile=profile), store, reading=True)

        self.sizes = records(Table3(clean_size="all", init="all"))
        self.ratios = records(Table4(poison_ratio="all", init="all"))
        self.bars = records(Figure13(init="all"))
        self.pattern = records(Figure10())
        self.maps = records(Figure11())
        self.suppression = records(Figure12(init="all"))


@dataclass(frozen=True)
class Claim:
    """One claim: where it stands, what it says, the rule that decides it, and the rule as code."""

    where: str
    says: str
    rule: str
    judge: Callable[[Evidence], Judgement]


def _pattern(evidence: Evidence) -> Judgement:
    parts = anomaly.excesses(evidence.pattern).get(Column("none"), {})
    ours = f"above every clean class, in percent: {estimate(parts).text()}" if parts else ""
    return Judgement("a picture", ours, anomaly.seen(evidence.pattern).text())


def _map(number: str, decide: Callable[[Results], Decision]) -> Callable[[Evidence], Judgement]:
    """The judge of a claim about one number of Figure 11's maps."""

    def judge(evidence: Evidence) -> Judgement:
        by_seed = anomaly.maps_by_seed(evidence.maps)
        ours = anomaly.over_seeds(by_seed, number).text(2) if by_seed else ""
        stated = anomaly.map_numbers(*anomaly.published_maps())[number]
        return Judgement(f"{stated:.2f}", ours, decide(evidence.maps).text())

    return judge


def _suppressed(evidence: Evidence) -> Judgement:
    results = evidence.suppression
    parts = anomaly.excesses(results)
    ours = ", ".join(f"{column.label} {estimate(part).text()}" for column, part in parts.items())
    verdict = by_start({init: anomaly.suppressed(results, init) for init in INITS})
    return Judgement("a picture", f"above every clean class, in percent: {ours}" if ours else "", verdict)


CLAIMS = (
    Claim(
        "A.1, Figure 10",
        "A trigger activates the penultimate layer in a pattern of its own.",
        f"At least {100 * anomaly.EXCESS:g} % of the magnitude on triggered images lies above what any clean class "
        "reaches. This threshold is ours. Decided only for a backdoor that took: an ASR of at least "
        f"{100 * TAKEN:g} % in every seed.",
        _pattern,
    ),
    Claim(
        "A.1, Figure 11",
        "Triggered images activate the penultimate layer more strongly than clean ones.",
        "The mean magnitude on triggered images is larger than on clean ones. Decided only for a backdoor that took.",
        _map("ratio", anomaly.harder),
    ),
    Claim(
        "A.1, Figure 11",
        "They do so at the places that clean images light.",
        "The two maps of 4 × 4 correlate positively, as the published ones do. Decided only for a backdoor that took.",
        _map("correlation", anomaly.same_places),
    ),
    Claim(
        "A.1, Figure 12",
        "The feature-wise module suppresses the trigger's pattern.",
        "The part above every clean class is at most half as large as without the module. Decided only for a backdoor "
        "that took.",
        _suppressed,
    ),
    Claim(
        "A.2, Figure 13",
        "Within an epoch the methods have an effect in the order of the bars.",
        f"On each dataset our bars have a rank correlation of at least {bars.SAME_ORDER:g} with the published ones. "
        "This threshold is ours, and so are the epochs that ours divide by.",
        lambda e: bars.order(e.bars),
    ),
    Claim(
        "A.2, Figure 13",
        "Within an epoch a module of Purifier has the largest effect of all.",
        f"The highest bar is a module's on {' and '.join(title(d) for d in bars.LED)}. On "
        f"{', '.join(title(d) for d in DATASETS if d not in bars.LED)} it is not in the published figure either.",
        lambda e: bars.lead(e.bars),
    ),
    Claim(
        "A.3, Table 3",
        "With less clean data the baselines defend worse: finetuning, fine-pruning, MCR, NAD, ANP.",
        f"From 6,000 to 3,000 images ACC falls or ASR rises by at least {sensitivity.DROP:g} point; for all five.",
        lambda e: sensitivity.descent(e.sizes),
    ),
    Claim(
        "A.3, Table 3",
        "Purifier is insensitive to the amount of clean data: all three modules stay stable and good.",
        f"Over the three sizes {_INSENSITIVE}; for all three modules.",
        lambda e: sensitivity.insensitivity(e.sizes, GRANULARITIES),
    ),
    Claim(
        "A.3, Table 3",
        "This is so especially for the channel-wise and the feature-wise module.",
        "The rule of the line above, for these two.",
        lambda e: sensitivity.insensitivity(e.sizes, ("channel", "feature")),
    ),
    Claim(
        "A.3, Table 4",
        "Purifier is not sensitive to the poison ratio.",
        f"Between 5 % and 1 % {_INSENSITIVE}; for all three modules. With init=random Purifier never sees the poison: "
        "its two rows are equal by construction, and stable for this reason alone.",
        lambda e: sensitivity.insensitivity(e.ratios, GRANULARITIES),
    ),
    Claim(
        "A.3, Table 4",
        "Purifier has the best overall performance in ACC and ASR over both ratios.",
        "The best module leads the best of the other defenses in ACC - ASR, averaged over both ratios.",
        lambda e: sensitivity.lead(e.ratios),
    ),
)


def gathered(profile: str = "auto", store: Store | None = None) -> dict[str, Evidence]:
    """The evidence of each profile that the book reads, the largest first; or of the one that is asked for."""
    return {name: Evidence(name, store) for name in (SIZES if profile == "auto" else (profile,))}


def table(every: dict[str, Evidence]) -> pd.DataFrame:
    """A line for each claim: its words, the verdict, our numbers and the published ones by its rule, and the rule.

    A claim is judged at each profile by itself. Where several have records of it, each has a line of its own.
    """
    lines = {}
    for claim in CLAIMS:
        judgements = {profile: claim.judge(evidence) for profile, evidence in every.items()}
        answers = {profile: judgement for profile, judgement in judgements.items() if judgement.ours}
        answers = answers or dict([judgements.popitem()])  # nothing is recorded: the smallest says what is missing
        first = next(iter(answers.values()))
        caveat = f" The published numbers do not pass it: {', '.join(first.failing)}." if first.failing else ""
        lines[claim.where, claim.says] = {
            "verdict": by_size({profile: judgement.verdict for profile, judgement in answers.items()}),
            "ours": by_size({profile: judgement.ours or "missing" for profile, judgement in answers.items()}),
            "published": first.published,
            "rule": claim.rule + caveat,
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["where", "claim"])
    return frame


def by_size(texts: dict[str, str]) -> str:
    """A text for each profile, the largest first."""
    return "<br>".join(f"<i>{profile}</i>: {text}" for profile, text in texts.items())


def sources(every: dict[str, Evidence]) -> list[str]:
    """The provenance of the records behind the verdicts."""
    results_by_profile = [
        (evidence.pattern, evidence.maps, evidence.suppression, evidence.bars, evidence.sizes, evidence.ratios)
        for evidence in every.values()
    ]
    recorded = [results for sizes in zip(*results_by_profile, strict=True) for results in sizes if results.records]
    return [f"{results.experiment.title}. {provenance(results)}" for results in recorded]
