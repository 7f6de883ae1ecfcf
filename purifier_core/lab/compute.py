"""One cell computed: the backdoored model from the cache or by training, the defense, the final evaluation."""

import time
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from purifier_core.checkpoints import checkpoints
from purifier_core.device import failure, fast_in_bf16, peak_memory, pick_device, prepare, threads
from purifier_core.evaluation import evaluate, evaluated_in_bf16
from purifier_core.files import provenance
from purifier_core.lab import data
from purifier_core.lab.adaptive import teach
from purifier_core.lab.attacks import Making, Trigger, make_trigger
from purifier_core.lab.breaking import attacked
from purifier_core.lab.cache import Make, kept
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.defenses import Defended, Given
from purifier_core.lab.draws import adapt, augmentation, clean_images, derive
from purifier_core.lab.methods import ATTACKS, METHODS
from purifier_core.lab.models import build
from purifier_core.lab.poisoning import asr_set, training_set, wanted
from purifier_core.lab.probes import AGREEING, Curve, agreement, probe, rates
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store
from purifier_core.layout import arrange
from purifier_core.purifier import Purified
from purifier_core.training import Effort, Watch, fit


class Work:
    """Computes the cells of one dataset on one device, and keeps the backdoored models made from it."""

    def __init__(self, store: Store, profile: str, dataset: str, device: str, curves: bool = True) -> None:
        self.store = store
        self.curves = curves
        self.profile = PROFILES[profile]
        self.device = pick_device(device)
        prepare(self.device)
        self.split = data.load(dataset, self.profile.data == "embedded", self.device)
        self.bf16 = self.profile.precision == "auto" and fast_in_bf16(self.device)
        self._broken: dict[Cell, str] = {}
        self._triggers: dict[Cell, Trigger] = {}
        self._model: tuple[Cell, nn.Module, dict[str, Any]] | None = None

    @property
    def copy(self) -> dict[str, str]:
        """What a record says of the data: fingerprint and statement of the copy."""
        return {"fingerprint": self.split.fingerprint, "copy": self.split.copy}

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        on_gpu = self.device.type == "cuda"
        origin = provenance(torch.cuda.get_device_name() if on_gpu else "cpu")
        origin |= {"threads": self.profile.threads or torch.get_num_threads(), "tf32": on_gpu}
        return origin if self.profile.precision == "fp32" else origin | {"precision": "bf16" if self.bf16 else "fp32"}

    def compute(self, cell: Cell) -> Record:
        """Compute one cell; an exception of the computation becomes a failed record."""
        record = Record(cell, cell.key(), self.copy)
        started, begun = time.time(), time.perf_counter()  # the wall clock may be set meanwhile
        try:
            with threads(self.profile.threads), evaluated_in_bf16(self.bf16):
                measured = self._measure(cell)
        except Exception as problem:
            return replace(record, error=failure(problem), provenance=self._provenance)
        notes = {"started": round(started), "wall_seconds": round(time.perf_counter() - begun, 2)}
        if peak := peak_memory():
            notes["peak_mib"] = peak
        return replace(record, **measured, provenance=self._provenance | notes | self._start(cell))

    def _start(self, cell: Cell) -> dict[str, str]:
        """The undefended network behind a record, unless its method trains its own from the poisoned data."""
        trains_its_own = METHODS[cell.defense].data == "poisoned"
        return {} if trains_its_own else {"backdoored_model": self.backdoored(cell.backdoored())[1]["digest"]}

    def _measure(self, cell: Cell) -> dict[str, Any]:
        x, y, triggered = self.split.test_images, self.split.test_labels, self.triggered(cell)
        target = self.wanted(cell)
        diagnostics: dict[str, Any] = {}
        if cell.defense == "none":
            model, training = self.backdoored(cell)
            effort = training["effort"]
        else:
            defended = self._defended(cell, x, y, triggered)
            model, effort, diagnostics = defended.model, asdict(defended.effort), dict(defended.diagnostics)
            effort["training_seconds"] = effort["seconds"]
            effort["seconds"] = diagnostics.pop("seconds", effort["seconds"])
            if defended.sweep:  # equal points are one network
                networks = set(defended.sweep.values())
                points = {network: evaluate(network, x, y, triggered, target) for network in networks}
                diagnostics["sweep"] = {label: points[network] for label, network in defended.sweep.items()}
        diagnostics |= probe(cell, model, x, y, triggered)
        if METHODS[cell.defense].attacked:
            diagnostics["attacked"] = self._attacked(cell, model)
        if cell == cell.reference():  # what is left of each attack where no backdoor is
            cells = {attack: replace(cell, attack=attack, poison_ratio=0.1) for attack in ATTACKS}
            diagnostics["own"] = {
                attack: rates(model, y, self.triggered(other), self._aims(other, y)) for attack, other in cells.items()
            }
        if isinstance(model, Purified):  # its probe has seen every answer
            final = {"acc": diagnostics["clean"]["network"], "asr": diagnostics["triggered"]["network"]}
        else:
            final = evaluate(model, x, y, triggered, target)
        if self.bf16:
            diagnostics["fp32_agreement"] = agreement(model, x[:AGREEING])
        return {
            **final,
            "acc_images": len(x),
            "asr_images": len(triggered),
            "effort": effort,
            "diagnostics": diagnostics,
        }

    def _defended(self, cell: Cell, x: torch.Tensor, y: torch.Tensor, triggered: torch.Tensor) -> Defended:
        """The cell's defense. Its diagnostics hold its seconds, with the choice of an operating point, and the curve if
        one is watched."""
        if cell.defense == "finetuning":
            return self.finetuned(cell)
        method = METHODS[cell.defense]
        tuned = self.finetuned(cell) if method.begins == "finetuned" else None
        before = tuned.effort.epochs if tuned else 0.0
        every = self.profile.watch_every if method.data == "clean" else 1
        curve = Curve(x, y, triggered, before, every, self.wanted(cell)) if self.curves else None
        if curve and method.begins != "fresh":
            curve.start(self.backdoored(cell.backdoored())[0])
        watched = curve.seconds if curve else 0.0
        path = self.store.path(cell, self.split.fingerprint)
        started = time.perf_counter()
        with checkpoints(self.store.checkpoints / f"{path.parent.name}-{path.stem}", [curve] if curve else []):
            defended = self._defend(cell, tuned, curve)
        seconds = time.perf_counter() - started - defended.aside
        if tuned:
            seconds += tuned.effort.seconds
        if curve and (recorded := curve.recorded()):
            seconds -= curve.seconds - watched
            defended.diagnostics["curve"] = recorded
        defended.diagnostics["seconds"] = max(seconds, defended.effort.seconds)  # if interrupted, the larger
        return defended

    def _attacked(self, cell: Cell, model: nn.Module) -> dict[str, Any]:
        x, y, trigger = self.split.test_images, self.split.test_labels, self.trigger(cell.backdoored())
        seed, images = derive(cell.seed, "attacker"), clean_images(self.split, cell)
        return attacked(model, *images, trigger, x[y != TARGET_CLASS], TARGET_CLASS, seed, augmentation(cell))

    def triggered(self, cell: Cell) -> torch.Tensor:
        """The stamped test images that the attack has to turn: a cell's ASR is measured on them."""
        x, y = self.split.test_images, self.split.test_labels
        return asr_set(x, y, self.trigger(cell.backdoored()), self._aims(cell, y))

    def wanted(self, cell: Cell) -> torch.Tensor:
        """The class that the attacker wants of each image of `triggered`."""
        aims = self._aims(cell, self.split.test_labels)
        return aims[self.split.test_labels != aims]

    def _aims(self, cell: Cell, labels: torch.Tensor) -> torch.Tensor:
        return wanted(cell.attack, labels, self.split.num_classes)

    def _defend(self, cell: Cell, tuned: Defended | None, watch: Watch | None) -> Defended:
        method, poisoned = METHODS[cell.defense], 0
        if method.data == "poisoned":
            images, labels = self._poisoned(cell)
            poisoned = len(labels) - len(self.split.train_labels)  # the stamped copies come first
        else:
            images, labels = clean_images(self.split, cell)
        given = Given(
            self._beginning(cell),
            images,
            labels,
            augmentation(cell),
            derive(cell.seed, "defense"),
            watch,
            cell=cell,
            profile=self.profile,
            poisoned=poisoned,
            test=(self.split.test_images, self.split.test_labels),
            tuned=tuned,
        )
        return resolve_name(method.function)(given)

    def _beginning(self, cell: Cell) -> nn.Module:
        """The network that the cell's method begins with."""
        begins = METHODS[cell.defense].begins
        if begins == "fresh":
            return self.blank(cell)
        return self._made(cell.reference())[0] if begins == "clean" else self.backdoored(cell.backdoored())[0]

    def finetuned(self, cell: Cell) -> Defended:
        """The result of Finetuning, from the cache or by training. NAD and MCR begin with it too."""
        model, training = self.backdoored(cell.backdoored())
        cell = cell.finetuned()
        path = self._cache_path(cell, training["digest"])

        def tune() -> tuple[nn.Module, dict[str, Any]]:
            x, y, every = self.split.test_images, self.split.test_labels, self.profile.watch_every
            curve = Curve(x, y, self.triggered(cell), every=every, target=self.wanted(cell)) if self.curves else None
            if curve:
                curve.start(model)
            with checkpoints(self.store.checkpoints / path.stem, [curve] if curve else []):
                tuned = self._defend(cell, None, curve)
            return tuned.model, {"effort": asdict(tuned.effort), "curve": curve.recorded() if curve else None}

        network, notes = self._kept(path, cell, tune)
        return Defended(network, Effort(**notes["effort"]), {"curve": notes["curve"]} if notes["curve"] else {})

    def _poisoned(self, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.split.train_images, self.split.train_labels
        if cell.attack == "none":
            return images, labels
        trigger, aims = self.trigger(cell.backdoored()), self._aims(cell, labels)
        return training_set(cell, images, labels, trigger, aims, lambda: self._made(cell.reference())[0])

    def trigger(self, cell: Cell) -> Trigger:
        """The trigger of a "none" cell; Trojan and CL's patch are made from the clean model of the same seed."""
        if cell not in self._triggers:
            making = Making(
                cell.switch,
                derive(cell.seed, "trigger"),
                self.split.train_images,
                self.split.train_labels,
                TARGET_CLASS,
                lambda: self._made(cell.reference())[0],
            )
            self._triggers[cell] = make_trigger(cell.attack, making)
        return self._triggers[cell]

    def backdoored(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        """The backdoored model of a "none" cell and what its training cost, from the cache or by training."""
        if cell in self._broken:
            raise RuntimeError(f"the backdoored model failed before:\n{self._broken[cell]}")
        if self._model is None or self._model[0] != cell:
            try:
                self._model = (cell, *self._made(cell))
            except Exception as problem:
                self._broken[cell] = failure(problem)
                raise
        return self._model[1], self._model[2]

    def _made(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        path = self._cache_path(cell)

        def train() -> tuple[nn.Module, dict[str, Any]]:
            with checkpoints(self.store.checkpoints / path.stem):
                return self._train(cell)

        return self._kept(path, cell, train)

    def _kept(self, path: Path, cell: Cell, make: Make) -> tuple[nn.Module, dict[str, Any]]:
        def made() -> tuple[nn.Module, dict[str, Any]]:
            with threads(self.profile.threads):
                return make()

        return kept(self.store, path, partial(self.blank, cell), made)

    def _train(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        images, labels = self._poisoned(cell)
        model, effort = self.blank(cell), Effort()
        recipe = adapt(self.profile.backdoored(cell.dataset, cell.attack), cell, self.device)
        options: dict[str, Any] = {
            "seed": derive(cell.seed, "backdoor"),
            "augment": augmentation(cell),
            "title": f"backdoored model, seed {cell.seed}",
        }
        attack = ATTACKS.get(cell.attack)
        if attack and attack.begins:  # its training continues another attack's network
            start, notes = self._made(replace(cell, attack=attack.begins))
            model.load_state_dict(start.state_dict())
            rate = recipe.lr * self.profile.constants.adaptive_purifier_rate
            effort, recipe = Effort(**notes["effort"]), replace(recipe, lr=rate)
        if attack and attack.teacher:
            poisoned, classes = len(labels) - len(self.split.train_labels), self.split.num_classes
            options |= {"attacker_seed": derive(cell.seed, "attacker")}
            model, cost = teach(attack.teacher, model, images, labels, poisoned, classes, recipe, **options)
            effort += cost
        else:
            effort += fit(model.train(), images, labels, recipe, **options)
        return model, {"effort": asdict(effort)}

    def _cache_path(self, cell: Cell, start: str = "") -> Path:
        """Where a network is cached; `start` is the digest of the network that its training began with, or empty."""
        kind = "" if cell.defense == "none" else f"-{cell.defense}{cell.clean_size}"
        name = f"{cell.dataset}-{cell.network}-{cell.attack}-{cell.poison_ratio:g}{kind}-s{cell.seed}-{cell.profile}"
        ending = "-".join(part for part in (cell.key(), self.split.fingerprint, start) if part)
        return self.store.models / f"{name}-{ending}.pt"

    def blank(self, cell: Cell) -> nn.Module:
        """A fresh network of the cell's kind, as its training begins."""
        seed = derive(cell.seed, "init")
        return arrange(build(cell.network, self.split.num_classes, cell.width, seed).to(self.device))
