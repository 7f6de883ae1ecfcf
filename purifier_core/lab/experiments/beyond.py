"""What this book adds to the supplement, as grids of cells: the attacks, and the readings of Purifier."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from purifier_core.checks import ConfigError, one_of
from purifier_core.lab.cells import Cell, check_switches
from purifier_core.lab.experiments.grids import Column, Experiment, module
from purifier_core.lab.experiments.supplement import Table3, same_share
from purifier_core.lab.methods import ATTACKS, DATASETS, METHODS, NETWORKS
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import GRANULARITIES, INITS


@dataclass(frozen=True)
class Setting:
    """What a reading is taken on: data, network, clean size, and whether the clean images are augmented."""

    dataset: str
    network: str
    clean_size: int
    augment: bool = True


@dataclass(frozen=True)
class Readings(Experiment):
    """Three readings of Purifier: each module from each `init`, beside the same network trained on the clean set alone.

    Command: `papermill notebooks/readings.ipynb out.ipynb -p profile small`. On MNIST with VGG-16 at the paper's three
    clean sizes, at the smallest also without augmentation of the clean images, and on CIFAR-10 with both networks.
    Expected on MNIST: data/published/table3.csv, for the reading that it comes from.
    """

    name: ClassVar[str] = "readings"
    title: ClassVar[str] = "Readings"
    axis: ClassVar[str] = "dataset"
    seeds_first: ClassVar[bool] = True

    dataset: Any = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, ("mnist", "cifar10", "all"))

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The settings; a profile without downloads has the smallest clean size of MNIST alone."""
        if PROFILES[profile].data == "embedded":
            return (Setting("mnist", "vgg16", 3000),)
        mnist = [Setting("mnist", "vgg16", size) for size in Table3.every]
        cifar = [Setting("cifar10", network, same_share(3000, "cifar10")) for network in ("vgg16", "resnet18")]
        every = [*mnist, replace(mnist[-1], augment=False), *cifar]
        return tuple(setting for setting in every if self.dataset in ("all", setting.dataset))

    def columns(self) -> list[Column]:
        """The control, and every module from every start."""
        return [Column("scratch"), *(module(g, i) for i in INITS for g in GRANULARITIES)]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of ACC and ASR."""
        aug = () if row.augment else (("defence_aug", "off"),)
        switches = (*column.switches, *aug)
        return self.made(column, row.dataset, row.clean_size, seed, profile, network=row.network, switches=switches)


@dataclass(frozen=True)
class Change:
    """One switch turned on for one defense, "none" for the undefended model; `attack` where it must be that one."""

    switch: str
    value: str
    defense: str = "none"
    attack: str = ""
    base: tuple[tuple[str, str], ...] = ()  # what both sides have beside it


CHANGES: tuple[Change, ...] = (
    Change("nad_eval", "teacher", "nad"),
    Change("nad_maps", "post-pool", "nad"),
    Change("anp_steps", "16", "anp"),
    Change("fp_select", "test", "fine_pruning"),
    Change("fp_select", "fixed", "fine_pruning"),
    *(Change("bn_frozen_stats", "yes", g) for g in GRANULARITIES),
    *(Change("purifier_lr", "older", g) for g in GRANULARITIES),
    *(Change("defence_aug", "off", d) for d in ("finetuning", *GRANULARITIES)),
    *(Change("weight_decay", "dampening", d) for d in ("none", "finetuning", "feature")),
    Change("weight_decay", "dampening", "feature", base=(("init", "random"),)),
    *(Change("flip", "always", d) for d in ("none", "finetuning", "feature")),
    Change("flip", "always", "feature", base=(("init", "random"),)),
    Change("abl_remove_isolated", "no", "abl"),
    Change("abl_score_aug", "yes", "abl"),
    Change("abl_bn", "frozen", "abl"),
    Change("abl_bn", "recounted", "abl"),
    Change("trojan_add", "wrap", attack="trojan"),
    Change("blend_noise", "redraw", attack="blend"),
    Change("sig_map", "sinusoid", attack="sig"),
    Change("sig_label", "clean", attack="sig"),
    Change("cl_kind", "patch", attack="cl"),
    *(
        Change("precision", "bf16", d, base=(("width", width),) if width else ())
        for width in ("", "0.25")
        for d in ("none", "finetuning", "feature")
    ),
)
"""Every behaviour of the release that can change a number, one at a time; the last is ours, for speed.

`cl_sign` is not among them: on MNIST, whose corners are black, the patch has no negative pixel to lose.
"""

WIDTHS = (0.125, 0.25, 0.5, 1.0)

WITHOUT, WITH = Column("none", (("change", "no"),)), Column("none", (("change", "yes"),))


@dataclass(frozen=True)
class Switches(Experiment):
    """One switch at a time: what each behaviour of the released code does to ACC and ASR, all else as intended.

    Command: `papermill notebooks/switches.ipynb out.ipynb -p profile small`. VGG-16 on MNIST, 10 % of poison, 3,000
    clean images. Each row is a change, with the cell without it and the cell with it.
    """

    name: ClassVar[str] = "switches"
    title: ClassVar[str] = "Switches"
    axis: ClassVar[str] = "switch"
    seeds_first: ClassVar[bool] = True

    clean_size: Any = 3000
    switch: Any = "nad_eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("switch", self.switch, (*dict.fromkeys(change.switch for change in CHANGES), "all"))

    def full_grid(self) -> "Switches":
        """Every change."""
        return replace(self, switch="all")

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The changes asked for; those at another width only where the profile's own network is the narrowest."""
        changes = [change for change in CHANGES if self.switch in ("all", change.switch)]
        narrow = PROFILES[profile].width == WIDTHS[0]
        return tuple(change for change in changes if narrow or "width" not in dict(change.base))

    def columns(self) -> list[Column]:
        """Without and with the change."""
        return [WITHOUT, WITH]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell on one side of a change."""
        turned = ((row.switch, row.value),) if column == WITH else ()
        attack, switches = row.attack or self.attack, (*row.base, *turned)
        defense = Column(row.defense)
        return self.made(defense, "mnist", self.clean_size, seed, profile, attack=attack, switches=switches)


@dataclass(frozen=True)
class Ladder(Experiment):
    """The same methods on networks of four widths, all else equal: does a conclusion change with the width?

    Command: `papermill notebooks/ladder.ipynb out.ipynb -p profile small -p width 0.25`. VGG-16 on MNIST, 3,000 clean
    images. The narrowest is the profile's own network; a profile of another width has that one alone.
    """

    name: ClassVar[str] = "ladder"
    title: ClassVar[str] = "The width"
    axis: ClassVar[str] = "width"
    sizes: ClassVar[tuple[str, ...]] = ("small",)

    clean_size: Any = 3000
    width: Any = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width not in (*WIDTHS, "all"):
            raise ConfigError(f"width={self.width!r} is not known; allowed: {', '.join(map(str, WIDTHS))}, all.")

    def full_grid(self) -> "Ladder":
        """Every width."""
        return replace(self, width="all")

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The widths asked for that can be had at a profile."""
        own = PROFILES[profile].width
        if own != WIDTHS[0]:
            return (own,)
        return WIDTHS if self.width == "all" else (self.width,)

    def columns(self) -> list[Column]:
        """The undefended network, two baselines, every module from both starts, and the bound that removes most."""
        modules = [module(g, init) for init in ("full", "random") for g in GRANULARITIES]
        return [Column("none"), Column("finetuning"), Column("nad"), *modules, Column("bound_feature")]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell behind one pair of ACC and ASR."""
        turned = () if row == PROFILES[profile].width else (("width", f"{row:g}"),)
        return self.made(column, "mnist", self.clean_size, seed, profile, switches=(*column.switches, *turned))


@dataclass(frozen=True)
class Single(Experiment):
    """Any one number: one defense of one network against one attack, with the switches that are named.

    Command: `purifier run cell --network resnet18 --defense nad --attack blend --switches nad_eval=teacher`. clean_size
    is on MNIST's scale, and gives the same share of another dataset.
    """

    name: ClassVar[str] = "cell"
    title: ClassVar[str] = "One number"
    axis: ClassVar[str] = "dataset"

    dataset: Any = "mnist"
    network: Any = "vgg16"  # type: ignore[misc]  # a parameter here alone
    defense: Any = "none"
    clean_size: Any = 3000
    switches: Any = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dataset", self.dataset, DATASETS)
        one_of("network", self.network, NETWORKS)
        one_of("defense", self.defense, METHODS)
        check_switches(self._switches())

    def allowed_attacks(self) -> tuple[str, ...]:
        """Every attack, and "none" for a clean network."""
        return (*ATTACKS, "none")

    def _switches(self) -> tuple[tuple[str, str], ...]:
        """The switches as pairs, from text such as "init=random,flip=always"."""
        parts = [part.strip() for part in str(self.switches).split(",") if part.strip()]
        pairs = [part.partition("=") for part in parts]
        return tuple((name, value) for name, _, value in pairs)

    def rows(self, profile: str) -> tuple[Any, ...]:
        """The one dataset."""
        return (self.dataset,)

    def columns(self) -> list[Column]:
        """The one defense."""
        return [Column(self.defense, self._switches())]

    def cell(self, column: Column, row: Any, seed: int, profile: str) -> Cell:
        """The cell of a seed."""
        return self.made(column, row, same_share(self.clean_size, row), seed, profile)
