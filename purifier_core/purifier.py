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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import one_of
from purifier_core.evaluation import logits_of, to_float
from purifier_core.inputs import check_range, images_of, labels_of
from purifier_core.recipes import GRANULARITIES, INITS, PURIFIER_STAGES, Recipe
from purifier_core.sites import (
    Around,
    Wrapped,
    detach,
    last_stage,
    replace,
    shapes,
    unwrapped,
)
from purifier_core.training import Augment, Effort, Watch, fit


class _Context:
    """What passes beside the activations: the labels that choose the masks, and the heads' logits if asked for."""

    def __init__(self) -> None:
        self.labels: torch.Tensor | None = None
        self.logits: list[torch.Tensor] | None = None
        self.open = False  # masks nothing


class Unit(Around):
    """One wrapped site with its head."""

    def __init__(self, site: nn.Module, granularity: str, head: nn.Linear, context: _Context) -> None:
        super().__init__(site)
        self.head = head
        self.granularity = granularity
        self._context = context

    def changed(self, maps: torch.Tensor) -> torch.Tensor:
        if self._context.open:
            return maps
        pooled = _pool(maps, self.granularity)
        if pooled.shape[1] != self.head.in_features:
            raise ValueError(
                f"a head of {self.head.in_features} values does not fit a map of shape {tuple(maps.shape[1:])}; give "
                "images of the size that it was trained with, or take granularity='channel'"
            )
        logits = self.head(pooled)
        if self._context.logits is not None:
            self._context.logits.append(logits)
        labels = self._context.labels
        rows = self.head.weight[logits.argmax(1) if labels is None else labels]
        n, c, h, w = maps.shape
        shape = {"channel": (n, c, 1, 1), "cube": (n, 1, h, w), "feature": (n, c, h, w)}[self.granularity]
        return maps * rows.reshape(shape)


class Purified(Wrapped):
    """A model with purifier units in it; `forward(x)` gives logits, so it drops in where the model was.

    With `labels` the masks are chosen by them (training, or the oracle diagnostic); without, each unit uses
    its own head's prediction. `sites` names the wrapped submodules in the order in which they run;
    `effort` is what `purify` spent on it.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], granularity: str, context: _Context) -> None:
        super().__init__(model, sites, granularity)
        self.effort = Effort()
        self._context = context

    def units(self) -> list[Unit]:
        """The units in the order of `sites`."""
        return [unit for unit in self.wrappers() if isinstance(unit, Unit)]

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
        with self._listening() as heads:
            return logits_of(self(x, labels)), heads

    def answers(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`with_heads` with the masks that the heads pick, in training mode too: what an attacker trains against."""
        with self._listening() as heads:
            return logits_of(self.model(x)), heads

    @contextmanager
    def _listening(self) -> Iterator[list[torch.Tensor]]:
        heads: list[torch.Tensor] = []
        self._context.logits = heads
        try:
            yield heads
        finally:
            self._context.logits = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the units mask nothing."""
        self._context.open = True
        try:
            yield
        finally:
            self._context.open = False


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
    model = copy.deepcopy(model).eval()
    maps = shapes(model, sites, example_input)
    heads = {}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), example_input.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for site, (_, c, h, w) in maps.items():
            size = {"channel": c, "cube": h * w, "feature": c * h * w}[granularity]
            heads[site] = nn.Linear(size, num_classes).to(example_input.device, dtype)
    return wrap(model, heads, granularity)


def wrap(model: nn.Module, heads: dict[str, nn.Linear], granularity: str) -> Purified:
    """`model` itself with a unit around each site that has one of these heads, in eval mode."""
    context = _Context()
    for site, head in heads.items():
        replace(model, site, Unit(model.get_submodule(site), granularity, head, context))
    return Purified(model, tuple(heads), granularity, context).eval()


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
    watch: Watch | None = None,
) -> Purified:
    """A purified copy of `model`, trained on clean `images` (N, C, H, W) and `labels` (N,), in eval mode.

    The images are uint8, or float as the model takes them; they lie on the model's device.
    Stage 1 trains the heads alone, stage 2 everything, both on CE(main) + sum of CE(heads).

    init: "full" starts from the given model, as the paper describes; "partial" re-initialises the wrapped
    units, as the release would for VGG with its checkpoint read correctly; "random" re-initialises the whole
    network, as the release does. bn_frozen_stats: BatchNorm keeps the model's statistics in stage 1; the
    release normalises by the batch there and moves the running statistics of the "frozen" backbone.
    sites: by default those of the model's `purifier_sites`, else the units of its last stage, which are printed;
    num_classes: by default the width of its output.
    graph: on a GPU, replay the training step; only for a model whose forward pass is the same every time.
    watch: called with the purified network and the epoch, after every epoch of each stage.
    """
    one_of("init", init, INITS)
    one_of("granularity", granularity, GRANULARITIES)
    images = images_of(images, 2)
    labels = labels_of(labels, len(images)).to(images.device)
    example = to_float(images[:2])
    model = copy.deepcopy(unwrapped(model)).eval()
    if num_classes is None:
        with torch.no_grad():
            num_classes = logits_of(model(example)).shape[1]
    check_range(labels, num_classes)
    if sites is None and (table := getattr(model, "purifier_sites", None)):
        sites = tuple(table[granularity])
    if sites is None:
        sites = last_stage(model, example)
        print(f"{granularity} units at {', '.join(sites)}; name others with sites=[...]")
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
            watch=watch,
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
