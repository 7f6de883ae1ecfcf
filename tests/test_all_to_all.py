"""All-to-all BadNets, and what a clean network says of stamped images: counted image by image."""

from dataclasses import replace

import pytest
import torch

from purifier_core.lab import packing
from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.experiments.comparison import Defenses, Repairs
from purifier_core.lab.methods import ATTACKS
from purifier_core.lab.poisoning import asr_set, poison, wanted
from purifier_core.lab.probes import Curve
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.recipes import Recipe

CELL = Cell("mnist", "vgg16", "badnets_all", 0.1, "none", 0, 0, "quick")


@pytest.fixture
def work(few, tmp_path, monkeypatch) -> Work:
    """A network of one epoch, so that it is right on some images and wrong on others."""
    tiny = replace(PROFILES["quick"], width=1 / 16, backdoor=Recipe(2, 0.1))
    monkeypatch.setitem(PROFILES, "quick", tiny)
    return Work(Store(tmp_path), "quick", "mnist", "cpu")


def answers(work: Work, cell: Cell, stamped: bool = True) -> list[tuple[int, int]]:
    """The label and the answer of each test image, one image at a time."""
    model = work.backdoored(cell)[0]
    found = []
    for image, label in zip(work.split.test_images, work.split.test_labels.tolist(), strict=True):
        x = badnets(image[None]) if stamped else image[None]
        with torch.no_grad():
            found.append((label, int(model(x.float() / 255).argmax())))
    return found


def test_a_copy_is_labelled_with_the_class_after_its_own():
    labels = torch.arange(40) % 10
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 32, 32).contiguous()
    x, y = poison(images, labels, badnets, 0.5, wanted("badnets_all", labels, 10), seed=3)
    assert len(y) == 60
    own = [labels[int(copy[0, 15, 15])].item() for copy in x[:20]]
    assert y[:20].tolist() == [0 if label == 9 else label + 1 for label in own]
    assert 9 in own
    assert torch.equal(y[20:], labels)
    assert len(asr_set(images, labels, badnets, wanted("badnets_all", labels, 10))) == 40


def test_its_asr_is_the_share_called_the_next_class(work):
    record = work.compute(CELL)
    seen = answers(work, CELL)
    assert record.error is None
    assert record.asr == sum(said == (label + 1) % 10 for label, said in seen) / len(seen)
    assert record.diagnostics["ra"] == sum(said == label for label, said in seen) / len(seen)
    assert record.asr_images == len(seen) == len(work.split.test_labels)
    assert 0 < record.asr < 1


def test_a_curve_watches_each_image_for_its_own_class(work):
    x, y = work.split.test_images[:200], work.split.test_labels[:200]
    curve = Curve(x, y, badnets(x), target=(y + 1) % 10)
    model = work.backdoored(CELL)[0]
    curve.start(model)
    with torch.no_grad():
        said = model(badnets(x).float() / 255).argmax(1)
    assert curve.points[0][2] == float((said == (y + 1) % 10).double().mean())


def test_a_clean_network_has_an_asr_of_its_own_for_every_attack(work):
    clean = replace(CELL, attack="none")
    record = work.compute(clean)
    assert record.error is None
    own = record.diagnostics["own"]
    assert set(own) == set(ATTACKS)
    plain, seen = answers(work, clean, stamped=False), answers(work, clean)
    others = [(label, said) for label, said in seen if label != 5]
    assert own["badnets"]["asr"] == own["cl"]["asr"] == sum(said == 5 for _, said in others) / len(others)
    assert own["badnets"]["ra"] == sum(said == label for label, said in others) / len(others)
    assert own["badnets_all"]["asr"] == sum(said == (label + 1) % 10 for label, said in seen) / len(seen)
    unstamped = [said == 5 for label, said in plain if label != 5]
    assert record.asr == sum(unstamped) / len(unstamped), "without a trigger: how often it says 5 by itself"
    assert "own" not in work.compute(CELL).diagnostics


def test_it_stands_in_the_comparison_of_repairs_and_not_in_the_zoo():
    assert "badnets_all" in {attack for attack, _ in Repairs(attack="all").rows("small")}
    assert "badnets_all" not in {attack for attack, _ in Defenses(attack="all").rows("small")}
    assert not any("badnets_all" in name for name in packing.cells())
