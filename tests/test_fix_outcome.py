"""What a run comes to: findings, exit status, report and JSON."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reader import given
from reader import here as here
from reader import reader as reader
from torch import nn

from purifier_core import cli, progress
from purifier_core.bounds import bound
from purifier_core.fix import costs, measure, outcome
from purifier_core.fix.measure import Comparison, Suppressed
from purifier_core.fix.network import Prepared, unprepared
from purifier_core.fix.options import Options
from purifier_core.recipes import Recipe

WITHIN = {"budget": 0.2, "max_drop": 0.1}
OPTIONS = Options("a:b", Path("w.pt"), Path("c"), Path("o.pt"))


def compared(changed: int, count: int, asr: float | None = None, labelled: bool = True) -> Comparison:
    """A comparison of `count` images of class 0, all right before, of which some are predicted otherwise after."""
    before, nothing = torch.zeros(count, dtype=torch.long), Suppressed(torch.zeros(1), torch.zeros(count))
    after = (torch.arange(count) < changed).long()
    one = Comparison(("1",), before, after, nothing, before if labelled else None)
    if asr is None:
        return one
    stamped = (torch.arange(100) < 100 * asr).long()
    return replace(one, triggered_before=torch.ones(100, dtype=torch.long), triggered_after=stamped, target=1)


@pytest.mark.parametrize(
    ("comparison", "more", "kinds"),
    [
        (compared(0, 100), {}, []),
        (compared(0, 100, asr=0.05), {}, []),
        (compared(0, 100, asr=0.5), {}, ["asr_stays"]),
        (compared(0, 100, asr=0.5), {"max_asr": 0.6}, []),
        (compared(2, 100), {}, ["budget_missed"]),
        (compared(3, 100), {}, ["accuracy_lost", "budget_missed"]),
        (compared(3, 100), {"max_drop": 0.03, "budget": 0.03}, []),
        (compared(3, 100, labelled=False), {}, ["budget_missed"]),
        (compared(3, 100), {"quantile": 0.9}, ["accuracy_lost"]),
        (compared(2, 100), {"method": "feature"}, []),
        (compared(0, 4), {}, ["too_few_images"]),
        (compared(0, 99), {}, ["too_few_images"]),
        (compared(0, 50), {"method": "feature"}, []),
        (compared(0, 4, labelled=False), {"quantile": 1.0}, []),
    ],
)
def test_findings(comparison, more, kinds):
    found = outcome.findings(replace(OPTIONS, **more), comparison)
    assert [finding.kind for finding in found] == kinds
    assert outcome.status(found) == bool(kinds)


def test_too_few_images_say_how_many_it_takes():
    (found,) = outcome.findings(OPTIONS, compared(0, 4))
    assert found.text == "Too few images to judge: 4 held out, and a share of 1.0 % takes 100"
    assert found.advice == "Give 400 clean images or more, of which 100 are held out."


def test_a_scans_verdict_is_a_finding():
    suspected = SimpleNamespace(verdict="backdoor suspected")
    assert [f.kind for f in outcome.findings(OPTIONS, compared(0, 100), suspected)] == ["backdoor_suspected"]
    assert not outcome.findings(OPTIONS, compared(0, 100), SimpleNamespace(verdict="nothing stands out"))
    unclear = SimpleNamespace(verdict="cannot tell", reason="3 classes are too few to compare")
    (found,) = outcome.findings(OPTIONS, compared(0, 100), unclear)
    assert (found.kind, found.text) == ("scan_unclear", "The scan cannot tell: 3 classes are too few to compare")


def test_a_repair_within_budget_ends_with_0(here, capsys):
    arguments = given(
        here / "p.pt", weights="bad.safetensors", triggered="stamped", target="crow", max_asr=0.5, **WITHIN
    )
    assert cli.main(arguments) == 0
    assert "The given trigger no longer works, and little else changed." in capsys.readouterr().out


def test_a_trigger_that_still_works_ends_with_1(here, capsys):
    """Bounds at the largest values of images that are stamped themselves cut nothing off."""
    clean = here / "in" / "crow"
    clean.mkdir(parents=True)
    for path in Path("stamped").iterdir():
        (clean / path.name).write_bytes(path.read_bytes())
    names = here / "names.txt"
    names.write_text("<dove>\nblue jay\ncrow\n")
    more = {"weights": "bad.safetensors", "images": clean.parent, "class_names": names, "triggered": "stamped"}
    arguments = given(here / "p.pt", target="crow", json=here / "p.json", **more, **WITHIN)
    assert cli.main(arguments) == 1
    assert "The trigger still works" in capsys.readouterr().out
    results = json.loads((here / "p.json").read_text())
    assert (results["status"], [one["kind"] for one in results["findings"]]) == (1, ["asr_stays"])
    page = (here / "p.html").read_text()
    assert "purified</h1>" not in page
    assert "Do not use the purified weights" in page


def test_the_json_says_what_the_report_says(here):
    arguments = given(here / "p.pt", triggered="stamped", target="crow", json=here / "p.json")
    assert cli.main(arguments) == 1
    results = json.loads((here / "p.json").read_text())
    assert results["schema"] == "purifier-fix/1"
    assert {"status", "findings", "weights", "purified", "classes", "target", "images", "rates"} <= results.keys()
    assert results["classes"] == {"0": "<dove>", "1": "blue jay", "2": "crow"}
    assert results["target"] == {"index": 2, "name": "crow", "guessed": False}
    assert results["images"] == {"method": 32, "held_out": 10, "triggered": 42, "skipped": []}
    assert results["pixels"]["size"] == 24
    page = (here / "p.html").read_text()
    for digest in (results["weights"]["sha256"], results["purified"]["sha256"]):
        assert len(digest) == 64
        assert digest in page
    for rate in (results["rates"]["ACC"]["after"], results["rates"]["ASR"]["before"], results["rates"]["changed"]):
        assert rate["low"] <= rate["share"] <= rate["high"]
        assert rate["share"] == rate["hits"] / rate["count"]
        assert f"{100 * rate['share']:.1f} %" in page


def test_the_json_is_described_in_the_book(here):
    cli.main(given(here / "p.pt", triggered="stamped", json=here / "p.json"))
    results = json.loads((here / "p.json").read_text())
    book = (Path(__file__).parent.parent / "book" / "running.md").read_text()
    assert [name for name in results if f"`{name}`" not in book] == []
    kinds = set(re.findall(r'"(\w+)",\n', Path(outcome.__file__).read_text())) | {"backdoor_suspected", "scan_unclear"}
    assert {kind for kind in kinds if f"`{kind}`" not in book} == set()


def test_the_report_answers_in_order(here):
    cli.main(given(here / "p.pt", triggered="stamped", target="crow"))
    page = (here / "p.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[:5] == [
        "Was there a backdoor?",
        "What was done",
        "What changed",
        "What to do next",
        "What this cannot promise",
    ]
    assert "Triggered and clean images" in headings
    assert "<h1>Report on w.safetensors</h1>" in page


def test_suppression_is_shown_beside_triggered_images_only(here):
    cli.main(given(here / "p.pt"))
    assert "Which units suppress" not in (here / "p.html").read_text()
    cli.main(given(here / "q.pt", triggered="stamped"))
    assert "Which units suppress" in (here / "q.html").read_text()


def test_quiet_prints_nothing_but_errors(here, capsys, monkeypatch):
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    assert cli.main(given(here / "p.pt", quiet=True, **WITHIN)) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(given(here / "p.pt", quiet=True)) == 2
    assert "exists" in capsys.readouterr().err


def test_triggered_images_in_class_folders_give_the_robust_accuracy(here):
    """`stamped` holds all images in one folder; here each lies in its class's."""
    for path in Path("stamped").iterdir():
        folder = here / "in" / ("<dove>", "blue jay", "crow")[int(path.name[0])]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    arguments = given(here / "p.pt", triggered=here / "in", target="crow", json=here / "p.json")
    assert cli.main([*arguments, "--weights", "bad.safetensors"]) in (0, 1)
    rates = json.loads((here / "p.json").read_text())["rates"]
    assert rates["RA"]["before"]["count"] == rates["RA"]["after"]["count"] == 28, "two classes of 14 are not the target"
    assert rates["RA"]["before"]["share"] < 0.1
    assert rates["RA"]["after"]["share"] > 0.5
    assert "RA: triggered images of other classes predicted as their own" in (here / "p.html").read_text()
    plain = given(here / "q.pt", triggered="stamped", target="crow", json=here / "q.json")
    cli.main([*plain, "--weights", "bad.safetensors"])
    other = json.loads((here / "q.json").read_text())["rates"]
    assert "RA" not in other
    counts = [rate["ASR"]["before"]["count"] for rate in (rates, other)]
    assert counts == [28, 42], "of the target's own class none counts, where that is known"
    assert rates["ASR"]["before"]["share"] > 0.9


def test_images_of_the_targets_class_are_no_success_of_a_trigger(here, capsys):
    """A right network calls a third of these clean images the target, and rightly so."""
    arguments = given(here / "p.pt", triggered="clean", target="crow", json=here / "p.json", **WITHIN)
    assert cli.main(arguments) == 0
    assert json.loads((here / "p.json").read_text())["rates"]["ASR"]["after"]["hits"] <= 1
    shutil.copytree("clean/crow", here / "in" / "crow")
    cli.main(given(here / "q.pt", triggered=here / "in", target="crow", json=here / "q.json", **WITHIN))
    assert "ASR" not in json.loads((here / "q.json").read_text())["rates"], "none is of another class"


def test_heat_lies_where_the_image_is_cut():
    """A bright corner that no clean image has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    clean = torch.randint(0, 60, (40, 3, 16, 16), dtype=torch.uint8)
    stamped = clean[:4].clone()
    stamped[:, :, :5, :5] = 255
    heat = measure.cuts(bound(model.eval(), clean, quantile=1.0), torch.cat([clean[:4], stamped]))
    assert heat.shape == (8, 16, 16)
    assert heat[:4].max() == 0
    assert heat[4:, 8:, 8:].max() == 0
    assert heat[4:, 1:4, 1:4].mean() > 0.2


def test_a_prepared_network_is_unprepared_again():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    prepared = Prepared(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()
    network = bound(prepared, images, quantile=0.9)
    x = images / 255
    wanted = network(x)
    normalised = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    bare = unprepared(network)
    assert bare.sites == ("1",)
    assert torch.equal(bare(normalised), wanted)


def test_the_cost_is_said_before_the_training(here, capsys):
    assert cli.main(given(here / "p.pt", method="feature", epochs=1, **{"max_drop": 0.2})) in (0, 1)
    assert re.search(r"feature units add 0 MiB; training takes about \d+ seconds", capsys.readouterr().out)


def test_a_thousand_classes_are_called_dear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1000))
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    told = costs.estimate(model, images, ["1"], 1000, Recipe(20, 0.01, batch_size=8), "feature")
    assert told[0].startswith("feature units add 938 MiB")
    assert "--method channel adds 0 MiB" in told[1]
    assert len(costs.estimate(model, images, ["1"], 1000, Recipe(1, 0.01, batch_size=8), "channel")) == 1


def test_the_named_zoos_give_networks(here, tmp_path, capsys):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "t.pt")
    arguments = given(tmp_path / "p.pt", model="timm:test_resnet", classes=3, weights=tmp_path / "t.pt", size=32)
    assert cli.main([*arguments, "--trust-inputs"]) in (0, 1)
    assert "timm's configuration of this network" in capsys.readouterr().out
    assert cli.main(given(tmp_path / "q.pt", model="torchvision:resnet99")) == 2
    assert "torchvision has no network 'resnet99'" in capsys.readouterr().err


def test_a_network_in_a_file_is_code_that_is_run(here, tmp_path):
    (tmp_path / "own.py").write_text(Path("reader_net.py").read_text())
    assert cli.main(given(tmp_path / "p.pt", model=f"{tmp_path}/own.py:make", **WITHIN)) == 0
    assert cli.main(given(tmp_path / "q.pt", model=f"{tmp_path}/none.py:make")) == 2


def test_no_picture_is_larger_than_its_thumbnail():
    from purifier_core.fix.markup import THUMBNAIL, picture

    source = picture(torch.from_numpy(np.zeros((1, 500, 500), dtype=np.uint8)), torch.zeros(500, 500))
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (THUMBNAIL, THUMBNAIL)


@pytest.mark.parametrize(
    ("weights", "status", "printed"), [("w.safetensors", 0, ""), ("bad.safetensors", 1, "still works")]
)
def test_the_gate_of_a_pipeline(here, weights, status, printed):
    """examples/ci_gate.sh, as a pipeline runs it."""
    script = Path(__file__).parent.parent / "examples" / "ci_gate.sh"
    folder = Path.cwd()
    clean, names = folder / "clean", here / "names.txt"
    if status:  # stamped images pass for clean ones
        clean = here / "in"
        (clean / "crow").mkdir(parents=True)
        for path in Path("stamped").iterdir():
            (clean / "crow" / path.name).write_bytes(path.read_bytes())
    names.write_text("<dove>\nblue jay\ncrow\n")
    options = ["--class-names", names, "--triggered", folder / "stamped", "--target", "crow", "--size", "24"]
    options += ["--budget", "0.2", "--max-drop", "0.1", "--max-asr", "0.5"]
    done = subprocess.run(
        ["sh", script, f"{folder}/reader_net.py:make", folder / weights, clean, *options],
        cwd=here,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert printed in done.stdout
    assert json.loads((here / "report.json").read_text())["status"] == status
