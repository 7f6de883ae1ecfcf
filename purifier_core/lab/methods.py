"""Everything that has a name in the lab. Each thing has one entry, which all other code reads. Without torch.

A new defense, attack, dataset or network is one entry here and the function that the entry names as
"package.module:function". CONTRIBUTING.md shows one of each.
"""

from dataclasses import dataclass, replace

PAPER, OURS, CONTROL, REPAIR, BROKEN = "paper", "ours", "control", "repair", "broken"
"""Where a method or an attack belongs: the paper's tables; this book's additions to their comparison; controls, which
are no defenses; the comparison of repairs, where Scan-repair is ours and the others are the field's; attacks on it."""


@dataclass(frozen=True)
class Method:
    """A defense. `function` takes a `defenses.Given` and returns a `defenses.Defended`."""

    label: str
    group: str = PAPER
    function: str = ""
    data: str = "clean"  # what it gets: "clean" images, the "poisoned" training set, or "nothing"
    begins: str = "backdoored"  # the network it begins with: that, its "finetuned" copy, a "fresh" or a "clean" one
    recipes: tuple[str, ...] = ()  # the profile's fields that it reads
    trains: bool = True
    attacked: bool = False  # whether its result is attacked in turn: `breaking`


_AT = "purifier_core.lab.defenses"
_PURIFIER = Method("", function=f"{_AT}.purify:defend", recipes=("purifier",))
_BOUND = Method("", OURS, f"{_AT}.bounds:defend", trains=False)
_SCAN_REPAIR = Method(
    "Scan-repair", REPAIR, f"{_AT}.scan_repair:defend", recipes=("scanning", "unlearning"), trains=False
)

METHODS = {
    "none": Method("No Defense", data="nothing"),
    "finetuning": Method("Finetuning", function=f"{_AT}.finetuning:defend", recipes=("finetuning",)),
    "fine_pruning": Method("Fine-pruning", function=f"{_AT}.fine_pruning:defend", recipes=("fine_pruning",)),
    "mcr": Method("MCR", function=f"{_AT}.mcr:defend", begins="finetuned", recipes=("mcr", "finetuning")),
    "nad": Method("NAD", function=f"{_AT}.nad:defend", begins="finetuned", recipes=("nad", "finetuning")),
    "abl": Method("ABL", function=f"{_AT}.abl:defend", data="poisoned", begins="fresh", recipes=("abl",)),
    "anp": Method("ANP", function=f"{_AT}.anp:defend", recipes=("anp", "anp_steps")),
    "channel": replace(_PURIFIER, label="Channel"),
    "cube": replace(_PURIFIER, label="Cube"),
    "feature": replace(_PURIFIER, label="Feature"),
    "scratch": Method("From scratch", CONTROL, f"{_AT}.finetuning:from_scratch", begins="fresh", recipes=("purifier",)),
    "bound_channel": replace(_BOUND, label="Bound-Channel"),
    "bound_cube": replace(_BOUND, label="Bound-Cube"),
    "bound_feature": replace(_BOUND, label="Bound-Feature"),
    "scan_repair": _SCAN_REPAIR,
    "scan_repair_anyway": replace(
        _SCAN_REPAIR, label="Scan-repair, anyway", function=f"{_AT}.scan_repair:defend_anyway"
    ),
    "i_bau": Method("I-BAU", REPAIR, f"{_AT}.i_bau:defend", recipes=("i_bau",)),
    "npd": Method("NPD", REPAIR, f"{_AT}.npd:defend", recipes=("npd",)),
    "ft_sam": Method("FT-SAM", REPAIR, f"{_AT}.ft_sam:defend", recipes=("ft_sam",)),
    "broken_repair": replace(_SCAN_REPAIR, label="Scan-repair, attacked", group=BROKEN, attacked=True),
    "broken_clean": Method(
        "Clean network, attacked", BROKEN, f"{_AT}.untouched:defend", begins="clean", trains=False, attacked=True
    ),
}
"""By name, in the paper's order and with its labels. "From scratch" trains a fresh network of the same kind on the
clean set, for as long as Purifier. Scan-repair trains, but with settings of its own that no switch changes; "anyway" it
repairs even where the scan suspects nothing."""

COLUMNS = ("none", "finetuning", "fine_pruning", "mcr", "nad", "abl", "anp", "channel", "cube", "feature")
"""The columns of the paper's tables."""


@dataclass(frozen=True)
class Attack:
    """A backdoor attack. `trigger` takes an `attacks.Making` and returns an `attacks.Trigger`."""

    label: str
    trigger: str
    group: str = PAPER
    reference: bool = False  # whether its poison is made with a clean network
    teacher: str = ""  # how its network is trained, if not plainly: a kind of `adaptive.Attacker`
    begins: str = ""  # the attack whose network it goes on from
    decoys: bool = False  # whether almost stamped images are added with their true labels
    all_to_all: bool = False  # whether the attacker wants the class after the image's own, not one target class


_MAKE = "purifier_core.lab.attacks"

ATTACKS = {
    "badnets": Attack("BadNets (four corners)", f"{_MAKE}:badnets_trigger"),
    "trojan": Attack("Trojan", f"{_MAKE}:trojan_trigger", reference=True),
    "blend": Attack("Blend", f"{_MAKE}:blend_trigger"),
    "sig": Attack("SIG", f"{_MAKE}:sig_trigger"),
    "cl": Attack("CL", f"{_MAKE}:cl_trigger", reference=True),
    "adaptive_purifier": Attack(
        "BadNets, knows Purifier", f"{_MAKE}:badnets_trigger", OURS, teacher="units", begins="badnets"
    ),
    "adaptive_bound": Attack("BadNets, knows bounds", f"{_MAKE}:badnets_trigger", OURS, teacher="reach"),
    "wanet": Attack("WaNet", f"{_MAKE}:wanet_trigger", REPAIR, decoys=True),
    "badnets_all": Attack("BadNets, all-to-all", f"{_MAKE}:badnets_trigger", REPAIR, all_to_all=True),
    "adaptive_scan": Attack("BadNets, knows the scan", f"{_MAKE}:badnets_trigger", BROKEN, teacher="stamps"),
}
"""By name. The adaptive attacks teach BadNets' trigger and know the defense. WaNet and all-to-all are for the
comparison of repairs: Scan-repair was not made for them, and all-to-all has no class that a scan could name."""


@dataclass(frozen=True)
class Perturbation:
    """The label-consistent attack's projected gradient ascent, on the scale of 0 to 255: the largest change of a
    pixel, the size of a step, and how many steps."""

    epsilon: int
    step: float = 1.5
    steps: int = 100


@dataclass(frozen=True)
class Dataset:
    """A dataset of 32x32 images. Its sizes are those of the original: a clean size is given on that scale."""

    label: str
    train: int
    test: int
    classes: int
    perturbation: Perturbation  # as BackdoorBox has it
    mirrored: bool = False  # whether a mirrored image means the same


DATASETS = {
    "mnist": Dataset("MNIST", 60_000, 10_000, 10, Perturbation(64)),
    "cifar10": Dataset("CIFAR-10", 50_000, 10_000, 10, Perturbation(8), mirrored=True),
    "gtsrb": Dataset("GTSRB", 39_209, 12_630, 43, Perturbation(16)),
}


def title(dataset: str) -> str:
    """The name of a dataset as readers know it."""
    return DATASETS[dataset].label


@dataclass(frozen=True)
class Network:
    """A network. `build` takes the number of classes and a width, and returns a `models.Sited`."""

    label: str
    build: str


NETWORKS = {
    "vgg16": Network("VGG-16", "purifier_core.lab.models:VGG16"),
    "resnet18": Network("ResNet-18", "purifier_core.lab.models:ResNet18"),
}


def ours() -> tuple[str, ...]:
    """The names of this book's own methods in the paper's comparison."""
    return tuple(name for name, method in METHODS.items() if method.group == OURS)


def repairs() -> tuple[str, ...]:
    """The names of the methods that the comparison of repairs adds."""
    return tuple(name for name, method in METHODS.items() if method.group == REPAIR)


def attacks(*groups: str) -> tuple[str, ...]:
    """The names of the attacks of some groups."""
    return tuple(name for name, attack in ATTACKS.items() if attack.group in groups)
