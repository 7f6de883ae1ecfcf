"""What one command each does with the networks of the zoo: is the backdoor found, and is it gone?

    OMP_NUM_THREADS=1 python benchmarks/zoo_commands.py [NAME ...]

Writes each network as `purifier zoo NAME --out` does, runs the `purifier fix` command that this prints, and adds what
its JSON says to data/zoo/commands.json; what is there already is not run again. MNIST's images come with the clone,
the others' from the data. A network takes some minutes. `cpu_seconds` is the process's time on all its threads.
"""

import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from purifier_core import cli
from purifier_core.files import write_atomically
from purifier_core.lab import zoo

PATH = zoo.FOLDER / "commands.json"
KEPT = ("status", "findings", "scan", "candidates", "rates", "images", "target", "method", "date", "provenance")


def tried(name: str) -> dict[str, Any]:
    """The outcome of one network's command."""
    with tempfile.TemporaryDirectory() as folder:
        command = zoo.write(name, Path(folder))
        out = Path(folder, "report.json")
        started = time.process_time()
        status = cli.main([*shlex.split(command)[1:], "--json", str(out)])
        seconds = time.process_time() - started
        if status not in (0, 1):
            raise SystemExit(f"{name}: exit status {status}")
        told = json.loads(out.read_text())
    return {key: told[key] for key in KEPT} | {"cpu_seconds": round(seconds, 1)}


def main(names: list[str]) -> None:
    """Run what is missing of the named networks, by default of all."""
    for name in names or zoo.names():
        known = json.loads(PATH.read_text()) if PATH.exists() else {}
        if name not in known:
            known |= {name: tried(name)}
            text = json.dumps(dict(sorted(known.items())), indent=1) + "\n"
            write_atomically(PATH, lambda part, text=text: part.write_text(text))


if __name__ == "__main__":
    main(sys.argv[1:])
