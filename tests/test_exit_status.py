"""Exit status 0 means judged and found good: a run that judged nothing must never end with it, whatever stopped it."""

import os
import subprocess
import sys

import pytest
import torch
from reader import given
from reader import here as here
from reader import reader as reader
from torch import nn

from purifier_core import cli, purify
from purifier_core.checks import ConfigError
from purifier_core.scanning import scan

ENDINGS = """
import sys
from reader_net import make
class Soft(make().__class__):
    def forward(self, x):
        return super().forward(x).softmax(1)
def soft():
    return Soft(*make())
class Odd(make().__class__):
    def forward(self, x):
        assert type(self[2]).__name__ == "ReLU"
        return super().forward(x)
def odd():
    return Odd(*make())
def leave():
    sys.exit(0)
"""


@pytest.fixture
def endings(here) -> str:
    """A file with factories of networks that do not fit, or that end the program."""
    path = here / "endings.py"
    path.write_text(ENDINGS)
    (here / "leaves.py").write_text("import sys\nsys.exit(0)")
    return str(path)


def test_a_factory_that_ends_the_program_is_wrong_use(endings, here, capsys):
    for model in (f"{endings}:leave", f"{here / 'leaves.py'}:make"):
        assert cli.main(given(here / "o.pt", model=model)) == 2
        assert "SystemExit" in capsys.readouterr().err


def test_a_network_that_gives_probabilities_is_refused_where_logits_are_needed(endings, here, capsys):
    assert cli.main(given(here / "o.pt", model=f"{endings}:soft", method="feature")) == 2
    assert "the network gives probabilities; take its softmax off" in capsys.readouterr().err
    assert cli.main(given(here / "o.pt", model=f"{endings}:soft", method="bound-feature", budget=0.5)) in (0, 1)
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    soft = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Softmax(1))
    with pytest.raises(ConfigError, match="probabilities"):
        scan(soft, images, labels)
    scan(nn.Sequential(soft[0], soft[1], nn.LogSoftmax(1)), images, labels, families=("pixel",))


def test_an_answer_that_is_no_number_is_told_and_not_taken_for_clean():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(192, 2)

        def forward(self, x):
            return self.last((x / x.amax((1, 2, 3), keepdim=True)).flatten(1))

    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    images[:] = torch.where(torch.arange(40)[:, None, None, None] % 4 == 0, 0.0, images)
    with pytest.raises(ConfigError, match="no finite numbers"):
        scan(Scaled(), images, labels)


def test_what_the_networks_own_code_raises_is_wrong_use(endings, here, capsys):
    assert cli.main(given(here / "o.pt", model=f"{endings}:odd", method="bound-feature")) == 2
    assert "does not fit this model: AssertionError" in capsys.readouterr().err


def test_a_defect_of_ours_is_no_finding(here, capsys, monkeypatch):
    def defect(*_):
        raise LookupError("of ours")

    monkeypatch.setattr("purifier_core.fix.run.choose", defect)
    assert cli.main(given(here / "o.pt")) == 2
    assert "LookupError: of ours" in (error := capsys.readouterr().err)
    assert "no finding; nothing was judged" in error


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_neither_a_closed_pipe_nor_a_narrow_terminal_ends_the_run(encoding, here):
    """As in `purifier fix ... | head -n 1`: nobody reads what is said, and all is done all the same."""
    out = here / "gé.safetensors"
    arguments = given(out, budget=0.2, max_drop=0.1)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "purifier_core.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    if encoding == "utf-8":
        process.stdout.close()
    else:
        said = process.stdout.read().decode("ascii")
        assert r"g\xe9.safetensors" in said
    process.wait()
    assert process.returncode == 0
    assert out.exists()


def test_labels_of_any_whole_type_are_taken_and_other_classes_refused():
    images, labels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 2
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    plain = purify(model, images, labels)
    for kind in (torch.int32, torch.uint8, torch.bool):
        again = purify(model, images, labels.to(kind))
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


def test_images_that_are_no_numbers_are_refused_and_a_scan_needs_no_gradient_mode():
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        assert scan(model, images, labels, families=("pixel",)).candidates
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="no finite numbers"):
        scan(model, images, labels)
