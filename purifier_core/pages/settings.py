"""The records of every attack on every dataset at one clean size: what the findings ask, and what repairs leave."""

from collections.abc import Iterable

import pandas as pd

from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.experiments.supplement import same_share
from purifier_core.lab.methods import ATTACKS, DATASETS, NETWORKS, PAPER, attacks, title
from purifier_core.lab.profiles import SIZES
from purifier_core.lab.records import Record, Store, current
from purifier_core.lab.results import where_taken
from purifier_core.pages.statistics import DECIDES, measured, took
from purifier_core.recipes import GRANULARITIES

SIZE = 3000
"""Clean images on the scale of MNIST's 60,000; another dataset gives the same share."""

Setting = tuple[str, str, str]  # dataset, network, attack
BySeed = dict[int, Record]
MAIN: Setting = ("mnist", "vgg16", "badnets")


class Settings:
    """The records of every attack on every dataset with 5 % of clean images and 10 % of poison, at one profile.

    The profile is the one that is named, or the largest at which Purifier has seeds enough to decide something on
    MNIST. Seeds whose backdoor did not take are left out, unless it took in none.
    """

    def __init__(self, store: Store | None = None, profile: str | None = None) -> None:
        done = list(current((store or Store()).all())[0].values())
        for name in (profile,) if profile else SIZES:
            here = where_taken([record for record in done if record.cell.profile == name])
            self.profile, self.every, self.uncropped = name, _sorted_in(here), _sorted_in(here, crops=False)
            if len(self.records(MAIN, module("feature", "full"))) >= DECIDES:
                break

    def records(self, setting: Setting, column: Column, crops: bool = True) -> BySeed:
        """The records of a defense by seed, with random crops of the clean images or without."""
        return (self.every if crops else self.uncropped).get(setting, {}).get(column, {})

    def taken(self) -> list[Setting]:
        """The settings in which the backdoor of the undefended network took."""
        undefended = {setting: list(self.records(setting, Column("none")).values()) for setting in self.every}
        return [setting for setting, records in undefended.items() if took(records)]


def _sorted_in(records: Iterable[Record], crops: bool = True) -> dict[Setting, dict[Column, BySeed]]:
    """The records of a usual clean size and poison ratio, with random crops of the clean images or without."""
    by_setting: dict[Setting, dict[Column, BySeed]] = {}
    for record in sorted(records, key=lambda r: (list(DATASETS).index(r.cell.dataset), r.cell.network != "vgg16")):
        cell, switches = record.cell, dict(record.cell.switches)
        init = switches.pop("init", "full")
        usual = switches == ({} if crops else {"defence_aug": "off"}) and cell.poison_ratio == 0.1
        if usual and cell.attack in attacks(PAPER) and cell.clean_size in (0, same_share(SIZE, cell.dataset)):
            column = module(cell.defense, init) if cell.defense in GRANULARITIES else Column(cell.defense)
            setting = (cell.dataset, cell.network, cell.attack)
            by_setting.setdefault(setting, {}).setdefault(column, {})[cell.seed] = record
    return by_setting


def attack_name(setting: Setting) -> str:
    """The attack of a setting, in short."""
    return ATTACKS[setting[2]].label.partition(" (")[0]


def place_name(setting: Setting) -> str:
    """The dataset and network of a setting."""
    return f"{title(setting[0])} ({NETWORKS[setting[1]].label})"


def name(setting: Setting) -> str:
    """A setting in words."""
    return f"{attack_name(setting)} on {place_name(setting)}"


def grouped(settings: Iterable[Setting]) -> list[str]:
    """The attacks of some settings, a text for each dataset: "MNIST (BadNets, SIG)"."""
    attacks: dict[str, list[str]] = {}
    for setting in settings:
        attacks.setdefault(setting[0], []).append(attack_name(setting))
    return [f"{title(dataset)} ({', '.join(names)})" for dataset, names in attacks.items()]


def accuracies(store: Store | None = None) -> str:
    """The ACC of the undefended networks with BadNets, in a sentence: what every finding starts from."""
    settings = Settings(store)
    by_place = {s: settings.records(s, Column("none")).values() for s in settings.every if s[2] == MAIN[2]}
    texts = [f"{place_name(s)} {measured(records, 'acc').mean:.1f}" for s, records in by_place.items() if records]
    return f"Without a defense the networks with BadNets have an ACC, in percent, of: {', '.join(texts)}."


def repairs(store: Store | None = None) -> pd.DataFrame:
    """What the two repairs that the package offers leave of BadNets, as text: ASR in percent by network."""
    settings = Settings(store)
    columns = {
        "undefended": Column("none"),
        "bound": Column("bound_feature"),
        "purify": module("feature", "full"),
        "purify, init=random": module("feature", "random"),
    }
    lines = {}
    for setting in (s for s in settings.every if s[2] == MAIN[2]):
        by_head = {head: settings.records(setting, column).values() for head, column in columns.items()}
        texts = {head: measured(records, "asr").text() if records else "missing" for head, records in by_head.items()}
        lines[place_name(setting)] = texts
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=list(columns))
    return frame.rename_axis(f"ASR, % ({settings.profile})")
