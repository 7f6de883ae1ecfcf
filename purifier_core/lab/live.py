"""What the page "Try it" runs: networks of the zoo and their repairs, measured as rounded to half precision.

Each network has a folder in data/try. A file there is one repair; its header says how it was made and gives its ACC and
ASR. `reach.safetensors` holds how far clean training images drive the network, `answers.json` what torch answers: the
page's own arithmetic is tested against it.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn

from purifier_core import purifier
from purifier_core.bounds import wrap
from purifier_core.checks import ConfigError
from purifier_core.device import threads
from purifier_core.evaluation import evaluate, to_float
from purifier_core.files import ROOT, write_atomically
from purifier_core.lab import zoo
from purifier_core.lab.cache import digest
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.defenses import Given
from purifier_core.lab.draws import augmentation, clean_images, derive
from purifier_core.lab.methods import DATASETS, METHODS
from purifier_core.lab.packing import write_safetensors
from purifier_core.sites import Wrapped, find

FOLDER = ROOT / "data" / "try"

REPAIRS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    # name: defense, switches
    "bounds": ("bound_feature", ()),
    "channel": ("channel", ()),
    "feature": ("feature", ()),
    "feature_random": ("feature", (("init", "random"),)),
    "scan_repair": ("scan_repair", ()),
}
PAGE = {
    "mnist-badnets": tuple(REPAIRS),
    "mnist-blend": ("bounds", "feature", "scan_repair"),
    "mnist-sig": ("bounds", "feature", "scan_repair"),
    "cifar10-badnets": tuple(REPAIRS),
    "cifar10-blend": ("bounds", "feature", "scan_repair"),
    "cifar10-sig": ("bounds", "feature"),  # the scan finds nothing there
}
"""The networks of the page, and the repairs that it offers for each."""

PICTURES = 20
"""Images of the sample that the page shows, the first ones."""

SHARE = 0.05
"""The share of the training images that a repair gets: 3,000 of MNIST's."""


def make(name: str, work: Work) -> None:
    """Repair a network of the zoo in every way that the page offers, and write what the page needs.

    An existing repair of these very weights is taken as it is.
    """
    backdoored, home = zoo.load(name), FOLDER / name
    networks: dict[str, nn.Module] = {"none": backdoored.model}
    for repair in PAGE[name]:
        if (home / f"{repair}.safetensors").exists() and notes(name, repair)["of"] == backdoored.card["digest"]:
            networks[repair] = load(name, repair)
            continue
        with threads(work.profile.threads):
            network, cell = _repaired(backdoored, repair, work)
        state = zoo.rounded(network.model)
        if repair == "bounds":  # the other weights are the undefended network's
            state = {key: value for key, value in state.items() if key.endswith(".upper")}
        networks[repair] = rebuilt(backdoored.model, repair, state)
        x, y = work.split.test_images, work.split.test_labels
        triggered = backdoored.stamp(x[y != TARGET_CLASS])  # type: ignore[misc]
        rates = evaluate(networks[repair], x, y, triggered, TARGET_CLASS)
        facts: dict[str, Any] = rates | {"acc_images": len(y), "asr_images": len(triggered)}
        facts |= {"clean_size": cell.clean_size}
        facts |= {"defense": cell.defense, "switches": dict(cell.switches), "digest": digest(state)}
        facts |= {"of": backdoored.card["digest"], "data": work.copy}
        write_safetensors(home / f"{repair}.safetensors", state, {"notes": json.dumps(facts)})
        print(f"{name} {repair}: ACC {100 * rates['acc']:.2f} %, ASR {100 * rates['asr']:.2f} %")
    path, given = home / "reach.safetensors", backdoored.card["digest"]
    tensors = zoo.read(path) if path.exists() and header(path)["of"] == given else {}
    ceilings, peaks = reach({n: x for n, x in networks.items() if f"peak.{n}" not in tensors}, work.split.train_images)
    write_safetensors(path, tensors | ceilings | peaks, {"of": given})
    text = json.dumps(answers(networks, backdoored)) + "\n"
    write_atomically(home / "answers.json", lambda part: part.write_text(text))


def load(name: str, repair: str) -> nn.Module:
    """A network of the page, in eval mode and fp32, with the weights as rounded; "none" is the undefended one."""
    model = zoo.load(name).model
    return model if repair == "none" else rebuilt(model, repair, zoo.read(FOLDER / name / f"{repair}.safetensors"))


def notes(name: str, repair: str) -> dict[str, Any]:
    """What is noted of a repair: how it was made, its ACC and its ASR."""
    return json.loads(header(FOLDER / name / f"{repair}.safetensors")["notes"])


def header(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def rebuilt(model: nn.Module, repair: str, state: zoo.State) -> Wrapped:
    """The repaired network of a file's tensors; `model` is the undefended one, which stays as it is."""
    defense, _ = REPAIRS[repair]
    model, state = copy.deepcopy(model), {name: tensor.float() for name, tensor in state.items()}
    uppers = {name: state.pop(name) for name in list(state) if name.endswith(".upper")}
    if uppers:
        model.load_state_dict(model.state_dict() | state)
        return wrap(model, {name.removesuffix(".upper"): upper for name, upper in uppers.items()}, "feature")
    weights = {n.removesuffix(".head.weight"): t for n, t in state.items() if n.endswith(".head.weight")}
    network = purifier.wrap(model, {s: nn.Linear(t.shape[1], t.shape[0]) for s, t in weights.items()}, defense)
    network.model.load_state_dict(state)
    return network.eval()


def _repaired(backdoored: zoo.Backdoored, repair: str, work: Work) -> tuple[Wrapped, Cell]:
    """A network repaired by the package's own function, from the clean images of its seed."""
    defense, switches = REPAIRS[repair]
    settings = backdoored.card["cell"]
    size = round(SHARE * DATASETS[settings["dataset"]].train)
    cell = Cell(**settings, defense=defense, clean_size=size, switches=switches)
    images, labels = clean_images(work.split, cell)
    start = (backdoored.model, images, labels, augmentation(cell), derive(cell.seed, "defense"))
    test = work.split.test_images, work.split.test_labels
    given = Given(*start, cell=cell, profile=work.profile, poisoned=0, test=test)
    network = resolve_name(METHODS[defense].function)(given).model
    if not isinstance(network, Wrapped):
        raise ConfigError(f"{repair} leaves {backdoored.card['name']} as it is; take it out of live.PAGE.")
    return network, cell


@torch.inference_mode()
def reach(networks: dict[str, nn.Module], images: torch.Tensor) -> tuple[zoo.State, zoo.State]:
    """How far clean images (N, 3, H, W) go. First, by unit, the largest value at each place of the undefended network's
    units, in half precision rounded up. Then, as "peak.NAME", the largest mean magnitude of each channel at the last
    unit of every network."""
    ceilings: zoo.State = {}
    peaks: zoo.State = {}
    for name, network in networks.items():
        with listening(network) as outputs:
            for piece in images.split(500):
                network(to_float(piece))
                *_, last = outputs.values()
                _raise_to(peaks, f"peak.{name}", last.abs().mean((2, 3)))
                for unit, output in outputs.items() if name == "none" else ():
                    _raise_to(ceilings, unit, output)
    return {unit: _up(value) for unit, value in ceilings.items()}, peaks


@torch.inference_mode()
def answers(networks: dict[str, nn.Module], backdoored: zoo.Backdoored) -> dict[str, Any]:
    """The probabilities (PICTURES, classes) that each network gives for the page's pictures, clean and triggered."""
    sample = zoo.sample(backdoored.card["cell"]["dataset"])
    assert sample is not None
    assert backdoored.stamp is not None
    clean = sample[0][:PICTURES]
    inputs = {"clean": clean, "triggered": backdoored.stamp(clean)}

    def probabilities(network: nn.Module, images: torch.Tensor) -> list[list[float]]:
        return [[round(p, 6) for p in row] for row in network(to_float(images)).softmax(1).tolist()]

    return {name: {kind: probabilities(network, x) for kind, x in inputs.items()} for name, network in networks.items()}


@contextmanager
def listening(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, what each unit of a network gave at its last pass, by the unit's name, wrapped or not."""
    bare = network.model if isinstance(network, Wrapped) else network
    outputs: dict[str, torch.Tensor] = {}

    def keep(unit: str) -> Callable:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[unit] = output

        return hook

    units = find(bare, torch.zeros(2, 3, 32, 32))
    hooks = [bare.get_submodule(unit).register_forward_hook(keep(unit)) for unit in units]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _raise_to(state: zoo.State, name: str, values: torch.Tensor) -> None:
    top = values.amax(0)
    state[name] = torch.maximum(state[name], top) if name in state else top


def _up(values: torch.Tensor) -> torch.Tensor:
    """Values in half precision, none of them lowered."""
    half = values.half().numpy()
    low = half.astype(np.float32) < values.numpy()
    return torch.from_numpy(np.where(low, np.nextafter(half, np.float16(np.inf)), half)).contiguous()
