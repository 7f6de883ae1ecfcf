"""What one number of the book is: a `Cell`, and the switches that vary it.

Every value here is small, frozen and checked on construction. Nothing imports torch, so that the
book and the reports can name cells on a machine that never trains.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from purifier_core.checks import ConfigError, integer, one_of
from purifier_core.lab.profiles import PERTURBATIONS, PROFILES, older_rates, plain
from purifier_core.recipes import GRANULARITIES, INITS, Recipe

TARGET_CLASS = 5
"""The attacker's class in every experiment of the authors' release."""

PAPER_TRAIN_SIZE = {"mnist": 60_000, "cifar10": 50_000, "gtsrb": 39_209}
"""Training images of each original dataset: the scale on which a clean size is given."""

NETWORKS = ("vgg16", "resnet18")
ATTACKS = ("badnets", "trojan", "blend", "sig", "cl")
ADAPTIVE = ("adaptive_purifier", "adaptive_bound")
"""BadNets' trigger, taught to a network by an attacker who knows the defense: ours, not the paper's."""
LABELS = {
    "none": "No Defense",
    "finetuning": "Finetuning",
    "fine_pruning": "Fine-pruning",
    "mcr": "MCR",
    "nad": "NAD",
    "abl": "ABL",
    "anp": "ANP",
    "channel": "Channel",
    "cube": "Cube",
    "feature": "Feature",
    "scratch": "From scratch",
    "bound_channel": "Bound-Channel",
    "bound_cube": "Bound-Cube",
    "bound_feature": "Bound-Feature",
}
"""Every defense, in the paper's column order, with the paper's name for it. Then ours: a control that is no defense at
all, a fresh network of the same kind trained on the clean set for as long as Purifier, and bounded activations."""

BOUNDS = tuple(name for name in LABELS if name.startswith("bound_"))
COMPARED = tuple(name for name in LABELS if name not in ("scratch", *BOUNDS))
"""The columns of the paper's tables."""

RESULT_VERSION = 1
"""Part of every key. Raise it when a change of code changes the numbers: old records then show as stale."""


@dataclass(frozen=True)
class Switch:
    """A choice between the method as intended (the first value) and another way, most often the released code's."""

    values: tuple[str, ...]
    applies: tuple[str, ...]  # the defenses or attacks it changes; "backdoor" when it changes the backdoored model
    about: str
    needs: tuple[str, str] | None = None  # another switch and the value that it must have for this one to act


NO_CLEAN_DATA = ("none", "abl")
"""What needs no clean set: the undefended model, and ABL, which defends while training on the poisoned data."""

_PURIFIER = GRANULARITIES
_ALL = tuple(d for d in LABELS if d not in BOUNDS)
_TRAINED_ON_CLEAN_DATA = tuple(d for d in LABELS if d not in (*NO_CLEAN_DATA, *BOUNDS))

SWITCHES = {
    "init": Switch(INITS, _PURIFIER, "what Purifier starts from: the given model, all but the wrapped units, nothing"),
    "purifier_lr": Switch(
        ("released", "older"), _PURIFIER, "the released learning rates, or those of the release's older compiled files"
    ),
    "bn_frozen_stats": Switch(("no", "yes"), _PURIFIER, "keep BatchNorm statistics still in stage 1"),
    "defence_aug": Switch(("on", "off"), _TRAINED_ON_CLEAN_DATA, "augment the clean images in the defense"),
    "flip": Switch(("dataset", "always"), ("backdoor", *_ALL), "flip digits and signs too, as the release does"),
    "weight_decay": Switch(
        ("intended", "dampening"), ("backdoor", *_ALL), "1e-4, or 0 with dampening 1e-4 as the release effectively runs"
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
    "precision": Switch(("fp32", "bf16"), ("backdoor", *_ALL), "train under bf16 autocast; ours, for speed"),
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
        one_of("dataset", self.dataset, PAPER_TRAIN_SIZE)
        one_of("network", self.network, NETWORKS)
        one_of("attack", self.attack, (*ATTACKS, *ADAPTIVE, "none"))
        one_of("defense", self.defense, LABELS)
        one_of("profile", self.profile, PROFILES)
        integer("seed", self.seed, 0, 2**31 - 1)
        ratio = 0.0 if self.attack == "none" else check_poison_ratio(self.poison_ratio)
        object.__setattr__(self, "poison_ratio", ratio)
        if PROFILES[self.profile].data == "embedded" and self.dataset != "mnist":
            raise ConfigError(
                f"profile={self.profile!r} has only the digits that a package ships; for dataset={self.dataset!r} "
                "take another profile: small, wide, paper."
            )
        if self.defense in NO_CLEAN_DATA:
            object.__setattr__(self, "clean_size", 0)
        else:
            check_clean_size(self.clean_size, self.dataset)
        kept, given = [], check_switches(self.switches)
        for name, value in given:
            known = SWITCHES[name]
            bears = {self.defense, self.attack} & set(known.applies) and (not known.needs or known.needs in given)
            if bears and value != SWITCHES[name].values[0]:
                kept.append((name, value))
        object.__setattr__(self, "switches", tuple(sorted(kept)))

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
        return self.attack in ("trojan", "cl")

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
        """Everything of the profile that bears on this cell, as plain values."""
        profile = PROFILES[self.profile]
        backdoor, clean = (plain(profile.backdoored(self.dataset, attack)) for attack in (self.attack, "none"))
        found: dict[str, Any] = {"data": profile.data, "width": profile.width, "backdoor": backdoor}
        if self.needs_reference and clean != backdoor:  # where they are equal, as they were, the key holds
            found["reference"] = clean
        if self.consistent:
            found["perturbation"] = asdict(PERTURBATIONS[self.dataset])
        if self.defense in (*GRANULARITIES, "scratch"):
            found["purifier"] = [plain(r) for r in self.purifier_stages()]
        elif self.defense == "abl":
            found["abl"] = [plain(r) for r in profile.abl]
        elif self.defense == "anp":
            found |= {"anp": plain(profile.anp_masks(self.dataset)), "anp_steps": profile.anp_steps}
        elif self.defense not in ("none", *BOUNDS):  # these have no recipe
            found[self.defense] = plain(getattr(profile, self.defense))
        if self.defense in ("nad", "mcr"):  # both begin with a finetuned copy
            found["finetuning"] = plain(profile.finetuning)
        for method in (self.defense, self.attack):
            if departing := profile.constants.departing(method):
                found[f"{method}_constants"] = departing
        return found

    def purifier_stages(self) -> tuple[Recipe, Recipe]:
        """Purifier's two recipes at this cell's profile and learning rates."""
        stages = PROFILES[self.profile].purifier
        return older_rates(stages) if self.switch("purifier_lr") == "older" else stages

    def key(self) -> str:
        """A content key of 16 hex digits: equal keys, equal experiment (on equal data)."""
        content = {"cell": asdict(self), "settings": self.settings(), "version": RESULT_VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        text = f"{self.dataset} {self.network} {self.attack} {100 * self.poison_ratio:g}% · {LABELS[self.defense]}"
        if self.clean_size:
            text += f" · {self.clean_size} clean"
        for name, value in self.switches:
            text += f" · {name}={value}"
        return f"{text} · seed {self.seed} · {self.profile}"


def check_clean_size(value: Any, dataset: str) -> int:
    """A clean size on the paper's scale: from 0.5 % of the training images to all of them."""
    full = PAPER_TRAIN_SIZE[dataset]
    return integer("clean_size", value, full // 200, full, f" (of {dataset}'s {full} training images)")


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
        found: list[int] = []
        for part in value.split(","):
            ends = [end.strip() for end in part.split("-")]
            if len(ends) > 2 or not all(end.isdecimal() and len(end) <= 10 for end in ends):
                raise problem
            low, high = int(ends[0]), int(ends[-1])
            if high < low or high - low > 1000:
                raise problem
            found.extend(range(low, high + 1))
    elif isinstance(value, (list, tuple)):
        found = list(value)
    else:
        found = [value]
    if not found or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**31 for s in found):
        raise problem
    return tuple(dict.fromkeys(found))


def parse_names(name: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Names from "all", "a", "a,b" or a list, in the order of `allowed`."""
    parts = [p.strip() for p in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ConfigError(f"{name}={value!r} is not understood; write 'all' or names among: {', '.join(allowed)}.")
    chosen = {one_of(name, part, (*allowed, "all")) for part in parts}
    return allowed if "all" in chosen else tuple(a for a in allowed if a in chosen)
