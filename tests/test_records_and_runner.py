"""The store and the runner: whole records or none, nothing lost, nothing wrong, whatever goes amiss."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from made import record

from purifier_core import cli
from purifier_core.device import threads
from purifier_core.evaluation import evaluate
from purifier_core.files import provenance, write_atomically
from purifier_core.lab import cache, compute, data, draws, runner
from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import Cell
from purifier_core.lab.data import load
from purifier_core.lab.defenses.abl import sample_losses
from purifier_core.lab.experiments.comparison import Attacks
from purifier_core.lab.experiments.supplement import Table3, Table4
from purifier_core.lab.methods import DATASETS, Perturbation
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store, read
from purifier_core.lab.results import Results, look_up, may_have_gpu
from purifier_core.pages import report
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, fit

ONE = Recipe(1, 0.01)
TINY: dict = {"width": 1 / 16, "backdoor": Recipe(1, 0.1), "finetuning": ONE, "nad": ONE, "mcr": ONE}
TINY |= {"purifier": (Recipe(2, 0.01), ONE), "abl": (ONE, ONE, ONE), "watch_every": 1}
METHODS = "none,finetuning,nad"
SMALL = Cell(profile="small")


@pytest.fixture
def store(few, tmp_path, monkeypatch) -> Store:
    """An empty store, a quick profile that is over in seconds, and few digits."""
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path))
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], **TINY))
    return Store()


def table(**changes) -> Table3:
    return Table3(**{"profile": "quick", "methods": METHODS} | changes)


def numbers(store: Store) -> dict:
    return {r.cell: (r.acc, r.asr) for r in store.all() if not r.failed}


def test_a_record_round_trips_with_its_provenance(store):
    store.save(record(SMALL, diagnostics={"sweep": {"0.10": {"acc": 0.5}}}, provenance=provenance("cpu")))
    found = store.find(SMALL)
    assert found.diagnostics == {"sweep": {"0.10": {"acc": 0.5}}}
    assert set(found.provenance["versions"]) >= {"python", "torch", "numpy"}
    assert store.find(SMALL, "0" * 16)
    assert store.find(SMALL, "1" * 16) is None  # another copy of the data


def test_provenance_tells_changed_code_and_not_a_changed_record(tmp_path, monkeypatch):
    monkeypatch.setattr("purifier_core.files.ROOT", tmp_path)
    for name in ("purifier_core/code.py", "data/record.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "data" / "record.json").write_text("1")
    assert provenance("cpu")["dirty"] is False
    (tmp_path / "purifier_core" / "code.py").write_text("1")
    assert provenance("cpu")["dirty"] is True


def test_a_package_in_a_repository_of_another_project_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, "commit", "-qm", "theirs", "--allow-empty"], cwd=tmp_path, check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr("purifier_core.files.ROOT", tmp_path / "site-packages")
    assert provenance("cpu")["commit"] is None


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def half(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "record.json", half)
    assert list(tmp_path.iterdir()) == []


def test_run_computes_once_and_shares_the_backdoored_model(store, monkeypatch):
    first = runner.run(table(), say=lambda _: None)
    assert [r.cell.defense for r in first.records] == ["none", "finetuning", "nad"]
    assert len({r.provenance["backdoored_model"] for r in first.records}) == 1
    assert len(list(store.models.glob("*.pt"))) == 2  # the finetuned one is NAD's teacher
    assert first.records[1].effort["images"] == 40  # one epoch of 5 % of 800 images
    monkeypatch.setattr(compute, "Work", lambda *_: pytest.fail("work began"))
    assert runner.run(table(), say=lambda _: None).records == first.records


def test_a_network_that_others_begin_with_is_trained_once(store, monkeypatch):
    """The same numbers whether Finetuning, MCR or NAD came first, and as from the defense called alone."""
    trained: list[str] = []
    monkeypatch.setattr(
        "purifier_core.lab.defenses.fit",
        lambda *args, **options: (trained.append(options["title"]), fit(*args, **options))[1],
    )
    first = runner.run(table(methods="none,mcr,nad,finetuning"), say=lambda _: None)
    assert sorted(trained) == ["MCR curve", "NAD student", "finetuning"]
    seen = {record.cell.defense: record for record in first.records}
    assert seen["nad"].effort["epochs"] == 2
    assert seen["nad"].effort["losses"][:1] == seen["mcr"].effort["losses"][:1] == seen["finetuning"].effort["losses"]
    assert seen["nad"].effort["seconds"] > seen["finetuning"].effort["seconds"]
    work = compute.Work(store, "quick", "mnist", "cpu")
    nad = seen["nad"].cell
    with threads(PROFILES["quick"].threads):  # as the runner computes
        alone = work._defend(nad, None, None).model
    x, y = work.split.test_images, work.split.test_labels
    assert evaluate(alone, x, y, work.triggered(nad), 5) == {"acc": seen["nad"].acc, "asr": seen["nad"].asr}


def test_abl_alone_trains_no_undefended_network(store):
    (record,) = runner.run(Table4(profile="quick", methods="abl"), say=lambda _: None).records
    assert not list(store.models.glob("*.pt"))
    assert "backdoored_model" not in record.provenance


def test_a_profile_of_many_short_epochs_is_watched_after_some_of_them(store, monkeypatch):
    seldom = replace(PROFILES["quick"], watch_every=2, purifier=(Recipe(3, 0.01), Recipe(4, 0.01)))
    monkeypatch.setitem(PROFILES, "quick", seldom)
    (record,) = runner.run(table(methods="channel", init="full"), say=lambda _: None).records
    assert record.diagnostics["curve"]["epochs"] == [0, 2, 5, 7]
    assert record.diagnostics["curve"]["stages"] == [3]


def test_a_defense_is_watched_after_every_epoch_unless_curves_are_off(store, tmp_path):
    columns = {"methods": "none,finetuning,nad,channel", "init": "full"}
    watched = runner.run(table(**columns), say=lambda _: None)
    curves = {record.cell.defense: record.diagnostics.get("curve") for record in watched.records}
    assert curves["none"] is None
    assert curves["finetuning"]["epochs"] == [0, 1]
    assert curves["nad"]["epochs"] == [0, 2]  # while the teacher is trained the student is the given network
    assert curves["nad"]["stages"] == [1]
    assert curves["channel"]["epochs"] == [0, 1, 2, 3]
    assert curves["channel"]["stages"] == [2]
    for curve in (curves["finetuning"], curves["nad"], curves["channel"]):
        assert curve["images"] == [200, watched.records[0].asr_images]
        assert curve["acc"][0] == curves["finetuning"]["acc"][0]  # the undefended network
    blind = runner.run(table(curves="off", **columns), Store(tmp_path / "blind"), say=lambda _: None)
    assert [(r.acc, r.asr) for r in blind.records] == [(r.acc, r.asr) for r in watched.records]
    assert not any("curve" in r.diagnostics for r in blind.records)


def test_every_attack_trains_and_leaves_a_picture(store):
    results = runner.run(Attacks(profile="quick"), say=lambda _: None)
    assert [r.cell.attack for r in results.records] == ["badnets", "trojan", "blend", "sig", "cl"]
    pictures = {r.diagnostics["sample"]["triggered"] for r in results.records}
    assert len(pictures) == 4  # CL's trigger is that of BadNets
    assert len({r.diagnostics["sample"]["clean"] for r in results.records}) == 1
    assert len(list(store.models.glob("*-none-0-s0-*.pt"))) == 1  # Trojan and CL share one clean model


def test_label_consistent_poison_is_perturbed_stamped_and_keeps_its_label(store, monkeypatch):
    weak = replace(DATASETS["mnist"], perturbation=Perturbation(64, step=16, steps=6))
    monkeypatch.setitem(DATASETS, "mnist", weak)
    work, cell = compute.Work(store, "quick", "mnist", "cpu"), Cell(attack="cl")
    x, y = work.split.train_images, work.split.train_labels
    images, labels = work._poisoned(cell)
    count = len(labels) - len(y)
    assert count == min(len(y) // 10, int((y == 5).sum()))
    assert torch.equal(images[count:], x)  # the clean originals stay
    assert (labels[:count] == 5).all()
    reference, _ = work.backdoored(cell.reference())
    clean, poisoned = x[y == 5], images[:count]
    before, after = (sample_losses(reference, i, labels[: len(i)], NO_AUGMENT, 0).mean() for i in (clean, poisoned))
    assert after > before + 0.1
    nearest = torch.stack([(x[y == 5].int() - one.int()).abs()[:, :, 4:28].amax((1, 2, 3)).min() for one in images[:9]])
    assert (nearest <= 64).all()  # each is a perturbed image of class 5
    assert (nearest > 0).all()
    assert torch.equal(images[:count], badnets(images[:count]))
    triggered = work.triggered(cell)
    assert torch.equal(triggered, badnets(work.split.test_images[work.split.test_labels != 5]))


def test_two_workers_compute_what_one_does(store, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", load)  # as the workers, who know nothing of few digits
    short = {"width": 1 / 16, "backdoor": Recipe(1, 0.1, batch_size=256), "finetuning": Recipe(2, 0.01)}
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], **short))
    experiments = [table(methods="none,finetuning", seeds="0,1"), table(attack="trojan", methods="none")]
    alone = runner.run_all(experiments, Store(tmp_path / "alone"), say=lambda _: None)
    lines: list[str] = []
    both = runner.run_all(experiments, store, say=lines.append, workers=2)
    assert [len(r.records) for r in both] == [4, 1]
    for one, two in zip(alone, both, strict=True):
        assert [(r.cell, r.acc, r.asr) for r in one.records] == [(r.cell, r.acc, r.asr) for r in two.records]
    assert sum(line.startswith("[") for line in lines) == 5
    assert len(list(store.models.glob("*.pt"))) == 6  # three backdoored, two finetuned, and Trojan's clean one


def test_a_deleted_record_comes_back_with_the_same_numbers(store):
    before = runner.run(table(), say=lambda _: None)
    for path in store.folder.rglob("*.json"):
        path.unlink()
    cached = runner.run(table(), say=lambda _: None)
    for path in [*store.folder.rglob("*.json"), *store.models.iterdir()]:
        path.unlink()
    anew = runner.run(table(), say=lambda _: None)
    wanted = [(r.acc, r.asr, r.provenance["backdoored_model"]) for r in before.records]
    for again in (cached, anew):
        assert [(r.acc, r.asr, r.provenance["backdoored_model"]) for r in again.records] == wanted


def test_records_of_two_trainings_of_one_network_are_told(store):
    """As where records come from another machine, and the network does not."""
    undefended = runner.run(table(methods="none"), say=lambda _: None).records[0]
    store.save(replace(undefended, provenance=undefended.provenance | {"backdoored_model": "another"}))
    lines: list[str] = []
    results = runner.run(table(methods="none,finetuning"), say=lines.append)
    caution = f"Caution: trained more than once, as on two machines: {undefended.cell}."
    assert lines[-1].startswith(caution)
    assert caution in results.headline
    runner.run(table(methods="none,finetuning"), say=lines.append)
    assert caution in lines[-1]


def test_a_failing_cell_is_recorded_and_the_others_go_on(store, monkeypatch, capsys):
    def broken(*_args, **_options):
        raise RuntimeError("the student broke")

    arguments = ["run", "table3", "--profile", "quick", "--methods", METHODS]
    with monkeypatch.context() as patch:
        patch.setattr("purifier_core.lab.defenses.nad.nad", broken)
        assert cli.main(arguments) == 1
    assert cli.main(["status"]) == 1
    assert "failed: mnist vgg16 badnets 10% · NAD" in capsys.readouterr().out
    assert {c.defense for c in numbers(store)} == {"none", "finetuning"}
    (failure,) = store.folder.rglob("*.failed.json")
    assert "RuntimeError: the student broke" in read(failure).error
    assert cli.main(arguments) == 0
    assert not list(store.folder.rglob("*.failed.json"))


def test_a_failing_backdoored_model_fails_its_cells_once(store, monkeypatch):
    tries = []

    def broken(*_args, **_options):
        tries.append(1)
        raise RuntimeError("no model")

    monkeypatch.setattr(compute, "fit", broken)
    results = runner.run(table(), say=lambda _: None)
    assert len(results.failed) == 3
    assert len(tries) == 1


def test_the_book_only_reads(store, monkeypatch):
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    monkeypatch.setattr(compute, "Work", lambda *_: pytest.fail("work began"))
    empty = runner.run(table(profile="auto"), say=lambda _: None)
    assert empty.profile == "small"
    assert len(empty.missing) == 1 + 2 * 3  # the book shows all three sizes
    shown = report.table(empty)
    assert (shown.loc[(3000, "ACC", "ours")] == "missing").all()
    assert shown.loc[(3000, "ACC", "published"), "NAD"] == "99.33"
    store.save(record(Cell(profile="paper")))
    store.save(record(Cell(profile="paper", seed=4)))
    best = runner.run(table(profile="auto"), say=lambda _: None)
    assert best.profile == "paper"
    assert best.experiment.seeds == (0, 4)  # and all recorded seeds
    store.save(record(Cell(profile="paper", seed=5, poison_ratio=0.05)))
    assert runner.run(table(profile="auto"), say=lambda _: None).experiment.seeds == (0, 4)  # of this table


def test_the_book_fills_the_gaps_of_a_size_from_the_next_and_says_so(store, monkeypatch):
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")

    def there(defense: str, profile: str, seed: int, acc: float) -> None:
        cell = Cell(defense=defense, clean_size=3000, profile=profile, seed=seed)
        store.save(record(cell, acc))

    for row in (6000, 4500):
        for seed in (0, 1):
            cell = Cell(defense="finetuning", clean_size=row, profile="small", seed=seed)
            store.save(record(cell))
    there("finetuning", "small", 0, 0.5)
    there("finetuning", "small", 1, 0.6)
    there("nad", "small", 1, 0.8)
    there("nad", "wide", 1, 0.7)
    there("finetuning", "paper", 0, 0.9)
    results = look_up(table(profile="auto"))
    assert "What it lacks is taken from wide or small." in results.headline
    shown = report.table(results)
    assert list(shown.loc[(3000, "ACC", "ours")]) == ["missing", "90.00", "70.00"]
    assert list(shown.loc[(3000, "seeds", "profile, n")]) == ["–", "paper, 1", "wide, 1"]
    assert shown.loc[(4500, "seeds", "profile, n"), "Finetuning"] == "small, 2"
    assert "profile paper, else wide, else small; seeds 0, 1" in report.provenance(results)


def test_the_table_shows_ours_against_the_paper(store):
    results = Results(Table3(profile="small", methods="none"), "small", "as asked", [record(SMALL)])
    shown = report.table(results)["No Defense"]
    assert shown[3000, "ACC"].tolist() == ["99.27", "99.00", "one run", "-0.27"]
    assert shown[3000, "ASR"].tolist() == ["99.94", "100.00", "one run", "+0.06"]


@pytest.mark.skipif(may_have_gpu(), reason="a GPU may be here")
def test_what_is_recorded_needs_no_torch_to_find_that_no_gpu_is_here():
    code = (
        "import sys; from purifier_core.lab import results; from purifier_core.lab.experiments import supplement\n"
        "sys.exit(results.look_up(supplement.Table3()).profile != 'quick' or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_status_and_show_need_no_torch(tmp_path):
    code = (
        "import sys; from purifier_core import cli\n"
        "cli.main(['status']); cli.main(['show', 'table3', '--profile', 'small']); assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PURIFIER_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "table3" in done.stdout


def test_bad_arguments_end_with_a_message_and_2(capsys):
    assert cli.main(["run", "table3", "--clean-size", "0"]) == 2
    assert "allowed: 120 to 60000" in capsys.readouterr().err
    assert cli.main(["show", "table3", "--figure", "table3.doc"]) == 2
    assert "allowed: .png, .svg, .pdf" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "table3", "--clean-sise", "3000"])
    assert stopped.value.code == 2


def test_the_digest_of_weights_sees_every_bit():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    same = cache.digest({"b": torch.tensor(3), "a": torch.tensor([1.0, 2.0])})
    assert cache.digest(state) == same
    state["a"][0] = torch.nextafter(state["a"][0], torch.tensor(9.0))
    assert cache.digest(state) != same


@pytest.mark.parametrize("fast", [True, False])
def test_precision_auto_is_bf16_where_the_processor_is_made_for_it(fast, store, monkeypatch):
    """The key stays: it is one experiment. The record says which it was, and how far fp32 agrees."""
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], precision="auto"))
    for module in (compute, draws):
        monkeypatch.setattr(module, "fast_in_bf16", lambda _device: fast)
    key = table().cells("quick")[0].key()
    none, tuned = runner.run(table(methods="none,finetuning"), say=lambda _: None).records
    assert none.key == key
    assert none.provenance["precision"] == tuned.provenance["precision"] == ("bf16" if fast else "fp32")
    assert ("fp32_agreement" in tuned.diagnostics) is fast
    assert tuned.diagnostics.get("fp32_agreement", 1.0) > 0.9
