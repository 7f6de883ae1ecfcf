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
from purifier_core.lab.attacks import Making, Trigger, asr_set, decoyed, make_trigger, perturbed, poison
from purifier_core.lab.cache import Make, kept
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.defenses import Defended, Given
from purifier_core.lab.draws import adapt, augmentation, clean_images, derive
from purifier_core.lab.methods import ATTACKS, DATASETS, METHODS
from purifier_core.lab.models import build
from purifier_core.lab.probes import AGREEING, Curve, agreement, probe
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
        made = provenance(torch.cuda.get_device_name() if on_gpu else "cpu")
        made |= {"threads": self.profile.threads or torch.get_num_threads(), "tf32": on_gpu}
        return made if self.profile.precision == "fp32" else made | {"precision": "bf16" if self.bf16 else "fp32"}

    def compute(self, cell: Cell) -> Record:
        """Compute one cell; an exception of the computation becomes a failed record."""
        record = Record(cell, cell.key(), self.copy)
        started, begun = time.time(), time.perf_counter()  # the wall clock may be set meanwhile
        try:
            with threads(self.profile.threads), evaluated_in_bf16(self.bf16):
                measured = self._measure(cell)
        except Exception as problem:
            return replace(record, error=failure(problem), provenance=self._provenance)
        seen = {"started": round(started), "wall_seconds": round(time.perf_counter() - begun, 2)}
        if peak := peak_memory():
            seen["peak_mib"] = peak
        return replace(record, **measured, provenance=self._provenance | seen | self._start(cell))

    def _start(self, cell: Cell) -> dict[str, str]:
        """The undefended network behind a record, unless its method trains its own from the poisoned data."""
        trains_its_own = METHODS[cell.defense].data == "poisoned"
        return {} if trains_its_own else {"backdoored_model": self.backdoored(cell.backdoored())[1]["digest"]}

    def _measure(self, cell: Cell) -> dict[str, Any]:
        x, y, triggered = self.split.test_images, self.split.test_labels, self.triggered(cell)
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
                rates = {network: evaluate(network, x, y, triggered, TARGET_CLASS) for network in networks}
                diagnostics["sweep"] = {label: rates[network] for label, network in defended.sweep.items()}
        diagnostics |= probe(cell, model, x, y, triggered)
        if isinstance(model, Purified):  # its probe has seen every answer
            final = {"acc": diagnostics["clean"]["network"], "asr": diagnostics["triggered"]["network"]}
        else:
            final = evaluate(model, x, y, triggered, TARGET_CLASS)
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
        curve = Curve(x, y, triggered, before, every) if self.curves else None
        if curve and method.begins != "fresh":
            curve.start(self.backdoored(cell.backdoored())[0])
        watched = curve.seconds if curve else 0.0
        path = self.store.path(cell, self.split.fingerprint)
        started = time.perf_counter()
        with checkpoints(self.store.checkpoints / f"{path.parent.name}-{path.stem}", [curve] if curve else []):
            defended = self._defend(cell, tuned, curve)
        seconds = time.perf_counter() - started
        if tuned:
            seconds += tuned.effort.seconds
        if curve and (recorded := curve.recorded()):
            seconds -= curve.seconds - watched
            defended.diagnostics["curve"] = recorded
        defended.diagnostics["seconds"] = max(seconds, defended.effort.seconds)  # if interrupted, the larger
        return defended

    def triggered(self, cell: Cell) -> torch.Tensor:
        """The stamped test images of other classes than the target: a cell's ASR is measured on them."""
        return asr_set(self.split.test_images, self.split.test_labels, self.trigger(cell.backdoored()), TARGET_CLASS)

    def _defend(self, cell: Cell, tuned: Defended | None, watch: Watch | None) -> Defended:
        method, poisoned = METHODS[cell.defense], 0
        if method.data == "poisoned":
            images, labels = self._poisoned(cell)
            poisoned = len(labels) - len(self.split.train_labels)  # the stamped copies come first
        else:
            images, labels = clean_images(self.split, cell)
        given = Given(
            self.blank(cell) if method.begins == "fresh" else self.backdoored(cell.backdoored())[0],
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

    def finetuned(self, cell: Cell) -> Defended:
        """The result of Finetuning, from the cache or by training. NAD and MCR begin with it too."""
        model, training = self.backdoored(cell.backdoored())
        cell = cell.finetuned()
        path = self._cache_path(cell, training["digest"])

        def tune() -> tuple[nn.Module, dict[str, Any]]:
            x, y, every = self.split.test_images, self.split.test_labels, self.profile.watch_every
            curve = Curve(x, y, self.triggered(cell), every=every) if self.curves else None
            if curve:
                curve.start(model)
            with checkpoints(self.store.checkpoints / path.stem, [curve] if curve else []):
                tuned = self._defend(cell, None, curve)
            return tuned.model, {"effort": asdict(tuned.effort), "curve": curve.recorded() if curve else None}

        network, notes = self._kept(path, cell, tune)
        return Defended(network, Effort(**notes["effort"]), {"curve": notes["curve"]} if notes["curve"] else {})

    def _poisoned(self, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
        if cell.attack == "none":
            return self.split.train_images, self.split.train_labels
        trigger = self.trigger(cell.backdoored())

        def stamp(images: torch.Tensor) -> torch.Tensor:
            if cell.consistent:  # the trigger alone does the rest at test
                labels = torch.full((len(images),), TARGET_CLASS, device=self.device)
                images = perturbed(self._made(cell.reference())[0], images, labels, DATASETS[cell.dataset].perturbation)
            return trigger(images)

        images, labels = poison(
            self.split.train_images,
            self.split.train_labels,
            stamp,
            cell.poison_ratio,
            TARGET_CLASS,
            derive(cell.seed, "poison"),
            clean_label=cell.consistent or cell.switch("sig_label") == "clean",
        )
        if ATTACKS[cell.attack].decoys:
            copies = len(labels) - len(self.split.train_labels)
            return decoyed(images, labels, copies, derive(cell.seed, "trigger"), derive(cell.seed, "decoys"))
        return images, labels

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
        ending = f"{cell.key()}-{self.split.fingerprint}{'-' * bool(start)}{start}"
        return self.store.models / f"{name}-{ending}.pt"

    def blank(self, cell: Cell) -> nn.Module:
        """A fresh network of the cell's kind, as its training begins."""
        seed = derive(cell.seed, "init")
        return arrange(build(cell.network, self.split.num_classes, cell.width, seed).to(self.device))
