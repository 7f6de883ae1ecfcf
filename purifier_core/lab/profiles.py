"""How long and how large: the training recipes, and the four sizes of every experiment."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from purifier_core.recipes import PURIFIER_STAGES, SCANNING, UNLEARNING, Recipe, Scanning, Unlearning


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe for a key. Fields added since the first records stay out at their neutral value, so old keys hold."""
    later = {"nesterov": False, "bf16": False, "cycle": False, "cosine": False}
    return {n: v for n, v in asdict(recipe).items() if n not in later or v != later[n]}


# The released schedules, where the release has one; a profile may shorten them.
BACKDOOR = Recipe(80, 0.1, milestones=(70,))
FINETUNING = Recipe(20, 0.01)
FINE_PRUNING = Recipe(20, 0.01)
MCR = Recipe(40, 0.01, batch_size=128, tail=True)  # not released: the curve library's schedule
NAD_STUDENT = Recipe(10, 0.1, milestones=(2, 4, 6, 8), gamma=0.5)
# ABL's three stages: isolation, finetuning, unlearning
ABL = (
    Recipe(20, 0.1, nesterov=True),
    Recipe(60, 0.1, milestones=(40,), nesterov=True),
    Recipe(20, 5e-4, nesterov=True),
)
ANP_MASKS = Recipe(0, 0.2, batch_size=128, weight_decay=0.0)  # as many steps as asked for
# Of the field beyond the paper, from each one's own code; their modules name it.
FT_SAM = Recipe(100, 0.01, batch_size=256, weight_decay=5e-4, cosine=True)
I_BAU = Recipe(5, 1e-3, batch_size=100, momentum=0.0, weight_decay=0.0)  # epochs are rounds; Adam
NPD = (
    Recipe(5, 1e-4, batch_size=128, momentum=0.0, weight_decay=0.0),
    Recipe(50, 0.01, batch_size=128, weight_decay=5e-4),
)
ANP_STEPS = 2000  # ANP's own; the release's loop comes to 16


def older_rates(stages: tuple[Recipe, Recipe]) -> tuple[Recipe, Recipe]:
    """Purifier's stages with the learning rates of the release's older compiled configuration: 1e-3, a tenth of it
    after a quarter and after half of the epochs, then 8e-3 with weight decay 5e-4."""
    heads, everything = stages
    drops = (heads.epochs // 4, heads.epochs // 2)
    return replace(heads, lr=1e-3, milestones=drops), replace(everything, lr=8e-3, weight_decay=5e-4)


def prolonged(recipe: Recipe, times: int) -> Recipe:
    """The recipe with `times` as many epochs and the same shape: for fewer images in about as many steps."""
    milestones = tuple(times * epoch for epoch in recipe.milestones)
    return replace(recipe, epochs=times * recipe.epochs, milestones=milestones)


QUICK = 9
"""How many times the paper's epochs a defense takes at `quick`, where 3,000 clean images are 200.

An epoch of 200 images has 4 steps, of 3,000 it has 47: nine times the epochs are three quarters of the paper's steps.
"""


@dataclass(frozen=True)
class Constants:
    """The numbers of the methods that are no schedule. Each name begins with its method's.

    A cell's key holds the values that depart from these. So give a profile other values, and leave these alone: a
    change here would leave the keys as they are, and mix old records with new.
    """

    nad_beta_first: float = 500.0  # weight of the attention term at the shallowest site
    nad_beta: float = 1000.0  # and at every deeper one
    abl_gamma: float = 0.5  # the loss below which local gradient ascent turns training back
    abl_isolated_share: float = 0.01  # of the training set: what is isolated and unlearned
    anp_alpha: float = 0.2  # weight of the unperturbed loss
    anp_epsilon: float = 0.4  # the largest perturbation at the start, and its step
    anp_max_drop: float = 0.05  # of held-out accuracy, for the threshold; ours, the paper names none
    mcr_t: float = 0.1  # the point of the curve that is the result
    fine_pruning_max_drop: float = 0.04  # of held-out accuracy; ours, the paper names none
    ft_sam_rho: float = 2.0  # how far a step climbs, times the weights' own sizes
    ft_sam_smoothing: float = 0.1  # of the labels
    i_bau_step: float = 10.0  # of the search of a perturbation
    i_bau_penalty: float = 0.001  # on its squared length
    i_bau_inner_step: float = 0.1  # of the map whose fixed point it is taken for
    i_bau_iterations: int = 5  # of that map
    i_bau_portion: float = 0.01  # of the images that it is put on
    npd_weight: float = 0.4  # of each of the three losses on moved images
    npd_radius: float = 3.0  # of the L2 ball that an image is moved in
    npd_step: float = 0.1  # by the gradient's sign
    npd_steps: int = 2
    adaptive_purifier_rate: float = 0.1  # of the backdoored model's learning rate: the attacker goes on from it

    def of(self, method: str) -> dict[str, Any]:
        """The constants of a method, by their names without it."""
        start = f"{method}_"
        return {name.removeprefix(start): value for name, value in asdict(self).items() if name.startswith(start)}

    def departing(self, method: str) -> dict[str, Any]:
        """Those of a method that are not the usual ones."""
        usual = Constants().of(method)
        return {name: value for name, value in self.of(method).items() if value != usual[name]}


@dataclass(frozen=True)
class Profile:
    """One size of the experiment. `paper` is the reference; the others shrink only what they name."""

    name: str
    about: str
    data: str  # "full" or "embedded" (the digits that a package ships)
    width: float
    precision: str = "fp32"  # "auto": trained and evaluated under bf16 autocast on a CPU whose products it makes faster
    threads: int | None = None  # CPU threads for one cell; a fixed number makes results equal on any core count
    backdoor: Recipe = BACKDOOR
    backdoor_on: tuple[tuple[tuple[str, ...], Recipe], ...] = ()  # by (dataset,) or (dataset, attack), where another
    finetuning: Recipe = FINETUNING
    fine_pruning: Recipe = FINE_PRUNING
    mcr: Recipe = MCR
    nad: Recipe = NAD_STUDENT
    abl: tuple[Recipe, Recipe, Recipe] = ABL
    anp: Recipe = ANP_MASKS
    anp_on: tuple[tuple[str, Recipe], ...] = ()  # by dataset, where another
    anp_steps: int = ANP_STEPS
    purifier: tuple[Recipe, Recipe] = PURIFIER_STAGES
    ft_sam: Recipe = FT_SAM
    i_bau: Recipe = I_BAU
    npd: tuple[Recipe, Recipe] = NPD
    scanning: Scanning = SCANNING
    unlearning: Unlearning = UNLEARNING
    constants: Constants = Constants()
    watch_every: int = 1  # epochs between two points of the curve of a defense on clean images

    def backdoored(self, dataset: str, attack: str) -> Recipe:
        """How the backdoored model of an attack on a dataset is trained; attack "none" is a clean model."""
        recipes = dict(self.backdoor_on)
        return recipes.get((dataset, attack)) or recipes.get((dataset,)) or self.backdoor

    def anp_masks(self, dataset: str) -> Recipe:
        """How ANP's masks are trained on a dataset."""
        return dict(self.anp_on).get(dataset, self.anp)


PROFILES = {
    p.name: p
    for p in (
        Profile(
            "quick",
            "minutes on two cores: 5,000 digits, width 1/8, most defenses three quarters of their steps",
            "embedded",
            1 / 8,
            backdoor=Recipe(6, 0.1, cycle=True),  # ACC 97.6 %; 20 epochs of the released shape gave 96.8 %
            threads=1,  # measured as fast as two for so narrow a network
            finetuning=prolonged(FINETUNING, QUICK),
            fine_pruning=prolonged(FINE_PRUNING, QUICK),
            mcr=prolonged(MCR, QUICK),
            nad=prolonged(NAD_STUDENT, QUICK),
            abl=(Recipe(5, 0.1, nesterov=True), Recipe(12, 0.1, (9,), nesterov=True), ABL[2]),
            anp_steps=500,
            purifier=(prolonged(PURIFIER_STAGES[0], QUICK), prolonged(PURIFIER_STAGES[1], QUICK)),
            ft_sam=replace(FT_SAM, epochs=200),  # with this and NPD prolonged as the others, the page takes ten minutes
            i_bau=prolonged(I_BAU, QUICK),
            npd=(prolonged(NPD[0], 3), replace(NPD[1], epochs=100)),
            watch_every=2 * QUICK,  # as many points as at `small`
        ),
        Profile(
            "small",
            "hours on a CPU: the real datasets, width 1/8, shorter schedules",
            "full",
            1 / 8,
            backdoor=Recipe(6, 0.1, (4,)),
            backdoor_on=(
                (("gtsrb",), Recipe(15, 0.1, (10,))),  # fewer images: as many steps; 6 implant no backdoor
                (("cifar10", "trojan"), Recipe(15, 0.1, (12,))),  # at learning rate 0.1 it takes in epoch 7 of VGG-16
            ),
            threads=1,
            finetuning=Recipe(10, 0.01),
            fine_pruning=Recipe(10, 0.01),
            mcr=Recipe(20, 0.01, batch_size=128, tail=True),
            abl=(Recipe(2, 0.1, nesterov=True), Recipe(5, 0.1, (4,), nesterov=True), ABL[2]),
            anp_on=(("gtsrb", replace(ANP_MASKS, lr=0.01)),),  # BackdoorBench's; at 0.2 no threshold is admissible
            anp_steps=500,
            purifier=(Recipe(10, 0.01), Recipe(10, 0.01)),
            ft_sam=replace(FT_SAM, epochs=50),
            npd=(NPD[0], replace(NPD[1], epochs=25)),
        ),
        # `purifier run table3 --profile wide --clean-size 3000`. The schedule of one cycle is ours; the defenses' are
        # the released ones but where a comment says so. MNIST: an hour for the undefended VGG-16 on one busy thread
        # with AVX-512 bf16, 99.6 / 100.0 (ACC / ASR; the bar is 99.2 / 99.5); three hours for the row, 3.6 GiB.
        # CIFAR-10 on such a thread: VGG-16 in an hour and a half, 83.7 / 100.0 (the bar is an ACC of 87), ResNet-18 in
        # two, 84.1 / 100.0 (89), 4.8 GiB. Both bars are missed: six epochs are too few for them.
        Profile(
            "wide",
            "a night on a CPU: the paper's networks, in bf16 if the CPU has it; shorter schedules for ABL, ANP and the "
            "undefended network",
            "full",
            1.0,
            backdoor=Recipe(6, 0.1, batch_size=128, weight_decay=5e-4, cycle=True),
            backdoor_on=((("gtsrb",), Recipe(12, 0.1, batch_size=128, weight_decay=5e-4, cycle=True)),),  # fewer images
            precision="auto",
            abl=(Recipe(2, 0.1, nesterov=True), Recipe(5, 0.1, (4,), nesterov=True), ABL[2]),  # 100 epochs take days
            anp_steps=500,  # 2,000 take an hour
            watch_every=5,  # watching takes a quarter as long as an epoch on 2,500 clean images
        ),
        Profile("paper", "a GPU: the paper's network and schedule", "full", 1.0),
    )
}

SIZES = ("paper", "wide", "small")
"""The profiles that the book reads, from the largest down. Records of `quick` are those of a smoke test."""
