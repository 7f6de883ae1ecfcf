"""The three lines on networks that were not made for them, and what their users do with the result."""

import warnings

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from purifier_core.bounds import bound
from purifier_core.purifier import purify
from purifier_core.recipes import GRANULARITIES, Recipe
from purifier_core.sites import Wrapped, detach

SHORT = (Recipe(1, 0.01, batch_size=6),) * 2
NETWORKS = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "vgg16_bn": lambda: models.vgg16_bn(num_classes=10),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10),
    "resnet10t": lambda: timm.create_model("resnet10t", num_classes=10),
}


def fresh(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


@pytest.fixture(scope="module")
def dozen() -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve uint8 images of 224 pixels, and labels of ten classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, 3, 224, 224), generator=generator, dtype=torch.uint8), torch.arange(12) % 10


@pytest.mark.parametrize("name", [n if n != "vgg16_bn" else pytest.param(n, marks=pytest.mark.long) for n in NETWORKS])
@pytest.mark.parametrize("method", ["bound", "purify"])
def test_three_lines_at_224_pixels(dozen, name, method):
    images, labels = dozen
    model = fresh(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    network = bound(model, images) if method == "bound" else purify(model, images, labels, stages=SHORT)
    x = images[:2].float() / 255
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "the given model is left alone"
        plain = detach(network)
        assert plain.state_dict().keys() == before.keys()
        if method == "bound":  # nothing was trained
            assert torch.equal(plain(x), model(x))


class Small(nn.Module):
    """Two blocks, one of them with a branch around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.stem(x)
        return self.head((f + self.block(f)).mean((2, 3)))


@pytest.fixture(params=[*(f"bound-{g}" for g in GRANULARITIES), *GRANULARITIES])
def small(request) -> Wrapped:
    """A small purified network, by every method."""
    torch.manual_seed(0)
    model, x = Small().eval(), torch.rand(12, 3, 16, 16)
    granularity = request.param.removeprefix("bound-")
    if request.param != granularity:
        return bound(model, x, granularity, 0.95)
    return purify(model, x, torch.arange(12) % 10, granularity=granularity, stages=SHORT)


def test_it_exports(small, tmp_path):
    """As a torch.export program for any number of images, saved and loaded."""
    x = torch.rand(4, 3, 16, 16)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.export.save(program, tmp_path / "small.pt2")
    again = torch.export.load(tmp_path / "small.pt2").module()
    torch.testing.assert_close(again(x[:3]), small(x[:3]))


def test_it_becomes_onnx(small, tmp_path):
    from onnx.reference import ReferenceEvaluator

    x = torch.rand(4, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    program = ReferenceEvaluator(str(tmp_path / "small.onnx"))
    (logits,) = program.run(None, {program.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), small(x).detach())


def test_it_compiles(small):
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(torch.compile(small, backend="aot_eager", fullgraph=True)(x), small(x))


def test_its_state_dict_goes_through_a_file(small, tmp_path):
    x = torch.rand(4, 3, 16, 16)
    wanted = small(x)
    torch.save(small.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    small.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(small(x), wanted)
