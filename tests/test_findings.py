"""The landing page's findings: at most five, each decided by seeds, each with where it holds and where not."""

import pytest
from made import record

from purifier_core.files import ROOT
from purifier_core.lab.cells import Cell
from purifier_core.lab.methods import METHODS
from purifier_core.lab.records import Store, published
from purifier_core.pages import findings, settings
from purifier_core.recipes import GRANULARITIES, INITS

SEEDS = (0, 1, 2)
STATED = published("table3").query("clean_size == 3000").set_index("method")
AGREEING = {images: {"first_head_agreement": 1.0, "heads": [0.5]} for images in ("clean", "triggered")}


def save(store: Store, defense: str, seed: int, acc: float, asr: float, dataset="mnist", **switches: str) -> None:
    network, profile = switches.pop("network", "vgg16"), switches.pop("profile", "small")
    size = {"none": 0, "abl": 0}.get(defense, {"mnist": 3000, "cifar10": 2500, "gtsrb": 1960}[dataset])
    cell = Cell(dataset, network, "badnets", 0.1, defense, size, seed, profile, tuple(switches.items()))
    store.save(record(cell, acc, asr, diagnostics=AGREEING))


@pytest.fixture
def store(tmp_path) -> Store:
    """The published numbers from fresh weights without crops; a backdoor that stays from the backdoored network."""
    store = Store(tmp_path)
    for seed in SEEDS:
        save(store, "none", seed, 0.99, 1.0)
        for g in GRANULARITIES:
            acc, asr = (STATED.loc[METHODS[g].label, f"{metric}_percent"] / 100 for metric in ("acc", "asr"))
            for init in INITS:
                save(store, g, seed, *((acc, asr) if init == "random" else (0.99, 1.0)), init=init, defence_aug="off")
                save(store, g, seed, *((acc - 0.05, asr) if init == "random" else (0.99, 1.0)), init=init)
        save(store, "nad", seed, 0.98, (1.0, 0.05, 0.9)[seed])
        save(store, "mcr", seed, 0.98, 1.0)
    return store


def sentences(store: Store) -> list[str]:
    return [found.says for found in findings.findings(store)]


def test_what_the_records_decide_is_said_with_number_seeds_and_place(store):
    text = findings.markdown(store)
    assert "Purifier's feature-wise module leaves BadNets in place on MNIST (VGG-16)." in text
    assert "leaves an ASR of 100.0 in every seed; published: 0.28" in text
    assert "0.0 (0.0 to 0.0) and 0.0 (0.0 to 0.0) from fresh weights without crops, the best of 6 readings" in text
    assert "5.0 (5.0 to 5.0) and 0.0 (0.0 to 0.0) with crops, which the release has" in text
    assert "NAD leaves an ASR of 65.0 (5.0 to 100.0)" in text
    assert text.count("(3 seeds, 75 %.)") + 1 == len(sentences(store)) == 4
    assert settings.accuracies(store).endswith("have an ACC, in percent, of: MNIST (VGG-16) 99.0.")
    assert "(Seen in 3 seeds; more can only widen a range.)" in text


def test_a_seed_whose_backdoor_did_not_take_enters_no_finding(store):
    before = findings.markdown(store)
    save(store, "none", 3, 0.99, 0.1)
    for granularity in GRANULARITIES:
        save(store, granularity, 3, 0.99, 0.1, init="full")
    assert findings.markdown(store) == before


def test_one_seed_finds_nothing(store):
    for path in store.folder.rglob("*-s[12]-*.json"):
        path.unlink()
    assert sentences(store) == []
    assert findings.markdown(store).startswith("Nothing is decided yet.")


def test_the_headline_says_where_the_finding_does_not_hold(store):
    for seed in SEEDS:
        for defense, asr in (("none", 1.0), ("feature", 0.2)):
            save(store, defense, seed, 0.7, asr, "cifar10", network="resnet18")
    assert sentences(store)[0].endswith("on MNIST (VGG-16); on CIFAR-10 (ResNet-18) it lowers the ASR.")
    assert "*Does not hold*: CIFAR-10 (ResNet-18): BadNets 20.0 in every seed" in findings.markdown(store)


def test_the_papers_own_networks_come_first_a_line_each(store):
    assert "own networks" not in findings.markdown(store)
    for place, asr in ({}, 0.98), ({"dataset": "cifar10", "network": "resnet18"}, 0.2):
        save(store, "none", 0, 0.99, 1.0, **place, profile="wide")
        save(store, "feature", 0, 0.98, asr, **place, profile="wide")
    save(store, "channel", 0, 0.97, 0.0, profile="wide", init="random")
    first, *lines, rule = findings.markdown(store).partition("\n\nThe findings are at ")[0].splitlines()
    assert first.startswith("**With the paper's own networks** (width 1, profile *wide*)")
    assert [line for line in lines if line] == [
        "- BadNets on MNIST (VGG-16), one run: 99.0 / 100.0 without a defense. From the backdoored network: "
        "Feature 98.0 / 98.0. From fresh weights: Channel 97.0 / 0.0. Every seed of the narrow network "
        "(profile *small*) gives the same answers: in place, or not.",
        "- BadNets on CIFAR-10 (ResNet-18), one run: 99.0 / 100.0 without a defense. From the backdoored network: "
        "Feature 98.0 / 20.0. From fresh weights: no record yet.",
    ]
    assert rule == "A backdoor counts as left in place at 90 % of ASR or more."


def test_at_the_papers_width_too_three_seeds_decide_and_fewer_are_said(store):
    for seed in SEEDS:
        save(store, "none", seed, 0.99, 1.0, profile="wide")
        save(store, "feature", seed, 0.98, 0.97, profile="wide")
        save(store, "cube", seed, 0.97, 0.1 * seed, profile="wide")
    save(store, "channel", 0, 0.97, 1.0, profile="wide")
    text = findings.markdown(store)
    assert "BadNets on MNIST (VGG-16), 3 seeds: 99.0 / 100.0 without a defense." in text
    assert "Channel 97.0 / 100.0 (one run), Cube 97.0 / 10.0, Feature 98.0 / 97.0." in text
    assert "The seeds decide: in place after Feature, not in place after Cube." in text


def test_a_narrow_network_that_differs_from_the_papers_is_named(store):
    save(store, "none", 0, 0.99, 1.0, profile="wide")
    save(store, "feature", 0, 0.98, 0.1, profile="wide")
    assert (
        "The narrow network (profile *small*) differs in this, or not all of its seeds agree: Feature (full)."
    ) in findings.markdown(store)


def test_one_run_somewhere_else_is_not_decided_there(store):
    save(store, "none", 0, 0.9, 1.0, "gtsrb")
    save(store, "feature", 0, 0.9, 0.0, "gtsrb")
    assert "GTSRB" not in sentences(store)[0]
    assert "*Not decided*: GTSRB (VGG-16): BadNets 0.0 (one run)." in findings.markdown(store)


def test_a_backdoor_that_did_not_take_is_no_place(store):
    for seed in SEEDS:
        save(store, "none", seed, 0.9, 0.89, "cifar10")
        save(store, "feature", seed, 0.9, 0.0, "cifar10")
    assert "CIFAR-10" not in findings.markdown(store)


def test_a_finding_that_new_records_turn_disappears(store):
    for seed in SEEDS:
        save(store, "feature", seed, 0.99, 0.0)
    assert not any("leaves BadNets in place" in says for says in sentences(store))


def test_no_defense_removes_every_backdoor_once_each_has_failed(store):
    others = ("finetuning", "fine_pruning", "abl", "anp", "bound_channel", "bound_cube", "bound_feature")
    for seed in SEEDS:
        save(store, "nad", seed, 0.98, 1.0)
        for defense in others[:-1]:
            save(store, defense, seed, 0.98, 1.0)
        save(store, "bound_feature", seed, 0.98, 0.0)
    assert "No defense here removes every backdoor." not in sentences(store)
    for seed in SEEDS:
        save(store, "none", seed, 0.7, 1.0, "cifar10")
        save(store, "bound_feature", seed, 0.7, 0.3, "cifar10")
    assert "No defense here removes every backdoor." in sentences(store)
    most = "Bound-Feature removes most: 1 of the 2 that the seeds decide. It does not remove BadNets on CIFAR-10"
    assert most in findings.markdown(store)
    assert "not removed by NAD: MNIST (BadNets); " in findings.markdown(store)
    assert len(sentences(store)) <= 5


def test_what_the_repairs_leave_is_a_line_for_each_network(store):
    save(store, "bound_feature", 0, 0.98, 0.133)
    line = settings.repairs(store).loc["MNIST (VGG-16)"]
    assert list(line) == ["100.0 (100.0 to 100.0)", "13.3 (one run)", "100.0 (100.0 to 100.0)", line.iloc[-1]]


def test_the_committed_records_decide_at_most_five():
    found = findings.findings(Store(ROOT / "data"))
    assert 1 <= len(found) <= 5
    assert all(finding.decision.n >= 3 for finding in found)
