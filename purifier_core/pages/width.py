"""What the paper's own networks answer, and whether the narrow ones say the same."""

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.profiles import PROFILES, SIZES
from purifier_core.lab.records import Store
from purifier_core.pages.settings import BySeed, Setting, Settings, name
from purifier_core.pages.statistics import TAKEN, decided, measured, runs
from purifier_core.recipes import GRANULARITIES

STARTS = ("full", "random")
FULL_WIDTH = tuple(size for size in SIZES if PROFILES[size].width == 1)


def in_words(store: Store | None = None) -> str:
    """Purifier at the paper's width, a line for each attack and network with a record of it; empty without any."""
    narrow = Settings(store)
    for size in FULL_WIDTH:
        wide = Settings(store, size)
        there = [s for s in wide.every if wide.records(s, Column("none")) and _modules(wide, s, "full")]
        if there:
            head = (
                f"**With the paper's own networks** (width 1, profile *{size}*): ACC / ASR in percent. Purifier has "
                "5 % of the training images as clean ones. The paper starts it from the backdoored network."
            )
            rule = f"A backdoor counts as left in place at {100 * TAKEN:g} % of ASR or more."
            return "\n".join([head, "", *(f"- {_answer(wide, narrow, setting)}" for setting in there), "", rule])
    return ""


def _answer(wide: Settings, narrow: Settings, setting: Setting) -> str:
    """What Purifier leaves of one attack on one network, from the backdoored network and from fresh weights."""
    undefended = wide.records(setting, Column("none"))
    fresh = _modules(wide, setting, "random") or "no record yet"
    parts = [
        f"{name(setting)}, {runs(len(undefended))}: {_pair(undefended)} without a defense.",
        f"From the backdoored network: {_modules(wide, setting, 'full')}.",
        f"From fresh weights: {fresh}.",
        _decided(wide, setting),
        _compared(wide, narrow, setting),
    ]
    return " ".join(filter(None, parts))


def _modules(settings: Settings, setting: Setting, init: str) -> str:
    """ACC and ASR of the modules from a start that have a record, with their seeds if these are not the network's."""
    count = len(settings.records(setting, Column("none")))
    every = {g: settings.records(setting, module(g, init)) for g in GRANULARITIES}
    texts = [
        f"{Column(g).name} {_pair(records)}{'' if len(records) == count else f' ({runs(len(records))})'}"
        for g, records in every.items()
        if records
    ]
    return ", ".join(texts)


def _decided(settings: Settings, setting: Setting) -> str:
    """After which modules, from the backdoored network, the seeds decide that the backdoor is left in, or is not."""
    answers = {g: decided(_stays(settings, setting, module(g, "full"))) for g in GRANULARITIES}
    words = {True: "in place after", False: "not in place after"}
    names = {answer: [Column(g).name for g, given in answers.items() if given is answer] for answer in words}
    texts = [f"{words[answer]} {' and '.join(group)}" for answer, group in names.items() if group]
    return f"The seeds decide: {', '.join(texts)}." if texts else ""


def _pair(records: BySeed) -> str:
    return " / ".join(f"{measured(records.values(), metric).mean:.1f}" for metric in ("acc", "asr"))


def _compared(wide: Settings, narrow: Settings, setting: Setting) -> str:
    """Whether each module leaves the backdoor in, or not, at both profiles alike."""
    every = [module(g, init) for init in STARTS for g in GRANULARITIES]
    columns = [c for c in every if wide.records(setting, c) and narrow.records(setting, c)]
    if wide.profile == narrow.profile or not columns:
        return ""
    both = {c.label: [set(_stays(settings, setting, c)) for settings in (wide, narrow)] for c in columns}
    apart = [label for label, (at_wide, at_narrow) in both.items() if at_wide != at_narrow]
    if apart:
        names = ", ".join(apart)
        return (
            f"The narrow network (profile *{narrow.profile}*) differs in this, or not all of its seeds agree: {names}."
        )
    return f"Every seed of the narrow network (profile *{narrow.profile}*) gives the same answers: in place, or not."


def _stays(settings: Settings, setting: Setting, column: Column) -> list[bool]:
    """Whether the backdoor is left in place, seed by seed."""
    return [(record.asr or 0.0) >= TAKEN for record in settings.records(setting, column).values()]
