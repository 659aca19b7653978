"""Read the settings of an experiment from TOML files, and check them against dataclasses."""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from change.common.command_line import options_of, parse_given
from change.common.errors import UserError, list_names
from change.options.train import TrainOptions

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

Settings = TypeVar("Settings")
Value = str | int | float | bool
Options = dict[str, Value]  # options of train.py by name

# For each type of a field: the types of its TOML value, and how error messages describe it.
EXPECTED: dict[Any, tuple[type | tuple[type, ...], str]] = {
    str: (str, "a text in quotes"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
    tuple[int, ...]: (list, "a list of whole numbers"),
    Options: (dict, "a table of options of train.py"),
}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UserError if it is missing or not valid."""
    if not path.is_file():
        raise UserError(
            f"no settings at {path}: name a TOML file, such as ablation.toml in change/experiments of a clone"
        )
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML or of UTF-8
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return table


def build(kind: type[Settings], table: Mapping[str, Any], place: str, **ready: Any) -> Settings:
    """Build the dataclass `kind` from a TOML table.

    Args:
        kind: Dataclass whose fields, except those in `ready`, have the types in EXPECTED.
        table: Keys and values as TOML gives them.
        place: The file, and the part of it, that errors name.
        ready: Values of fields that are not in the table.

    Raises:
        UserError: If a key is unknown or missing, a value has the wrong type, or the dataclass refuses it.
    """
    hints = typing.get_type_hints(kind)
    specs = {spec.name: spec for spec in fields(kind) if spec.name not in ready}  # type: ignore[arg-type]
    if unknown := [name for name in table if name not in specs]:
        raise UserError(f"{place}: unknown key {list_names(unknown)}; the keys are {', '.join(specs)}")
    for name, spec in specs.items():
        if name not in table and spec.default is MISSING and spec.default_factory is MISSING:
            raise UserError(f"{place}: the key {name} is missing")
    values = {name: read_value(value, hints[name], f"{place}: {name}") for name, value in table.items()}
    try:
        return kind(**values, **ready)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def read_value(value: Any, hint: Any, place: str) -> Any:
    """Convert a TOML value for a field of type `hint`. Raises UserError if it has another type."""
    types, description = EXPECTED[hint]
    right = isinstance(value, types) and (hint is bool or not isinstance(value, bool))
    if right and isinstance(value, list):
        right = all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    if not right:
        raise UserError(f"{place} is {value!r}: give {description}")
    if hint == Options:
        check_options(value, place)
    return tuple(value) if isinstance(value, list) else value


def check_options(options: Mapping[str, Any], place: str) -> None:
    """Raise UserError if a key is not an option of train.py, or a value is a list or a table."""
    known = option_names()
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{place}: unknown key {name}; python train.py --help lists the options of train.py")
        if not isinstance(value, str | int | float | bool):
            raise UserError(f"{place}: {name} is {value!r}: give one value, as in {name} = 1")


def option_names() -> set[str]:
    """Return the names of all options of train.py."""
    return {spec.name for _, spec in options_of(TrainOptions)}


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse options of train.py as train.py does, without defaults for options that are not given."""
    return parse_given(TrainOptions, arguments, "Options of train.py.")


def refuse_own(options: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Raise UserError for an option that an experiment sets itself. `own` maps these options to remedies."""
    for name, remedy in own.items():
        if name in options:
            raise UserError(f"{name} cannot be chosen here: {remedy}")
