"""What `purifier fix` does to a network: the scan that it may begin with, and each method."""

import re
import warnings

import torch

from purifier_core.bounds import Bounded, bound
from purifier_core.checks import ConfigError
from purifier_core.evaluation import DivergedError, to_float
from purifier_core.fix import costs, outcome
from purifier_core.fix.network import Prepared, line
from purifier_core.fix.options import Options
from purifier_core.fix.reading import Images, say
from purifier_core.purifier import Purified, purify
from purifier_core.recipes import Recipe
from purifier_core.repairing import repair
from purifier_core.scanning import NOTHING, SUSPECTED, Findings, scan, verdict
from purifier_core.sites import last_stage


def purified(
    model: Prepared, chosen: Images, outputs: int, options: Options
) -> tuple[Bounded | Purified, Findings | None]:
    """The network with its units, from the images that are not held out, and what a scan found, where there was one.

    Raises ConfigError where the method does not fit the model, and DivergedError where training diverges.
    """
    images, labels = chosen.pictures.images[chosen.working].to(model.mean.device), chosen.labels(chosen.working)
    labels = None if labels is None else labels.to(images.device)
    try:
        findings = _scanned(model, images, labels, chosen.folder.names, options)
        return _by_method(model, images, labels, outputs, findings, options), findings
    except (ConfigError, DivergedError):
        raise
    except Exception as problem:  # the model's own code may raise anything
        reason = re.sub(r"(?<![\w.])network\.", "", line(problem))  # the name that `Prepared` has for it
        raise ConfigError(f"{options.method} does not fit this model: {reason}") from problem


def choice(network: Bounded | Purified) -> str:
    """What the method chose, to go on after its name."""
    if isinstance(network, Purified):
        return ""
    text = f", quantile {network.quantile:g}"
    if network.changed is not None:
        text += f", which changes {100 * network.changed:.1f} % of the predictions on a fifth of the method's images"
    return text


def _scanned(
    model: Prepared, images: torch.Tensor, labels: torch.Tensor | None, names: dict[int, str], options: Options
) -> Findings | None:
    if labels is None or not (options.scan or options.repairs):
        return None
    findings = scan(model, images, labels, seed=options.seed)
    for text in verdict(findings, names):
        say(text)
    return findings


def _by_method(
    model: Prepared,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    outputs: int,
    findings: Findings | None,
    options: Options,
) -> Bounded | Purified:
    """Scan-repair unlearns what the scan suspects. Where the scan cannot tell, or if asked to go on anyway, it unlearns
    what stands out most; where the scan finds nothing, it bounds."""
    sites = [f"network.{site.strip()}" for site in options.sites.split(",")] if options.sites else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no bounds keep the budget")  # the outcome says so
        if options.repairs and findings is not None and (options.anyway or findings.verdict != NOTHING):
            assert labels is not None
            anyway = findings.verdict != SUSPECTED
            repaired = repair(model, images, labels, findings, anyway=anyway, sites=sites, seed=options.seed)
            assert isinstance(repaired, Bounded)
            return repaired
        if options.bounds or options.repairs:
            return bound(
                model,
                images,
                options.granularity,
                options.quantile,
                budget=options.budget or outcome.BUDGET,
                sites=sites,
                batch_size=options.batch_size,
                seed=options.seed,
            )
    assert labels is not None
    if sites is None and (table := getattr(model.network, "purifier_sites", None)):
        sites = [f"network.{site}" for site in table[options.granularity]]
    sites = sites or list(last_stage(model, to_float(images[:2])))
    recipe = Recipe(options.epochs or 20, options.lr or 0.01, batch_size=options.batch_size)
    for text in costs.estimate(model, images, sites, outputs, recipe, options.granularity):
        say(text)
    return purify(
        model,
        images,
        labels,
        granularity=options.granularity,
        sites=sites,
        stages=(recipe, recipe),
        seed=options.seed,
    )
