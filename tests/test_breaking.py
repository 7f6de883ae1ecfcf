"""Attacks on a repaired network: each step by hand, a tiny cell of both kinds, and the page that names what passes."""

import copy
from dataclasses import replace

import pytest
import torch
from made import record
from torch import nn
from torch.nn import functional as F

from purifier_core import cli
from purifier_core.evaluation import accuracy
from purifier_core.lab.attacks import badnets
from purifier_core.lab.breaking import REPOISONING, moved, perturbation, repoisoned
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.experiments.comparison import Breaking
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import look_up
from purifier_core.pages import breaking
from purifier_core.training import NO_AUGMENT, fit

DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=DRAWS)
LABELS = torch.arange(40) % 10


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def test_a_step_goes_against_the_gradients_sign():
    model = linear()
    change = perturbation(model, IMAGES, target=5, epsilon=8, seed=3, steps=1)
    chosen = torch.randint(40, (64,), generator=torch.Generator().manual_seed(3))
    x = (IMAGES[chosen].float() / 255).requires_grad_()
    F.cross_entropy(model(x), torch.full((64,), 5)).backward()
    torch.testing.assert_close(change, -0.8 / 255 * x.grad.sum(0).sign())


def test_it_stays_within_its_bound_and_carries_images_there():
    model = linear()
    change = perturbation(model, IMAGES, target=5, epsilon=16, seed=3, steps=100)
    assert float(change.abs().max()) == pytest.approx(16 / 255)
    rate = [float((model(x.float() / 255).argmax(1) == 5).float().mean()) for x in (IMAGES, moved(IMAGES, change))]
    assert rate[1] > max(0.9, rate[0])


def test_moved_pixels_are_rounded_and_cut_off():
    change = torch.full((3, 32, 32), 10.4 / 255)
    assert torch.equal(moved(IMAGES, change), (IMAGES.int() + 10).clamp(max=255).to(torch.uint8))


@pytest.mark.parametrize("count", [0, 7])
def test_repoisoning_is_finetuning_on_clean_and_a_few_stamped_images(count):
    model = linear()
    before = copy.deepcopy(model.state_dict())
    network = repoisoned(model, IMAGES, LABELS, badnets, 5, count, seed=2, augment=NO_AUGMENT)
    order = [i for i in torch.randperm(40, generator=torch.Generator().manual_seed(2)).tolist() if i % 10 != 5][:count]
    x = torch.cat([*(badnets(IMAGES[i][None]) for i in order), IMAGES])
    wanted = copy.deepcopy(model)
    fit(wanted, x, torch.tensor([5] * count + LABELS.tolist()), REPOISONING, seed=2, augment=NO_AUGMENT)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), wanted.parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_both_kinds_are_attacked_alike_and_the_clean_one_is_the_reference(few, hasty, tmp_path, monkeypatch):
    monkeypatch.setattr("purifier_core.lab.breaking.STEPS", 3)
    work = Work(Store(tmp_path), "quick", "mnist", "cpu", curves=False)
    cell = Cell("mnist", "vgg16", "badnets", 0.1, "broken_repair", 3000, 0, "quick")
    records = [work.compute(replace(cell, defense=name)) for name in ("broken_repair", "broken_clean", "scan_repair")]
    assert [one.error for one in records] == [None] * 3
    for one in records[:2]:
        told = one.diagnostics["attacked"]
        assert {kind: set(rates) for kind, rates in told.items()} == {
            "stamped": {"8", "16"},
            "plain": {"8", "16"},
            "repoisoned": {"0", "10", "30"},
        }
        assert all(0 <= rate <= 1 for rates in told.values() for rate in rates.values())
    repaired, clean, alone = records
    assert (repaired.acc, repaired.asr) == (alone.acc, alone.asr), "measured before it is attacked"
    assert "attacked" not in alone.diagnostics
    reference = work.backdoored(cell.reference())[0]
    assert clean.acc == accuracy(reference, work.split.test_images, work.split.test_labels)


def attacked(cell: Cell, asr: float, told: float, found: bool = True) -> Record:
    kinds = {"stamped": ("8", "16"), "plain": ("8", "16"), "repoisoned": ("0", "10", "30")}
    rates = {kind: dict.fromkeys(names, told) for kind, names in kinds.items()}
    suspects = [{"target": 5}] if found else []
    verdict = "backdoor suspected" if found else "nothing stands out"
    notes = {"attacked": rates, "verdict": verdict, "suspects": suspects}
    return record(cell, 0.99, asr, diagnostics=notes)


def test_the_page_names_what_passes_first(tmp_path):
    grid, store = Breaking(profile="small", attack="all", dataset="all", seeds="0-1"), Store(tmp_path)
    five = ("badnets", "trojan", "blend", "sig", "adaptive_scan")
    assert grid.rows("small") == tuple((attack, data) for data in ("mnist", "cifar10", "gtsrb") for attack in five)
    assert breaking.passes(look_up(grid, store)) == ["No record of this page at profile small is there yet."]
    for cell in grid.cells("small"):
        if cell.dataset != "mnist" or cell.attack in ("trojan", "sig"):
            continue
        hidden = cell.attack == "adaptive_scan"
        if cell.defense == "none":
            store.save(attacked(cell, 0.5 if cell.attack == "blend" else 1.0, 0.0))
        elif cell.defense == "broken_repair":
            store.save(attacked(cell, 1.0 if hidden else 0.01, 0.3 if hidden else 0.05, found=not hidden))
        else:
            store.save(attacked(cell, 0.005, 0.1))
    results = look_up(grid, store)
    plain, hiding, rest = breaking.passes(results)
    assert plain == (
        "**MNIST, BadNets (four corners)** (2 seeds). Nothing passes. The scan suspected a backdoor in 2 of 2, and "
        "named the attacker's class in 2."
    )
    assert hiding.startswith(
        "**MNIST, BadNets, knows the scan** (2 seeds). Passes: trigger (100.0 %, a clean network 0.5 %); trigger + "
    )
    assert "finetuning, 30 poisoned (30.0 %, a clean network 10.0 %)" in hiding
    assert "suspected a backdoor in 0 of 2" in hiding
    assert rest == "In 8 other cases an attack gains at most 10 points over a clean network."
    for seed in range(2):
        store.save(attacked(Cell("cifar10", "vgg16", "adaptive_scan", 0.1, "none", 0, seed, "small"), 0.003, 0.0))
    assert breaking.passes(look_up(grid, store))[0] == (
        "**CIFAR-10, BadNets, knows the scan** has no result: the backdoor itself did not take (ASR 0.3 %, 2 seeds)."
    )
    table = breaking.table(results)
    assert set(table.index.get_level_values(0)) == {"MNIST, BadNets (four corners)", "MNIST, BadNets, knows the scan"}
    line = table.loc[("MNIST, BadNets (four corners)", "8/255 alone")]
    assert line.tolist() == ["5.0 (5.0 to 5.0)", "10.0 (10.0 to 10.0)"]


def test_it_has_no_figure_to_write():
    with pytest.raises(SystemExit) as ended:
        cli.main(["show", "breaking", "--figure", "x.png"])
    assert ended.value.code == 2
