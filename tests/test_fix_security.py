"""Files from elsewhere: nothing that lies beside a model runs, and no size is believed."""

import json
import os
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reader import given
from reader import here as here
from reader import reader as reader
from safetensors.torch import load_file, save_file
from torch import nn

from purifier_core import cli, files
from purifier_core.checks import ConfigError
from purifier_core.fix import images, weights, weights_file
from purifier_core.fix.reading import printable


@pytest.mark.parametrize("name", ["safetensors.py", "PIL/__init__.py", "scipy.py", "purifier_core.py", "timm.py"])
def test_a_module_beside_the_model_is_not_run(here, tmp_path, name):
    """As from a downloaded folder, in a process of its own."""
    folder = tmp_path / "downloaded"
    planted = folder / name
    planted.parent.mkdir(parents=True)
    planted.write_text("open('pwned', 'w').close()\nraise SystemExit(0)\n")
    (folder / "reader_net.py").write_text(Path("reader_net.py").read_text())
    code = "import sys; from purifier_core.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = given(
        folder / "p.safetensors", weights=Path("w.safetensors").absolute(), images=Path("clean").absolute()
    )
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert not (folder / "pwned").exists()
    assert done.returncode in (0, 1), done.stderr
    assert (folder / "p.safetensors").exists()


def test_the_factorys_folder_is_searched_last_and_for_the_factory_alone(here, tmp_path, monkeypatch):
    from purifier_core.fix import network
    from purifier_core.fix.options import Options

    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "neighbour.py").write_text("import json, sys\nplaces = list(sys.path)\n")
    (tmp_path / "net.py").write_text("import neighbour\nfrom torch import nn\nmake = lambda: nn.Linear(2, 2)\n")
    before = list(sys.path)
    network.make(Options(f"{tmp_path}/net.py:make", Path("w.pt"), Path("c"), Path("o.pt")))
    assert sys.path == before
    assert sys.modules["neighbour"].places == [*before, str(tmp_path)]


def state() -> dict[str, torch.Tensor]:
    return load_file("w.safetensors")


def refused(capsys, here: Path, path: Path, message: str) -> None:
    assert cli.main(given(here / "p.pt", weights=path)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "\n" not in error.strip()


@pytest.mark.parametrize("known", [True, False])
def test_a_stride_bomb_is_refused_before_its_values_are_read(here, capsys, known):
    """A file of some kilobytes whose tensor would take 26 TB."""
    name = "7.weight" if known else "more"
    torch.save({**state(), name: torch.zeros(1).expand(10**8, 65536)}, here / "bomb.pt")
    assert (here / "bomb.pt").stat().st_size < 20_000
    refused(capsys, here, here / "bomb.pt", "does not fit Sequential")
    torch.save({**state(), "7.weight": torch.zeros(1).expand(3, 64)}, here / "bomb.pt")
    refused(capsys, here, here / "bomb.pt", "7.weight claims (3, 64), which is more than the file holds")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(here, capsys):
    torch.save({"7.weight": torch.zeros(10**7)}, here / "plain.pt")
    with zipfile.ZipFile(here / "plain.pt") as plain, zipfile.ZipFile(here / "bomb.pt", "w", 8) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert (here / "bomb.pt").stat().st_size < 10**5
    refused(capsys, here, here / "bomb.pt", "would unpack to more than it is")


@pytest.mark.parametrize("tensor", [torch.zeros(3, 64).to_sparse(), torch.zeros(3, 64, device="meta")])
def test_a_tensor_that_is_no_plain_one_is_refused(here, capsys, tensor):
    torch.save({**state(), "7.weight": tensor}, here / "odd.pt")
    refused(capsys, here, here / "odd.pt", "")


def test_names_in_a_weights_file_cannot_steer_the_terminal(here, capsys):
    save_file({"\x1b[2Jcleared": torch.zeros(2)}, here / "ansi.safetensors")
    refused(capsys, here, here / "ansi.safetensors", r"\x1b[2Jcleared")
    assert printable("a\x1b[31m\udce4é\n") == "a\\x1b[31m\\udce4é\n"


@pytest.mark.parametrize("name", ["a\x1b[31m.png", b"a\xe4.png"])
def test_a_name_that_cannot_be_printed_stops_at_the_start(tmp_path, name):
    folder = os.fsencode(tmp_path / "clean")
    os.mkdir(folder)
    with open(os.path.join(folder, os.fsencode(name)), "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(ConfigError, match="cannot be printed") as problem:
        images.anywhere(tmp_path / "clean")
    assert str(problem.value).isprintable()


def test_a_link_to_a_folder_is_refused_by_name(here, capsys):
    (here / "clean").mkdir()
    (here / "clean" / "crow").symlink_to(Path("clean/crow").absolute())
    assert cli.main(given(here / "p.pt", images=here / "clean")) == 2
    assert "crow is a link to a folder" in capsys.readouterr().err


NOTES = {"method": "bound", "granularity": "feature", "sites": ["2", "4"], "quantile": 0.99, "changed": 0.0}
SPOILED = [
    {**NOTES, "method": None},
    {**NOTES, "method": ["bound"]},
    {**NOTES, "granularity": "all"},
    {**NOTES, "sites": "24"},
    {**NOTES, "sites": [2, 4]},
    {**NOTES, "sites": []},
    {**NOTES, "sites": ["2", "2"]},
    {**NOTES, "sites": ["", "4"]},
    {**NOTES, "sites": ["nothing"]},
    {**NOTES, "sites": ["2.upper"]},
    {**NOTES, "method": "purify"},
    {**NOTES, "quantile": "high"},
    {"method": "bound"},
    [1, 2],
    "bound",
]


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("notes", SPOILED, ids=str)
def test_spoiled_notes_are_told(here, notes, ending):
    import reader_net

    content = {**state(), "2.upper": torch.ones(8, 11, 11), "4.upper": torch.ones(16, 5, 5)}
    path = here / f"p{ending}"
    if ending == ".pt":
        torch.save({"state": content, "purifier": notes}, path)
    else:
        save_file(content, path, {"purifier": json.dumps(notes)})
    with pytest.raises(ConfigError):
        weights.load(reader_net.make(), path)


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_files_get_the_users_umask(here, umask):
    before = os.umask(umask)
    try:
        assert cli.main(given(here / "p.safetensors", json=here / "p.json")) in (0, 1)
    finally:
        os.umask(before)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in here.iterdir()}
    assert modes == dict.fromkeys((".safetensors", ".html", ".json"), 0o666 & ~umask)


def without_links(*_):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_files_are_placed_together_or_not_at_all(tmp_path, monkeypatch, there, failing):
    paths = [tmp_path / name for name in "abc"]
    if there:
        for path in paths:
            path.write_text("old")
    placed = []
    whole = os.replace

    def full(source, target):
        if Path(target).name == failing and Path(source).suffix == ".part":
            raise OSError(28, "No space left on device")
        placed.append(Path(target).name)
        whole(source, target)

    if failing == "a":  # a file system without hard links
        monkeypatch.setattr(files.os, "link", without_links)
    monkeypatch.setattr(files.os, "replace", full)
    writers = {path: lambda part: part.write_text("new") for path in paths}
    with pytest.raises(OSError, match="No space"):
        files.write_together(writers)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == (dict.fromkeys("abc", "old") if there else {})
    monkeypatch.setattr(
        files.os, "replace", lambda source, target: (placed.append(Path(target).name), whole(source, target))
    )
    placed.clear()
    files.write_together(writers)
    assert placed == ["c", "b", "a"], "the first is placed last"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "new")


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupt_right_after_a_file_is_placed_brings_all_back(tmp_path, monkeypatch, there):
    paths, whole = [tmp_path / name for name in "abc"], os.replace
    for path in paths if there else []:
        path.write_text("old")

    def interrupted(source, target):
        whole(source, target)
        if Path(target).name == "b" and Path(source).suffix == ".part":
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_together({path: lambda part: part.write_text("new") for path in paths})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == (
        dict.fromkeys("abc", "old") if there else {}
    )


KINDS = {
    "page.pt": (b"<!DOCTYPE html><html></html>", "is an HTML page"),
    "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "keras.pth": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "empty.ckpt": (b"", "no PyTorch file, or damaged"),
    "page.safetensors": (b"\n<html>", "is an HTML page"),
}


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, name):
    content, message = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        weights_file.read(tmp_path / name)


def test_programs_are_called_what_they_are(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),)), tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    for name, message in (("script.pt", "is TorchScript"), ("program.pt", "an exported program")):
        with pytest.raises(ConfigError, match=message):
            weights_file.read(tmp_path / name)


def test_plain_values_beside_the_weights_are_read_without_running_anything(tmp_path, bomb):
    import argparse

    content = {
        "args": argparse.Namespace(lr=0.1, folder=tmp_path),
        "best": np.float64(0.5),
        "step": np.int64(3),
        "random": np.arange(3, dtype=np.uint32),
        "model_state_dict": {"weight": torch.ones(2, 2)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    }
    for name, new in (("new.ckpt", True), ("old.ckpt", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new)
        read, _ = weights_file.read(tmp_path / name)
        assert torch.equal(weights_file.states(read, tmp_path)["model_state_dict"]["weight"], torch.ones(2, 2))
    (tmp_path / "bomb.ckpt").write_bytes(bomb)
    with pytest.raises(ConfigError, match="could run code"):
        weights_file.read(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize("key", [*weights_file.KEYS, *weights_file.AVERAGED, ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod."])
def test_weights_are_found_under_their_usual_names(key, prefix):
    model, wanted = nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    saved = {prefix + name: tensor for name, tensor in wanted.items()}
    content = {key: saved, "epoch": 3} if key else saved
    assert weights.insert(model, weights_file.states(content, Path("w.pt")), Path("w.pt")) == key
    assert torch.equal(model.weight, wanted["weight"])


def test_lightnings_metrics_are_no_weights():
    content = {
        "state_dict": {"model.weight": torch.ones(2, 2), "model.bias": torch.zeros(2), "accuracy.n": torch.ones(1)}
    }
    model = nn.Linear(2, 2)
    weights.insert(model, weights_file.states(content, Path("w.pt")), Path("w.pt"))
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_averaged_weights_are_taken_when_asked_for():
    plain, averaged = ({"weight": torch.full((2, 2), v), "bias": torch.zeros(2)} for v in (1.0, 2.0))
    content = {"state_dict_ema": averaged, "state_dict": plain}
    model = nn.Linear(2, 2)
    assert weights.insert(model, weights_file.states(content, Path("w")), Path("w")) == "state_dict"
    assert (
        weights.insert(model, weights_file.states(content, Path("w"), "state_dict_ema"), Path("w")) == "state_dict_ema"
    )
    assert torch.equal(model.weight, averaged["weight"])
    with pytest.raises(ConfigError, match="no weights under 'other'; it has state_dict_ema, state_dict"):
        weights_file.states(content, Path("w"), "other")
