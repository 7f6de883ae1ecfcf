"""Networks that people really have: each is bounded or purified rightly, or refused in one clear sentence."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from purifier_core.bounds import Bound, bound
from purifier_core.fix import tried_networks as networks
from purifier_core.fix.measure import cuts, suppression
from purifier_core.purifier import purify
from purifier_core.recipes import Recipe
from purifier_core.sites import detach, find, from_maps, to_maps

SHORT = (Recipe(1, 0.01, batch_size=6),) * 2
IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
X = IMAGES[:4] / 255


def layers() -> list[nn.Module]:
    return [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU()]


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


class Normalize(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


class Backbone(nn.Module):
    """A network in two parts, neither of which is a container of torch's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*layers(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())

    def forward(self, x):
        return self.body(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))


class Output(nn.Module):
    """A network whose output is more than logits."""

    def __init__(self, kind):
        super().__init__()
        self.network, self.kind = plain(), kind

    def forward(self, x):
        logits = self.network(x)
        return {
            "attribute": SimpleNamespace(logits=logits, loss=None),
            "dictionary": {"loss": None, "logits": logits},
            "tuple": (logits, x),
        }[self.kind]


@pytest.mark.parametrize(
    ("model", "units"),
    [
        (nn.Sequential(Normalize(), plain()), ["1.1", "1.3"]),
        (nn.Sequential(Normalize(), nn.DataParallel(plain())), ["1.module.1", "1.module.3"]),
        (nn.DataParallel(plain()), ["1", "3"]),
        (torch.compile(plain(), backend="eager"), ["1", "3"]),
        (Two().eval(), ["backbone.body.1", "backbone.body.3", "backbone.body.5"]),
        (torch.fx.symbolic_trace(plain()), ["1", "3"]),
    ],
    ids=["normalised", "parallel inside", "parallel", "compiled", "backbone and head", "fx graph"],
)
def test_wrappers_are_entered(model, units):
    network = bound(model, IMAGES)
    assert list(network.sites) == units
    assert torch.equal(detach(network)(X), model(X))


@pytest.mark.parametrize("kind", ["attribute", "dictionary", "tuple"])
def test_the_logits_are_found_in_other_outputs(kind):
    wanted = bound(plain(), IMAGES, quantile=0.9)(X)
    output = bound(Output(kind), IMAGES, quantile=0.9)(X)
    logits = {"attribute": lambda: output.logits, "dictionary": lambda: output["logits"], "tuple": lambda: output[0]}
    assert torch.equal(logits[kind](), wanted), "and the purified network gives what the network gave"
    purified = purify(Output(kind), IMAGES, LABELS, stages=SHORT, granularity="channel")
    assert purified.with_heads(X)[0].shape == (4, 3)


def test_an_output_without_logits_is_named():
    class Nothing(nn.Module):
        def forward(self, x):
            return SimpleNamespace(scores=x)

    with pytest.raises(TypeError, match="gives a SimpleNamespace without logits"):
        purify(nn.Sequential(nn.ReLU(), Nothing()), IMAGES, LABELS)


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts from zeros
    return model


def swin() -> nn.Module:
    torch.manual_seed(0)
    return models.SwinTransformer([4, 4], 24, [1, 2], [2, 4], [4, 4], num_classes=3).eval()


TRANSFORMERS = {
    "vit": (vision_transformer, 3, (24, 17, 1)),
    "swin": (swin, 3, (24, 8, 8)),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2).eval(),
        2,
        (192, 5, 1),
    ),
    "timm swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=3, img_size=32, depths=(1, 1), num_heads=(2, 4), window_size=4
        ).eval(),
        2,
        (96, 8, 8),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("granularity", ["channel", "cube", "feature"])
def test_a_transformers_blocks_are_units(name, granularity):
    make, count, shape = TRANSFORMERS[name]
    model = make()
    units = find(model, X)
    assert len(units) == count
    assert next(iter(units.values()))[1:] == shape
    network = bound(model, IMAGES, granularity, 0.9)
    seen = {}
    first = network.wrappers()[0]
    first.get_submodule("site").register_forward_hook(lambda m, i, f: seen.update(f=to_maps(f, first._sizes)))
    first.register_forward_hook(lambda m, i, f: seen.update(bounded=to_maps(f, first._sizes)))
    with torch.no_grad():
        assert not torch.equal(network(X), model(X))
    assert torch.equal(seen["bounded"], seen["f"].minimum(first.upper))
    assert seen["f"].shape[1:] == shape
    purified = purify(model, IMAGES, LABELS, granularity=granularity, stages=SHORT)
    assert purified(X).shape == (4, 3)


class Layer(nn.Module):
    """A layer as Hugging Face's transformers have it: more inputs than one, a tuple out, an attribute that others ask
    for, an activation that is none of torch's, and in some a convolution."""

    downsample = None

    def __init__(self, convolution: bool = False):
        super().__init__()
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.reduced = nn.Conv2d(12, 12, 1) if convolution else nn.Identity()

    def forward(self, x, scale, *, shift):
        return x + self.down((self.up(x) * scale).tanh()) + shift, scale


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.first, self.second, self.head = Layer(), Layer(convolution=True), nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in (self.first, self.second):
            x, scale = layer(x, 2.0, shift=0.5)
            assert (scale, layer.downsample) == (2.0, None)
        return SimpleNamespace(logits=self.head(x.mean(1)))


def test_a_unit_takes_and_gives_all_that_its_layer_does():
    torch.manual_seed(0)
    model = Tokens().eval()
    assert list(find(model, X)) == ["first", "second"]
    with torch.no_grad():
        wanted = model(X).logits
        assert torch.equal(bound(model, IMAGES, quantile=1.0)(IMAGES / 255).logits, model(IMAGES / 255).logits)
        network = bound(model, IMAGES, quantile=0.9)
        assert not torch.equal(network(X).logits, wanted)
        assert torch.equal(detach(network)(X).logits, wanted)
    assert suppression(network, IMAGES).by_unit.min() > 0
    assert cuts(network, IMAGES).count_nonzero() == 0  # tokens have no place in the image
    purified = purify(model, IMAGES, LABELS, stages=SHORT, sites=["first", "second"])
    assert [tuple(logits.shape) for logits in purified.with_heads(X)[1]] == [(4, 3), (4, 3)]


def test_a_unit_is_copied_as_itself_also_around_a_graph():
    site = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()))
    unit = Bound(site, torch.ones(6, 1, 1))
    copied = copy.deepcopy(unit)
    assert isinstance(copied, Bound)
    assert torch.equal(copied(X), unit(X))
    with pytest.raises(AttributeError, match="nothing"):
        unit.nothing  # noqa: B018


def test_maps_are_turned_and_turned_back():
    tokens, last, first = torch.rand(2, 5, 7), torch.rand(2, 4, 4, 7), torch.rand(2, 7, 4, 4)
    sizes = frozenset([7])
    for f, shape in ((tokens, (2, 7, 5, 1)), (last, (2, 7, 4, 4)), (first, (2, 7, 4, 4))):
        maps = to_maps(f, sizes)
        assert maps.shape == shape
        assert torch.equal(from_maps(maps, f, sizes), f)


def half() -> nn.Module:
    return plain().half()


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.jit.script(plain()), "TorchScript"),
        (half(), "weights of Sequential are float16"),
        (quantized(), "is quantized"),
        (torch.export.export(plain(), (X,)), "ExportedProgram is no torch.nn.Module"),
        (torch.export.export(plain(), (X,)).module(), "an exported program without modules"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), "no block or activation .* it has no candidates"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(768, 3)), "candidates: 0"),
    ],
)
def test_what_cannot_be_wrapped_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        bound(model, IMAGES)


@pytest.mark.filterwarnings("ignore:no bounds keep the budget")
def test_images_and_labels_may_have_other_forms():
    wanted = bound(plain(), IMAGES)(X)
    assert torch.equal(bound(plain(), IMAGES.numpy())(X), wanted)
    assert torch.equal(bound(plain(), (IMAGES / 255).double().numpy())(X), bound(plain(), IMAGES / 255)(X))
    wanted = purify(plain(), IMAGES, LABELS, stages=SHORT)(X)
    for labels in (np.eye(3)[LABELS], LABELS.float(), LABELS[:, None], LABELS.numpy(), LABELS.tolist()):
        assert torch.equal(purify(plain(), IMAGES, labels, stages=SHORT)(X), wanted)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (DataLoader(TensorDataset(IMAGES, LABELS)), LABELS, r"torch\.cat\(\[images for images, _ in loader\]\)"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, r"channels last; give images\.permute"),
        (IMAGES.long(), LABELS, "images are torch.int64"),
        (IMAGES, LABELS + 0.5, "no whole numbers"),
        (IMAGES, torch.rand(12, 3), "not one-hot"),
    ],
)
def test_other_images_and_labels_are_refused_with_the_way_out(images, labels, message):
    with pytest.raises(ValueError, match=message):
        purify(plain(), images, labels)


@pytest.mark.parametrize("method", ["bound", "purify"])
def test_another_image_size_afterwards_is_told(method):
    larger = torch.rand(2, 3, 48, 48)
    make = bound if method == "bound" else lambda *given: purify(given[0], given[1], LABELS, stages=SHORT)
    with pytest.raises(ValueError, match="granularity='channel'"):
        make(plain(), IMAGES)(larger)
    channel = bound(plain(), IMAGES, "channel")
    assert channel(larger).shape == (2, 3)


def test_a_missed_budget_is_told():
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    model = plain()
    with torch.no_grad():  # the two images that choose lie far from the eight that bound
        images[torch.randperm(10, generator=torch.Generator().manual_seed(0))[8:]] *= 40
        model[6].weight.mul_(50)
    before = model(images).argmax(1)
    assert len(before.unique()) > 1
    with pytest.warns(UserWarning, match="no bounds keep the budget"):
        network = bound(model, images, budget=0.01)
    assert network.changed > 0.01


REFUSED = {"TorchScript", "a program of torch.export", "a quantized network", "weights in 16 bits", "no feature maps"}


@pytest.mark.parametrize("name", [n for n in networks.CASES if "224" not in n and "densenet" not in n])
def test_the_rows_of_the_books_table(name):
    row = networks.outcome(*networks.CASES[name])
    if name in REFUSED:
        assert row["what happens"].startswith("refused: ")
    else:
        assert row["what happens"] == "bounded; the given network again without its units"
        assert int(row["units"]) > 1


REFUSED_FORMS = {
    "images with the channels last": "channels last; give images.permute",
    "images in a DataLoader": "torch.cat([images for images, _ in loader])",
    "larger images afterwards": "granularity='channel'",
}


@pytest.mark.parametrize("name", networks.FORMS)
def test_the_rows_of_the_books_table_of_forms(name):
    found = networks.taken(networks.FORMS[name])
    if name in REFUSED_FORMS:
        assert found.startswith("refused: ")
        assert REFUSED_FORMS[name] in found
    else:
        assert found == "taken as it is"
