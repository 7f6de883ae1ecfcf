"""Where in a network a defense can sit: submodules that give a feature map, wrapped and unwrapped in place."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules import activation

_ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Wrapped(nn.Module):
    """A model in which the submodules named in `sites` sit inside units; `forward(x)` gives logits as the model did."""

    def __init__(self, model: nn.Module, sites: Sequence[str], granularity: str) -> None:
        super().__init__()
        self.model = model
        self.sites = tuple(sites)
        self.granularity = granularity

    def wrappers(self) -> list[nn.Module]:
        """The units, in the order of `sites`."""
        return [self.model.get_submodule(site) for site in self.sites]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def detach(wrapped: Wrapped) -> nn.Module:
    """A copy of the model without its units: the original model again if nothing was trained."""
    bare = copy.deepcopy(wrapped)
    for site, unit in zip(bare.sites, bare.wrappers(), strict=True):
        replace(bare.model, site, unit.get_submodule("site"))
    return bare.model


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` is, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def shapes(model: nn.Module, sites: Sequence[str], example: torch.Tensor) -> dict[str, torch.Size]:
    """The shape (N, C, H, W) that each of the submodules `sites` gives for `example`, in the order in which they run.

    Raises ValueError for a site that does not exist, does not run, runs more than once, lies in another, or gives no
    feature map.
    """
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites={list(sites)!r}: name at least one submodule, each once")
    known = dict(model.named_modules())
    for site in sites:
        if not site or site not in known:
            raise ValueError(f"site {site!r} is not a submodule; there are: {', '.join(n for n in known if n)}")
        if any(site.startswith(f"{other}.") for other in sites):
            raise ValueError(f"site {site!r} lies inside another of the sites; a unit holds no unit")
    outputs = _outputs(model, {site: known[site] for site in sites}, example)
    idle = [site for site in sites if site not in outputs]
    if idle:
        raise ValueError(f"sites {idle} did not run in the model's forward pass")
    for site, shown in outputs.items():
        if len(shown) > 1:
            raise ValueError(
                f"site {site!r} runs {len(shown)} times in a forward pass; a unit needs one that runs once"
            )
        if not isinstance(shown[0], torch.Size) or len(shown[0]) != 4:
            told = f"shape {tuple(shown[0])}" if isinstance(shown[0], torch.Size) else shown[0]
            raise ValueError(f"site {site!r} gives {told}; a unit needs a feature map of shape (N, C, H, W)")
    return {site: shown[0] for site, shown in outputs.items()}


def _outputs(model: nn.Module, modules: dict[str, nn.Module], example: torch.Tensor) -> dict[str, list]:
    """The shapes of what the modules give in one forward pass, or the type of what is no tensor, in running order."""
    found: dict[str, list] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found.setdefault(name, []).append(getattr(output, "shape", type(output).__name__))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def find(model: nn.Module, example: torch.Tensor) -> dict[str, torch.Size]:
    """The units of a network, in the order in which they run, with the shapes of their feature maps for `example`.

    A unit is a block, or in a plain sequence of layers an activation, that runs once and gives feature maps
    (N, C, H, W) with H * W > 1. Bare convolutions serve where there are none. Raises ValueError where nothing does.
    """
    outputs = _outputs(model, {name: module for name, module in model.named_modules() if name}, example)

    def usable(name: str) -> bool:
        shown = outputs.get(name, [])
        return len(shown) == 1 and isinstance(shown[0], torch.Size) and len(shown[0]) == 4 and shown[0][2:] != (1, 1)

    units: list[str] = []
    convolutions: list[str] = []
    waiting = [("", model)]
    while waiting:
        prefix, container = waiting.pop()
        for child, module in container.named_children():
            name = f"{prefix}.{child}" if prefix else child
            if isinstance(module, _CONTAINERS):
                waiting.append((name, module))
            elif usable(name) and any(isinstance(part, (nn.Conv2d, *_ACTIVATIONS)) for part in module.modules()):
                (convolutions if isinstance(module, nn.Conv2d) else units).append(name)
    chosen = set(units or convolutions)
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} shows no block or activation with feature maps (N, C, H, W); name sites=[...] "
            "yourself. A network without such maps, a transformer for example, is none for this method."
        )
    return {name: outputs[name][0] for name in outputs if name in chosen}


def last_stage(model: nn.Module, example: torch.Tensor) -> tuple[str, ...]:
    """The units of the last resolution that a network works at: where `purify` puts its own."""
    units = find(model, example)
    *_, (_, _, *final) = units.values()
    return tuple(name for name, shape in units.items() if list(shape[2:]) == final)
