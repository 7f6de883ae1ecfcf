"""Which of the model's classes a folder stands for."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purifier_core.checks import ConfigError
from purifier_core.fix.options import Options

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def numbered(folders: Sequence[str], options: Options) -> dict[str, int]:
    """The number of each folder's class: by default the place of its name in text order, as ImageFolder has it.

    Raises ConfigError where the names do not fit the way that was asked for, or are parts of a data set.
    """
    parts = sorted(name for name in folders if name.lower() in SPLITS)
    if len(parts) > 1 or parts == list(folders):
        raise ConfigError(
            f"{options.images} holds {' and '.join(parts)}, which are parts of a data set and no classes; name one of "
            f"them: --images {options.images / parts[0]}."
        )
    if options.class_index:
        if wrong := [name for name in folders if not name.isdecimal()]:
            raise ConfigError(f"--class-index: the folder {wrong[0]!r} is no class number.")
        if wrong := [name for name in folders if not is_number(name)]:
            raise ConfigError(f"--class-index: the folder {wrong[0]!r} is too large a class number.")
        numbers = {name: int(name) for name in folders}
        if len(set(numbers.values())) < len(numbers):
            raise ConfigError("--class-index: two folders have the same number.")
        return numbers
    if options.class_names:
        names = read_names(options.class_names)
        if unknown := [name for name in folders if name not in names]:
            raise ConfigError(f"{options.class_names} does not name the folder {unknown[0]!r}.")
        return {name: names[name] for name in folders}
    order = sorted(folders, key=_natural) if options.natural else sorted(folders)
    return {name: number for number, name in enumerate(order)}


def is_number(name: str) -> bool:
    """Whether a name can be a class number: digits alone, and below a thousand million."""
    return name.isdecimal() and len(name.lstrip("0")) <= 9


def read_names(path: Path) -> dict[str, int]:
    """Class numbers by name, from a file with a name a line, or JSON: a list, {"name": 0}, or {"0": "name"}.

    ImageNet's {"0": ["n01440764", "tench"]} gives both names. Raises ConfigError for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read as class names ({type(problem).__name__}).") from problem
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, list):
        pairs = [(name, number) for number, name in enumerate(content) if name]
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, int):
                pairs.append((key, value))
            elif key.isdecimal():
                pairs += [(name, int(key)) for name in (value if isinstance(value, list) else [value])]
    names = {name: number for name, number in pairs if isinstance(name, str)}
    if not names or len(names) < len(pairs):
        raise ConfigError(f"{path} gives no class names, or one twice; write a name a line, or JSON.")
    return names


def class_of(text: str, names: Mapping[int, str]) -> int:
    """The class that `text` names or numbers; `name:text` and `index:3` say which is meant.

    Raises ConfigError where it is no class, or is the name of one and the number of another.
    """
    kind, _, rest = text.partition(":")
    numbers = {name: number for number, name in names.items()}
    if kind == "index" and rest.isdecimal():
        return int(rest)
    if kind == "name" and rest in numbers:
        return numbers[rest]
    if text in numbers:
        if text.isdecimal() and int(text) != numbers[text]:
            raise ConfigError(
                f"target={text!r} is the folder of class {numbers[text]} and the number of another class; write "
                f"name:{text} or index:{text}."
            )
        return numbers[text]
    if text.isdecimal():
        return int(text)
    choices = ", ".join(names.values()) or "numbers only, without labels"
    raise ConfigError(f"target={text!r} is no class; known: {choices}.")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts the numbers within names by value: 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
