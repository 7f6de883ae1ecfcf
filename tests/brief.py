"""Profile quick with shorter schedules, for what the suite runs whole: the supplement, the notebooks.

Networks are as wide as quick's. The backdoored ones get four epochs of small batches, and Trojan three: with fewer
steps BadNets at 5 % and Trojan take or not by how a processor rounds. Clean networks get two. The defenses have the
paper's epochs at most, where quick takes nine times as many. The kernels of the suite begin with `shorten`, as
conftest.py arranges it.
"""

from dataclasses import replace

from purifier_core.lab import runner
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.profiles import ABL, FINE_PRUNING, FINETUNING, FT_SAM, I_BAU, MCR, NAD_STUDENT, NPD, PROFILES
from purifier_core.recipes import PURIFIER_STAGES, SCANNING, UNLEARNING, Recipe

BACKDOOR = Recipe(4, 0.05, cycle=True, batch_size=32)
BRIEF = replace(
    PROFILES["quick"],
    backdoor=BACKDOOR,
    backdoor_on=((("mnist", "trojan"), replace(BACKDOOR, epochs=3)), (("mnist", "none"), Recipe(2, 0.07, cycle=True))),
    finetuning=FINETUNING,
    fine_pruning=replace(FINE_PRUNING, epochs=5),
    mcr=replace(MCR, epochs=5),
    nad=NAD_STUDENT,
    abl=(Recipe(1, 0.1, nesterov=True), Recipe(1, 0.1, nesterov=True), replace(ABL[2], epochs=1)),
    anp_steps=10,
    purifier=(replace(PURIFIER_STAGES[0], epochs=5), replace(PURIFIER_STAGES[1], epochs=5)),
    ft_sam=replace(FT_SAM, epochs=5),
    i_bau=replace(I_BAU, epochs=2),
    npd=(replace(NPD[0], epochs=1), replace(NPD[1], epochs=5)),
    scanning=replace(SCANNING, steps=10, restarts=1),
    watch_every=5,
    unlearning=replace(UNLEARNING, seen=1000, searches=1, steps=10, renewed=5),
)


def shorten() -> None:
    """Let this process mean the short one by quick."""
    PROFILES["quick"] = BRIEF


if __name__ == "__main__":  # once a session, see once.py
    shorten()
    runner.run_all([kind(profile="quick") for name, kind in EXPERIMENTS.items() if name != "attacks"], workers=2)
