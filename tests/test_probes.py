"""What records tell of a network's inside, against a count one image at a time."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from purifier_core.evaluation import to_float
from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import Cell
from purifier_core.lab.models import build
from purifier_core.lab.probes import activations, diagnose, picture, probe
from purifier_core.purifier import attach


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve images of all classes but 3 and 9; three are of the target class, 5."""
    noise = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return noise, torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 5, 5, 0, 1])


def one_by_one(network, x: torch.Tensor) -> np.ndarray:
    """|F| of the last residual block for each image, by running the stages by hand: (N, C, H, W)."""
    maps = []
    with torch.no_grad():
        for image in x:
            y = network.stem(image[None].float() / 255)
            for number in range(1, 5):
                y = network.get_submodule(f"stage{number}")(y)
            maps.append(y[0].abs().numpy())
    return np.stack(maps)


def test_mean_magnitudes_by_channel_place_and_class(images):
    x, y = images
    network = build("resnet18", 10, 1 / 16, seed=0).eval()
    stamped = badnets(x[y != 5])
    found = activations(network, "stage4.1", x, y, stamped, y != 5, batch_size=5)
    clean, hit = one_by_one(network, x), one_by_one(network, stamped)
    others = clean[y.numpy() != 5]
    assert found["clean"] == pytest.approx(others.mean((0, 2, 3)), rel=1e-4)
    assert found["triggered"] == pytest.approx(hit.mean((0, 2, 3)), rel=1e-4)
    assert np.allclose(found["clean_map"], others.mean((0, 1)), rtol=1e-4)
    assert np.allclose(found["triggered_map"], hit.mean((0, 1)), rtol=1e-4)
    assert np.shape(found["clean_map"]) == (4, 4)
    assert found["classes"][0] == pytest.approx(clean[[0, 10]].mean((0, 2, 3)), rel=1e-4)
    assert np.shape(found["classes"]) == (9, 32)
    assert found["classes"][3] == [0] * 32  # no image of this class


def test_a_purified_network_is_probed_behind_its_mask(images):
    x, y = images
    network = build("resnet18", 10, 1 / 16, seed=0)
    purified = attach(network, ["stage4.1"], "feature", 10, x.float(), seed=1).eval()
    found = activations(purified, "stage4.1", x, y, badnets(x[y != 5]), y != 5)
    (unit,) = purified.units()
    with torch.no_grad():
        f = torch.tensor(one_by_one(network.eval(), x[:1]))
        masked = f * unit.head.weight[unit.head(f.flatten(1)).argmax(1)].reshape(f.shape)
    alone = activations(purified, "stage4.1", x[:1], y[:1], badnets(x[:1]), y[:1] != 5)
    assert alone["clean"] == pytest.approx(masked.abs().mean((0, 2, 3)).numpy(), rel=1e-4)
    assert found["clean"] != alone["clean"]


def test_which_records_hold_what(images):
    x, y = images
    network = build("resnet18", 10, 1 / 16, seed=0).eval()
    stamped = badnets(x[y != 5])
    undefended = probe(Cell("cifar10", "resnet18", profile="small"), network, x, y, stamped)
    assert set(undefended) == {"ra", "activations", "sample"}
    assert undefended["sample"] == {"clean": picture(x[0]), "triggered": picture(stamped[0])}
    tuned = Cell("cifar10", "resnet18", defense="finetuning", clean_size=2500, profile="small")
    with torch.no_grad():
        right = [int(network(image[None].float() / 255).argmax()) for image in stamped] == y[y != 5].numpy()
    assert probe(tuned, network, x, y, stamped) == {"ra": right.mean()}
    plain = build("vgg16", 10, 1 / 16, seed=0).eval()
    assert set(probe(Cell(), plain, x, y, stamped)) == {"ra", "sample"}


def test_a_picture_survives(images):
    image = images[0][0]
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(image)))))
    assert (torch.tensor(back).permute(2, 0, 1) == image).all()


def test_diagnose_counts(blobs):
    """Against a loop over single images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    purified = attach(model, ["0", "1"], "cube", 3, to_float(blobs[0]), seed=4)
    hits, right, agree, oracle, as_label, as_mask = [0, 0], 0, 0, 0, 0, 0
    shift = torch.randint(1, 3, (96,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for image, label, by in zip(*blobs, shift, strict=True):
            x, other = to_float(image[None]), (label + by) % 3
            assert other != label
            misled = purified(x, other[None]).argmax()
            as_label, as_mask = as_label + int(misled == label), as_mask + int(misled == other)
            logits, heads = purified.with_heads(x)
            hits = [h + int(a.argmax() == label) for h, a in zip(hits, heads, strict=True)]
            right += int(logits.argmax() == label)
            agree += int(logits.argmax() == heads[0].argmax())
            oracle += int(purified(x, label[None]).argmax() == label)
    own = {"network": right / 96, "heads": [h / 96 for h in hits], "first_head_agreement": agree / 96}
    foreign = {"oracle": oracle / 96, "wrong_mask": {"label": as_label / 96, "mask": as_mask / 96}}
    assert diagnose(purified, *blobs, batch_size=20) == own | foreign
    assert diagnose(purified, *blobs, foreign=False, batch_size=20) == own
