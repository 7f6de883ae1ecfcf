"""Where in a network a defense can sit: submodules that give a feature map, wrapped and unwrapped in place.

A feature map is read as (N, C, H, W). Tokens (N, L, C), as transformers have them, count as L positions: (N, C, L, 1).
Maps with their channels last (N, H, W, C), as Swin has them, are turned. Of a tuple, as blocks of Hugging Face's
transformers give it, the first part is the map.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import activation

_ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (nn.Conv2d, nn.Linear)
_SHOWN = 12  # candidates that an error names


class Around(nn.Module):
    """A module in the place of its `site`. It takes what the site takes, has its attributes, and gives what the site
    gives, but for the map."""

    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site
        self._sizes = channel_sizes(site)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # what Python asks of an object, such as how to copy it
                raise
            return getattr(super().__getattr__("site"), name)

    def changed(self, maps: torch.Tensor) -> torch.Tensor:
        """What becomes of the site's feature map (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = self.site(*inputs, **options)
        f = first(output)
        result = from_maps(self.changed(to_maps(f, self._sizes)), f, self._sizes)
        return result if f is output else (result, *output[1:])


class Wrapped(nn.Module):
    """A model in which the submodules named in `sites` sit inside units; `forward(x)` gives what the model gave."""

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


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile.

    Raises ValueError for a network that holds no Python modules, is quantized, or has weights in 16 bits.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{name} is TorchScript, which no unit can be put into; give the network it was made from")
    if isinstance(model, torch.fx.GraphModule) and all(
        n.target == "_guards_fn" for n in model.graph.find_nodes(op="call_module")
    ):
        raise ValueError(f"{name} is an exported program without modules; give the network it was made from")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} is no torch.nn.Module; give the network it was made from")
    if any(".quantized" in type(module).__module__ for module in model.modules()):
        raise ValueError(f"{name} is quantized; give the network in 32-bit floats, and quantize the result")
    half = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if half:
        kind = str(half.pop()).removeprefix("torch.")
        raise ValueError(f"the weights of {name} are {kind}; give model.float(), and turn the result back")
    return model


def channel_sizes(module: nn.Module) -> frozenset[int]:
    """The channel counts that mark a module's output as (N, H, W, C); empty where the module convolves."""
    parts = list(module.modules())
    normal = {part.normalized_shape[-1] for part in parts if isinstance(part, nn.LayerNorm)}
    if not normal or any(isinstance(part, nn.Conv2d) for part in parts):
        return frozenset()
    return frozenset(normal | {part.out_features for part in parts if isinstance(part, nn.Linear)})


def first(output: Any) -> Any:
    """What a module gives, of a tuple the first part."""
    return output[0] if type(output) is tuple and output else output


def to_maps(f: torch.Tensor, sizes: frozenset[int]) -> torch.Tensor:
    """A site's output as a feature map (N, C, H, W); sizes: the site's `channel_sizes`."""
    if f.ndim == 3:
        return f.transpose(1, 2).unsqueeze(3)
    return f.permute(0, 3, 1, 2) if f.shape[3] in sizes else f


def from_maps(maps: torch.Tensor, f: torch.Tensor, sizes: frozenset[int]) -> torch.Tensor:
    """Undo `to_maps` for the output `f` that the maps came from."""
    if f.ndim == 3:
        return maps.squeeze(3).transpose(1, 2)
    return maps.permute(0, 2, 3, 1) if f.shape[3] in sizes else maps


def shapes(model: nn.Module, sites: Sequence[str], example: torch.Tensor) -> dict[str, torch.Size]:
    """The shape (N, C, H, W) of each site's feature map for `example`, in the order in which the sites run.

    Raises ValueError for a site that does not exist, does not run, runs more than once, lies in another, or gives no
    feature map.
    """
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites={list(sites)!r}: name at least one submodule, each once")
    modules = dict(model.named_modules())
    for site in sites:
        if not site or site not in modules:
            raise ValueError(f"site {site!r} is not a submodule; {_candidates(_outputs(model, modules, example))}")
        if any(site.startswith(f"{other}.") for other in sites):
            raise ValueError(f"site {site!r} lies inside another of the sites; a unit holds no unit")
    outputs = _outputs(model, {site: modules[site] for site in sites}, example)
    idle = [site for site in sites if site not in outputs]
    if idle:
        raise ValueError(f"sites {idle} did not run in the model's forward pass")
    for site, runs in outputs.items():
        if len(runs) > 1:
            raise ValueError(f"site {site!r} runs {len(runs)} times in a forward pass; a unit needs one that runs once")
        if not _is_map(runs):
            kind = f"shape {tuple(runs[0])}" if isinstance(runs[0], torch.Size) else runs[0]
            raise ValueError(f"site {site!r} gives {kind}; a unit needs a feature map (N, C, H, W) or tokens (N, L, C)")
    return {site: runs[0] for site, runs in outputs.items()}


def _outputs(model: nn.Module, modules: dict[str, nn.Module], example: torch.Tensor) -> dict[str, list]:
    """What the modules give in one forward pass, in running order: the shapes as maps, or the types of other things."""
    outputs: dict[str, list] = {}

    def note(name: str):
        def hook(module: nn.Module, _inputs: object, output: object) -> None:
            output = first(output)
            entry: Any = type(output).__name__
            if isinstance(output, torch.Tensor):
                entry = output.shape
                if output.ndim in (3, 4) and len(output) == len(example):
                    entry = to_maps(output, channel_sizes(module)).shape
                elif output.ndim == 4:
                    entry = f"shape {tuple(output.shape)} for {len(example)} images"
            outputs.setdefault(name, []).append(entry)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items() if name]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _is_map(runs: list) -> bool:
    """Whether a module ran once and gave a feature map."""
    return len(runs) == 1 and isinstance(runs[0], torch.Size) and len(runs[0]) == 4


def find(model: nn.Module, example: torch.Tensor) -> dict[str, torch.Size]:
    """The units of a network, in the order in which they run, with the shapes of their feature maps for `example`.

    A unit is a block, or in a plain sequence of layers an activation, that runs once and gives feature maps with
    H * W > 1. Stages, backbones and wrappers are entered. Bare convolutions serve where there is nothing else, and in
    a graph of torch.fx, which has no blocks.
    Raises ValueError, with the candidates, where there is no unit.
    """
    outputs = _outputs(model, dict(model.named_modules()), example)
    units, convolutions = _units(model, "", outputs)
    if len(units) == 1:  # perhaps it is the whole network
        inside, _ = _units(model.get_submodule(units[0]), f"{units[0]}.", outputs)
        units = inside if len(inside) > 1 else units
    if len(units) < 2 and isinstance(model, torch.fx.GraphModule):  # its blocks are gone
        units = units + convolutions
    chosen = set(units or convolutions)
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} shows no block or activation with feature maps (N, C, H, W) or tokens (N, L, C); "
            f"name sites=[...] yourself; {_candidates(outputs)}"
        )
    return {name: runs[0] for name, runs in outputs.items() if name in chosen}


def _units(top: nn.Module, prefix: str, outputs: dict[str, list]) -> tuple[list[str], list[str]]:
    """The units and the bare convolutions below a module; prefix: its name with a dot, or nothing."""
    units: list[str] = []
    convolutions: list[str] = []
    waiting = [(prefix, top)]
    while waiting:
        before, parent = waiting.pop()
        for child, module in parent.named_children():
            name = f"{before}{child}"
            runs = outputs.get(name, [])
            usable = _is_map(runs) and runs[0][2:] != (1, 1)
            if not usable or isinstance(module, _CONTAINERS) or _is_stage(module, name, outputs):
                waiting.append((f"{name}.", module))
            elif _is_bare(module):
                convolutions.append(name)
            elif _works(module, runs[0]):
                units.append(name)
    return units, convolutions


def _works(module: nn.Module, shape: torch.Size) -> bool:
    """Whether a module is more than a reordering: it convolves or activates, or mixes tokens in several layers."""
    if shape[3] == 1:
        return sum(isinstance(part, nn.Linear) for part in module.modules()) > 1
    return any(isinstance(part, (nn.Conv2d, *_ACTIVATIONS)) for part in module.modules())


def _is_bare(module: nn.Module) -> bool:
    """Whether a module is one convolution without an activation, such as the patch embedding of a transformer."""
    parts = list(module.modules())
    convolutions = sum(isinstance(part, nn.Conv2d) for part in parts)
    return convolutions == _layers(module) == 1 and not any(isinstance(part, _ACTIVATIONS) for part in parts)


def _is_stage(module: nn.Module, prefix: str, outputs: dict[str, list]) -> bool:
    """Whether a module holds a row of blocks, or feature maps of three sizes or more: it is then no block itself."""
    if _repeats(module):
        return True
    sizes = set()
    for name, part in module.named_modules(prefix=prefix):
        if isinstance(part, nn.Conv2d) and _is_map(outputs.get(name, [])):
            sizes.add(outputs[name][0][2:])
    return len(sizes - {(1, 1)}) > 2


def _repeats(module: nn.Module) -> bool:
    """Whether a container in a module has two blocks of one kind. A block has two layers with weights."""
    for container in module.modules():
        if isinstance(container, _CONTAINERS):
            inner = [child for child in container.children() if not isinstance(child, _CONTAINERS)]
            blocks = [type(child) for child in inner if _layers(child) > 1]
            if len(set(blocks)) < len(blocks):
                return True
    return False


def _layers(module: nn.Module) -> int:
    return sum(isinstance(part, _WEIGHTED) for part in module.modules())


def _candidates(outputs: dict[str, list]) -> str:
    """A sentence that names what could be a site."""
    names = [name for name, runs in outputs.items() if _is_map(runs)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"candidates: {', '.join(names[:_SHOWN])}{more}" if names else "it has no candidates"


def last_stage(model: nn.Module, example: torch.Tensor) -> tuple[str, ...]:
    """The units at the last resolution of a network. `purify` puts its own there."""
    units = find(model, example)
    *_, (_, _, *final) = units.values()
    return tuple(name for name, shape in units.items() if list(shape[2:]) == final)
