"""A progress bar for long work."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any


def progress(title: str, total: int) -> Any:
    """A progress bar in images, with images/s and ETA; it writes rarely where nobody watches a terminal.

    Where tqdm is not installed there is none.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext(SimpleNamespace(update=_ignore, set_postfix_str=_ignore))

    watched = sys.stderr.isatty()
    pause = 1.0 if watched else 10.0  # short work shows no bar
    return tqdm(total=total, desc=title, unit="img", unit_scale=True, leave=False, delay=pause, mininterval=pause / 5)


def _ignore(*_values: Any, **_options: Any) -> None:
    """Stands in for a bar's methods."""
