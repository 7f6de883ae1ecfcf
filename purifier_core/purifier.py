"""Purifier: Channel, Cube and Feature units that plug into any `nn.Module`, and the two-stage recipe.

A unit wraps one submodule (a site) with feature map F of shape (N, C, H, W). Its head, one linear layer,
reads a pooled view of F and gives class logits; the row of the head's weight that belongs to a class
multiplies F before it goes on:

    granularity  head input v          mask
    channel      mean over H, W: C     (N, C, 1, 1)
    cube         mean over C: H*W      (N, 1, H, W)
    feature      all of F: C*H*W       (N, C, H, W)

The class is the true label in training and the head's own prediction in evaluation, so units may disagree.
Masks are the raw signed weights, neither normalised nor detached (as in CAS and in the authors' release).
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.config import GRANULARITIES, INITS, one_of
from purifier_core.profiles import PURIFIER_STAGES, Recipe
from purifier_core.training import Augment, Effort, fit, to_float


class _Context:
    """What passes beside the activations: the labels that choose the masks, and the heads' logits if asked for."""

    def __init__(self) -> None:
        self.labels: torch.Tensor | None = None
        self.logits: list[torch.Tensor] | None = None


class Unit(nn.Module):
    """One wrapped site with its head."""

    def __init__(self, site: nn.Module, granularity: str, head: nn.Linear, context: _Context) -> None:
        super().__init__()
        self.site = site
        self.head = head
        self.granularity = granularity
        self._context = context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.site(x)
        logits = self.head(_pool(f, self.granularity))
        if self._context.logits is not None:
            self._context.logits.append(logits)
        labels = self._context.labels
        rows = self.head.weight[logits.argmax(1) if labels is None else labels]
        n, c, h, w = f.shape
        shape = {"channel": (n, c, 1, 1), "cube": (n, 1, h, w), "feature": (n, c, h, w)}[self.granularity]
        return f * rows.reshape(shape)


class Purified(nn.Module):
    """A model with purifier units in it; `forward(x)` gives logits, so it drops in where the model was.

    With `labels` the masks are chosen by them (training, or the oracle diagnostic); without, each unit uses
    its own head's prediction. `sites` names the wrapped submodules in the order in which they run;
    `effort` is what `purify` spent on it.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], granularity: str, context: _Context) -> None:
        super().__init__()
        self.model = model
        self.sites = tuple(sites)
        self.granularity = granularity
        self.effort = Effort()
        self._context = context

    def units(self) -> list[Unit]:
        """The units in the order of `sites`."""
        return [unit for site in self.sites if isinstance(unit := self.model.get_submodule(site), Unit)]

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and labels is None:
            raise ValueError("in training mode the masks follow the true labels: call purified(x, labels), or .eval()")
        self._context.labels = labels
        try:
            return self.model(x)
        finally:
            self._context.labels = None

    def with_heads(
        self, x: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits of the model (N, K), and of every head in the order in which the units run."""
        self._context.logits = []
        try:
            return self(x, labels), self._context.logits
        finally:
            self._context.logits = None


def _pool(f: torch.Tensor, granularity: str) -> torch.Tensor:
    if granularity == "channel":
        return f.mean((2, 3))
    return (f.mean(1) if granularity == "cube" else f).flatten(1)


def attach(
    model: nn.Module,
    sites: Sequence[str],
    granularity: str,
    num_classes: int,
    example_input: torch.Tensor,
    seed: int = 0,
) -> Purified:
    """A copy of `model` whose submodules named in `sites` are wrapped in purifier units with fresh heads.

    example_input: any float batch the model accepts; one forward pass finds each head's size. The heads start
    from PyTorch's default initialisation under `seed`. Raises ConfigError for an unknown granularity, and
    ValueError for a site that does not exist, does not run, or gives no (N, C, H, W) feature map.
    """
    one_of("granularity", granularity, GRANULARITIES)
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites={list(sites)!r}: name at least one submodule, each once")
    model = copy.deepcopy(model).eval()
    known = dict(model.named_modules())
    shapes: dict[str, torch.Size] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, torch.Tensor) or output.ndim != 4:
                found = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
                raise ValueError(f"site {name!r} gives {found}; a unit needs a feature map of shape (N, C, H, W)")
            shapes[name] = output.shape

        return hook

    for site in sites:
        if not site or site not in known:
            raise ValueError(f"site {site!r} is not a submodule; there are: {', '.join(n for n in known if n)}")
    hooks = [known[site].register_forward_hook(note(site)) for site in sites]
    try:
        with torch.no_grad():
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [site for site in sites if site not in shapes]
    if idle:
        raise ValueError(f"sites {idle} did not run in the model's forward pass")
    context = _Context()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for site, (_, c, h, w) in shapes.items():
            size = {"channel": c, "cube": h * w, "feature": c * h * w}[granularity]
            head = nn.Linear(size, num_classes).to(example_input.device)
            _set_submodule(model, site, Unit(known[site], granularity, head, context))
    return Purified(model, tuple(shapes), granularity, context).eval()


def detach(purified: Purified) -> nn.Module:
    """A copy of the model without its units: the original model again if nothing was trained."""
    bare = copy.deepcopy(purified)
    for site, unit in zip(bare.sites, bare.units(), strict=True):
        _set_submodule(bare.model, site, unit.site)
    return bare.model


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def reinitialise(module: nn.Module) -> None:
    """Reset every parameter below `module` as PyTorch would; raises TypeError for a layer that offers no reset."""
    for name, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif list(part.parameters(recurse=False)):
            raise TypeError(
                f"{name or 'the module'} ({type(part).__name__}) has no reset_parameters(); use init='full'"
            )


def purify(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    granularity: str = "feature",
    sites: Sequence[str] | None = None,
    num_classes: int | None = None,
    init: str = "full",
    stages: tuple[Recipe, Recipe] = PURIFIER_STAGES,
    bn_frozen_stats: bool = False,
    augment: Augment = Augment(),
    seed: int = 0,
    graph: bool = False,
) -> Purified:
    """A purified copy of `model`, trained on clean uint8 `images` (N, 3, H, W) and `labels` (N,), in eval mode.

    Stage 1 trains the heads alone, stage 2 everything, both on CE(main) + sum of CE(heads).

    init: "full" starts from the given model, as the paper describes; "partial" re-initialises the wrapped
    units, as the release would for VGG with its checkpoint read correctly; "random" re-initialises the whole
    network, as the release does. bn_frozen_stats: BatchNorm keeps the model's statistics in stage 1; the
    release normalises by the batch there and moves the running statistics of the "frozen" backbone.
    sites: by default those of the model's `purifier_sites`; num_classes: by default the width of its output.
    graph: on a GPU, replay the training step; only for a model whose forward pass is the same every time.
    """
    one_of("init", init, INITS)
    if sites is None:
        table = getattr(model, "purifier_sites", None)
        if table is None:
            raise ValueError(f"{type(model).__name__} names no purifier_sites; pass sites=[names of submodules]")
        sites = table[granularity]
    example = to_float(images[:2])
    model = copy.deepcopy(model).eval()
    if num_classes is None:
        with torch.no_grad():
            num_classes = model(example).shape[1]
    if init != "full":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in [model] if init == "random" else map(model.get_submodule, sites):
                reinitialise(part)
    purified = attach(model, sites, granularity, num_classes, example, seed)
    _assert_only_heads_are_new(model, purified)
    heads = [p for unit in purified.units() for p in unit.head.parameters()]
    for number, recipe in enumerate(stages, start=1):
        alone = number == 1
        for parameter in purified.parameters():
            parameter.requires_grad_(not alone)
        for parameter in heads:
            parameter.requires_grad_(True)
        purified.train()
        if alone and bn_frozen_stats:
            purified.model.eval()
        purified.effort += fit(
            purified,
            images,
            labels,
            recipe,
            seed=seed + number,
            augment=augment,
            loss=_joint_loss,
            parameters=heads if alone else None,
            graph=graph,
            title=f"{granularity} stage {number}",
        )
    return purified


def _joint_loss(purified: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert isinstance(purified, Purified)
    logits, heads = purified.with_heads(x, y)
    return F.cross_entropy(logits, y) + torch.stack([F.cross_entropy(a, y) for a in heads]).sum()


def _assert_only_heads_are_new(model: nn.Module, purified: Purified) -> None:
    """The released code lost weights to a naming slip; here every tensor of the model must have arrived."""
    before, after = model.state_dict(), detach(purified).state_dict()
    lost = [n for n in before if n not in after or not torch.equal(before[n], after[n])]
    if lost or len(after) != len(before):
        raise AssertionError(f"{len(lost)} tensors of the given model did not reach the purified one: {lost[:5]}")
