"""Checks of what a user gives, and the one error that they raise."""

import difflib
from typing import Any


class ConfigError(ValueError):
    """A value that cannot be used; the message names it, what is allowed, and the way out."""


def one_of(name: str, value: Any, allowed: Any) -> Any:
    """Return `value` if it is one of `allowed`; otherwise raise a ConfigError that lists them."""
    choices = list(allowed)
    if isinstance(value, str) and value in choices:
        return value
    close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{name}={value!r} is not known; allowed: {', '.join(map(str, choices))}.{hint}")


def integer(name: str, value: Any, low: int, high: int, more: str = "") -> int:
    """Return `value` if it is a whole number from `low` to `high`; otherwise raise a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"{name}={value!r} is a {type(value).__name__}; it must be a whole number from {low} to {high}{more}."
        )
    if not low <= value <= high:
        raise ConfigError(f"{name}={value!r} is out of range; allowed: {low} to {high}{more}.")
    return value
