"""The `purifier` command: a face over runner, records and report."""

import argparse
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError, integer, one_of
from purifier_core.fix import scan_options
from purifier_core.fix.options import Options, add_to
from purifier_core.lab import archive, runner, tidy
from purifier_core.lab.experiments import COMMANDS, EXPERIMENTS
from purifier_core.lab.experiments.beyond import WIDTHS
from purifier_core.lab.experiments.grids import Experiment
from purifier_core.lab.methods import ATTACKS, DATASETS, METHODS, NETWORKS
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store, current
from purifier_core.lab.results import Results, look_up

_HELP = {
    "clean_size": "clean images on the scale of MNIST's 60,000, the same share elsewhere; or 'all'",
    "profile": "auto, " + ", ".join(PROFILES),
    "seeds": "such as 0, 0-2 or 0,4",
    "methods": "all, or names such as none,anp,feature",
    "attack": ", ".join(ATTACKS),
    "poison_ratio": "share of training images copied and poisoned",
    "init": "Purifier's start: full, partial, random, several of them, or all",
    "device": "auto, cpu or cuda",
    "dataset": ", ".join(DATASETS) + ", or all where there are several",
    "network": ", ".join(NETWORKS),
    "defense": ", ".join(METHODS),
    "width": f"channels as a share of the paper's: {', '.join(map(str, WIDTHS))}, or all",
    "switches": "what departs from the intended method, such as init=random,flip=always",
    "switch": "the switch to turn, or all",
    "curves": "on or off: watch each defense after every epoch",
}


JUDGING = ("fix", "scan")
"""The commands whose exit status judges a network: 0 and 1 only if they ran to their end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 something failed or is missing, 2 unusable input."""
    parser = argparse.ArgumentParser(prog="purifier", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, about in (("run", "compute what is missing and show it"), ("show", "show what is recorded")):
        command = verbs.add_parser(verb, help=about, allow_abbrev=False)
        commands = command.add_subparsers(dest="experiment", required=True)
        offered: dict[str, type[Experiment]] = {"all": Experiment, **COMMANDS}
        for name, kind in offered.items():
            about = "all of these" if name == "all" else (kind.__doc__ or "").splitlines()[0]
            options = commands.add_parser(name, allow_abbrev=False, help=about)
            parameters = [
                f for f in fields(kind) if name != "all" or f.name in ("profile", "seeds", "device", "curves")
            ]
            for field in parameters:
                options.add_argument(
                    "--" + field.name.replace("_", "-"), type=_plain, default=field.default, help=_HELP[field.name]
                )
            if name not in ("all", "breaking", "cell"):
                options.add_argument(
                    "--figure", metavar="PATH", help="also draw the figure into this file: png, svg, pdf"
                )
            if verb == "run":
                options.add_argument("--workers", type=_plain, default=1, help="processes that compute, by default 1")
                options.add_argument(
                    "--scheduler", help="have the workers of this Dask scheduler compute: tcp://host:port"
                )
    add_to(verbs)
    scan_options.add_to(verbs)
    verbs.add_parser("status", help="what is done, missing and failed, and how long it took")
    carry = verbs.add_parser(
        "export", help="put records into one file, to carry to another machine", allow_abbrev=False
    )
    carry.add_argument("path", type=Path, nargs="?", metavar="PATH", help="the file to write: NAME.zip or NAME.tar.gz")
    carry.add_argument("--table", type=Path, metavar="FILE", help="instead: a table, a row a record: .csv, .parquet")
    carry.add_argument("--profile", default="all", help="the records of this profile alone: " + ", ".join(PROFILES))
    bring = verbs.add_parser("import", help="add the records of such a file to those here", allow_abbrev=False)
    bring.add_argument("path", type=Path, metavar="PATH", help="the file to read")
    bring.add_argument("--replace", action="store_true", help="where a record here has other numbers, take the file's")
    animals = verbs.add_parser("zoo", help="backdoored networks, ready to try a repair on", allow_abbrev=False)
    animals.add_argument("name", nargs="?", metavar="NAME", help="one of them; without, they are listed")
    animals.add_argument("--out", type=Path, metavar="FOLDER", help="write its weights, its trigger and images here")
    animals.add_argument(
        "--pack", action="store_true", help="pack this network; without a name, every cached one that the zoo lacks"
    )
    animals.add_argument("--page", action="store_true", help="make its repairs for the book's page 'Try it'")
    animals.add_argument("--seed", type=_plain, default=0, help="with --pack and a name: the seed, by default 0")
    animals.add_argument("--device", default="auto", help="with --pack or --page: auto, cpu or cuda")
    chosen = vars(parser.parse_args(arguments))
    verb = chosen.pop("verb")
    try:
        if verb == "fix":
            from purifier_core.fix.run import main as fix

            return fix(Options(**chosen))
        if verb == "scan":
            from purifier_core.fix.scan import main as scan

            pictures = chosen.pop("pictures")
            return scan(scan_options.options_of(chosen), pictures)
        if verb == "zoo":
            return visit(Store(), **chosen)
        if verb == "status":
            return status(Store())
        if verb == "export":
            return export(Store(), **chosen)
        if verb == "import":
            return bring_in(Store(), **chosen)
        figure, workers = chosen.pop("figure", None), integer("workers", chosen.pop("workers", 1), 1, 64)
        if figure:
            one_of("the ending of figure", Path(figure).suffix.lower(), (".png", ".svg", ".pdf"))
        name, scheduler = chosen.pop("experiment"), chosen.pop("scheduler", None)
        kinds = list(EXPERIMENTS.values()) if name == "all" else [COMMANDS[name]]
        experiments = [kind(**chosen) for kind in kinds]
        if name == "all":
            experiments = [experiment.full_grid() for experiment in experiments]
        store = Store()
        if verb == "run":
            every = runner.run_all(experiments, store, workers=workers, scheduler=scheduler)
        else:
            every = [look_up(experiment, store) for experiment in experiments]
        try:
            return max([show(results, store, figure) for results in every])
        except ImportError as problem:  # a machine that only computes
            missing = f"{problem}; `purifier show` prints them where all packages are installed"
            print(f"purifier: the results are stored, but cannot be shown here: {missing}.", file=sys.stderr)
            return int(verb == "show" or any(results.missing for results in every))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is missing.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2 if verb in JUDGING else 0
    except (ConfigError, RuntimeError, OSError) as problem:
        print(f"purifier: {problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as problem:
        print(f"purifier: {problem}. The experiments' packages are an extra: pip install -e '.[lab]'", file=sys.stderr)
        return 2
    except Exception:
        if verb not in JUDGING:
            raise
        traceback.print_exc()
        print("purifier: this is a defect of purifier, and no finding; nothing was judged.", file=sys.stderr)
        return 2


def show(results: Results, store: Store, figure: str | None = None) -> int:
    """Print an experiment's table and reading; returns 1 if something is missing."""
    from purifier_core.pages import (
        ablation,
        anomaly,
        breaking,
        committed,
        defenses,
        efficiency,
        gallery,
        inside,
        ladder,
        readings,
        repairs,
        report,
        single,
    )

    kind = results.experiment
    views: dict[str, Any] = {
        "figure13": efficiency,
        "attacks": gallery,
        "defenses": defenses,
        "readings": readings,
        "switches": ablation,
        "ladder": ladder,
        "repairs": repairs,
        "breaking": breaking,
        "cell": single,
    } | dict.fromkeys(("figure10", "figure11", "figure12"), anomaly)
    view = views.get(kind.name, report)
    print(f"\n{kind.title}")
    print(report.as_text(view.table(results)))
    notes = inside.notes(results) if view is report else []
    for line in (*view.reading(results), *notes, report.provenance(results)):
        print(line)
    if view is report and (beside := committed.text(results)):
        print(beside)
    if figure:
        view.figure(results).savefig(figure, dpi=150)
    for record in results.failed:
        print(f"FAILED {store.path(record.cell, record.data['fingerprint'], failed=True)}", file=sys.stderr)
    return 1 if results.missing else 0


def status(store: Store) -> int:
    """Print, for every experiment and profile, what is done, missing and failed, and the seconds it took."""
    from purifier_core.pages.overview import progress

    print(progress(store).reset_index().to_string(index=False))
    every = list(store.all())
    failed = current(every)[1]
    for cell in sorted(map(str, failed)):
        print(f"failed: {cell}")
    for profile, count in Counter(r.cell.profile for r in every if r.stale).items():
        print(f"{count} records at {profile} come from another version of the code and are not shown.")
    return 1 if failed else 0


def export(store: Store, path: Path | None, table: Path | None, profile: str) -> int:
    """Write the finished records into one file, to carry or as a table; returns 1 if there are none."""
    one_of("profile", profile, ("all", *PROFILES))
    if (path is None) == (table is None):
        raise ConfigError("name one file: NAME.zip or NAME.tar.gz to carry records, or --table NAME.csv for a table.")
    write = archive.export if path else tidy.export
    path = path or table
    assert path is not None
    count = write(store, path, None if profile == "all" else profile)
    of = "" if profile == "all" else f" of profile {profile}"
    print(
        f"{count} records{of} in {path}" if count else f"{store.folder} holds no finished records{of}; nothing written."
    )
    return 0 if count else 1


def bring_in(store: Store, path: Path, replace: bool) -> int:
    """Add the records of a file to the store; returns 1 if some were refused."""
    count = archive.merge(store, path, replace, say=print)
    print(f"{count['imported']} imported, {count['known']} already there, {count['refused']} refused, from {path}")
    return 1 if count["refused"] else 0


def visit(store: Store, name: str | None, out: Path | None, pack: bool, page: bool, seed: int, device: str) -> int:
    """List the zoo, print a card, write a network for use elsewhere, or pack networks into it."""
    from purifier_core.lab import live, packing, zoo

    if out and (pack or page):
        raise ConfigError("--out writes a network of the zoo; leave --pack and --page out.")
    if seed and not (pack and name):
        raise ConfigError("--seed goes with --pack and a network's name.")
    if page:
        cell = packing.cells()[one_of("network", name, live.PAGE)]
        live.make(str(name), packing.work(store, cell, device))
        return 0
    if pack and name is None:
        print(f"{packing.pack_cached(store, device, print)} networks packed into {zoo.FOLDER}")
    elif pack:
        cell = packing.cells(integer("seed", seed, 0, 2**31 - 1))[one_of("network", name, packing.cells())]
        print(packing.line(packing.pack(packing.work(store, cell, device), cell)))
    elif name is None:
        for card in map(zoo.card, zoo.names()):
            print(packing.line(card))
    elif out is None:
        print(json.dumps(zoo.card(name), indent=1))
    else:
        print(f"{out} holds {name}. To look for a backdoor, and repair it:\n\n  {zoo.write(name, out)}")
    return 0


def _plain(text: str) -> Any:
    """A number where the text is one, as papermill reads its -p values."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    sys.exit(main())
