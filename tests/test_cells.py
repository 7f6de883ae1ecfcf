"""Cells, keys and parameters: what changes a result changes the key, and bad input names the way out."""

import dataclasses
import math
from dataclasses import asdict, replace
from pkgutil import resolve_name

import pytest

from purifier_core.checks import ConfigError
from purifier_core.lab import cells
from purifier_core.lab.cells import SWITCHES, Cell, parse_names, parse_seeds
from purifier_core.lab.experiments import from_notebook
from purifier_core.lab.experiments.beyond import Readings, Setting
from purifier_core.lab.experiments.comparison import Attacks
from purifier_core.lab.experiments.supplement import Figure10, Figure11, Figure12, Figure13, Table3
from purifier_core.lab.methods import METHODS
from purifier_core.lab.profiles import PROFILES, Constants
from purifier_core.recipes import Recipe

BASE = Cell(defense="channel", clean_size=3000, seed=0, profile="small")


@pytest.mark.parametrize("shrunk", [{"width": 0.5}, {"backdoor": Recipe(1, 0.1)}, {"purifier": (Recipe(1, 0.1),) * 2}])
def test_the_profiles_settings_are_in_the_key(shrunk, monkeypatch):
    before = BASE.key()
    monkeypatch.setitem(PROFILES, "small", dataclasses.replace(PROFILES["small"], **shrunk))
    assert BASE.key() != before


def test_what_does_not_bear_on_a_cell_is_not_in_its_key(monkeypatch):
    before = BASE.key()
    monkeypatch.setitem(PROFILES, "small", dataclasses.replace(PROFILES["small"], mcr=Recipe(1, 0.5), about="x"))
    assert BASE.key() == before
    assert dataclasses.replace(BASE, switches=(("init", "full"),)).key() == before  # the default, spelled out
    assert dataclasses.replace(BASE, switches=(("nad_eval", "teacher"),)).key() == before  # another method's switch


def test_a_constant_that_a_profile_changes_is_in_the_key(monkeypatch):
    cells = {d: Cell(defense=d, clean_size=3000) for d in ("nad", "anp", "finetuning")}
    before = {defense: cell.key() for defense, cell in cells.items()}
    changed = replace(PROFILES["quick"], constants=Constants(anp_epsilon=0.3))
    monkeypatch.setitem(PROFILES, "quick", changed)
    assert [d for d, cell in cells.items() if cell.key() != before[d]] == ["anp"]


def test_the_constants_that_the_records_were_made_with_stay():
    """A key holds what departs from these: another value here would leave every key as it is."""
    assert asdict(Constants()) == {
        "nad_beta_first": 500.0,
        "nad_beta": 1000.0,
        "abl_gamma": 0.5,
        "abl_isolated_share": 0.01,
        "anp_alpha": 0.2,
        "anp_epsilon": 0.4,
        "anp_max_drop": 0.05,
        "mcr_t": 0.1,
        "fine_pruning_max_drop": 0.04,
        "ft_sam_rho": 2.0,
        "ft_sam_smoothing": 0.1,
        "i_bau_step": 10.0,
        "i_bau_penalty": 0.001,
        "i_bau_inner_step": 0.1,
        "i_bau_iterations": 5,
        "i_bau_portion": 0.01,
        "npd_weight": 0.4,
        "npd_radius": 3.0,
        "npd_step": 0.1,
        "npd_steps": 2,
        "adaptive_purifier_rate": 0.1,
    }


def test_the_codes_version_is_in_the_key(monkeypatch):
    before = BASE.key()
    monkeypatch.setattr(cells, "RESULT_VERSION", cells.RESULT_VERSION + 1)
    assert BASE.key() != before


def test_cells_share_the_backdoored_model_unless_a_switch_changes_it():
    assert BASE.backdoored() == dataclasses.replace(BASE, defense="nad", clean_size=6000).backdoored()
    assert BASE.backdoored() == dataclasses.replace(BASE, switches=(("init", "random"),)).backdoored()
    flipped = dataclasses.replace(BASE, switches=(("flip", "always"),)).backdoored()
    assert flipped.switches == (("flip", "always"),)
    assert BASE.backdoored().defense == "none"


def test_the_default_value_of_a_switch_is_the_intended_method():
    assert {name: BASE.switch(name) for name in SWITCHES} == {
        "init": "full",
        "purifier_lr": "released",
        "bn_frozen_stats": "no",
        "defence_aug": "on",
        "flip": "dataset",
        "weight_decay": "intended",
        "trojan_add": "saturate",
        "blend_noise": "fixed",
        "sig_map": "stripes",
        "sig_label": "dirty",
        "cl_kind": "consistent",
        "cl_sign": "kept",
        "width": "profile",
        "nad_eval": "student",
        "nad_maps": "pre-pool",
        "fp_select": "held-out",
        "abl_remove_isolated": "yes",
        "abl_score_aug": "no",
        "abl_bn": "reference",
        "anp_steps": "profile",
        "precision": "fp32",
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("defense", "nadd", r"defense='nadd' is not known; allowed: none, finetuning.*Did you mean 'nad'"),
        ("clean_size", 0, r"clean_size=0 is out of range; allowed: 120 to 60000"),
        ("clean_size", True, r"clean_size=True is a bool"),
        ("poison_ratio", 0, r"poison_ratio=0 is out of range"),
        ("poison_ratio", "much", r"poison_ratio='much' is a str"),
        ("seed", -1, r"seed=-1 is out of range"),
        ("profile", "fast", r"allowed: quick, small, wide, paper"),
        ("switches", (("init", "half"),), r"init='half' is not known; allowed: full, partial, random"),
        ("switches", (("inti", "full"),), r"switch='inti' is not known"),
    ],
)
def test_a_cell_refuses_what_cannot_be(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **{field: value})


@pytest.mark.parametrize("defense", ["finetuning", "fine_pruning", "mcr", "nad", "purifier"])
def test_quick_takes_about_as_many_defense_steps_as_the_paper(defense):
    def steps(profile: str, images: int) -> int:
        recipes = getattr(PROFILES[profile], defense)
        each = recipes if isinstance(recipes, tuple) else (recipes,)
        return sum(recipe.epochs * math.ceil(images / recipe.batch_size) for recipe in each)

    assert 0.7 <= steps("quick", 200) / steps("paper", 3000) <= 1.3


def test_quick_has_digits_only():
    with pytest.raises(ConfigError, match="take another profile: small, wide, paper"):
        Cell(dataset="cifar10", profile="quick")


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(3, (3,)), ("3", (3,)), ("0-2", (0, 1, 2)), ("0,4, 7", (0, 4, 7)), ([1, 1, 2], (1, 2)), ("1,0-2", (1, 0, 2))],
)
def test_seeds(given, seeds):
    assert parse_seeds(given) == seeds


@pytest.mark.parametrize("given", ["", "x", "2-0", "1-2-3", -1, 1.5, [], [True], "0-99999", None])
def test_bad_seeds(given):
    with pytest.raises(ConfigError, match="is not understood; write 0, '0-2'"):
        parse_seeds(given)


def test_names():
    allowed = tuple(METHODS)
    assert parse_names("methods", "anp, none", allowed) == ("none", "anp")
    assert parse_names("methods", "all", allowed) == allowed
    for bad in ("", [], 3):
        with pytest.raises(ConfigError):
            parse_names("methods", bad, allowed)


def test_table3_is_the_papers_and_purifier_twice():
    labels = [c.label for c in Table3().columns()]
    assert labels == [
        *("No Defense", "Finetuning", "Fine-pruning", "MCR", "NAD", "ANP"),
        *("Channel (full)", "Cube (full)", "Feature (full)"),
        *("Channel (random)", "Cube (random)", "Feature (random)"),
    ]
    whole = Table3(clean_size="all", seeds="0-2", init="all").cells("small")
    # each seed: one undefended model, and (5 baselines + 3 modules x 3 inits) at 3 sizes
    assert len(whole) == len(set(whole)) == 3 * (1 + 14 * 3)


def test_figure13_takes_the_same_share_of_every_dataset():
    sizes = {c.dataset: c.clean_size for c in Figure13(methods="nad").cells("small")}
    assert sizes == {"cifar10": 2500, "mnist": 3000, "gtsrb": 1960}
    assert {c.dataset for c in Figure13().cells("quick")} == {"mnist"}
    assert Figure13(dataset="cifar10").note("quick").endswith("5,000 MNIST digits stand in.")
    assert Figure13(dataset="cifar10").note("small") == ""
    assert set(Table3().cells("small")) <= set(Figure13().cells("small"))
    with pytest.raises(ConfigError, match="dataset='svhn' is not known; allowed: cifar10, mnist, gtsrb, all"):
        Figure13(dataset="svhn")


def test_figures_10_to_12_are_one_network_on_cifar10_or_the_digits():
    (cell,) = Figure10().cells("small")
    assert (cell.dataset, cell.network, cell.attack, cell.defense) == ("cifar10", "resnet18", "trojan", "none")
    (badnets,) = Figure11().cells("small")
    assert badnets.attack == "badnets"
    plain, full, random = Figure12().cells("paper")
    assert plain == replace(cell, profile="paper")
    assert [(c.defense, c.clean_size, c.switch("init")) for c in (full, random)] == [
        ("feature", 2500, "full"),
        ("feature", 2500, "random"),
    ]
    for chosen in ("auto", "cifar10"):
        assert {c.dataset for c in Figure10(dataset=chosen).cells("quick")} == {"mnist"}
        assert "digits stand in" in Figure10(dataset=chosen).note("quick")
    with pytest.raises(ConfigError, match="attack='all' is not known; allowed: badnets"):
        Figure10(attack="all")


def test_readings_are_every_start_of_every_module_and_the_control():
    rows = Readings().rows("small")
    assert [r for r in rows if r.augment] == [
        Setting("mnist", "vgg16", 6000),
        Setting("mnist", "vgg16", 4500),
        Setting("mnist", "vgg16", 3000),
        Setting("cifar10", "vgg16", 2500),
        Setting("cifar10", "resnet18", 2500),
    ]
    assert {(r.dataset, r.network) for r in rows if not r.augment} == {("mnist", "vgg16")}
    cells = Readings(seeds=0).cells("small")
    assert len(cells) == len(set(cells)) == 6 * 10
    assert sum(c.switch("defence_aug") == "off" for c in cells) == 10
    mine = {c for c in Table3(clean_size="all").cells("small") if c.defense in ("channel", "cube", "feature")}
    assert mine <= set(cells)
    assert {c.dataset for c in Readings().cells("quick")} == {"mnist"}


def test_the_older_learning_rates_are_those_of_the_compiled_files():
    cell = Cell(defense="channel", clean_size=3000, profile="paper", switches=(("purifier_lr", "older"),))
    heads, everything = cell.purifier_stages()
    assert [heads.lr_at(e) for e in (0, 4, 5, 9, 10, 19)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert (everything.lr, everything.weight_decay, everything.epochs) == (8e-3, 5e-4, 20)
    assert cell.key() != replace(cell, switches=()).key()


def test_a_profile_may_train_longer_on_one_dataset(monkeypatch):
    mnist, gtsrb = Cell(profile="small"), Cell("gtsrb", profile="small")
    assert gtsrb.settings()["backdoor"]["epochs"] > mnist.settings()["backdoor"]["epochs"]
    before = mnist.key(), gtsrb.key()
    monkeypatch.setitem(PROFILES, "small", replace(PROFILES["small"], backdoor_on=()))
    assert mnist.key() == before[0]
    assert gtsrb.key() != before[1]


def test_a_profile_may_train_longer_for_one_attack_on_one_dataset(monkeypatch):
    small = PROFILES["small"]
    longer = replace(small.backdoor, epochs=small.backdoor.epochs + 30)
    changed = Cell("cifar10", attack="trojan", profile="small")
    others = [
        replace(changed, attack="badnets"),
        replace(changed, attack="none"),
        replace(changed, attack="cl"),
        replace(changed, dataset="mnist"),
        replace(changed, dataset="gtsrb"),
    ]
    before = [cell.key() for cell in (changed, *others)]
    replaced = (*(one for one in small.backdoor_on if len(one[0]) == 1), (("cifar10", "trojan"), longer))
    monkeypatch.setitem(PROFILES, "small", replace(small, backdoor_on=replaced))
    assert changed.settings()["backdoor"]["epochs"] == longer.epochs
    assert changed.settings()["reference"] == others[1].settings()["backdoor"]  # the clean model trains as ever
    assert changed.key() != before[0]
    assert [cell.key() for cell in others] == before[1:]


def test_a_profile_may_train_the_masks_of_anp_otherwise_on_one_dataset(monkeypatch):
    size = {"mnist": 3000, "cifar10": 2500, "gtsrb": 1960}
    cells = [Cell(d, defense=m, clean_size=n, profile="small") for d, n in size.items() for m in ("anp", "finetuning")]
    before = [cell.key() for cell in cells]
    masks = (("gtsrb", Recipe(0, 0.123)),)
    monkeypatch.setitem(PROFILES, "small", replace(PROFILES["small"], anp_on=masks))
    changed = [cell for cell, key in zip(cells, before, strict=True) if cell.key() != key]
    assert changed == [Cell("gtsrb", defense="anp", clean_size=1960, profile="small")]
    assert changed[0].settings()["anp"]["lr"] == 0.123


def test_the_sign_of_the_patch_is_a_switch_of_the_patch_alone():
    lost = (("cl_sign", "lost"),)
    assert Cell(attack="cl", switches=lost) == Cell(attack="cl")
    patch = Cell(attack="cl", switches=(("cl_kind", "patch"), *lost))
    assert patch.switch("cl_sign") == "lost"
    assert not patch.consistent
    assert Cell(attack="cl").consistent
    assert not Cell(attack="badnets").consistent


def test_the_label_consistent_attack_has_its_perturbation_in_the_key():
    assert Cell(attack="cl").settings()["perturbation"] == {"epsilon": 64, "step": 1.5, "steps": 100}
    assert "perturbation" not in Cell(attack="cl", switches=(("cl_kind", "patch"),)).settings()


def test_every_attack_on_every_dataset():
    assert len(Attacks().cells("small")) == 15
    assert {(c.attack, c.dataset) for c in Attacks(dataset="gtsrb", attack="sig").cells("small")} == {("sig", "gtsrb")}
    assert {c.dataset for c in Attacks().cells("quick")} == {"mnist"}


def test_a_notebook_stops_on_an_unknown_name():
    given = {"clean_size": 3000, "_i": "x", "In": [], "get_ipython": print, "config": cells}
    assert from_notebook("table3", given) == Table3()
    with pytest.raises(
        ConfigError, match=r"'clean_sise' is not a parameter.*clean_size, profile.*Did you mean 'clean_size'"
    ):
        from_notebook("table3", given | {"clean_sise": 3000})


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.data != "nothing"])
def test_the_function_that_an_entry_names_is_there(name):
    assert callable(resolve_name(METHODS[name].function))
