"""What holds for every record, every cell and every parameter, tried on values that nobody would think of."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from purifier_core import cli
from purifier_core.checks import ConfigError
from purifier_core.lab.cells import SWITCHES, Cell
from purifier_core.lab.experiments import EXPERIMENTS, from_notebook
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import ATTACKS, DATASETS, METHODS, NETWORKS, PAPER, attacks
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import CorruptRecord, Record, Store, current, read
from purifier_core.lab.results import describe
from purifier_core.recipes import INITS

# the same examples on every run and machine, and no folder of examples left behind
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
many = settings(max_examples=500)  # where no file is written

SEED = st.integers(0, 2**31 - 1)
RATIO = st.one_of(st.floats(0.001, 1), st.sampled_from((0.1, 1, 1.0)))
SIZE = st.integers(300, 39_209)  # fits every dataset
TURNED = st.lists(
    st.sampled_from(sorted(SWITCHES)).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(SWITCHES[n].values))),
    unique_by=lambda pair: pair[0],
)
FIELDS = {
    "dataset": st.sampled_from(sorted(DATASETS)),
    "network": st.sampled_from(sorted(NETWORKS)),
    "attack": st.sampled_from((*ATTACKS, "none")),
    "poison_ratio": RATIO,
    "defense": st.sampled_from(sorted(METHODS)),
    "clean_size": SIZE,
    "seed": SEED,
    "profile": st.sampled_from(("small", "paper")),
    "switches": TURNED.map(tuple),
}
CELL = st.builds(Cell, **FIELDS)
SEEDS = st.lists(SEED, min_size=1, max_size=3)
PARAMETERS = {
    "profile": st.sampled_from(("auto", *PROFILES)),
    "seeds": st.one_of(SEED, SEEDS, SEEDS.map(lambda seeds: ", ".join(map(str, seeds))), st.just("0-2,7")),
    "attack": st.sampled_from(attacks(PAPER)),
    "poison_ratio": RATIO,
    "clean_size": SIZE,
    "methods": st.one_of(st.just("all"), st.lists(st.sampled_from(Table3.allowed), min_size=1)),
    "init": st.one_of(st.just("all"), st.lists(st.sampled_from(INITS), min_size=1).map(", ".join)),
    "dataset": st.sampled_from(("mnist", "cifar10")),
    "device": st.sampled_from(("auto", "cpu", "cuda")),
}

SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
GARBAGE = st.one_of(
    SCALAR,
    st.binary(),
    st.lists(SCALAR),
    st.lists(st.lists(SCALAR)),
    st.dictionaries(SCALAR, SCALAR),
    st.sets(st.integers()),
    st.sampled_from(("all", "auto", "none", "0-2", "2-0")),
    st.sampled_from((np.zeros(2), np.array(["all", "none"]), np.int64(1), len, os, object())),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
FINGERPRINT = st.text("0123456789abcdef", min_size=16, max_size=16)
FRACTION = st.floats(0, 1)


@st.composite
def records(draw, failed: bool | None = None, cell: Cell | None = None) -> Record:
    """A record as the runner makes them, with anything in its free parts."""
    cell = cell or draw(CELL)
    data = {"fingerprint": draw(FINGERPRINT), "copy": draw(st.text())}
    record = Record(cell, cell.key(), data, provenance=draw(st.dictionaries(st.text(), JSON, max_size=3)))
    if draw(st.booleans()) if failed is None else failed:
        return replace(record, error=draw(st.text()))
    free = draw(st.dictionaries(st.text(), JSON, max_size=3))
    effort = {"seconds": draw(FRACTION)}
    return replace(
        record, acc=draw(FRACTION), asr=draw(FRACTION), acc_images=1, asr_images=1, effort=effort, diagnostics=free
    )


def refused(make: Callable[[], Any], name: str) -> Any:
    """What `make` gives, or None where it raises a ConfigError that holds `name`; nothing else may be raised."""
    try:
        return make()
    except ConfigError as problem:
        if name not in str(problem):
            raise
        return None


def files(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@given(records())
def test_what_is_saved_is_what_is_read_and_saving_again_changes_nothing(record):
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        path = store.save(record)
        once = files(folder)
        assert read(path) == record
        assert list(store.all()) == [record]
        assert store.find(record.cell, record.data["fingerprint"]) == (None if record.failed else record)
        other = record.data["fingerprint"][:-1] + ("1" if record.data["fingerprint"][-1] == "0" else "0")
        assert store.find(record.cell, other) is None
        assert store.save(record) == path
        assert files(folder) == once
        assert str(record.cell) in describe(record)


@given(records(), st.data())
def test_a_record_file_with_one_byte_changed_or_its_end_cut_off_is_no_record(record, data):
    with TemporaryDirectory() as folder:
        path = Store(Path(folder)).save(record)
        whole = path.read_bytes()
        blanks = [place for place, byte in enumerate(whole) if byte in b" \n"]  # that JSON does not mind
        anywhere = st.integers(0, len(whole) - 1)
        damaged = [whole[:-1], whole[: data.draw(anywhere)], b"[1, 2]", b"[" * 10_000]
        for places, values in ((anywhere, st.integers(0, 255)), (st.sampled_from(blanks), st.sampled_from(b" \t\r\n"))):
            place, value = data.draw(places), data.draw(values)
            damaged.append(whole[:place] + bytes([value if value != whole[place] else 9]) + whole[place + 1 :])
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(CorruptRecord):
                read(path)


@given(st.data(), CELL)
def test_a_failed_record_never_hides_a_finished_one(data, cell):
    finished, failed = (data.draw(records(fails, cell)) for fails in (False, True))
    if data.draw(st.booleans()):  # on the same copy of the data
        failed = replace(failed, data=finished.data)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for record in data.draw(st.permutations((finished, failed))):
            store.save(record)
        assert store.find(cell) == store.find(cell, finished.data["fingerprint"]) == finished
        assert current(store.all()) == ({cell: finished}, {})


@many
@given(CELL, st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), FIELDS[name])))
@example(Cell(poison_ratio=1), ("poison_ratio", 1.0))
def test_keys_are_equal_exactly_where_cells_are(cell, change):
    needed = {"clean_size": cell.clean_size or 3000, "poison_ratio": cell.poison_ratio or 0.1}  # by another defense
    other = replace(cell, **(needed | dict([change])))
    assert (other.key() == cell.key()) == (other == cell)
    assert replace(cell, switches=cell.switches[::-1]).key() == cell.key()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_keys_are_the_same_in_every_process(hash_seed):
    cell = Cell("gtsrb", "resnet18", "sig", 0.05, "feature", 1960, 2, "paper", (("init", "random"), ("flip", "always")))
    code = f"from purifier_core.lab.cells import Cell; print({cell!r}.key(), end='')"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == cell.key()


@many
@given(st.sampled_from(sorted(FIELDS)), GARBAGE, CELL)
def test_a_cell_with_anything_in_a_field_is_valid_or_refused_by_the_fields_name(name, value, cell):
    made = refused(lambda: replace(cell, **{name: value}), name.removesuffix("es"))  # a switch has its own name
    assert made is None or made == Cell(**json.loads(json.dumps(asdict(made))))


@given(st.data())
def test_an_experiment_is_the_same_from_a_notebook_and_from_the_command(data):
    kind = EXPERIMENTS[data.draw(st.sampled_from(sorted(EXPERIMENTS)))]
    chosen = {f.name: data.draw(PARAMETERS[f.name]) for f in fields(kind) if f.name in PARAMETERS}
    made = from_notebook(kind.name, chosen | {"_hidden": 1, "json": json, "helper": len})
    text = {n: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for n, v in vars(made).items()}
    assert kind(**{name: cli._plain(value) for name, value in text.items()}) == replace(made) == made
    for profile in PROFILES:
        assert made.cells(profile)  # every one of them valid
        assert made.full_grid().cells(profile)


@many
@given(st.sampled_from([(kind, f.name) for kind in EXPERIMENTS.values() for f in fields(kind)]), GARBAGE)
@example((Table3, "seeds"), "9" * 5000)
@example((Table3, "seeds"), 2**31)
@example((Table3, "clean_size"), np.zeros(2))
@example((Table3, "methods"), all)
def test_a_notebooks_parameter_is_understood_or_refused_by_its_name(parameter, value):
    kind, name = parameter
    made = refused(lambda: from_notebook(kind.name, {name: value}), f"{name}=")
    assert made == refused(lambda: kind(**{name: value}), f"{name}=")  # and never left out
    assert made is None or made.full_grid().cells("small")


@given(st.sampled_from([f.name for f in fields(Table3)]), st.one_of(st.text(), GARBAGE.map(str)))
def test_the_commands_option_is_understood_or_refused_by_its_name(name, text):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = cli.main(["show", "table3", f"--{name.replace('_', '-')}={text}"])
    assert (status, f"{name}=" in said.getvalue()) in ((2, True), (1, False))  # 1: understood, and nothing is recorded
