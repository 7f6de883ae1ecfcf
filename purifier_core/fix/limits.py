"""What a result of `purifier fix` cannot promise."""

from purifier_core.fix.measure import Comparison
from purifier_core.fix.options import Options


def limits(options: Options, comparison: Comparison) -> list[str]:
    """What the result does not show, for this method and these inputs."""
    lines = ["No proof that the network is clean: an accuracy that stays does not say that no backdoor is left."]
    if comparison.triggered_before is None:
        lines.append(
            "Without images that carry the attacker's trigger (--triggered) the attack success rate cannot be "
            "measured. It is unknown, not low."
        )
    else:
        lines.append("The ASR holds for the trigger in the given images. Another trigger may still work.")
    if comparison.guessed:
        lines.append(
            "The target was not given. The ASR counts the class that the model before predicted most often for the "
            "triggered images, which need not be the attacker's."
        )
    if options.scan or options.repairs:
        lines.append(
            "The scan looks for one stamp that carries all images to a class. A trigger that follows the image, or "
            "that the scan does not reach, is not found."
        )
    if options.repairs:
        lines.append("A few stamped images in a later finetuning can bring the trigger back. Scan again after it.")
    if options.bounds or options.repairs:
        lines += [
            "Bounds cut off what no clean image reaches. A trigger whose activations stay below them passes: in this "
            "project's measurements on full datasets Blend's and SIG's, faint and all over the image, mostly did.",
            "An attacker who expects bounds may train a network to stay below them.",
        ]
    else:
        lines.append(
            "Training starts from the given weights, backdoor included. In this project's measurements that mostly "
            "left BadNets in place with granularity channel and feature, and cost much accuracy with cube. Bounds of "
            "granularity feature left less of it."
        )
    if comparison.labels is None:
        lines.append("Without labels nothing told whether the pixels were normalised as the model wants them.")
    return [
        *lines,
        "The clean images are taken to be clean. A few stamped ones among them can be enough to let the trigger pass.",
        "Held-out images come from the same folder. On other data the accuracy may be different; if the model was "
        "trained on these images, it is likely lower elsewhere, before and after.",
        "The intervals are about the choice of images alone, not about another seed or another training.",
    ]
