"""`purifier fix` as a reader runs it, on a network and a folder of images of their own."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browsing import BROWSER, needs_browser, opened
from reader import PIXELS, given, normalised
from reader import here as here
from reader import reader as reader
from safetensors.torch import load_file
from torch import nn

from purifier_core import cli, repairing
from purifier_core.bounds import Bounded, bound
from purifier_core.checks import ConfigError
from purifier_core.fix import measure, methods, reading, run, weights, weights_file
from purifier_core.fix.options import METHODS, WRITTEN, Options
from purifier_core.lab import records
from purifier_core.purifier import Purified, purify
from purifier_core.recipes import GRANULARITIES, SUSPECTED, UNCLEAR, Recipe, Scanning, Unlearning
from purifier_core.scanning import scan
from purifier_core.sites import detach

SHORT = Recipe(1, 0.01, batch_size=6)
DONE = (0, 1)  # repaired, or a finding; both write the files


def shown(page: Path) -> str:
    return re.sub(r"<[^>]*>", " ", page.read_text())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_weights_that_load_again(here, method, capsys):
    """The file gives the logits of the network that was measured, whatever the fresh network's weights are."""
    ending = ".pt" if method.endswith("cube") else ".safetensors"
    out = here / f"purified{ending}"
    epochs = {"epochs": 1} if method in GRANULARITIES else {}
    assert cli.main(given(out, method=method, triggered="stamped", target="crow", **epochs)) in DONE
    printed = capsys.readouterr().out
    assert re.search(r"ACC: \d.*\nASR: \d.*\npredictions changed", printed)
    assert sorted(p.name for p in here.iterdir()) == ["purified.html", out.name]

    import reader_net

    network = weights.load(reader_net.make(), out)
    assert isinstance(network, Purified if method in GRANULARITIES else Bounded)
    assert not network.training
    _, notes = weights_file.read(out)
    assert (notes["size"], notes["classes"]) == (24, {"0": "<dove>", "1": "blue jay", "2": "crow"})
    held = reading.choose(Options("a:b", Path("w.pt"), Path("clean"), out), PIXELS)
    x = normalised(held.pictures.images[held.held_out])
    right = int((network(x).argmax(1) == held.labels(held.held_out)).sum())
    assert f"{measure.Rate(right, len(x))}" in printed.split(" after")[0].split(", ")[-1]


@pytest.mark.parametrize(("judged", "unlearned"), [(SUSPECTED, 1), (UNCLEAR, 3)])
def test_it_unlearns_what_the_scan_suspects_or_else_what_stands_out_most(here, judged, unlearned, monkeypatch):
    """Here one of the three searches stands out."""
    unlearn, counts = repairing.unlearn, []

    def judging(*given, **options):
        findings = scan(*given, **options, how=Scanning(steps=2, restarts=1))
        first, *others = findings.candidates
        candidates = (replace(first, p=0.0, success=1.0), *(replace(other, p=1.0) for other in others))
        return replace(findings, verdict=judged, candidates=candidates)

    def counting(given, clean, candidates, _how, *rest):
        counts.append(len(candidates))
        return unlearn(given, clean, candidates, Unlearning(seen=20, most=20, searches=1, steps=1, renewed=1), *rest)

    monkeypatch.setattr(methods, "scan", judging)
    monkeypatch.setattr(repairing, "unlearn", counting)
    assert cli.main(given(here / "p.pt", method="scan-repair")) in DONE
    assert counts == [unlearned]


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("kind", ["bound", "purify"])
def test_a_round_trip_keeps_the_logits(reader, tmp_path, kind, ending):
    import reader_net

    x, y = torch.rand(12, 3, 24, 24), torch.arange(12) % 3
    model = reader_net.make().eval()
    network = bound(model, x) if kind == "bound" else purify(model, x, y, stages=(SHORT, SHORT))
    weights.save(network, tmp_path / f"p{ending}")
    again = weights.load(reader_net.make(), tmp_path / f"p{ending}")
    assert torch.equal(again(x), network(x))
    assert again.sites == network.sites
    assert again.granularity == network.granularity
    plain = detach(again)
    assert plain.state_dict().keys() == model.state_dict().keys()
    if isinstance(again, Bounded):
        assert torch.equal(plain(x), model(x))
        assert (again.quantile, again.changed) == (network.quantile, network.changed)
    with pytest.raises(ConfigError, match="does not fit"):
        weights.load(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / f"p{ending}")


def test_the_report_tells_what_was_measured(here):
    out = here / "p.safetensors"
    assert cli.main(given(out, weights="w.pt", triggered="stamped", quantile=0.9)) in DONE
    page = (here / "p.html").read_text()
    assert "<dove>" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    text = shown(here / "p.html")
    for wanted in ("ACC", "ASR", "the class most predicted before", "Blend", "quantile 0.9"):
        assert wanted in text
    assert page.count("<figure>") >= 6 + 6, "triggered images beside clean ones"
    assert "from 32 clean images; 10 others were held out" in text
    state = load_file(out)
    assert any(name.endswith(".upper") for name in state)


def test_without_labels_there_is_no_accuracy(here, capsys):
    assert cli.main(given(here / "p.pt", images="stamped", unlabelled=True)) in DONE
    assert "ACC" not in capsys.readouterr().out
    text = shown(here / "p.html")
    assert "Without labels there is no accuracy" in text
    assert "attack success rate cannot be measured" in text


def test_a_second_run_overwrites_only_when_told(here, capsys):
    out = here / "p.pt"
    assert cli.main(given(out)) in DONE
    written = out.read_bytes()
    assert cli.main(given(out)) == 2
    assert out.read_bytes() == written
    assert cli.main(given(out, force=True)) in DONE
    out.unlink()
    assert cli.main(given(out)) == 2  # the report is there
    assert "--force" in capsys.readouterr().err


def spoil(folder: Path, here: Path, what: str) -> dict:
    """Make one wrong input and return the arguments that name it."""
    state = load_file(folder / "w.safetensors")
    if what in ("one class", "more classes", "few", "unreadable", "empty class", "truncated"):
        shutil.copytree(folder / "clean", here / "in" / "clean")
        clean = here / "in" / "clean"
        if what == "one class":
            shutil.rmtree(clean / "crow")
            shutil.rmtree(clean / "blue jay")
        elif what == "more classes":
            shutil.copytree(clean / "crow", clean / "d")
        elif what == "few":
            for path in list(clean.glob("*/*.png"))[:-12]:
                path.unlink()
            for name in ("<dove>", "blue jay", "crow"):
                if not list((clean / name).iterdir()):
                    shutil.rmtree(clean / name)
        elif what == "empty class":
            (clean / "z").mkdir()
        else:
            content = (clean / "crow" / "3.png").read_bytes()
            (clean / "crow" / "3.png").write_bytes(b"no image" if what == "unreadable" else content[:300])
        return {"images": clean}
    path = here / "in" / "w.pt"
    path.parent.mkdir()
    contents = {
        "a list": [1, 2],
        "a number in it": {"0.weight": 3},
        "other keys": {f"backbone.{n}": t for n, t in state.items()},
        "other shapes": {**state, "7.weight": torch.zeros(10, 64)},
        "nan": {**state, "7.bias": torch.full((3,), torch.nan)},
        "a module": nn.Linear(2, 2),
    }
    if what in contents:
        torch.save(contents[what], path)
    elif what == "text":
        path.write_text("hello")
    else:
        path = path.with_suffix(".safetensors")
        path.write_bytes((folder / "w.safetensors").read_bytes()[:200])
    return {"weights": path}


WRONG = {
    "one class": ({"method": "channel"}, "holds one class"),
    "more classes": ({}, "4 class folders; the model knows 3"),
    "few": ({}, "needs at least 10 more"),
    "unreadable": ({}, r"3\.png cannot be read"),
    "truncated": ({}, r"3\.png cannot be read"),
    "empty class": ({}, "z holds no images"),
    "a list": ({}, "no model's weights: it holds a list"),
    "a number in it": ({}, "no model's weights"),
    "other keys": ({}, "does not fit .* missing are .* and 7 more; unknown are backbone.* and 8 more"),
    "other shapes": ({}, r"7.weight is \(10, 64\) in the file and \(3, 64\) in the model"),
    "nan": ({}, "no finite numbers, in 7.bias"),
    "a module": ({}, "could run code"),
    "text": ({}, "no PyTorch file"),
    "cut short": ({}, "no safetensors file"),
}
TOLD = [
    *((name, *pair) for name, pair in WRONG.items()),
    ("", {"images": "nowhere"}, "nowhere is no folder"),
    ("", {"images": "stamped"}, "no class folders; .*--unlabelled"),
    ("", {"triggered": "nowhere"}, "nowhere is no folder"),
    ("", {"triggered": "stamped", "target": "hawk"}, "target='hawk' is no class; known: <dove>, blue jay, crow"),
    ("", {"triggered": "stamped", "target": "7"}, "target=7 is out of range"),
    ("", {"target": "crow"}, "--triggered"),
    ("", {"weights": "nothing.pt"}, "nothing.pt is not there"),
    ("", {"weights": "reader_net.py"}, "ending of weights"),
    ("", {"model": "reader_net"}, "package.module:factory"),
    ("", {"model": "no_such_module:make"}, "cannot be imported"),
    ("", {"model": "reader_net:nothing"}, "reader_net has no nothing"),
    ("", {"model": "reader_net:value"}, "cannot be called"),
    ("", {"model": "reader_net:text"}, "returns a str, no torch.nn.Module"),
    ("", {"model": "reader_net:needy"}, "cannot be called"),
    ("", {"model": "reader_net:broken"}, "no such file. A factory"),
    ("", {"classes": 5}, "in the file and"),
    ("", {"unlabelled": True, "method": "cube"}, "needs labels"),
    ("", {"unlabelled": True, "scan": True}, "--scan needs labels"),
    ("", {"method": "bounds"}, "method='bounds' is not known"),
    ("", {"epochs": 3}, "--epochs: not for method bound-feature"),
    ("", {"anyway": True}, "--anyway: not for method bound-feature"),
    ("", {"method": "cube", "quantile": 0.9}, "--quantile: not for method cube"),
    ("", {"method": "scan-repair", "lr": 0.1, "budget": 0.1}, "--lr and --budget: not for method scan-repair"),
    ("", {"quantile": 0.9, "budget": 0.1}, "one of them"),
    ("", {"quantile": 1.5}, "quantile=1.5 is out of range"),
    ("", {"held_out": 1}, "held_out=1.0 is out of range"),
    ("", {"sites": "0,nothing"}, "site 'nothing' is not a submodule"),
    ("", {"sites": "7"}, "feature map"),
    ("", {"device": "cuda"}, "asks for a GPU"),
    ("", {"lr": 1.0, "method": "channel", "epochs": 1, "normalize": "no"}, "normalize='no'"),
]


@pytest.mark.parametrize(("what", "more", "message"), TOLD, ids=lambda v: v if isinstance(v, str) else None)
def test_a_wrong_input_ends_with_one_line_and_no_file(here, reader, capsys, what, more, message):
    if more.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    made = spoil(reader, here, what) if what else {}
    out = here / "out" / "p.safetensors"
    out.parent.mkdir()
    assert cli.main(given(out, **(made | more))) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error)
    assert "\n" not in error
    assert list(out.parent.iterdir()) == []


def test_a_wrong_size_is_told(here, capsys):
    import reader_net

    torch.save(reader_net.flat().state_dict(), here / "flat.pt")
    torch.save(reader_net.maps().state_dict(), here / "maps.pt")
    assert cli.main(given(here / "p.pt", model="reader_net:flat", weights=here / "flat.pt", size=32)) == 2
    assert "does not take images of 3 x 32 x 32" in capsys.readouterr().err
    flat = {"model": "reader_net:flat", "weights": here / "flat.pt", "images": "stamped", "unlabelled": True}
    assert cli.main(given(here / "p.pt", **flat)) == 2
    assert "no block or activation" in capsys.readouterr().err
    assert cli.main(given(here / "p.pt", model="reader_net:maps", weights=here / "maps.pt")) == 2
    assert "needed: logits" in capsys.readouterr().err


def test_code_in_a_weights_file_does_not_run(here, bomb, capsys):
    (here / "bomb.pt").write_bytes(bomb)
    assert cli.main(given(here / "p.pt", weights=here / "bomb.pt")) == 2
    assert "could run code" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_the_work(here, capsys):
    assert cli.main(given(here / "no" / "p.pt")) == 2
    assert "does not exist" in capsys.readouterr().err
    (here / "p.html").mkdir()
    assert cli.main(given(here / "p.pt", force=True)) == 2
    assert "is a folder" in capsys.readouterr().err
    shutil.copy("w.pt", here / "w.pt")
    assert cli.main(given(here / "w.pt", weights=here / "w.pt", force=True)) == 2
    assert "same file" in capsys.readouterr().err
    assert cli.main(given(here / "p.pt", json=here / "in" / ".." / "p.pt")) == 2
    assert "are the same file" in capsys.readouterr().err


def test_two_equal_runs_write_equal_weights(here):
    for name in ("a", "b"):
        assert cli.main(given(here / f"{name}.safetensors")) in (0, 1)
    assert (here / "a.safetensors").read_bytes() == (here / "b.safetensors").read_bytes()


@pytest.mark.parametrize("failing", ["p.html", "p.pt"])
def test_a_full_disk_leaves_neither_file(here, monkeypatch, capsys, failing):
    whole = records.os.replace

    def full(source, target):
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        whole(source, target)

    monkeypatch.setattr(records.os, "replace", full)
    assert cli.main(given(here / "p.pt")) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_failure_keeps_what_was_there(here, monkeypatch, capsys):
    """A run with --force that cannot write its weights."""
    assert cli.main(given(here / "p.pt")) in DONE
    before = {path: path.read_bytes() for path in here.iterdir()}

    def full(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed\nand more")

    monkeypatch.setattr(torch, "save", full)
    assert cli.main(given(here / "p.pt", force=True)) == 2
    assert capsys.readouterr().err.endswith("(RuntimeError: PytorchStreamWriter failed); nothing was.\n")
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_one_class_is_enough_for_bounds(here, capsys):
    clean = here / "one" / "clean"
    shutil.copytree("clean/crow", clean / "crow")
    assert cli.main(given(here / "p.pt", images=clean)) == 2
    assert "the folder 'crow', numbered 0, is predicted as class 2" in capsys.readouterr().err
    (here / "names.txt").write_text("<dove>\nblue jay\ncrow\n")
    assert cli.main(given(here / "p.pt", images=clean, class_names=here / "names.txt")) in DONE
    assert "3 outputs; folders: crow (2)" in shown(here / "p.html")


def test_a_purified_file_is_not_purified_again(here, capsys):
    assert cli.main(given(here / "p.pt")) in DONE
    assert cli.main(given(here / "q.pt", weights=here / "p.pt")) == 2
    assert "purified already" in capsys.readouterr().err


def test_ctrl_c_writes_nothing(here, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.methods, "purified", stopped)
    assert cli.main(given(here / "p.pt")) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval(hits, count, low, high):
    """The last is the worked example of Newcombe (1998)."""
    assert measure.Rate(hits, count).interval == pytest.approx((low, high), abs=1e-4)


def test_suppression_by_hand():
    """Two images of one value each, 2 and 6, bounded at 3: 0 and 3 are cut off, so 3 of 8 in all."""

    class Sum(nn.Module):
        def forward(self, x):
            return x.sum((2, 3))

    model = nn.Sequential(nn.ReLU(), Sum())
    x = torch.tensor([2.0, 6.0]).reshape(2, 1, 1, 1).expand(2, 2, 1, 1)
    network = bound(model, x.repeat(5, 1, 1, 1), "channel", 1.0, sites=["0"])
    network.wrappers()[0].upper.fill_(3.0)
    found = measure.suppression(network, x, batch_size=1)
    assert found.by_unit.tolist() == pytest.approx([3 / 8])
    assert found.by_image.tolist() == pytest.approx([0, 0.5])
    masked = purify(
        model, x, torch.tensor([0, 1]), granularity="channel", sites=["0"], stages=(replace(SHORT, epochs=0),) * 2
    )
    with torch.no_grad():
        masked.units()[0].head.weight.copy_(torch.tensor([[0.25, 0.25], [3.0, 3.0]]))
        masked.units()[0].head.bias.copy_(torch.tensor([9.0, 0.0]))
    found = measure.suppression(masked, x)  # 2 a side: logits 1 + 9 and 12; 6 a side: 3 + 9 and 36
    assert found.by_image.tolist() == pytest.approx([0.0, 0.0])
    masked.units()[0].head.bias.data[0] = 99.0
    found = measure.suppression(masked, x)
    assert found.by_image.tolist() == pytest.approx([0.75, 0.75])
    assert found.by_unit.tolist() == pytest.approx([0.75])


@needs_browser
@pytest.mark.parametrize("screen", ["desk", "phone"])
def test_the_report_opens_whole_and_asks_nothing_of_the_net(here, browser, screen):
    assert BROWSER
    assert cli.main(given(here / "p.pt", triggered="stamped")) in DONE
    tab, wrong = opened(browser, here, "p", screen)
    assert wrong == []
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    pictures = tab.evaluate("[...document.images].map(i => [i.alt, i.naturalWidth])")
    assert len(pictures) >= 10
    assert all(alt and width for alt, width in pictures)
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (screen == "phone")
    tab.context.close()
