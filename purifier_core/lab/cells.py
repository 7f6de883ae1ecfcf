"""What one number of the book is: a `Cell`, and the switches that vary it.

Every value here is small, frozen and checked on construction. Nothing imports torch, so that the
book and the reports can name cells on a machine that never trains.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from purifier_core.checks import ConfigError, integer, one_of
from purifier_core.lab.methods import ATTACKS, DATASETS, METHODS, NETWORKS
from purifier_core.lab.profiles import PROFILES, older_rates, plain
from purifier_core.recipes import GRANULARITIES, INITS, Recipe, Scanning, Unlearning

TARGET_CLASS = 5
"""The attacker's class in every experiment of the authors' release."""

RESULT_VERSION = 1
"""Part of every key. Raise it when a change of code changes the numbers: old records then show as stale."""


TRAINED, TRAINED_CLEAN = "all that is trained", "all that is trained on clean images"
EVERY = "every method"
"""Kinds of methods, for `Switch.applies`."""


@dataclass(frozen=True)
class Switch:
    """A choice between the method as intended (the first value) and another way, most often the released code's."""

    values: tuple[str, ...]
    applies: tuple[str, ...]  # methods, kinds of them, or attacks; "backdoor" where it changes the backdoored model
    about: str
    needs: tuple[str, str] | None = None  # it acts only where this other switch has this value

    def bears(self, defense: str, attack: str) -> bool:
        """Whether it changes this defense, or this attack's network."""
        method = METHODS[defense]
        kinds = {EVERY: True, TRAINED: method.trains, TRAINED_CLEAN: method.trains and method.data == "clean"}
        return any(kinds.get(name, name in (defense, attack)) for name in self.applies)


SWITCHES = {
    "init": Switch(
        INITS, GRANULARITIES, "what Purifier starts from: the given model, all but the wrapped units, nothing"
    ),
    "purifier_lr": Switch(
        ("released", "older"),
        GRANULARITIES,
        "the released learning rates, or those of the release's older compiled files",
    ),
    "bn_frozen_stats": Switch(("no", "yes"), GRANULARITIES, "keep BatchNorm statistics still in stage 1"),
    "defence_aug": Switch(("on", "off"), (TRAINED_CLEAN,), "augment the clean images in the defense"),
    "flip": Switch(("dataset", "always"), ("backdoor", TRAINED), "flip digits and signs too, as the release does"),
    "weight_decay": Switch(
        ("intended", "dampening"),
        ("backdoor", TRAINED),
        "1e-4, or 0 with dampening 1e-4 as the release effectively runs",
    ),
    "trojan_add": Switch(("saturate", "wrap"), ("backdoor", "trojan"), "how Trojan's pattern is added to 8-bit pixels"),
    "blend_noise": Switch(("fixed", "redraw"), ("backdoor", "blend"), "one noise image, or new noise for every image"),
    "sig_map": Switch(("stripes", "sinusoid"), ("backdoor", "sig"), "the release's stored map, or the usual sinusoid"),
    "sig_label": Switch(("dirty", "clean"), ("backdoor", "sig"), "flip labels as released, or poison class 5 alone"),
    "cl_kind": Switch(("consistent", "patch"), ("backdoor", "cl"), "labels kept, as proposed, or the release's patch"),
    "cl_sign": Switch(
        ("kept", "lost"), ("backdoor", "cl"), "lost: negative pixels turn bright, as saved", ("cl_kind", "patch")
    ),
    "nad_eval": Switch(("student", "teacher"), ("nad",), "which of NAD's two networks is the result"),
    "nad_maps": Switch(("pre-pool", "post-pool"), ("nad",), "where NAD's attention maps are taken"),
    "fp_select": Switch(
        ("held-out", "test", "fixed"), ("fine_pruning",), "how many channels go: held-out drop, test ACC 91 %, 417/512"
    ),
    "abl_remove_isolated": Switch(("yes", "no"), ("abl",), "leave the isolated images out of ABL's finetuning"),
    "abl_score_aug": Switch(("no", "yes"), ("abl",), "score augmented images when ABL isolates, and unlearn on such"),
    "abl_bn": Switch(("reference", "frozen", "recounted"), ("abl",), "BatchNorm's statistics in ABL's unlearning"),
    "anp_steps": Switch(("profile", "16"), ("anp",), "mask updates: the profile's number, or the release's 16"),
    "precision": Switch(("fp32", "bf16"), ("backdoor", TRAINED), "train under bf16 autocast; ours, for speed"),
    "width": Switch(("profile", "0.25", "0.5", "1"), ("backdoor", EVERY), "channels, as a share of the paper's; ours"),
}


@dataclass(frozen=True)
class Cell:
    """One number pair (ACC, ASR) of the book, and everything that decides it.

    clean_size is on the paper's scale (3000 of MNIST's 60,000 = 5 %) whatever the profile's data; it is 0
    for "none" and "abl". attack "none" is a clean model. switches holds only what departs from the intended method,
    as sorted (name, value) pairs.
    """

    dataset: str = "mnist"
    network: str = "vgg16"
    attack: str = "badnets"
    poison_ratio: float = 0.1
    defense: str = "none"
    clean_size: int = 0
    seed: int = 0
    profile: str = "quick"
    switches: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        one_of("dataset", self.dataset, DATASETS)
        one_of("network", self.network, NETWORKS)
        one_of("attack", self.attack, (*ATTACKS, "none"))
        one_of("defense", self.defense, METHODS)
        one_of("profile", self.profile, PROFILES)
        integer("seed", self.seed, 0, 2**31 - 1)
        ratio = 0.0 if self.attack == "none" else check_poison_ratio(self.poison_ratio)
        object.__setattr__(self, "poison_ratio", ratio)
        if PROFILES[self.profile].data == "embedded" and self.dataset != "mnist":
            raise ConfigError(
                f"profile={self.profile!r} has only the digits that a package ships; for dataset={self.dataset!r} "
                "take another profile: small, wide, paper."
            )
        if METHODS[self.defense].data != "clean":
            object.__setattr__(self, "clean_size", 0)
        else:
            check_clean_size(self.clean_size, self.dataset)
        switches, pairs = [], check_switches(self.switches)
        for name, value in pairs:
            switch = SWITCHES[name]
            bears = switch.bears(self.defense, self.attack) and (not switch.needs or switch.needs in pairs)
            if bears and value != SWITCHES[name].values[0]:
                switches.append((name, value))
        object.__setattr__(self, "switches", tuple(sorted(switches)))

    def switch(self, name: str) -> str:
        """The value of a switch: the intended one unless this cell departs from it."""
        return dict(self.switches).get(name, SWITCHES[name].values[0])

    def backdoored(self) -> "Cell":
        """The cell of the undefended model that this cell starts from."""
        shared = tuple((n, v) for n, v in self.switches if "backdoor" in SWITCHES[n].applies)
        return replace(self, defense="none", switches=shared)

    @property
    def needs_reference(self) -> bool:
        """Whether the poison is made with a clean model."""
        return self.attack in ATTACKS and ATTACKS[self.attack].reference

    @property
    def consistent(self) -> bool:
        """Whether the attack is the label-consistent one."""
        return self.attack == "cl" and self.switch("cl_kind") == "consistent"

    def finetuned(self) -> "Cell":
        """The cell of the finetuned copy that NAD and MCR begin with."""
        return replace(self, defense="finetuning")

    def reference(self) -> "Cell":
        """The cell of the clean model that the poison of `needs_reference` is made with."""
        return replace(self.backdoored(), attack="none")

    def settings(self) -> dict[str, Any]:
        """The profile's settings that bear on this cell, as plain values."""
        profile = PROFILES[self.profile]
        backdoor, clean = (plain(profile.backdoored(self.dataset, attack)) for attack in (self.attack, "none"))
        settings: dict[str, Any] = {"data": profile.data, "width": self.width, "backdoor": backdoor}
        if self.needs_reference and clean != backdoor:  # if they are equal it stays out, which keeps older keys
            settings["reference"] = clean
        if self.consistent:
            settings["perturbation"] = asdict(DATASETS[self.dataset].perturbation)
        settings |= {name: self._setting(name) for name in METHODS[self.defense].recipes}
        for method in (self.defense, self.attack):
            if departing := profile.constants.departing(method):
                settings[f"{method}_constants"] = departing
        return settings

    def _setting(self, name: str) -> Any:
        """A field of the profile for this cell, as plain values."""
        profile = PROFILES[self.profile]
        special = {"purifier": self.purifier_stages(), "anp": profile.anp_masks(self.dataset)}
        value = special.get(name, getattr(profile, name))
        if isinstance(value, tuple):
            return [plain(recipe) for recipe in value]
        if isinstance(value, (Scanning, Unlearning)):
            return asdict(value)
        return plain(value) if isinstance(value, Recipe) else value

    @property
    def width(self) -> float:
        """The width of its network: 1 is the paper's."""
        value = self.switch("width")
        return PROFILES[self.profile].width if value == "profile" else float(value)

    def purifier_stages(self) -> tuple[Recipe, Recipe]:
        """Purifier's two recipes at this cell's profile and learning rates."""
        stages = PROFILES[self.profile].purifier
        return older_rates(stages) if self.switch("purifier_lr") == "older" else stages

    def key(self) -> str:
        """A content key of 16 hex digits: equal keys, equal experiment (on equal data)."""
        decides = METHODS[self.defense], ATTACKS.get(self.attack), DATASETS[self.dataset], PROFILES[self.profile]
        return _key(self, RESULT_VERSION, *decides)

    def __str__(self) -> str:
        text = (
            f"{self.dataset} {self.network} {self.attack} {100 * self.poison_ratio:g}% · {METHODS[self.defense].label}"
        )
        if self.clean_size:
            text += f" · {self.clean_size} clean"
        for name, value in self.switches:
            text += f" · {name}={value}"
        return f"{text} · seed {self.seed} · {self.profile}"


@cache
def _key(cell: Cell, version: int, *_decides: Any) -> str:
    """`Cell.key`, kept until something that decides it changes: the book asks for it very often."""
    content = {"cell": asdict(cell), "settings": cell.settings(), "version": version}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_clean_size(value: Any, dataset: str) -> int:
    """A clean size on the paper's scale: from 0.2 % of the training images to all of them."""
    full = DATASETS[dataset].train
    return integer("clean_size", value, full // 500, full, f" (of {dataset}'s {full} training images)")


def check_poison_ratio(value: Any) -> float:
    """The share of training images that are copied, stamped and added: in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"poison_ratio={value!r} is a {type(value).__name__}; it must be a number such as 0.1.")
    if not 0.001 <= value <= 1:
        raise ConfigError(f"poison_ratio={value!r} is out of range; allowed: 0.001 to 1 (0.1 is 10 %).")
    return float(value)


def check_switches(value: Any) -> list[tuple[str, str]]:
    """Known switches with known values, each at most once, from pairs of names and values or a dictionary of them."""
    try:
        pairs = [(name, turned) for name, turned in (value.items() if isinstance(value, dict) else value)]
    except (TypeError, ValueError):
        raise ConfigError(f"switches={value!r} is not understood; write pairs such as (('init', 'random'),).") from None
    for name, turned in pairs:
        one_of("switch", name, SWITCHES)
        one_of(name, turned, SWITCHES[name].values)
    if len(dict(pairs)) < len(pairs):
        raise ConfigError(f"switches={value!r} turns a switch twice; name each once.")
    return pairs


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Seeds from 3, "0-2", "0,4,7" or a list, in order and without repeats."""
    problem = ConfigError(f"seeds={value!r} is not understood; write 0, '0-2', '0,4,7' or [0, 1].")
    if isinstance(value, str):
        seeds: list[int] = []
        for part in value.split(","):
            ends = [end.strip() for end in part.split("-")]
            if len(ends) > 2 or not all(end.isdecimal() and len(end) <= 10 for end in ends):
                raise problem
            low, high = int(ends[0]), int(ends[-1])
            if high < low or high - low > 1000:
                raise problem
            seeds.extend(range(low, high + 1))
    elif isinstance(value, (list, tuple)):
        seeds = list(value)
    else:
        seeds = [value]
    if not seeds or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**31 for s in seeds):
        raise problem
    return tuple(dict.fromkeys(seeds))


def parse_names(name: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Names from "all", "a", "a,b" or a list, in the order of `allowed`."""
    parts = [p.strip() for p in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ConfigError(f"{name}={value!r} is not understood; write 'all' or names among: {', '.join(allowed)}.")
    chosen = {one_of(name, part, (*allowed, "all")) for part in parts}
    return allowed if "all" in chosen else tuple(a for a in allowed if a in chosen)
