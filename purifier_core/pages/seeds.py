"""Every seed by itself: the runs behind a table, and the one rule by which they decide a claim or a verdict.

The published numbers are one run. So a rule is a question to one run, and is put to the published numbers and to each
of our seeds alike. `STATISTICS` says so in words, for the landing page.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.report import paper_values
from purifier_core.pages.statistics import DECIDES, TAKEN, decided, estimate


def _covers(n: int) -> str:
    """The probability that the range of n runs covers the median of all, in percent."""
    return f"{100 * estimate(dict.fromkeys(range(n), 0.0)).confidence:.3g} %"


STATISTICS = f"""\
**Seeds.** One seed fixes the poisoned images, the clean images and the training. Another machine rounds otherwise, and
trains another network from the same seed. A number over seeds is their mean; in
brackets stand the lowest and the highest. This range is no interval from the normal distribution. ASR over seeds often
has two humps, since a backdoor stays or goes, and such an interval would leave 0 to 100. The range holds for every
distribution: that of *n* runs covers the median of all runs with probability 1 - 2^(1 - *n*). This is
{_covers(DECIDES)} for {DECIDES} seeds, {_covers(5)} for 5 and {_covers(10)} for 10. It is printed beside every
verdict. Of many verdicts some have their median outside.

**Differences** are taken seed by seed. A seed without a partner does not enter.

**Decisions.** A rule is put to each seed by itself, and to the published numbers, which count as one run. It is
decided if at least {DECIDES} seeds answer, all in the same way. Else the page says "not decided", and why. One seed is
"one run": it decides nothing, and is drawn hollow.

**Took.** A backdoor took if the undefended network has an ASR of at least {100 * TAKEN:g} %. A defense is judged in the
seeds in which it took: the findings above, Figure 13 and the pages on defenses and repairs leave the others out, and
these pages name them. A seed whose undefended network has no record is kept. Where it took in no seed nothing is
judged. All other pages show every seed; Figures 10 to 12 decide nothing unless it took in each."""

BRACKETS = "In brackets: how many seeds decide, and the probability that their range covers the median of all runs."
"""What stands behind an answer, where a page gives several."""

Place = tuple[Any, Column]
Pair = tuple[float, float]  # ACC and ASR in percent
Run = Mapping[Place, Pair]


@dataclass(frozen=True)
class Decision:
    """What the seeds answer: yes, no, or None where they decide nothing, and why. `n` seeds were asked."""

    answer: bool | None
    n: int
    why: str = ""

    @property
    def basis(self) -> str:
        """The seeds, and the probability that the range of so many runs covers the median of all."""
        return f"{self.n} seeds, {_covers(self.n)}"

    def text(self, yes: str = "holds", no: str = "does not hold") -> str:
        """The answer in words, with what it rests on."""
        if self.answer is None:
            return f"not decided: {self.why}"
        return f"{yes if self.answer else no} ({self.basis})"


def decide(answers: Mapping[Any, bool]) -> Decision:
    """The decision from the answer of each seed."""
    answer = decided(list(answers.values()))
    if isinstance(answer, str):
        return Decision(None, len(answers), answer.removeprefix("not decided: "))
    return Decision(answer, len(answers))


def all_of(decisions: Mapping[str, Decision]) -> Decision:
    """Whether every one of some named questions is answered by yes. A single no decides; it rests on its own seeds."""
    failed = [d.n for d in decisions.values() if d.answer is False]
    if failed:
        return Decision(False, max(failed))
    least = min(d.n for d in decisions.values())
    unsure = {name: d.why for name, d in decisions.items() if d.answer is None}
    if not unsure:
        return Decision(True, least)
    reasons = set(unsure.values())
    if len(reasons) == 1:
        return Decision(None, least, reasons.pop())
    return Decision(None, least, "; ".join(f"{name}: {why}" for name, why in unsure.items()))


def by_start(answers: Mapping[str, Decision]) -> str:
    """The verdict on a claim about Purifier from the answer under each `init`; "full" is Purifier as described."""
    described = answers["full"]
    others = {init: answer.n for init, answer in answers.items() if init != "full" and answer.answer}
    if described.answer is not False or not others:
        return described.text()
    resting = Decision(True, min(described.n, *others.values()))
    return resting.text(f"holds only when Purifier starts from init={' or '.join(others)}")


def in_words(decisions: Mapping[str, Decision]) -> str:
    """Which of some names were answered by yes, and for which the seeds decide nothing, and why."""
    yes = [name for name, decision in decisions.items() if decision.answer]
    unsure: dict[str, list[str]] = {}
    for name, decision in decisions.items():
        if decision.answer is None:
            unsure.setdefault(decision.why, []).append(name)
    if [len(names) for names in unsure.values()] == [len(decisions)]:
        return f"not decided ({next(iter(unsure))})"
    parts = [", ".join(yes) or "none"]
    parts += [f"not decided ({why}): {', '.join(names)}" for why, names in unsure.items()]
    return "; ".join(parts)


def for_each_start(answers: Mapping[str, Mapping[str, Decision]]) -> str:
    """`in_words` for each `init` that has a record, a line each, as HTML."""
    starts = {init: decisions for init, decisions in answers.items() if any(d.n for d in decisions.values())}
    return "<br>".join(f"{init}: {in_words(decisions)}" for init, decisions in starts.items())


@dataclass(frozen=True)
class Judgement:
    """What the rule says of the published numbers and of ours, and the verdict.

    `failing` names the published numbers that do not pass the rule themselves.
    """

    published: str
    ours: str
    verdict: str
    failing: Sequence[str] = ()


def by_run(results: Results) -> dict[Hashable, dict[Place, Record]]:
    """The records of each run, by row and column. A run is a seed at one profile."""
    runs: dict[Hashable, dict[Place, Record]] = {}
    for place, records in results.by_place.items():
        for record in records:
            runs.setdefault((record.cell.profile, record.cell.seed), {})[place] = record
    return runs


def pair(record: Record) -> Pair:
    """ACC and ASR of a record in percent."""
    return 100 * (record.acc or 0.0), 100 * (record.asr or 0.0)


def numbers_by_run(results: Results) -> dict[Hashable, Run]:
    """ACC and ASR of each run, by row and column."""
    return {key: {place: pair(record) for place, record in run.items()} for key, run in by_run(results).items()}


def published_run(results: Results) -> Run:
    """The paper's numbers of a table, by row and column; its one number of a module stands under each start."""
    stated = paper_values(results.experiment)
    return {
        (row, column): (
            stated[row, column.name, "acc"],
            stated[row, column.name, "asr"],
        )
        for row in results.experiment.rows(results.profile)
        for column in results.experiment.columns()
    }


def ask(
    runs: Mapping[Hashable, Mapping[Place, Any]], places: Collection[Place], rule: Callable[[Any], bool]
) -> Decision:
    """Put a rule to every run that has a value at all these places."""
    whole = {key: run for key, run in runs.items() if set(places) <= run.keys()}
    return decide({key: rule({place: run[place] for place in places}) for key, run in whole.items()})
