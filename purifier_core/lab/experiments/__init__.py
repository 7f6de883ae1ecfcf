"""Every experiment by its name, for notebooks and command."""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from purifier_core.checks import ConfigError, one_of
from purifier_core.lab.experiments.beyond import Ladder, Readings, Single, Switches
from purifier_core.lab.experiments.comparison import Attacks, Breaking, Defenses, Repairs
from purifier_core.lab.experiments.grids import Experiment
from purifier_core.lab.experiments.supplement import SUPPLEMENT

_KINDS: tuple[type[Experiment], ...] = (*SUPPLEMENT, Attacks, Defenses, Repairs, Breaking, Readings, Switches, Ladder)
EXPERIMENTS = {kind.name: kind for kind in _KINDS}

COMMANDS = EXPERIMENTS | {Single.name: Single}
"""What the command runs and shows: the experiments of the book, and any one number."""


def from_notebook(name: str, namespace: Mapping[str, Any]) -> Experiment:
    """The experiment that a notebook's variables describe; call it directly after the parameters cell.

    Papermill only logs an unknown parameter, and checks no type. Here any variable that is no parameter of the
    experiment stops the notebook with a ConfigError that names the known ones.
    """
    kind = EXPERIMENTS[one_of("experiment", name, EXPERIMENTS)]
    names = sorted((f.name for f in fields(kind)), key=lambda name: name != kind.axis)  # the axis first
    return kind(**parameters(name, namespace, names))


def parameters(name: str, namespace: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The variables of a notebook, when all of them are known; otherwise a ConfigError."""
    hidden = {"In", "Out", "get_ipython", "exit", "quit", "open"}
    variables = {
        k: v
        for k, v in namespace.items()
        if k in known or not (k.startswith("_") or k in hidden or isinstance(v, types.ModuleType) or callable(v))
    }
    for unknown in variables.keys() - set(known):
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{unknown!r} is not a parameter of {name}; its parameters: {', '.join(known)}.{hint}")
    return variables
