"""Numbers over seeds: mean and range, differences paired by seed, and the one rule that decides.

There are no t-intervals. ASR over seeds is bimodal and bounded, and the range of n runs covers the median of all runs
with probability 1 - 2^(1 - n), whatever the distribution.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from purifier_core.lab.records import Record
from purifier_core.lab.results import DECIDES, TAKEN

NEAR = 2.0
"""How many points from a published ACC and ASR count as near."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Estimate:
    """A measured percentage, seed by seed. Shown as mean and range, and drawn as one dot for each seed."""

    values: tuple[float, ...]  # in percent, in the order of `seeds`
    seeds: tuple[int, ...]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.values) / self.n

    @property
    def low(self) -> float:
        """The lowest seed."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest seed."""
        return max(self.values)

    @property
    def confidence(self) -> float:
        """The probability that the range covers the median of all runs, whatever their distribution; 0 for one run."""
        return 1 - 2.0 ** (1 - self.n)

    def spread(self, digits: int = 1, sign: str = "") -> str:
        """The range in words, "one run" where there is one."""
        return "one run" if self.n == 1 else f"{number(self.low, digits, sign)} to {number(self.high, digits, sign)}"

    def text(self, digits: int = 1, sign: str = "") -> str:
        """The mean and the range; `sign` "+" shows the sign also of positive numbers."""
        return f"{number(self.mean, digits, sign)} ({self.spread(digits, sign)})"


def number(value: float, digits: int = 1, sign: str = "") -> str:
    """A number as text, without the minus of a zero."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def estimate(values: Mapping[int, float]) -> Estimate:
    """The estimate from fractions by seed."""
    return Estimate(tuple(100 * v for v in values.values()), tuple(values))


def measured(records: Iterable[Record], metric: str) -> Estimate:
    """The estimate of "acc" or "asr" from records of one cell, one a seed."""
    return estimate({record.cell.seed: getattr(record, metric) for record in records})


def paired(after: Iterable[Record], before: Iterable[Record], metric: str) -> Estimate | None:
    """The difference after - before in percentage points, seed by seed; None where no seed has both.

    A seed without a partner at its own profile does not enter.
    """
    start = {(r.cell.profile, r.cell.seed): getattr(r, metric) for r in before}
    pairs = [(r, start.get((r.cell.profile, r.cell.seed))) for r in after]
    differences = {r.cell.seed: getattr(r, metric) - first for r, first in pairs if first is not None}
    return estimate(differences) if differences else None


def decided(answers: Sequence[Answer]) -> Answer | str:
    """The one rule of decision, from the answer of each seed: at least DECIDES seeds, and all with the same answer.

    It gives that answer, or else why it decides nothing, in words that begin with "not decided".
    """
    if not answers:
        return "not decided: records are missing"
    if len(answers) < DECIDES:
        return f"not decided: {runs(len(answers))}"
    return answers[0] if len(set(answers)) == 1 else "not decided: the seeds disagree"


def runs(n: int) -> str:
    """A number of seeds in words."""
    return "one run" if n == 1 else f"{n} seeds"


def named(names: Iterable[str]) -> str:
    """Names as a list in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def without_threshold(record: Record) -> bool:
    """Whether ANP found no admissible threshold: its record then holds the untouched network, and no result of ANP."""
    return record.cell.defense == "anp" and record.diagnostics.get("tau", 0) is None


def results_of(records: Iterable[Record]) -> list[Record]:
    """The records that are a result of their defense: all but those `without_threshold`."""
    return [record for record in records if not without_threshold(record)]


def took(undefended: Sequence[Record]) -> bool:
    """Whether a backdoor took: an ASR of at least TAKEN in every record of the undefended network; False for none."""
    return bool(undefended) and all((record.asr or 0.0) >= TAKEN for record in undefended)
