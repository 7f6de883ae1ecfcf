"""What the paper's own networks answer, and whether the narrow ones say the same."""

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.profiles import PROFILES, SIZES
from purifier_core.lab.records import Store
from purifier_core.pages.settings import MAIN, SIZE, BySeed, Settings, name
from purifier_core.pages.statistics import TAKEN, measured, runs
from purifier_core.recipes import GRANULARITIES

STARTS = ("full", "random")
FULL_WIDTH = tuple(size for size in SIZES if PROFILES[size].width == 1)


def in_words(store: Store | None = None) -> str:
    """A paragraph on Purifier at the paper's width on MNIST with BadNets; empty where there is no record of it."""
    narrow = Settings(store)
    for size in FULL_WIDTH:
        wide = Settings(store, size)
        undefended = wide.records(MAIN, Column("none"))
        texts = {init: _modules(wide, init) for init in STARTS}
        if undefended and texts["full"]:
            return (
                f"**With the paper's own network** (width 1, profile *{size}*, {runs(len(undefended))}) on "
                f"{name(MAIN)}, {SIZE:,} clean images: without a defense {_pair(undefended)} (ACC / ASR in percent). "
                "Started from the backdoored network, as the paper describes, Purifier gives "
                f"{texts['full']}; from fresh weights "
                f"{texts['random'] or 'no record yet'}. {_compared(wide, narrow)}"
            )
    return ""


def _modules(settings: Settings, init: str) -> str:
    """ACC and ASR of the modules from a start that have a record."""
    every = {g: settings.records(MAIN, module(g, init)) for g in GRANULARITIES}
    return ", ".join(f"{Column(g).name} {_pair(records)}" for g, records in every.items() if records)


def _pair(records: BySeed) -> str:
    return " / ".join(f"{measured(records.values(), metric).mean:.1f}" for metric in ("acc", "asr"))


def _compared(wide: Settings, narrow: Settings) -> str:
    """Whether each module leaves the backdoor in, or not, at both profiles alike."""
    every = [module(g, init) for init in STARTS for g in GRANULARITIES]
    columns = [c for c in every if wide.records(MAIN, c) and narrow.records(MAIN, c)]
    if wide.profile == narrow.profile or not columns:
        return ""
    apart = [column.label for column in columns if _stays(wide, column) != _stays(narrow, column)]
    if apart:
        names = ", ".join(apart)
        return f"The narrow network (profile *{narrow.profile}*) says otherwise, or not in every seed, for {names}."
    return (
        f"At {100 * TAKEN:g} % of ASR or more the backdoor stays. By this rule every seed of the narrow network "
        f"(profile *{narrow.profile}*) says the same."
    )


def _stays(settings: Settings, column: Column) -> set[bool]:
    return {(record.asr or 0.0) >= TAKEN for record in settings.records(MAIN, column).values()}
