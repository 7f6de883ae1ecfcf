"""Records carried in one file: whole on arrival or refused with a reason, and nothing else gets in."""

import io
import json
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from made import record

from purifier_core import cli
from purifier_core.lab import records
from purifier_core.lab.cells import Cell
from purifier_core.lab.records import Record, Store

CELL = Cell(profile="paper")


FULL = [
    record(CELL),
    record(Cell(defense="feature", clean_size=3000, profile="paper", switches=(("init", "random"),)), acc=0.95),
    record(Cell(profile="small", seed=1)),
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Store:
    """The store that the command works on, empty."""
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path / "here"))
    return Store()


@pytest.fixture
def there(tmp_path) -> Store:
    """Another machine's store, with three records, one that failed and one of other code."""
    store = Store(tmp_path / "there")
    for one in FULL:
        store.save(one)
    store.save(record(Cell(profile="paper", seed=7), error="Traceback ...\nRuntimeError: no", acc=None))
    store.save(record(Cell(profile="paper", seed=8), key="of other code"))
    return store


def exported(store: Store, path: Path, monkeypatch, *options: str) -> Path:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PURIFIER_HOME", str(store.home))
        assert cli.main(["export", str(path), *options]) == 0
    return path


def stored(one: Record) -> bytes:
    """A record's file."""
    return records._file(json.loads(json.dumps(asdict(one))))


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["records.zip", "records.tar.gz", "records.tgz"])
def test_finished_records_arrive_as_they_left(name, here, there, tmp_path, monkeypatch, capsys):
    path = exported(there, tmp_path / name, monkeypatch)
    assert "3 records in" in capsys.readouterr().out
    assert cli.main(["import", str(path)]) == 0
    assert "3 imported, 0 already there, 0 refused" in capsys.readouterr().out
    key = lambda one: str(one.cell)  # noqa: E731
    assert sorted(here.all(), key=key) == sorted(FULL, key=key)
    for file in here.folder.rglob("*.json"):
        assert file.read_bytes() == (there.folder / file.relative_to(here.folder)).read_bytes()
    assert cli.main(["import", str(path)]) == 0
    assert "0 imported, 3 already there, 0 refused" in capsys.readouterr().out


def test_one_profile_alone(here, there, tmp_path, monkeypatch, capsys):
    cli.main(["import", str(exported(there, tmp_path / "some.zip", monkeypatch, "--profile", "small"))])
    assert [one.cell.profile for one in here.all()] == ["small"]
    assert cli.main(["export", str(tmp_path / "none.zip"), "--profile", "quick"]) == 1
    assert "no finished records of profile quick; nothing written" in capsys.readouterr().out
    assert not (tmp_path / "none.zip").exists()


def test_other_numbers_are_told_and_kept_out_unless_asked_for(here, there, tmp_path, monkeypatch, capsys):
    here.save(record(CELL, acc=0.5))
    path = exported(there, tmp_path / "records.zip", monkeypatch)
    assert cli.main(["import", str(path)]) == 1
    told = capsys.readouterr().out
    assert "has ACC 0.9900 and ASR 1.0000, the stored record has ACC 0.5000 and ASR 1.0000; see --replace" in told
    assert "2 imported, 0 already there, 1 refused" in told
    assert here.find(Cell(profile="paper")).acc == 0.5
    assert cli.main(["import", str(path), "--replace"]) == 0
    assert "1 imported, 2 already there, 0 refused" in capsys.readouterr().out
    assert here.find(Cell(profile="paper")).acc == 0.99


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (stored(record(CELL)).replace(b'"acc": 0.99', b'"acc": 0.98'), "does not match its checksum"),
        (stored(record(CELL))[:-3], "is not a whole record"),
        (b"#!/bin/sh\n", "is not a whole record"),
        (b"[" * 100_000, "is not a whole record"),
        (stored(record(CELL, error="no")), "is the record of a failure"),
        (stored(record(CELL, key="other")), "comes from another version of the code"),
        (stored(record(CELL, data={"fingerprint": "../../../evil!", "copy": ""})), "does not tell which data"),
        (stored(record(CELL, data=["a", "list"])), "does not tell which data"),
        (stored(record(CELL, acc=99.0)), "holds no ACC and ASR"),
    ],
    ids=["altered", "cut", "no record", "nested", "failed", "stale", "path in it", "no data", "percent"],
)
def test_what_is_no_finished_record_of_this_code_is_refused_by_name(content, reason, here, tmp_path, capsys):
    good = FULL[1]
    path = archive(tmp_path / "some.zip", {"results/bad.json": content, "results/good.json": stored(good)})
    assert cli.main(["import", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"refused: results/bad.json {reason}" in told
    assert "1 imported, 0 already there, 1 refused" in told
    assert list(here.all()) == [good]


def test_no_member_decides_where_it_is_stored(here, tmp_path):
    names = ["../../outside.json", "/outside.json", "results/../../outside.json"]
    zipped = archive(tmp_path / "evil.zip", {name: stored(record(CELL)) for name in names})
    packed = tmp_path / "evil.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(stored(record(CELL)))
            file.addfile(member, io.BytesIO(stored(record(CELL))))
        link = tarfile.TarInfo("results/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = {path for path in tmp_path.rglob("*") if here.home not in path.parents}
    for path in (zipped, packed):
        assert cli.main(["import", str(path)]) == 0
    assert {path for path in tmp_path.rglob("*") if here.home not in path.parents} - before <= {here.home}
    assert [file.parent.name for file in here.home.rglob("*.json")] == ["mnist-vgg16-badnets-0.1"]


@pytest.mark.parametrize("name", ["records.zip", "records.tar.gz"])
def test_an_archive_that_is_cut_anywhere_brings_nothing(name, here, there, tmp_path, monkeypatch, capsys):
    path = exported(there, tmp_path / name, monkeypatch)
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: tenth * len(whole) // 10])
        assert cli.main(["import", str(path)]) == 2
        assert "nothing was imported; transfer it again" in capsys.readouterr().err
    assert list(here.all()) == []


def test_a_name_that_cannot_be_used_is_status_2(here, tmp_path, capsys):
    assert cli.main(["export", str(tmp_path / "records.rar")]) == 2
    assert "allowed: NAME.zip, NAME.tar.gz or NAME.tgz" in capsys.readouterr().err
    assert cli.main(["import", str(tmp_path / "gone.zip")]) == 2
    assert "gone.zip is not there" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "records.zip"), "--profile", "papper"]) == 2
    assert "Did you mean 'paper'?" in capsys.readouterr().err
