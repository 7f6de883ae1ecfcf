"""Anti-Backdoor Learning (Li et al., 2021): train on the poisoned set, isolate what is learned fastest, unlearn it.

Unlike its neighbours it needs no clean data and no given model: it is handed the poisoned training set and a
freshly initialised network, and trains that network to the end.

Unlearning acts through BatchNorm. The isolated images have nearly all one class, and in train mode the running
statistics turn into the statistics of that class: this alone, at learning rate 0, takes the backdoor and much of the
accuracy. With the statistics still (`batchnorm="frozen"`) the reference's steps change next to nothing. The reference
unlearns in train mode, and so does the default here; `abl_bn` on the page of the switches measures all three.

Isolation is a matter of luck where the clean images are learnt as fast as the trigger. At `small` with BadNets, 2
epochs isolate poison alone on CIFAR-10 (precision 1.0, seeds 0 and 1); on MNIST (0.99, 0, 0 for seeds 0 to 2) and
GTSRB (0.95, 0) an easy clean class often has the lower loss, and precision swings between 0 and 1 within half an
epoch. No other schedule tried there isolates at every seed: learning rates of 0.01 to 0.1, batches of 64 to 1,024, 20
steps to 8 epochs, a second epoch at a hundredth of the rate, gamma 1 and 1.5. So the schedule stays. A user of ABL
could not choose it by precision anyway: that takes knowing the poison.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.lab.defenses import Defended, Given, Inputs, recount_batchnorm
from purifier_core.lab.profiles import ABL, Constants
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, Augment, Augmented, Effort, cross_entropy


def local_gradient_ascent(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, gamma: float = Constants.abl_gamma
) -> torch.Tensor:
    """sign(L - gamma) * L for the batch's mean cross-entropy L: what is learned fast is held back at gamma."""
    loss = F.cross_entropy(model(x), y)
    return (loss.detach() - gamma).sign() * loss


def ascent(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The unlearning loss, minus cross-entropy."""
    return -cross_entropy(model, x, y)


def abl(
    inputs: Inputs,
    *,
    stages: tuple[Recipe, Recipe, Recipe] = ABL,
    remove_isolated: bool = True,
    score_augmented: bool = False,
    batchnorm: str = "reference",
    gamma: float = Constants.abl_gamma,
    isolated_share: float = Constants.abl_isolated_share,
) -> Defended:
    """Train a copy of the fresh model on the poisoned images: isolate, finetune, unlearn.

    The isolated images are the `isolated_share` of lowest cross-entropy after the first stage, scored in eval mode;
    their indices are in the diagnostics. Augmentation acts in finetuning alone. remove_isolated=False finetunes on
    the isolated images too, and score_augmented augments the first, second and last step as well; the release
    does both. batchnorm: what its running statistics do in unlearning. "reference": they follow the isolated images;
    "frozen": they stay, and the network unlearns in eval mode; "recounted": they follow, and afterwards are counted
    anew over the images that were not isolated.
    """
    model, images = copy.deepcopy(inputs.model).train(), inputs.images
    augment = inputs.augment if score_augmented else NO_AUGMENT

    def train(stage: int, chosen: torch.Tensor | slice, **options: Any) -> Effort:
        return inputs[chosen].fit(model, stages[stage], seed=inputs.seed + stage, **options)

    ascend = partial(local_gradient_ascent, gamma=gamma)
    effort = train(0, slice(None), augment=augment, loss=ascend, title="ABL isolation")
    scores = sample_losses(model, images, inputs.labels, augment, inputs.seed)
    order = scores.argsort(stable=True)
    count = max(2, round(isolated_share * len(images)))
    isolated, others = order[:count], order[count:].sort().values
    rest = others if remove_isolated else order.sort().values
    model.train()
    effort += train(1, rest, title="ABL finetuning")
    model.train(batchnorm != "frozen")
    effort += train(2, isolated, augment=augment, loss=ascent, title="ABL unlearning")
    if batchnorm == "recounted":
        recount_batchnorm(model, images[others])
    return Defended(model, effort, {"isolated": isolated.tolist()})


@torch.inference_mode()
def sample_losses(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, augment: Augment, seed: int, batch_size: int = 1000
) -> torch.Tensor:
    """Cross-entropy of every image (N,), in the model's eval mode."""
    batch = Augmented(images, augment)
    batch.draw(torch.Generator().manual_seed(seed))
    pieces = torch.arange(len(images), device=images.device).split(batch_size)
    return torch.cat([F.cross_entropy(model(batch(i)), labels[i], reduction="none") for i in pieces])


def defend(given: Given) -> Defended:
    """ABL in the lab. The diagnostics count the isolated images, and those of them that bear the trigger."""
    isolate, tune, unlearn = (given.adapted(stage) for stage in given.profile.abl)
    defended = abl(
        given,
        stages=(isolate, tune, unlearn),
        remove_isolated=given.cell.switch("abl_remove_isolated") == "yes",
        score_augmented=given.cell.switch("abl_score_aug") == "yes",
        batchnorm=given.cell.switch("abl_bn"),
        **given.constants,
    )
    isolated = defended.diagnostics["isolated"]
    stamped = sum(index < given.poisoned for index in isolated)
    defended.diagnostics = {
        "isolated": len(isolated),
        "isolated_with_trigger": stamped,
        "isolation_precision": stamped / len(isolated),
    }
    return defended
