"""Verdicts are computed: a record changes, and the verdict changes with it."""

import pytest

from purifier_core.config import LABELS, Cell
from purifier_core.experiments.supplement import Table3, Table4
from purifier_core.pages import claims
from purifier_core.records import Record, Store, published

PLACE = {"device": "cpu", "commit": "0" * 40}
LAYER = {"classes": [[1.0, 0.0], [0.0, 1.0]], "clean": [0.5, 0.5], "triggered": [4.0, 0.0]}


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """A store whose records are the published numbers, for every start of Purifier."""
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    store = Store(tmp_path)
    for kind, axis in ((Table3, "clean_size"), (Table4, "poison_ratio_percent")):
        table = published(kind.name).set_index([axis, "method"])
        for row in kind.every:
            for cell in kind(**{kind.axis: row}, init="all", profile="small").cells("small"):
                line = table.loc[(row if kind is Table3 else round(100 * row), LABELS[cell.defense])]
                save(store, cell, line.acc_percent / 100, line.asr_percent / 100)
    return store


def save(store: Store, cell: Cell, acc: float, asr: float, **diagnostics) -> None:
    data, effort = {"fingerprint": "0" * 16, "copy": "c"}, {"seconds": 1.0, "epochs": 1, "images": 1}
    store.save(Record(cell, cell.key(), data, acc, asr, 10_000, 9_108, effort, diagnostics, PLACE))


def verdicts(store: Store) -> list[str]:
    return list(claims.table(claims.Evidence(store)).verdict)


def verdict(store: Store, words: str) -> str:
    """The verdict on the one claim that has these words."""
    table = claims.table(claims.Evidence(store))
    (found,) = table.verdict[table.index.get_level_values("claim").str.contains(words)]
    return found


def purifier(defense: str, init: str = "full", seed: int = 0, **changes) -> Cell:
    settings = {"clean_size": 3000, "profile": "small"} | changes
    return Cell(defense=defense, seed=seed, switches=(("init", init),), **settings)


def test_the_published_numbers_judged_by_the_rules(store):
    assert verdicts(store) == [
        claims.UNDECIDED,
        claims.UNDECIDED,
        claims.UNDECIDED,
        "holds only for MCR",  # its ASR rises by 1.17 points
        "does not hold",  # Cube: an ACC below 90 % at 3,000
        "holds",
        "holds",  # ABL
        "holds",
        "holds",
    ]


def test_one_record_changes_the_verdicts_that_rest_on_it(store):
    save(store, purifier("feature"), 0.99, 1.0)
    assert verdict(store, "especially") == "holds only when Purifier starts from init=partial or random"
    for init in ("partial", "random"):
        save(store, purifier("feature", init), 0.99, 1.0)
    assert verdict(store, "especially") == "does not hold"
    save(store, purifier("cube", poison_ratio=0.01), 0.9, 0.2)
    assert verdict(store, "not sensitive to the poison ratio").startswith("holds only when")
    store.path(purifier("cube"), "0" * 16).unlink()
    assert verdict(store, "insensitive to the amount") == claims.UNDECIDED


def test_a_lead_within_its_interval_decides_nothing(store):
    assert verdict(store, "best overall") == "holds"
    for ratio in (0.05, 0.01):
        for g in ("channel", "cube", "feature"):  # the second seed is as bad as the first is good
            save(store, purifier(g, seed=1, poison_ratio=ratio), 0.9, 0.9)
        for kind in (c for c in Table4(poison_ratio=ratio, seeds=1).cells("small") if c.defense == "anp"):
            save(store, kind, 0.9, 0.1)
    assert verdict(store, "best overall") == claims.WITHIN


def test_the_anomaly_and_its_suppression(store):
    undefended = Cell("cifar10", "resnet18", "trojan", profile="small")
    save(store, undefended, 0.8, 1.0, activations=LAYER)
    assert verdict(store, "pattern of its own") == "holds"
    assert verdict(store, "suppresses") == claims.UNDECIDED
    cifar = {"dataset": "cifar10", "network": "resnet18", "attack": "trojan", "clean_size": 2500}
    quiet = LAYER | {"triggered": [0.5, 0.5]}
    for init, layer in (("full", LAYER), ("partial", LAYER), ("random", quiet)):
        save(store, purifier("feature", init, **cifar), 0.8, 0.1, activations=layer)
    assert verdict(store, "suppresses") == "holds only when Purifier starts from init=random"
    save(store, purifier("feature", **cifar), 0.8, 0.1, activations=quiet)
    assert verdict(store, "suppresses") == "holds"
    save(store, undefended, 0.8, 1.0, activations=quiet)
    assert verdict(store, "pattern of its own") == "does not hold"
    save(store, undefended, 0.8, 0.38, activations=quiet)
    for words in ("pattern of its own", "suppresses"):
        assert verdict(store, words) == "not decided: the backdoor did not take, its ASR is 38.0 %"


def test_a_trigger_that_drives_the_layer_harder_in_every_seed(store):
    for seed, triggered, wanted in ((0, [[1.0, 3.0]], "holds"), (1, [[1.5, 0.0]], "does not hold")):
        cell = Cell("cifar10", "resnet18", "badnets", profile="small", seed=seed)
        save(store, cell, 0.8, 1.0, activations={"clean_map": [[0.5, 1.5]], "triggered_map": triggered})
        assert verdict(store, "more strongly") == wanted
