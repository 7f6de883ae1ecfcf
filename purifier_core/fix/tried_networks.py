"""Networks that people have, and what happens to each: the table of the book, made by running it."""

import contextlib
import io
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from purifier_core.bounds import bound
from purifier_core.evaluation import logits_of
from purifier_core.purifier import purify
from purifier_core.recipes import Recipe
from purifier_core.sites import detach, find, unwrapped

COUNT, CLASSES = 10, 10  # images and classes of every case


class _Normalize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) / 0.25


class _Output(nn.Module):
    """A network that gives more than logits: an object as Hugging Face's, or a tuple."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.network, self.kind = _torchvision("resnet18"), kind

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.network(x)
        return (logits, x) if self.kind == "tuple" else SimpleNamespace(logits=logits, hidden_states=None)


class _Half(nn.Module):
    """The two parts of a network with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        parts = list(_torchvision("resnet18").children())
        self.backbone, self.head = nn.Sequential(*parts[:-2]), nn.Linear(512, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=CLASSES)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def _script() -> Any:
    return torch.jit.script(_torchvision("resnet18"))


def _exported() -> Any:
    return torch.export.export(_torchvision("resnet18").eval(), (torch.rand(2, 3, 64, 64),))


def _quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(_torchvision("resnet18"), {nn.Linear})


CASES: dict[str, tuple[int, Callable[[], Any]]] = {
    "torchvision resnet18": (64, lambda: _torchvision("resnet18")),
    "torchvision mobilenet_v3_small": (64, lambda: _torchvision("mobilenet_v3_small")),
    "torchvision densenet121": (64, lambda: _torchvision("densenet121")),
    "torchvision convnext_tiny": (64, lambda: _torchvision("convnext_tiny")),
    "torchvision vit_b_32": (224, lambda: _torchvision("vit_b_32")),
    "torchvision swin_t": (64, lambda: _torchvision("swin_t")),
    "timm resnet10t": (64, lambda: _timm("resnet10t")),
    "timm vit_tiny_patch16_224": (224, lambda: _timm("vit_tiny_patch16_224")),
    "timm mixer_s32_224": (224, lambda: _timm("mixer_s32_224")),
    "Sequential(Normalize, network)": (64, lambda: nn.Sequential(_Normalize(), _torchvision("resnet18"))),
    "backbone and head": (64, _Half),
    "DataParallel": (64, lambda: nn.DataParallel(_torchvision("resnet18"))),
    "torch.compile": (64, lambda: torch.compile(_torchvision("resnet18"))),
    "a graph of torch.fx": (64, lambda: torch.fx.symbolic_trace(_torchvision("resnet18"))),
    "an output with .logits, as Hugging Face's": (64, lambda: _Output("object")),
    "a tuple as output": (64, lambda: _Output("tuple")),
    "TorchScript": (64, _script),
    "a program of torch.export": (64, _exported),
    "a quantized network": (64, _quantized),
    "weights in 16 bits": (64, lambda: _torchvision("resnet18").half()),
    "no feature maps": (64, lambda: nn.Sequential(nn.Flatten(), nn.Linear(12288, CLASSES))),
}
"""By name: the size of the images, and what makes the network."""


def _purified(model: nn.Module, images: torch.Tensor, labels: Any) -> Any:
    return purify(model, images, labels, granularity="channel", stages=(Recipe(1, 0.01),) * 2)


FORMS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "images as a NumPy array": lambda model, images, _: bound(model, images.numpy()),
    "images as floats from 0 to 1": lambda model, images, _: bound(model, images / 255),
    "images with the channels last": lambda model, images, _: bound(model, images.permute(0, 2, 3, 1)),
    "images in a DataLoader": lambda model, images, _: bound(model, DataLoader(TensorDataset(images))),  # type: ignore[arg-type]
    "labels as floats": lambda model, images, labels: _purified(model, images, labels.float()),
    "labels one-hot": lambda model, images, labels: _purified(model, images, functional.one_hot(labels)),
    "larger images afterwards": lambda model, images, _: bound(model, images)(_larger(images)),
    "larger images afterwards, units of channels": lambda m, images, _: bound(m, images, "channel")(_larger(images)),
}
"""By name: another form of images or labels than usual, given to a ResNet-18 that takes 64 x 64 pixels."""


def _larger(images: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(images / 255, scale_factor=1.5)


def table() -> pd.DataFrame:
    """A row for each of CASES: its units, their first and last feature map, and what happens to it."""
    return pd.DataFrame.from_dict({name: outcome(*case) for name, case in CASES.items()}, orient="index")


def forms() -> pd.DataFrame:
    """A row for each of FORMS, and what happens."""
    return pd.DataFrame.from_dict({name: {"what happens": taken(use)} for name, use in FORMS.items()}, orient="index")


def taken(use: Callable[[nn.Module, Any, Any], Any]) -> str:
    """What one of FORMS comes to."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no bounds keep the budget")  # the images are noise
        torch.manual_seed(0)
        model, images = _torchvision("resnet18").eval(), torch.randint(0, 256, (COUNT, 3, 64, 64), dtype=torch.uint8)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the units that purify finds
                use(model, images, torch.arange(COUNT) % CLASSES)
        except ValueError as problem:
            return f"refused: {problem}"
    return "taken as it is"


def outcome(size: int, make: Callable[[], Any]) -> dict[str, str]:
    """Bound one network on random images, and take the units out again."""
    row = dict.fromkeys(("units", "first map", "last map"), "–")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (COUNT, 3, size, size), dtype=torch.uint8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the packages that make it
                model = make()
        except ImportError as problem:
            return row | {"what happens": f"not tried: {problem}"}
    x = images[:2] / 255
    try:
        network = bound(model.eval() if isinstance(model, nn.Module) else model, images, quantile=1.0)
    except ValueError as problem:
        return row | {"what happens": f"refused: {problem}"}
    inner = unwrapped(model)
    maps = [" x ".join(map(str, shape[1:])) for shape in find(inner, x).values()]
    with torch.no_grad():
        same = torch.equal(logits_of(detach(network)(x)), logits_of(inner(x)))
    text = "bounded; the given network again without its units" if same else "bounded, but changed without its units"
    return {"units": str(len(maps)), "first map": maps[0], "last map": maps[-1], "what happens": text}
