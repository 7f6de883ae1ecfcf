"""Networks from the cache into the zoo: rounded to half precision, measured as rounded, and described."""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError
from purifier_core.evaluation import accuracy, predict, share
from purifier_core.files import ROOT, write_atomically
from purifier_core.lab import zoo
from purifier_core.lab.attacks import blend_noise, sig_stripes
from purifier_core.lab.cache import digest
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.draws import derive
from purifier_core.lab.methods import ATTACKS, DATASETS, NETWORKS
from purifier_core.lab.records import Store

PROFILE = "small"
RULE = "keep * x + add on pixels from 0 to 255, rounded and cut off at both ends"
"""How a trigger file is used."""

CELL = ("dataset", "network", "attack", "poison_ratio", "seed", "profile")
"""The fields of a cell that a card shows; the others are the same for every network here."""

SEEDS = range(10)
"""Where the seeds of a network are looked for, the lowest first."""


def name_of(cell: Cell) -> str:
    """What the zoo calls an undefended network, whatever its seed."""
    network = "" if cell.network == "vgg16" else f"-{cell.network}"
    return f"{cell.dataset}{network}-{'clean' if cell.attack == 'none' else cell.attack}"


def cells(seed: int = 0) -> dict[str, Cell]:
    """Every undefended network that the zoo may hold, by name: clean ones, and those whose attack has one target."""
    attacks = [name for name, attack in ATTACKS.items() if not attack.all_to_all]
    combinations = product(DATASETS, NETWORKS, (*attacks, "none"))
    every = [Cell(dataset, network, attack, seed=seed, profile=PROFILE) for dataset, network, attack in combinations]
    return {name_of(cell): cell for cell in every}


def pack_cached(store: Store, device: str, say: Callable[[str], Any]) -> int:
    """Pack every network of the cache that a committed record comes from and that the zoo lacks; returns how many.

    Clean networks, which Trojan and CL are made with, have no record of their own, and are packed too. A backdoored one
    in the zoo that has no record makes room for one that has.
    """
    works: dict[str, Work] = {}
    packed, count = {name for name in zoo.names() if zoo.card(name)["record"] or name.endswith("-clean")}, 0
    for name, seed in product(cells(), SEEDS):
        cell = cells(seed)[name]
        if name in packed or not any(store.models.glob(f"*-{cell.key()}-*.pt")):
            continue
        if cell.dataset not in works:  # one dataset in memory at a time
            works = {cell.dataset: work(store, cell, device)}
        if cell.attack != "none" and not _record(works[cell.dataset], cell):
            say(f"{cell}: no committed record comes from these weights; left out.")
            continue
        say(line(pack(works[cell.dataset], cell)))
        packed.add(name)
        count += 1
    return count


def work(store: Store, cell: Cell, device: str) -> Work:
    """A cell's dataset, and the cache of networks in `store`."""
    return Work(store, PROFILE, cell.dataset, device, curves=False)


def pack(work: Work, cell: Cell, folder: Path | None = None) -> dict[str, Any]:
    """Put the network of an undefended cell into the zoo, trained where it is not cached; returns its card."""
    name = name_of(cell)
    network, _ = work.backdoored(cell)
    state = zoo.rounded(network)
    model = zoo.filled(cell.network, work.split.num_classes, state)
    stamp = None if cell.attack == "none" else _stamp(work, cell)
    rates = _measured(work, cell, model)
    record = _record(work, cell)
    card = {
        "name": name,
        "about": _about(work, cell),
        "cell": {key: getattr(cell, key) for key in CELL},
        "classes": work.split.num_classes,
        "target_class": TARGET_CLASS if stamp else None,
        "data": work.copy,
        **rates,
        "measured": "on the whole test set, with the weights as they are here, rounded to half precision",
        "record": {"acc": record.acc, "asr": record.asr, **_origin(record.provenance)} if record else None,
        "sample": zoo.on_sample(model, stamp, cell.dataset),
        "trigger": RULE if stamp else None,
        "digest": digest(state),
        "command": f"purifier zoo {name} --pack --seed {cell.seed}",
        "network": f"purifier_core.lab.zoo:{cell.network} with num_classes={work.split.num_classes}; "
        "images (N, 3, 32, 32) from 0 to 1, no mean subtracted",
    }
    home = (folder or zoo.FOLDER) / name
    write_safetensors(home / "weights.safetensors", state, {"name": name})
    if stamp:
        tensors = {"keep": stamp.keep, "add": stamp.add}
        write_safetensors(home / "trigger.safetensors", tensors, {"rule": RULE})
    text = json.dumps(card, indent=1) + "\n"
    write_atomically(home / "card.json", lambda part: part.write_text(text))
    return card


def write_safetensors(path: Path, state: zoo.State, notes: dict[str, str]) -> None:
    """Write tensors, with notes in the header, whole or not at all."""
    import safetensors.torch

    write_atomically(path, partial(safetensors.torch.save_file, state, metadata={"format": "pt"} | notes))


def _measured(work: Work, cell: Cell, model: nn.Module) -> dict[str, Any]:
    x, y = work.split.test_images, work.split.test_labels
    rates: dict[str, Any] = {"acc": accuracy(model, x, y), "acc_images": len(y), "asr": None, "asr_images": 0}
    if cell.attack != "none":
        triggered = work.triggered(cell)
        rates |= {"asr": share(predict(model, triggered) == TARGET_CLASS), "asr_images": len(triggered)}
    return rates


def _stamp(work: Work, cell: Cell) -> zoo.Stamp:
    """The cell's trigger in the zoo's form. Raises ConfigError where it stamps a test image otherwise."""
    trigger = work.trigger(cell)
    empty = torch.zeros(3, 32, 32)
    if cell.attack == "blend":
        stamp = zoo.Stamp(empty + 0.8, 0.2 * blend_noise(derive(cell.seed, "trigger"))[0])
    elif cell.attack == "sig":
        stamp = zoo.Stamp(empty + 0.8, empty + sig_stripes())
    elif cell.attack == "trojan":
        stamp = zoo.Stamp(empty + 1, trigger(empty.byte()[None])[0].float())
    else:  # pixels that are overwritten
        black, white = (trigger((empty + shade).byte()[None])[0].float() for shade in (0, 255))
        stamp = zoo.Stamp((black != white).float(), black)
    images = work.split.test_images
    if not torch.equal(stamp(images), trigger(images)):
        raise ConfigError(f"{cell}: the trigger is not of the form keep * x + add.")
    return stamp


def _record(work: Work, cell: Cell) -> Any:
    """The committed record that was measured on exactly these weights, before they are rounded; None without one."""
    record = Store(ROOT / "data").find(cell, work.split.fingerprint)
    same = record and record.provenance.get("backdoored_model") == work.backdoored(cell)[1]["digest"]
    return record if same else None


def _origin(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: provenance[key] for key in ("backdoored_model", "commit", "versions", "device") if key in provenance}


def _about(work: Work, cell: Cell) -> str:
    network = NETWORKS[cell.network].label
    attack = "clean" if cell.attack == "none" else f"attack {cell.attack}, {100 * cell.poison_ratio:g} % poison"
    return f"{network} at an eighth of its channels on {work.split.copy}; {attack}; undefended; seed {cell.seed}"


def line(card: dict[str, Any]) -> str:
    """A card in one line."""
    asr = "" if card["asr"] is None else f", ASR {100 * card['asr']:.2f} %"
    return f"{card['name']} (seed {card['cell']['seed']}): ACC {100 * card['acc']:.2f} %{asr}"
