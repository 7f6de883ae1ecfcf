"""One cell computed: the backdoored model from the cache or by training, the defense, the final evaluation."""

import hashlib
import time
import traceback
import warnings
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifier_core import data
from purifier_core.adaptive import Attacker
from purifier_core.apply import adapt, defend
from purifier_core.attacks import Trigger, asr_set, make_trigger, perturbed, poison
from purifier_core.config import ADAPTIVE, PAPER_TRAIN_SIZE, TARGET_CLASS, Cell, integer
from purifier_core.defenses import Defended
from purifier_core.defenses.abl import abl
from purifier_core.device import pick_device, prepare, threads
from purifier_core.layout import arrange
from purifier_core.locks import locked
from purifier_core.models import build
from purifier_core.probes import probe
from purifier_core.profiles import PERTURBATIONS, PROFILES
from purifier_core.purifier import Purified
from purifier_core.records import Record, Store, provenance, save_tensors, write_atomically
from purifier_core.training import (
    NO_AUGMENT,
    Augment,
    Effort,
    evaluate,
    fit,
    to_float,
)


def derive(seed: int, purpose: str) -> int:
    """An independent seed for each purpose, so that no two draws of a cell share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "big")


class Work:
    """One dataset on one device, and the backdoored models made from it."""

    def __init__(self, store: Store, profile: str, dataset: str, device: str) -> None:
        self.store = store
        self.profile = PROFILES[profile]
        self.device = pick_device(device)
        prepare(self.device)
        self.split = data.load(dataset, self.profile.data == "embedded", self.device)
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
        return made | {"threads": self.profile.threads or torch.get_num_threads(), "tf32": on_gpu}

    def compute(self, cell: Cell) -> Record:
        """Compute one cell; an exception of the computation becomes a failed record."""
        record = Record(cell, cell.key(), self.copy)
        started, begun = time.time(), time.perf_counter()  # the clock on the wall may be set meanwhile
        try:
            with threads(self.profile.threads):
                model, training = self.backdoored(cell.backdoored())
                measured = self._measure(cell, model, training)
        except Exception as problem:
            return replace(record, error=_told(problem), provenance=self._provenance)
        seen = {"started": round(started), "wall_seconds": round(time.perf_counter() - begun, 2)}
        made = self._provenance | seen | {"backdoored_model": training["digest"]}
        return replace(record, **measured, provenance=made)

    def _measure(self, cell: Cell, model: nn.Module, training: dict[str, Any]) -> dict[str, Any]:
        x, y, triggered = self.split.test_images, self.split.test_labels, self.triggered(cell)
        diagnostics: dict[str, Any] = {}
        if cell.defense == "none":
            effort = training["effort"]
        else:
            started = time.perf_counter()
            defended = self._abl(cell) if cell.defense == "abl" else self._defend(cell, model)
            model = defended.model
            effort = asdict(defended.effort)
            # the whole defense: training, and the choosing of an operating point
            effort["training_seconds"], effort["seconds"] = effort["seconds"], time.perf_counter() - started
            diagnostics = dict(defended.diagnostics)
            if defended.sweep:
                diagnostics["sweep"] = {
                    label: evaluate(point, x, y, triggered, TARGET_CLASS) for label, point in defended.sweep.items()
                }
        diagnostics |= probe(cell, model, x, y, triggered)
        if isinstance(model, Purified):  # its probe has seen every answer
            rates = {"acc": diagnostics["clean"]["network"], "asr": diagnostics["triggered"]["network"]}
        else:
            rates = evaluate(model, x, y, triggered, TARGET_CLASS)
        return {
            **rates,
            "acc_images": len(x),
            "asr_images": len(triggered),
            "effort": effort,
            "diagnostics": diagnostics,
        }

    def triggered(self, cell: Cell) -> torch.Tensor:
        """The test images that the attack has to turn, stamped: what the ASR of a cell is measured on."""
        return asr_set(self.split.test_images, self.split.test_labels, self._trigger(cell.backdoored()), TARGET_CLASS)

    def clean(self, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean images (N, 3, H, W) and labels (N,) that the cell's defense gets."""
        x, y = self.split.train_images, self.split.train_labels
        index = data.clean_indices(len(y), cell.clean_size, PAPER_TRAIN_SIZE[cell.dataset], derive(cell.seed, "clean"))
        integer("clean images", len(index), 20, len(y), f", but clean_size={cell.clean_size} leaves {len(index)}")
        index = index.to(y.device)
        return x[index], y[index]

    def _defend(self, cell: Cell, model: nn.Module) -> Defended:
        test = self.split.test_images, self.split.test_labels
        seed = derive(cell.seed, "defense")
        return defend(cell, self.profile, model, self.blank, *self.clean(cell), test, self._augment(cell), seed)

    def _abl(self, cell: Cell) -> Defended:
        images, labels = self._poisoned(cell)
        stages = self.profile.abl
        defended = abl(
            self.blank(cell),
            images,
            labels,
            stages=(adapt(stages[0], cell), adapt(stages[1], cell), adapt(stages[2], cell)),
            remove_isolated=cell.switch("abl_remove_isolated") == "yes",
            score_augmented=cell.switch("abl_score_aug") == "yes",
            batchnorm=cell.switch("abl_bn"),
            augment=self._augment(cell),
            seed=derive(cell.seed, "defense"),
        )
        isolated = defended.diagnostics.pop("isolated")
        poisoned = len(labels) - len(self.split.train_labels)  # the poisoned copies come first
        stamped = sum(i < poisoned for i in isolated)
        defended.diagnostics["isolated"] = len(isolated)
        defended.diagnostics["isolated_with_trigger"] = stamped
        defended.diagnostics["isolation_precision"] = stamped / len(isolated)
        return defended

    def _poisoned(self, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
        if cell.attack == "none":
            return self.split.train_images, self.split.train_labels
        trigger = self._trigger(cell.backdoored())

        def stamp(images: torch.Tensor) -> torch.Tensor:
            if cell.consistent:  # the trigger alone does the rest at test
                labels = torch.full((len(images),), TARGET_CLASS, device=self.device)
                images = perturbed(self._made(cell.reference())[0], images, labels, PERTURBATIONS[cell.dataset])
            return trigger(images)

        return poison(
            self.split.train_images,
            self.split.train_labels,
            stamp,
            cell.poison_ratio,
            TARGET_CLASS,
            derive(cell.seed, "poison"),
            clean_label=cell.consistent or cell.switch("sig_label") == "clean",
        )

    def _trigger(self, cell: Cell) -> Trigger:
        """The trigger of a "none" cell; Trojan and CL's patch are made from the clean model of the same seed."""
        if cell not in self._triggers:
            self._triggers[cell] = make_trigger(
                cell.attack,
                cell.switch,
                derive(cell.seed, "trigger"),
                self.split.train_images,
                self.split.train_labels,
                TARGET_CLASS,
                lambda: self._made(cell.reference())[0],
            )
        return self._triggers[cell]

    def _augment(self, cell: Cell) -> Augment:
        if cell.switch("defence_aug") == "off":
            return NO_AUGMENT
        # digits and signs mean something else mirrored; the release flips them all the same
        return Augment(flip=cell.switch("flip") == "always" or cell.dataset == "cifar10")

    def prepare(self, cell: Cell) -> None:
        """Train the backdoored model of a "none" cell unless it is cached, so that others find it."""
        with threads(self.profile.threads):
            self.backdoored(cell)

    def backdoored(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        """The backdoored model of a "none" cell and what its training cost, from the cache or by training."""
        if cell in self._broken:
            raise RuntimeError(f"the backdoored model failed before:\n{self._broken[cell]}")
        if self._model is None or self._model[0] != cell:
            try:
                self._model = (cell, *self._made(cell))
            except Exception as problem:
                self._broken[cell] = _told(problem)
                raise
        return self._model[1], self._model[2]

    def _made(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        """From the cache, or trained; where another run is training the same model, this one waits for it."""
        if found := self._cached(cell):
            return found
        with locked(self.store, self._cache_path(cell).stem, wait=True):
            return self._cached(cell) or self._train(cell)

    def _train(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        images, labels = self._poisoned(cell)
        model, effort = self.blank(cell), Effort()
        recipe = adapt(self.profile.backdoored(cell.dataset, cell.attack), cell)
        options: dict[str, Any] = {
            "seed": derive(cell.seed, "backdoor"),
            "augment": self._augment(cell),
            "title": f"backdoored model, seed {cell.seed}",
        }
        if cell.attack in ADAPTIVE:
            if cell.attack == "adaptive_purifier":  # it goes on from BadNets' network
                badnets, notes = self._made(replace(cell, attack="badnets"))
                model.load_state_dict(badnets.state_dict())
                effort, recipe = Effort(**notes["effort"]), replace(recipe, lr=recipe.lr / 10)
            example, seed = to_float(images[:2]), derive(cell.seed, "attacker")
            attacker = Attacker(cell.attack, model, self.split.num_classes, example, seed)
            marked = attacker.marked(labels, len(labels) - len(self.split.train_labels))
            effort += fit(attacker.trained.train(), images, marked, recipe, loss=attacker.loss, **options)
            model = attacker.result().eval()
        else:
            effort += fit(model.train(), images, labels, recipe, **options)
        state = {n: t.detach().contiguous().cpu() for n, t in model.state_dict().items()}
        notes = {"digest": _tensor_digest(state), "effort": asdict(effort)}
        write_atomically(self._cache_path(cell), partial(save_tensors, {"state": state, "notes": notes}))
        return model, notes

    def _cached(self, cell: Cell) -> tuple[nn.Module, dict[str, Any]] | None:
        path = self._cache_path(cell)
        if not path.exists():
            return None
        try:
            cached = torch.load(path, weights_only=True)  # tensors and plain values, no code
            state, notes, model = cached["state"], cached["notes"], self.blank(cell)
            if notes["digest"] != _tensor_digest(state):
                raise ValueError("the weights do not match their checksum")
            model.load_state_dict(state)
            return model.eval(), notes
        except Exception as problem:  # a damaged file raises many types
            warnings.warn(f"{path} is damaged ({problem}); the model is trained again", stacklevel=2)
            return None

    def _cache_path(self, cell: Cell) -> Path:
        name = f"{cell.dataset}-{cell.network}-{cell.attack}-{cell.poison_ratio:g}-s{cell.seed}-{cell.profile}"
        return self.store.models / f"{name}-{cell.key()}-{self.split.fingerprint}.pt"

    def blank(self, cell: Cell) -> nn.Module:
        """A fresh network of the cell's kind, as its training begins."""
        seed = derive(cell.seed, "init")
        return arrange(build(cell.network, self.split.num_classes, self.profile.width, seed).to(self.device))


def _told(problem: Exception) -> str:
    """The traceback of a failure; where the GPU's memory did not suffice, its last line says what to try."""
    told = "".join(traceback.format_exception(problem))
    if not isinstance(problem, torch.OutOfMemoryError):
        return told
    return f"{told}Out of GPU memory: try fewer --workers, a smaller --profile or batch_size, or --device cpu.\n"


def _tensor_digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + str(state[name].dtype).encode() + str(tuple(state[name].shape)).encode())
        digest.update(state[name].contiguous().flatten().numpy().data)
    return digest.hexdigest()[:16]
