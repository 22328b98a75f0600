"""Flags as fields of dataclasses: one class for each panel of the help."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from typer.models import ArgumentInfo, ParameterInfo

#: Short, so that the help has room for the longest names.
_METAVARS = {int: "N", int | None: "N", float: "X", str: "TEXT", str | None: "TEXT"}


@dataclass(frozen=True)
class Flag:
    """One flag, or argument: `kind` is its Python type, `option` what typer is told of it."""

    name: str
    kind: Any
    option: ParameterInfo
    default: Any
    panel: str

    @property
    def is_boolean(self) -> bool:
        return self.kind is bool

    @property
    def is_argument(self) -> bool:
        return isinstance(self.option, ArgumentInfo)

    @property
    def is_path(self) -> bool:
        return self.kind in (Path, Path | None)


def flag(help: str, **settings: Any) -> Any:  # noqa: A002 (typer's word)
    """For a field's `Annotated`: a flag of the field's name."""
    return typer.Option(help=help, **settings)


def size(text: str | int) -> int:
    """A number of bytes, such as 20GiB."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is not a size such as 20GiB") from None


def flags_of(group: type[Any]) -> Iterator[Flag]:
    """The flags of a dataclass of flags, or of one of such dataclasses, in order."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if isinstance(hint, type) and hasattr(hint, "PANEL"):
            yield from flags_of(hint)
        else:
            yield _flag(field, hint, group.PANEL)


def takes(groups: type[Any]) -> Callable[[Callable[[typer.Context, Any], int | None]], Any]:
    """Make a command of a function: its flags are those of a dataclass of dataclasses of flags.

    What it returns is the exit status, if it is not None.
    """

    def decorate(function: Callable[[typer.Context, Any], int | None]) -> Any:
        def command(context: typer.Context, **values: Any) -> int | None:
            return function(context, _filled(groups, values))

        parameters = [_parameter("context", typer.Context)]
        parameters += [_parameter(f.name, _option(f), f.default) for f in flags_of(groups)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def given(context: typer.Context) -> frozenset[str]:
    """The flags that the user has set."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source and source.name == "COMMANDLINE"
    )


def _flag(field: Field[Any], hint: Any, panel: str) -> Flag:
    kind, option = get_args(hint)
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return Flag(field.name, kind, option, default, panel)


def _option(one: Flag) -> Any:
    option = copy(one.option)
    if one.is_argument:
        return Annotated[one.kind, option]
    option.param_decls = (f"--{one.name}",)
    option.rich_help_panel = one.panel
    option.metavar = option.metavar or _METAVARS.get(one.kind)
    if one.kind is float:
        option.callback = _finite
    if not one.is_boolean:
        return Annotated[one.kind, option]
    # To typer a boolean is a flag without a value; TensorFlow's may have one.
    option.parser, option.metavar = _truth, "BOOL"
    option.show_default = str(one.default).lower()
    return Annotated[str, option]


def _truth(text: str | bool) -> bool:
    return text in (True, "true")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not finite")
    return number


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _filled(group: type[Any], values: dict[str, Any]) -> Any:
    hints = get_type_hints(group)
    return group(
        **{
            field.name: _filled(hints[field.name], values)
            if hasattr(hints[field.name], "PANEL")
            else values[field.name]
            for field in fields(group)
        }
    )
