"""The zoo: every committed network is what its card says, and can be repaired from a fresh clone."""

import json
import shlex

import pytest
import torch
from scipy.stats import binomtest
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from purifier_core import cli
from purifier_core.checks import ConfigError
from purifier_core.evaluation import accuracy, predict, share
from purifier_core.lab import data, packing, zoo
from purifier_core.lab.attacks import badnets, blend, sig
from purifier_core.lab.cache import digest, kept
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.draws import derive
from purifier_core.lab.records import Store
from purifier_core.pages import zoo as pages

NAMES = zoo.names()


def test_the_zoo_is_small_enough_to_clone():
    assert sum(file.stat().st_size for file in zoo.FOLDER.rglob("*") if file.is_file()) < 16e6


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_weights_of_its_card_in_half_precision(name):
    state = zoo.read(zoo.FOLDER / name / "weights.safetensors")
    card = zoo.card(name)
    assert digest(state) == card["digest"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.int64}
    loaded = zoo.load(name)
    assert (loaded.stamp is None) == (card["cell"]["attack"] == "none")
    assert loaded.model(torch.rand(2, 3, 32, 32)).shape == (2, card["classes"])
    assert not loaded.model.training


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_its_cards_numbers_on_the_committed_sample(name):
    loaded = zoo.load(name)
    wanted = loaded.card["sample"]
    if wanted is None:
        pytest.skip("no sample of this dataset is committed")
    counts = zoo.on_sample(loaded.model, loaded.stamp, loaded.card["cell"]["dataset"])
    assert counts.keys() == wanted.keys()
    assert all(abs(counts[key] - wanted[key]) <= 1 for key in wanted), "one image may round to another class elsewhere"


@pytest.fixture(scope="module")
def datasets():
    """Each whole dataset, where it is at hand."""
    loaded: dict = {}

    def load(name):
        if name not in loaded:
            loaded.clear()  # one at a time in memory
            loaded[name] = data.load(name)
        return loaded[name]

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_its_cards_acc_and_asr_on_the_whole_test_set(name, datasets):
    loaded = zoo.load(name)
    card = loaded.card
    try:
        split = datasets(card["cell"]["dataset"])
    except data.DataError:
        pytest.skip("the dataset is not at hand")
    if split.fingerprint != card["data"]["fingerprint"]:
        pytest.skip(f"another copy of the dataset: the card is about {card['data']['copy']}")
    images, labels = split.test_images, split.test_labels
    assert len(images) == card["acc_images"]
    assert accuracy(loaded.model, images, labels) == pytest.approx(card["acc"], abs=3e-4)
    if loaded.stamp:
        triggered = loaded.stamp(images[labels != TARGET_CLASS])
        assert len(triggered) == card["asr_images"]
        assert share(predict(loaded.model, triggered) == TARGET_CLASS) == pytest.approx(card["asr"], abs=3e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if zoo.card(name)["record"]])
def test_rounding_costs_a_network_nothing_that_shows(name):
    card = zoo.card(name)
    assert card["acc"] == pytest.approx(card["record"]["acc"], abs=0.005)
    assert card["asr"] == pytest.approx(card["record"]["asr"], abs=0.005)


@pytest.mark.parametrize("name", [name for name in NAMES if zoo.load(name).stamp and "trojan" not in name])
def test_a_trigger_file_stamps_as_the_attack_does(name):
    loaded = zoo.load(name)
    cell = loaded.card["cell"]
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    trigger = {"blend": lambda x: blend(x, derive(cell["seed"], "trigger")), "sig": sig}.get(cell["attack"], badnets)
    assert torch.equal(loaded.stamp(images), trigger(images))


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ConfigError, match="mnist-badnets"):
        zoo.load("mnist-badnet")


def test_weights_that_are_not_the_cards_are_refused(tmp_path, monkeypatch):
    source = zoo.FOLDER
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    for file in ("card.json", "weights.safetensors"):
        (tmp_path / "mnist-badnets").mkdir(exist_ok=True)
        content = bytearray((source / "mnist-badnets" / file).read_bytes())
        if file.startswith("weights"):
            content[-1] ^= 1
        (tmp_path / "mnist-badnets" / file).write_bytes(content)
    with pytest.raises(ConfigError, match="does not match its card"):
        zoo.load("mnist-badnets")


def test_a_network_is_repaired_from_a_fresh_clone_without_training_or_data(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PURIFIER_DATA", raising=False)
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("a dataset was asked for"))
    folder = tmp_path / "mine"
    assert cli.main(["zoo", "mnist-badnets", "--out", str(folder)]) == 0
    clean, triggered = ImageFolder(str(folder / "clean")), ImageFolder(str(folder / "triggered"))
    assert (len(clean), len(triggered)) == (zoo.IMAGES, zoo.TRIGGERED)
    assert clean.classes == [f"{label:02d}" for label in range(10)]
    assert f"{TARGET_CLASS:02d}" not in triggered.classes
    program, *command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert program == "purifier"
    assert cli.main([*command, "--method", "bound-feature", "--held-out", "0.5"]) == 0
    report = (folder / "purified.html").read_text()
    assert "100.0 %" in report, "the ASR before"


@pytest.mark.long
def test_the_one_command_takes_the_backdoor_out(tmp_path, capsys):
    """As `purifier zoo` prints it: minutes of scan and repair, and no dataset. Whether the scan is sure is recorded."""
    assert cli.main(["zoo", "mnist-badnets", "--out", str(tmp_path / "z")]) == 0
    _, *command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert cli.main([*command, "--json", str(tmp_path / "p.json")]) in (0, 1)
    found = json.loads((tmp_path / "p.json").read_text())
    assert min(found["candidates"], key=lambda one: one["p"])["target"] == TARGET_CLASS
    assert found["rates"]["ASR"]["before"]["share"] > 0.9
    assert found["rates"]["ASR"]["after"]["share"] < 0.1
    assert found["rates"]["RA"]["after"]["share"] > 0.9


def outcome(scan: str, target: int, **rates: tuple[float, float]) -> dict:
    """What data/zoo/commands.json says of one network."""
    shares = {name: {"before": {"share": before}, "after": {"share": after}} for name, (before, after) in rates.items()}
    best = {"family": "patch", "target": target, "p": 0.01}
    told = {"scan": scan, "candidates": [best, best | {"family": "lines", "target": 9, "p": 0.4}], "rates": shares}
    told |= {"images": {"method": 150, "held_out": 50, "triggered": 70}}
    return told | {"target": {"index": 5} if "ASR" in rates else None, "status": 1, "cpu_seconds": 61.2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mnist-badnets", "--out", "here", "--pack"], "leave --pack and --page out"),
        (["mnist-badnets", "--seed", "3"], "--seed goes with --pack and a network's name"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message, capsys):
    assert cli.main(["zoo", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_page_counts_what_fails_by_name():
    suspected, nothing = "backdoor suspected", "nothing stands out"
    every = {
        "good": outcome(suspected, 5, ACC=(0.99, 0.98), ASR=(1.0, 0.01), RA=(0.0, 0.97)),
        "stays": outcome(suspected, 5, ACC=(0.99, 0.98), ASR=(1.0, 0.6)),
        "missed": outcome(nothing, 5, ACC=(0.99, 0.93), ASR=(0.9, 0.05)),
        "other class": outcome(suspected, 3, ACC=(0.99, 0.98), ASR=(0.9, 0.05)),
        "weak": outcome(nothing, 5, ACC=(0.99, 0.98), ASR=(0.1, 0.0)),
        "clean": outcome(nothing, 5, ACC=(0.99, 0.98)),
        "alarm": outcome(suspected, 5, ACC=(0.99, 0.98)),
    }
    sizes, found, gone, clean, weak, missing = pages.reading(every)
    assert sizes == "ACC is of 50 clean images that were held out, ASR and RA of 70 triggered ones."
    assert found == (
        "Of 4 networks with a backdoor that took, the scan names the attacker's class in 2 (not missed, other class)."
    )
    assert gone == "After the repair the ASR is at most 10 % in 3 of them (not stays)."
    assert clean == "Of 2 clean networks nothing stands out in 1 (not alarm)."
    assert weak == "The attack itself did not take in weak."
    assert missing == f"Not tried yet: {', '.join(NAMES)}."
    further = (
        "In a network that you distrust although the scan suspects nothing, `--anyway` unlearns what stands out most."
    )
    assert pages.advice(every).endswith(
        "With 150 clean images, and 50 held out, it leaves an ASR of at most 10 % in 3 of the 4 networks of the zoo "
        f"whose backdoor took; in 1 of these ACC falls by more than 5 points; stays passes it. {further}"
    )
    assert pages.advice({"good": every["good"]}).endswith(
        f"1 of the 1 networks of the zoo whose backdoor took; none passes it. {further}"
    )
    tuned = {"mnist-badnets": every["good"], "gtsrb-blend": every["stays"]}  # the first had a part in the choice
    assert "A setting was chosen on 1 of the 2; of the other 1 it reaches this in 0. In a" in pages.advice(tuned)
    assert pages.reading(tuned)[2].startswith("On mnist-badnets a setting of the scan or the repair was chosen")
    row = pages.table(every).loc["good"]
    assert row["the scan"] == "backdoor suspected: class 5, patch"
    assert row["RA, before → after"] == "0.0 → 97.0"
    assert pages.table(every).loc["clean", "ASR, before → after"] == "–"
    assert pages.reading({}) == ["No outcome is recorded yet."]


def test_what_was_tried_is_what_the_zoo_holds(tmp_path):
    every = pages.recorded()
    assert every.keys() <= set(NAMES)
    for name, one in every.items():
        before, card = one["rates"], zoo.card(name)
        assert ("ASR" in before) == (card["cell"]["attack"] != "none")
        for rate in ("ACC", "ASR") if "ASR" in before else ("ACC",):
            few = before[rate]["before"]
            chance = binomtest(few["hits"], few["count"], card[rate.lower()]).pvalue
            assert chance > 1e-4, f"{rate} of {name} on few images"
        if "ASR" in before and card["cell"]["dataset"] == "mnist":  # its images come with the clone
            zoo.write(name, tmp_path / name)
            triggered = ImageFolder(str(tmp_path / name / "triggered"), pil_to_tensor)
            images = torch.stack([image for image, _ in triggered])
            turned = int((predict(zoo.load(name).model, images) == TARGET_CLASS).sum())
            assert abs(turned - before["ASR"]["before"]["hits"]) <= 1, "one image may round to another class elsewhere"


def test_the_list_shows_every_network_with_its_rates(capsys):
    assert cli.main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all("ACC" in line for line in lines)


def test_a_packed_network_gives_its_cards_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PROFILE", "quick")
    cell, store = Cell(profile="quick"), Store(tmp_path)
    work = packing.work(store, cell, "cpu")
    path = store.models / f"untrained-{cell.key()}.pt"
    monkeypatch.setattr(work, "_cache_path", lambda _: path)
    kept(store, path, lambda: work.blank(cell), lambda: (work.blank(cell).eval(), {}))
    card = packing.pack(work, cell, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert zoo.names() == ("mnist-badnets",)
    loaded = zoo.load("mnist-badnets")
    assert accuracy(loaded.model, work.split.test_images, work.split.test_labels) == card["acc"]
    assert share(predict(loaded.model, work.triggered(cell)) == TARGET_CLASS) == card["asr"]
    assert card["record"] is None, "no record of these weights is committed"
