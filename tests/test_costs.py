"""The benchmark: both sides train the same thing; and the page that shows what everything costs."""

import sys
from dataclasses import replace

import pytest
import torch
from made import record

from purifier_core.evaluation import accuracy, to_float
from purifier_core.files import ROOT
from purifier_core.lab import data
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import METHODS, OURS, Method
from purifier_core.lab.records import Store
from purifier_core.pages import costs
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, fit

sys.path.insert(0, str(ROOT / "benchmarks"))
import plain
import speed


@pytest.fixture(scope="module")
def digits() -> data.Split:
    return data.load("mnist", embedded=True)


def test_both_sides_take_the_same_steps(digits):
    """The same images without augmentation, as one batch: both go the same way, but for rounding. The images are noise,
    because on a digit's even background rounding decides which of the equal pixels a pooling layer takes."""
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 10
    start, ours, theirs = (speed.vgg(1 / 8, torch.device("cpu"), fast) for fast in (True, True, False))
    fit(ours.train(), x, y, Recipe(1, 0.01), seed=0, augment=NO_AUGMENT)
    tests = [plain.loader(digits.test_images[:200], digits.test_labels[:200], plain.TEST)]
    seen = plain.train(theirs, plain.loader(x, y, plain.TEST), 1, tests)
    here, mine, yours = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start, ours, theirs))
    assert (mine - here).norm() > 0.01
    assert (mine - yours).norm() < 0.05 * (mine - here).norm()
    assert len(seen) == 1
    assert seen[-1][0] == pytest.approx(accuracy(ours, digits.test_images[:200], digits.test_labels[:200]), abs=0.02)


def test_the_plain_loop_sees_the_same_pixels(digits):
    batch, labels = next(iter(plain.loader(digits.test_images[:64], digits.test_labels[:64], plain.TEST)))
    assert torch.equal(batch, to_float(digits.test_images[:64]))
    assert torch.equal(labels, digits.test_labels[:64])


@pytest.fixture(scope="module")
def sides() -> list[speed.Side]:
    """The plain loop and two of ours, each in a process of its own."""
    return [speed.Side(name, torch.device("cpu"), 1, "digits") for name in ("plain", "ours", "ours")]


def test_a_benchmark_measures_both_in_turn(sides):
    result = speed.training({"ours": sides[1], "plain": sides[0]}, 1 / 8, 128, repeats=3)
    assert [len(result["seconds"][side]) for side in ("ours", "plain")] == [3, 3]
    pairs = zip(result["seconds"]["ours"], result["seconds"]["plain"], strict=True)
    assert result["ratio"]["median"] == pytest.approx(sorted(p / o for o, p in pairs)[1], abs=1e-3)


def test_several_cells_at_once_are_added_up(sides):
    plain_one, *ours = sides
    result = speed.training({"ours": speed.Together(ours), "plain": plain_one}, 1 / 8, 128, repeats=3, cells=2)
    together, alone = (sorted(result["seconds"][side])[1] for side in ("ours", "plain"))
    assert result["images_per_second"] == pytest.approx({"ours": 2 * 128 / together, "plain": 128 / alone}, rel=1e-3)
    pairs = zip(result["seconds"]["ours"], result["seconds"]["plain"], strict=True)
    assert result["ratio"]["median"] == pytest.approx(sorted(2 * p / o for o, p in pairs)[1], abs=2e-3)


def test_operations_are_those_of_the_layers():
    """ResNet-18's stem alone, by hand: 2 x 3 x 9 x C x 32 x 32; and training takes about three times a forward pass."""
    found = speed.flops("resnet18", 1.0)
    assert found["forward"] == pytest.approx(1.11e9, rel=0.01)  # 0.56 billion multiply-adds, the known figure
    assert 2.9 < found["training"] / found["forward"] <= 3


@pytest.mark.parametrize(("defense", "kind"), [("bound_cube", "forward"), ("cube", "training"), ("reset", "training")])
def test_a_bound_has_no_backward_pass(defense, kind, monkeypatch):
    """Also not counted as a bound: a method of ours that trains."""
    monkeypatch.setitem(METHODS, "reset", Method("Reset", OURS))
    counted = next(iter(costs.benchmarks().values()))["flops"]["vgg16"]["1/8"]
    cell = Cell("mnist", "vgg16", "badnets", 0.1, defense, 3000, 0, "small")
    assert costs.operations(cell, 3000) == 3000 * counted[kind] / 1e12


def test_memory_names_the_records_that_measured_it(tmp_path):
    store = Store(tmp_path)
    for seed, more in enumerate(({"peak_mib": 1024.0}, {"peak_mib": 2048.0}, {})):
        one = record(Cell("mnist", "vgg16", "badnets", 0.1, "finetuning", 3000, seed, "small"), 0.9, 0.1)
        store.save(replace(one, provenance=one.provenance | more))
    assert costs.memory(store) == ["Memory at small: at most 2.0 GiB in a process, measured in 2 of 3 records."]


def test_costs_are_means_over_seeds_at_3000_images(tmp_path):
    store = Store(tmp_path)
    for seed, size in ((s, size) for s in (0, 1) for size in (3000, 4500, 6000)):
        cell = Cell("mnist", "vgg16", "badnets", 0.1, "finetuning", size, seed, "small")
        effort = {"seconds": 10.0, "training_seconds": 4.0, "epochs": 10.0, "images": (1 + seed) * size}
        store.save(record(cell, 0.9, 0.1, effort=effort))
    line = costs.methods(store).loc["small", "Finetuning"]
    assert line[["epochs", "images", "seconds, training", "seconds, all", "seeds"]].tolist() == [
        "10.0",
        "4,500",
        "4",
        "10",
        "2",
    ]
    growth = costs.growth(store)
    assert growth.loc["Finetuning"].tolist() == ["4,500", "6,750", "9,000"]
    assert len(growth) == len(Table3().columns()) - 1
    assert any(
        line.startswith("One seed of the supplement at small: the 3 of its ") and "0.0 million images" in line
        for line in costs.whole(store)
    )
