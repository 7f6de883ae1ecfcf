"""A training that was killed goes on to the bits of one that was not."""

import copy
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from purifier_core import checkpoints as kept_states
from purifier_core.checkpoints import checkpoints
from purifier_core.lab.defenses import Inputs
from purifier_core.lab.defenses.anp import anp
from purifier_core.lab.defenses.mcr import mcr
from purifier_core.lab.defenses.nad import nad
from purifier_core.lab.records import Store
from purifier_core.purifier import purify
from purifier_core.recipes import Recipe
from purifier_core.training import fit

SHORT = Recipe(3, 0.01, milestones=(2,), batch_size=32)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def victim() -> nn.Module:
    torch.manual_seed(0)
    unit = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(unit, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()


def finetune(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    model = copy.deepcopy(model).train()
    fit(model, images, labels, SHORT, seed=1)
    return model


TRAININGS = {
    "finetuning": finetune,
    "nad": lambda m, x, y: nad(Inputs(m, x, y), sites=["0"], recipe=SHORT, teacher_recipe=SHORT).model,
    "mcr": lambda m, x, y: mcr(Inputs(m, x, y), recipe=SHORT, endpoint_recipe=SHORT).model,
    "anp": lambda m, x, y: anp(Inputs(m, x, y), steps=8).sweep["0.90"],
    "purifier": lambda m, x, y: purify(m, x, y, sites=["0"], stages=(SHORT, SHORT)),
}
"""Each has another state beside the network: a schedule, a teacher, a random stream, parameters apart, heads."""


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
@pytest.mark.parametrize("name", TRAININGS)
def test_it_goes_on_bit_for_bit_wherever_it_was_stopped(name, stop, victim, blobs, tmp_path, monkeypatch):
    whole = TRAININGS[name](victim, *blobs)
    states = 0
    write = kept_states.Place.write

    def written(place, state):
        nonlocal states
        write(place, state)
        states += 1
        if states == stop:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(kept_states.Place, "write", written)
        try:
            with checkpoints(tmp_path / "run", pause=0):
                TRAININGS[name](victim, *blobs)
            assert states < stop  # it was over before
        except Killed:
            assert list((tmp_path / "run").iterdir())
    with checkpoints(tmp_path / "run", pause=0):
        assert torch.equal(weights(TRAININGS[name](victim, *blobs)), weights(whole))
    assert not (tmp_path / "run").exists()


def break_off(folder: Path, victim: nn.Module, blobs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A finetuning to its end, in a block that does not end."""
    with checkpoints(folder, pause=0):
        finetune(victim, *blobs)
        raise Killed


def test_what_ended_is_not_trained_again(victim, blobs, tmp_path):
    with pytest.raises(Killed):
        break_off(tmp_path / "run", victim, blobs)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with checkpoints(tmp_path / "run", pause=0):
        model = copy.deepcopy(victim).train()
        effort = fit(model, *blobs, SHORT, seed=1, after_step=count)
    assert steps == 0
    assert effort.epochs == 3


@pytest.mark.parametrize("change", [{"seed": 2}, {"recipe": replace(SHORT, lr=0.02)}])
def test_another_training_begins_anew(change, victim, blobs, tmp_path):
    options = {"recipe": SHORT, "seed": 1} | change
    alone = copy.deepcopy(victim).train()
    fit(alone, *blobs, **options)
    with pytest.raises(Killed):
        break_off(tmp_path / "run", victim, blobs)
    with checkpoints(tmp_path / "run", pause=0):
        model = copy.deepcopy(victim).train()
        fit(model, *blobs, **options)
    assert torch.equal(weights(model), weights(alone))


def test_a_damaged_state_is_told_and_not_used(victim, blobs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "01.pt").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="damaged"), checkpoints(tmp_path / "run", pause=0):
        model = finetune(victim, *blobs)
    assert torch.equal(weights(model), weights(finetune(victim, *blobs)))


RUN = """
from dataclasses import replace
from purifier_core import checkpoints
from purifier_core.lab import data, runner
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe
checkpoints.checkpoints.__wrapped__.__defaults__ = ((), 0.0)  # keep every epoch
short = {"backdoor": Recipe(4, 0.1, (3,)), "purifier": (Recipe(10, 0.01),) * 2}
PROFILES["quick"] = replace(PROFILES["quick"], width=1 / 16, **short)
digits = data.load("mnist", embedded=True)
parts = ("train_images", "train_labels", "test_images", "test_labels")
fifth = replace(digits, **{part: getattr(digits, part)[::5] for part in parts})
data.load = lambda *_: fifth
runner.run(Table3(profile="quick", methods="none,feature", init="full"))
"""


def test_a_run_killed_twice_ends_as_one_that_was_not(tmp_path):
    """In processes of their own, with SIGKILL: once in the undefended network's training, once in the defense's."""
    environment = os.environ | {"TQDM_DISABLE": "1"}

    def start(home: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", RUN], env=environment | {"PURIFIER_HOME": str(tmp_path / home)})

    def kill_at(pattern: str) -> None:
        process = start("killed")
        while process.poll() is None and not list((tmp_path / "killed").glob(pattern)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    kill_at("checkpoints/*-s0-quick-*/01.pt")
    kill_at("checkpoints/*feature*/02.pt")
    assert start("killed").wait() == 0
    assert start("whole").wait() == 0
    killed, whole = (
        {r.cell: (r.acc, r.asr, r.effort["losses"], r.diagnostics.get("clean"), r.provenance["backdoored_model"])
         for r in Store(tmp_path / home).all()}
        for home in ("killed", "whole")
    )  # fmt: skip
    assert len(killed) == 2
    assert killed == whole
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())
