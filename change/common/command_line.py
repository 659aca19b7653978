"""Command lines generated from typed dataclasses, in groups.

An options class is a frozen dataclass whose fields are groups; a group is a frozen dataclass whose fields are options,
made by `option`. The type of a field determines how its argument is read (bool: --x, --no-x, --x=True, --x=False); its
metadata holds the rest. Files and checkpoints hold options as a flat dict, name -> value.
"""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, field, fields
from typing import Annotated, Any, TypeVar

from change.common.errors import OneLineParser, UserError

Options = TypeVar("Options")

# Types of options that are strings, with the word that help texts show for their values.
Folder = Annotated[str, "FOLDER"]
File = Annotated[str, "FILE"]
Name = Annotated[str, "NAME"]
Numbers = Annotated[str, "NUMBERS"]


def option(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    alias: str = "",
    needs: str = "",
    read: Callable[[str], Any] | None = None,
) -> Any:
    """Make a dataclass field that is a command-line option.

    Args:
        default: the value if the option is not given.
        help: the meaning of the option, as a phrase.
        choices: the allowed values.
        alias: another name for it.
        needs: the option without which this one does nothing: "refine", or "schedule=poly" for one of its values.
        read: converts the text of its argument; by default the type of the field does.
    """
    return field(
        default=default, metadata={"help": help, "choices": choices, "alias": alias, "needs": needs, "read": read}
    )


def groups_of(kind: type) -> dict[str, type]:
    """Return the groups of an options class: field name -> dataclass."""
    types = typing.get_type_hints(kind)
    return {spec.name: types[spec.name] for spec in fields(kind)}


def options_of(kind: type) -> Iterator[tuple[type, Field[Any]]]:
    """Yield every option of an options class, together with its group."""
    for group in groups_of(kind).values():
        for spec in fields(group):
            yield group, spec


def to_flat(options: Any) -> dict[str, Any]:
    """Turn options into one dict, name -> value."""
    return {name: value for group in asdict(options).values() for name, value in group.items()}


def from_flat(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Build options from a flat dict; missing ones get their defaults. Raises UserError for unknown names."""
    unknown = values.keys() - {spec.name for _, spec in options_of(kind)}
    if unknown:
        raise UserError(f"unknown options: {', '.join(sorted(unknown))}")
    parts = {
        name: group(**{spec.name: values[spec.name] for spec in fields(group) if spec.name in values})
        for name, group in groups_of(kind).items()
    }
    return kind(**parts)


def parse_given(kind: type, arguments: Sequence[str], description: str) -> dict[str, Any]:
    """Parse a command line into a flat dict of the options that it gives, without defaults."""
    parser = OneLineParser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for group in groups_of(kind).values():
        section = parser.add_argument_group(title_of(group))
        types = typing.get_type_hints(group, include_extras=True)
        for spec in fields(group):
            add_argument(section, spec, types[spec.name])
    return vars(parser.parse_args(arguments))


def title_of(group: type) -> str:
    """Return the heading of a group: the first line of its docstring, without the full stop."""
    return (group.__doc__ or "").partition("\n")[0].rstrip(".")


def add_argument(section: Any, spec: Field[Any], hint: Any) -> None:
    """Add one option, whose type is `hint`, to a parser's group."""
    meta = spec.metadata
    flags = [f"--{name}" for name in (spec.name, meta["alias"]) if name]
    needs = f"; needs --{meta['needs'].replace('=', ' ')}" if meta["needs"] else ""
    default = "" if spec.default == "" else f" (default: {spec.default})"
    text = f"{meta['help']}{needs}{default}".replace("%", "%%")
    kind, word = typing.get_args(hint) or (hint, hint.__name__.upper())
    if kind is bool:
        section.add_argument(*flags, dest=spec.name, nargs="?", const=True, type=read_bool, metavar="BOOL", help=text)
        section.add_argument(f"--no-{spec.name}", dest=spec.name, action="store_false", help=argparse.SUPPRESS)
        return
    section.add_argument(
        *flags,
        dest=spec.name,
        type=meta["read"] or kind,
        choices=meta["choices"],
        help=text,
        metavar=None if meta["choices"] else word,
    )


def read_bool(text: str) -> bool:
    """Read True and False in the usual spellings."""
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False") from None


def refuse_without_effect(kind: type, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise UserError for a given option that does nothing in this mode.

    Args:
        kind: the options class.
        given: the options on the command line; False switches nothing on, so it is always accepted.
        values: all options, flat, defaults included.
    """
    for _, spec in options_of(kind):
        needed, _, value = spec.metadata["needs"].partition("=")
        if spec.name not in given or given[spec.name] is False or not needed:
            continue
        if value:
            is_on, remedy = str(values[needed]) == value, f"--{needed} {value}"
        else:
            is_on, remedy = bool(values[needed]), f"--{needed}"
        if not is_on:
            raise UserError(f"--{spec.name} does nothing without {remedy}: add that, or leave out --{spec.name}")


def refuse_idle(given: Mapping[str, Any], names: Iterable[str], mode: str) -> None:
    """Raise UserError for the first of `names` that is given: none of these options has an effect in this mode.

    Args:
        given: the options on the command line, without defaults.
        names: the options without effect.
        mode: the setting in which they have no effect, for the error: "--format onnx".
    """
    for name in names:
        if name in given:
            raise UserError(f"--{name} does nothing with {mode}: leave it out")


def require_at_least(options: object, bound: int, *names: str) -> None:
    """Raise UserError for the first named field that is below `bound`, infinite or too large for an integer."""
    for name in names:
        value = getattr(options, name)
        largest = 2**63 if isinstance(value, int) else math.inf
        if not bound <= value < largest:
            raise UserError(f"--{name} {value}: choose {bound} or more, and a finite number")


def require_share(options: object, *names: str) -> None:
    """Raise UserError for the first named field that is not within 0 to 1."""
    for name in names:
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise UserError(f"--{name} {value}: choose 0 to 1")


def read_numbers(name: str, text: str, count: int, example: str) -> tuple[float, ...]:
    """Read `count` numbers separated by spaces, the value of option `name`. Raises UserError for anything else."""
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError:
        values = ()
    if len(values) != count:
        words = {2: "two", 4: "four"}
        raise UserError(f'--{name} "{text}": give {words[count]} numbers, "{example}"')
    return values


def check_threshold(text: str) -> None:
    """Raise UserError for a --threshold that is neither empty, nor val, nor a number from 0 to below 1."""
    if text in ("", "val"):
        return
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UserError(f"--threshold {text}: choose a number from 0 to below 1, or val")


def read_range(name: str, text: str, example: str) -> tuple[float, float] | None:
    """Read the value of option `name`: one positive number, or two in ascending order.

    Returns None for "". Raises UserError for anything else.
    """
    if not text:
        return None
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not 0 < values[0] <= values[-1] < math.inf:
        raise UserError(f'--{name} "{text}": give one number above 0, or two with the smaller one first, "{example}"')
    return values[0], values[-1]


def option_tables(kind: type) -> str:
    """Format the options as Markdown, one table per group."""
    lines: list[str] = []
    for group in groups_of(kind).values():
        lines += [f"### {title_of(group)}", "", "| option | default | meaning |", "|---|---|---|"]
        for spec in fields(group):
            names = ", ".join(f"`--{name}`" for name in (spec.name, spec.metadata["alias"]) if name)
            text = spec.metadata["help"]
            if choices := spec.metadata["choices"]:
                text += f"; one of {', '.join(map(str, choices))}"
            if needs := spec.metadata["needs"]:
                text += f"; needs `--{needs.replace('=', ' ')}`"
            lines.append(f"| {names} | {spec.default} | {text} |")
        lines.append("")
    return "\n".join(lines)
