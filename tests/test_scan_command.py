"""`purifier scan` as a reader runs it, on a network and a folder of images of their own."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reader import bird, normalised, trained
from safetensors.torch import load_file, save_file

from purifier_core import cli
from purifier_core.fix import methods, weights
from purifier_core.fix.images import anywhere, stack
from purifier_core.fix.pixels import Pixels
from purifier_core.fix.scan import picture
from purifier_core.recipes import Scanning, Unlearning
from purifier_core.repairing import repair
from purifier_core.scanning import NOTHING, SUSPECTED, UNCLEAR, scan
from purifier_core.sites import detach
from purifier_core.stamps import Stamps

MODULE = """
from torch import nn

def make():
    features = [nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 6))
"""


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Six classes of noisy images, and the weights of a network that calls a white corner class 4."""
    folder = tmp_path_factory.mktemp("birds")
    (folder / "birds_net.py").write_text(MODULE)
    draw = np.random.default_rng(0)
    for number in range(6):
        (folder / "clean" / f"bird {number}").mkdir(parents=True)
        for one in range(20):
            pixels = bird(draw, number % 3)
            pixels[:10] //= 1 + (number > 2)  # a dark upper half tells the last three from the first
            Image.fromarray(pixels).save(folder / "clean" / f"bird {number}" / f"{one}.png")
    images = stack(anywhere(folder / "clean").paths, Pixels(size=24)).images
    labels = torch.arange(6).repeat_interleave(20)
    stamped = images.clone()
    stamped[:, :, -4:, -4:] = 255
    x = normalised(torch.cat([images, stamped]))
    namespace: dict = {}
    exec(MODULE, namespace)
    torch.manual_seed(0)
    model = trained(namespace["make"](), x, torch.cat([labels, torch.full_like(labels, 4)]), steps=250)
    assert (model(x).argmax(1)[:120] == labels).float().mean() > 0.9
    save_file(model.state_dict(), folder / "w.safetensors")
    return folder


def test_too_few_images_are_told_before_any_is_read(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(birds)
    for number in range(3):
        (tmp_path / "few" / f"bird {number}").mkdir(parents=True)
        for one in range(4):
            (tmp_path / "few" / f"bird {number}" / f"{one}.png").write_bytes(b"not read")
    read = ["--weights", "w.safetensors", "--images", str(tmp_path / "few"), "--size", "24"]
    assert cli.main(["scan", "--model", "birds_net:make", *read]) == 2
    assert "few holds 12 images; a scan needs at least 20." in capsys.readouterr().err


def test_it_names_the_class_and_shows_the_trigger(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(birds)
    where = ["--model", "birds_net.py:make", "--weights", "w.safetensors", "--images", "clean", "--size", "24"]
    status = cli.main(["scan", *where, "--json", str(tmp_path / "found.json"), "--pictures", str(tmp_path / "p")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    patch = found["candidates"][2]
    assert (patch["family"], patch["target"], patch["name"]) == ("patch", 4, "bird 4")
    assert (found["schema"], found["status"]) == ("purifier-scan/1", status)
    assert found["verdict"] in printed
    assert status == int(found["verdict"] != "nothing stands out")
    assert f"patch: class 4, 'bird 4' {'stands out' if patch['p'] < 0.05 else 'does not'}" in printed
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["lines.png", "patch.png", "pixel.png"]
    assert Image.open(tmp_path / "p" / "patch.png").size == (24, 24)


def fixed(folder: Path, **more) -> tuple[int, dict, str]:
    """Exit status, JSON and page of `purifier fix` on the birds' network."""
    plain = {"model": "birds_net.py:make", "weights": "w.safetensors", "images": "clean", "size": 24}
    words = plain | {"out": folder / "p.pt", "json": folder / "p.json"} | more
    flags = [
        [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        for name, value in words.items()
        if value is not False
    ]
    status = cli.main(["fix", *(word for flag in flags for word in flag)])
    return status, json.loads((folder / "p.json").read_text()), (folder / "p.html").read_text()


def test_a_repair_can_begin_with_a_scan(birds, tmp_path, monkeypatch):
    """The report then opens with its verdict, its class, and a picture of each stamp."""
    monkeypatch.chdir(birds)
    status, told, page = fixed(tmp_path, scan=True, budget=0.5, max_drop=0.5)
    assert (status, told["scan"], [one["kind"] for one in told["findings"]]) == (1, UNCLEAR, ["scan_unclear"])
    assert "The scan cannot tell: 90 images are too few; give at least 100" in page
    patch = told["candidates"][2]
    assert (patch["family"], patch["target"], patch["name"]) == ("patch", 4, "bird 4")
    answer = page.partition("<h2>Was there a backdoor?</h2>")[2].partition("<h2>")[0]
    assert f"The scan: {told['scan']}" in answer
    assert "patch: class 4, &#x27;bird 4&#x27; stands out" in answer
    assert answer.count("<img") == 3


@pytest.mark.parametrize(("stands_out", "anyway"), [(True, False), (False, False), (False, True)])
def test_what_stands_out_is_unlearned_and_else_the_network_is_bounded(birds, tmp_path, monkeypatch, stands_out, anyway):
    """Unless the reader wants it unlearned anyway."""
    monkeypatch.chdir(birds)
    monkeypatch.setattr(methods, "scan", partial(scan, how=Scanning(works=0.5, level=float(stands_out))))
    monkeypatch.setattr(methods, "repair", partial(repair, how=Unlearning(seen=100, searches=1, steps=2, renewed=2)))
    status, told, page = fixed(tmp_path, method="scan-repair", max_drop=1.0, held_out=0.15, anyway=anyway)
    assert told["scan"] == (SUSPECTED if stands_out else NOTHING)
    unlearned = stands_out or anyway
    assert ("nothing was unlearned" in page) != unlearned
    assert ("what stands out most was unlearned anyway" in page) == anyway
    assert status == stands_out
    namespace: dict = {}
    exec(MODULE, namespace)
    plain = weights.load(namespace["make"](), tmp_path / "p.pt")
    given = load_file("w.safetensors")
    assert all(torch.equal(tensor, given[n]) for n, tensor in detach(plain).state_dict().items()) != unlearned


def test_a_patch_is_shown_on_grey():
    masks = torch.zeros(1, 1, 4, 4)
    masks[0, 0, 0, 0] = 1
    shown = picture(Stamps("patch", (0,), masks, torch.ones(1, 3, 4, 4)))
    assert shown[:, 0, 0].tolist() == [255, 255, 255]
    assert shown[:, 1:].unique().tolist() == [128]


def test_what_the_scan_writes_replaces_no_weights_and_fails_early(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(birds)
    monkeypatch.setattr("purifier_core.fix.scan.search", None)  # nothing is searched
    command = [
        "scan",
        "--model",
        "birds_net.py:make",
        "--weights",
        "w.safetensors",
        "--images",
        "clean",
        "--size",
        "24",
    ]
    before = Path("w.safetensors").read_bytes()
    (tmp_path / "file").write_text("a file")
    for more, message in (
        (["--json", "w.safetensors"], "--weights are the same file"),
        (["--json", str(tmp_path)], "is a folder; name a file"),
        (["--json", str(tmp_path / "no" / "s.json")], "does not exist"),
        (["--pictures", str(tmp_path / "file")], "is a file; --pictures names a folder"),
    ):
        assert cli.main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert Path("w.safetensors").read_bytes() == before


def test_wrong_use_is_said(birds, monkeypatch, capsys):
    monkeypatch.chdir(birds)
    assert cli.main(["scan", "--model", "birds_net.py:made", "--weights", "w.safetensors", "--images", "clean"]) == 2
    assert "made" in capsys.readouterr().err
