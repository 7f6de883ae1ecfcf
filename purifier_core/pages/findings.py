"""The findings of this book, at most five, from records: each with its number, its seeds, where it holds and where not.

A finding is shown only if the seeds decide it, by the landing page's rule. If new records turn it, it disappears.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.methods import COLUMNS, METHODS, ours
from purifier_core.lab.records import Record, Store, published
from purifier_core.pages.defenses import COST, REMOVED, removals
from purifier_core.pages.seeds import Decision, decide
from purifier_core.pages.settings import MAIN, SIZE, BySeed, Setting, Settings, attack_name, grouped, name, place_name
from purifier_core.pages.statistics import DECIDES, NEAR, TAKEN, Estimate, estimate, measured, named
from purifier_core.pages.width import STARTS, in_words
from purifier_core.recipes import GRANULARITIES, INITS

AGREES = 0.95
"""A network counts as repeating its first head from this agreement up. The threshold is ours."""
APART = 50.0
"""Two seeds of a defense have different outcomes if their ASR differs by this many points. Also ours."""


@dataclass(frozen=True)
class Place:
    """A place where a finding was looked for: its label within a group, the seeds' decision there, their numbers."""

    group: str
    label: str
    decision: Decision
    number: Estimate | None = None


@dataclass(frozen=True)
class Finding:
    """One finding: its sentence, the number behind it, the records that it rests on, and the places looked at."""

    says: str
    number: str
    decision: Decision
    places: tuple[Place, ...] = ()
    basis: str = ""  # what it rests on, if not the median over seeds

    def where(self, answer: bool | None) -> str:
        """The places with this answer, in words, group by group."""
        groups: dict[str, list[Place]] = {}
        for place in self.places:
            if place.decision.answer is answer and place.decision.n:
                groups.setdefault(place.group, []).append(place)
        return "; ".join(f"{group}: {_listed(places)}" for group, places in groups.items())

    def markdown(self) -> str:
        """The finding as an item of a numbered list; where it holds is folded, and opens with a click."""
        parts = [("Holds", self.where(True)), ("Does not hold", self.where(False)), ("Not decided", self.where(None))]
        lines = [f"- *{head}*: {words}." for head, words in parts if words]
        folded = ["<details><summary>Where it holds, and where not</summary>", "", *lines, "", "</details>"]
        text = "\n".join(f"   {line}" if line else "" for line in folded) if lines else ""
        return f"1. **{self.says}** {self.number} ({self.basis or self.decision.basis}.)\n\n{text}\n"


def _listed(places: Iterable[Place]) -> str:
    """Labels with their numbers; "one run each" is said once."""
    several, single = [], []
    for place in places:
        if place.number is None:
            several.append(place.label)
        elif place.number.n == 1:
            single.append(f"{place.label} {place.number.mean:.1f}")
        else:
            several.append(f"{place.label} {_text(place.number)}")
    runs = [f"{', '.join(single)} ({'one run' if len(single) == 1 else 'one run each'})"] if single else []
    return ", ".join(several + runs)


def _text(number: Estimate) -> str:
    """Mean and range; that number once, if every seed rounds to the same."""
    same = number.n > 1 and f"{number.low:.1f}" == f"{number.high:.1f}"
    return f"{number.mean:.1f} in every seed" if same else number.text()


def _asr(records: BySeed) -> Estimate:
    return measured(records.values(), "asr")


def _published(method: str) -> tuple[float, float]:
    """Table 3's ACC and ASR of a method at SIZE clean images, in percent."""
    table = published("table3").set_index(["clean_size", "method"]).loc[(SIZE, method)]
    return float(table.acc_percent), float(table.asr_percent)


def keeps_the_backdoor(settings: Settings) -> Finding | None:
    """Purifier's feature-wise module as described leaves the backdoor in: where, where not, and the other modules."""

    def stays(records: BySeed) -> Decision:
        return decide({seed: (record.asr or 0.0) >= TAKEN for seed, record in records.items()})

    feature = module("feature", "full")
    by_setting = {setting: settings.records(setting, feature) for setting in settings.taken()}
    main = by_setting.get(MAIN, {})
    if not stays(main).answer:
        return None
    places = [Place(place_name(s), attack_name(s), stays(r), _asr(r)) for s, r in by_setting.items() if r]
    badnets = {s: stays(r).answer for s, r in by_setting.items() if s[2] == MAIN[2]}
    places += [
        Place(f"{place_name(s)}, BadNets, the other modules", METHODS[g].label, stays(r), _asr(r))
        for s, g in product(badnets, ("channel", "cube"))
        if (r := settings.records(s, module(g, "full")))
    ]
    kept, lowered = ([place_name(s) for s, answer in badnets.items() if answer is a] for a in (True, False))
    but = f"; on {named(lowered)} it lowers the ASR" if lowered else ""
    return Finding(
        "Started from the backdoored network, as the paper describes, Purifier's feature-wise module leaves BadNets in "
        f"place on {named(kept)}{but}.",
        f"{place_name(MAIN)}, {SIZE:,} clean images: the feature-wise module leaves an ASR of {_text(_asr(main))}; "
        f"published: {_published('Feature')[1]:.2f}. In place means at least {100 * TAKEN:g}.",
        stays(main),
        tuple(places),
    )


Gaps = dict[int, tuple[float, float]]  # how far from the published ACC and ASR, as fractions, by seed


def gaps(settings: Settings, init: str, crops: bool) -> Gaps:
    """How far Purifier's modules lie from the published numbers on MNIST: the mean over the three."""
    modules = {g: settings.records(MAIN, module(g, init), crops) for g in GRANULARITIES}
    by_seed = {}
    for seed in sorted(set.intersection(*(set(records) for records in modules.values()))):
        away = [_away(records[seed], METHODS[g].label) for g, records in modules.items()]
        by_seed[seed] = (fmean(acc for acc, _ in away), fmean(asr for _, asr in away))
    return by_seed


def _away(record: Record, method: str) -> tuple[float, float]:
    acc, asr = _published(method)
    return abs((record.acc or 0.0) - acc / 100), abs((record.asr or 0.0) - asr / 100)


def comes_from_fresh_weights(settings: Settings) -> Finding | None:
    """Purifier from fresh weights lies nearest to the published numbers, of all starts, with crops and without."""
    every = {(init, crops): gaps(settings, init, crops) for init in INITS for crops in (True, False)}
    seeds = set.intersection(*(set(distances) for distances in every.values()))
    nearest = {seed: min(every, key=lambda reading: sum(every[reading][seed])) for seed in seeds}
    decision = decide({seed: reading == ("random", False) for seed, reading in nearest.items()})
    if not decision.answer:
        return None

    def points(init: str, crops: bool) -> str:
        acc, asr = ({seed: every[init, crops][seed][i] for seed in seeds} for i in (0, 1))
        return f"{estimate(acc).text()} and {estimate(asr).text()}"

    def apart(i: int) -> float:
        return 100 * abs(fmean(every["full", False][seed][i] - every["random", False][seed][i] for seed in seeds))

    def near(granularity: str, crops: bool) -> Decision:
        records = settings.records(MAIN, module(granularity, "random"), crops)
        return decide({s: max(_away(r, METHODS[granularity].label)) <= NEAR / 100 for s, r in records.items()})

    words = {True: f"within {NEAR:g} points, with crops", False: f"within {NEAR:g} points, without crops"}
    return Finding(
        "Started from fresh weights, as the released script does, Purifier comes near its published numbers, nearest "
        "without random crops of the clean images.",
        f"{place_name(MAIN)}, mean distance of the three modules from the published ACC and ASR, in points: "
        f"{points('random', False)} from fresh weights without crops, the best of {len(every)} readings; "
        f"{points('random', True)} with crops, which the release has; {points('full', False)} from the backdoored "
        f"network without crops; {points('full', True)} with. Without crops the two starts lie {apart(1):.1f} points "
        f"apart in ASR, and {apart(0):.1f} in ACC.",
        decision,
        tuple(Place(words[crops], METHODS[g].label, near(g, crops)) for crops in words for g in GRANULARITIES),
    )


def repeats_its_head(settings: Settings) -> Finding | None:
    """The purified network answers what its first head answers, and the head inherits the backdoor or not."""

    def agreement(records: BySeed) -> Estimate:
        """The lower of the agreements on clean and on triggered images."""
        pairs = {s: [r.diagnostics[images]["first_head_agreement"] for images in _IMAGES] for s, r in records.items()}
        return estimate({seed: min(shares) for seed, shares in pairs.items()})

    def repeats(records: BySeed) -> Decision:
        agreed = agreement(records) if records else estimate({})
        return decide({s: v >= 100 * AGREES for s, v in zip(agreed.seeds, agreed.values, strict=True)})

    def head(records: BySeed) -> str:
        return _text(estimate({s: r.diagnostics["triggered"]["heads"][0] for s, r in records.items()}))

    full, random = (settings.records(MAIN, module("feature", init)) for init in STARTS)
    answers = [repeats(full), repeats(random)]
    if not all(decision.answer for decision in answers):
        return None
    places = []
    for setting in (setting for setting in settings.taken() if setting[2] == MAIN[2]):
        columns = [module(g, init) for g in GRANULARITIES for init in STARTS]
        by_label = {c.label: records for c in columns if (records := settings.records(setting, c))}
        decisions = {label: repeats(records) for label, records in by_label.items()}
        others = [label for label, decision in decisions.items() if not decision.answer]
        if len(others) < len(by_label) == len(columns):
            most = f"every module from both starts{f', but for {named(others)}' if others else ''}"
            places.append(Place(place_name(setting), most, Decision(True, min(d.n for d in decisions.values()))))
        places += [Place(place_name(setting), label, decisions[label], agreement(by_label[label])) for label in others]
    return Finding(
        "A purified network answers what its first head answers, and this head inherits the backdoor or does not.",
        f"{name(MAIN)}, feature-wise module, images in percent on which the network and its first head agree: "
        f"{_text(agreement(full))} from the backdoored network, {_text(agreement(random))} from fresh weights. The ASR "
        f"of the head alone: {head(full)} and {head(random)}. The finding holds if they agree on {100 * AGREES:g} % "
        "or more, of clean and of triggered images.",
        Decision(True, min(decision.n for decision in answers)),
        tuple(places),
    )


_IMAGES = ("clean", "triggered")


def seeds_differ(settings: Settings) -> Finding | None:
    """The same defense removes a backdoor with one seed and leaves it with another."""
    columns = [module(d, "full") if d in GRANULARITIES else Column(d) for d in COLUMNS[1:]]
    every = {c: _asr(records) for c in columns if len(records := settings.records(MAIN, c)) >= DECIDES}
    wide = {column: value for column, value in every.items() if value.high - value.low >= APART}
    if not wide:
        return None
    widest = max(wide, key=lambda column: wide[column].high - wide[column].low)
    places = [Place("ASR", c.label, Decision(c in wide, v.n), v if c in wide else None) for c, v in every.items()]
    return Finding(
        "With another seed the same defense can have another outcome.",
        f"{name(MAIN)}, {SIZE:,} clean images: {widest.label} leaves an ASR of {wide[widest].text()}. The finding "
        f"holds for a defense if two of its seeds lie {APART:g} points or more apart.",
        Decision(True, wide[widest].n),
        tuple(places),
        f"Seen in {wide[widest].n} seeds; more can only widen a range",
    )


def removes(settings: Settings, setting: Setting, column: Column) -> Decision:
    """Whether a defense removes a backdoor without loss of accuracy, in every seed with an undefended partner."""
    before, after = settings.records(setting, Column("none")), settings.records(setting, column)
    return decide(removals(before.values(), after.values()))


def none_removes_all(settings: Settings) -> Finding | None:
    """No defense removes every backdoor that took."""
    defenses = [module(d, "full") if d in GRANULARITIES else Column(d) for d in (*COLUMNS[1:], *ours())]
    rows = [setting for setting in settings.taken() if setting[1] == MAIN[1]]
    by_column = {column: [row for row in rows if settings.records(row, column)] for column in defenses}
    every = {c: {row: removes(settings, row, c) for row in where} for c, where in by_column.items() if where}
    removed = {c: [row for row, decision in by_row.items() if decision.answer] for c, by_row in every.items()}
    left = {c: [row for row, decision in by_row.items() if decision.answer is False] for c, by_row in every.items()}
    if not all(left.values()):
        return None
    best = max(every, key=lambda column: len(removed[column]))
    places = [
        Place(f"not removed by {column.name}", attacks, Decision(True, min(every[column][row].n for row in rows)))
        for column, rows in left.items()
        for attacks in grouped(rows)
    ]
    return Finding(
        "No defense here removes every backdoor.",
        f"To remove means: an ASR of at most {REMOVED:g}, and an ACC at most {COST:g} points lower. "
        f"{best.name} removes most: {len(removed[best])} of the {len(removed[best]) + len(left[best])} that "
        f"the seeds decide. It does not remove {named(name(row) for row in left[best])}.",
        Decision(True, min(every[c][rows[0]].n for c, rows in left.items())),
        tuple(places),
    )


def findings(store: Store | None = None) -> list[Finding]:
    """What the records decide, at most five."""
    settings = Settings(store)
    questions: tuple[Callable[[Settings], Finding | None], ...] = (
        keeps_the_backdoor,
        comes_from_fresh_weights,
        repeats_its_head,
        seeds_differ,
        none_removes_all,
    )
    return [finding for question in questions if (finding := question(settings))]


def markdown(store: Store | None = None) -> str:
    """The findings as a numbered list, and the profile of their records."""
    items = [finding.markdown() for finding in findings(store)]
    note = (
        f"The findings are at profile *{Settings(store).profile}*. ACC and ASR are in percent: the mean over seeds, "
        "and in brackets the lowest to the highest."
    )
    parts = [in_words(store), *([note, "\n".join(items)] if items else ["Nothing is decided yet."])]
    return "\n\n".join(part for part in parts if part)
