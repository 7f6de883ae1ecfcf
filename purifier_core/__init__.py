"""Find, suppress and repair backdoors in a PyTorch image classifier.

These names are the public ones. Each is loaded when it is first asked for, so that reading records needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purifier_core.bounds import Bounded as Bounded
    from purifier_core.bounds import bound as bound
    from purifier_core.checks import ConfigError as ConfigError
    from purifier_core.evaluation import DivergedError as DivergedError
    from purifier_core.evaluation import evaluate as evaluate
    from purifier_core.purifier import Purified as Purified
    from purifier_core.purifier import purify as purify
    from purifier_core.recipes import Recipe as Recipe
    from purifier_core.repairing import Repaired as Repaired
    from purifier_core.repairing import repair as repair
    from purifier_core.scanning import Findings as Findings
    from purifier_core.scanning import scan as scan
    from purifier_core.sites import detach as detach
    from purifier_core.training import Augment as Augment
    from purifier_core.training import Effort as Effort

_ROOMS = {
    "bounds": ("Bounded", "bound"),
    "checks": ("ConfigError",),
    "evaluation": ("DivergedError", "evaluate"),
    "purifier": ("Purified", "purify"),
    "recipes": ("Recipe",),
    "repairing": ("Repaired", "repair"),
    "scanning": ("Findings", "scan"),
    "sites": ("detach",),
    "training": ("Augment", "Effort"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)  # as the type checker reads it above


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'purifier_core' has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(import_module(f"purifier_core.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
