"""Spreading groups of options into the flat signature that typer reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


def spread_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with every parameter that is a dataclass of options replaced by the dataclass's fields.

    The fields are options with defaults; ``command`` is called with the dataclasses made of their values.
    """
    hints = {name: _declared(hint) for name, hint in get_type_hints(command, include_extras=True).items()}
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if is_dataclass(hint):
            groups[name] = hint
            types = get_type_hints(hint, include_extras=True)
            flat += [
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
                )
                for field in fields(hint)
            ]
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint))

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**made, **values)

    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return called


def _declared(hint: Any) -> Any:
    """Python 3.10 wraps the type of a parameter whose default is None in Optional, which hides its Annotated."""
    if get_origin(hint) is Union:
        inner = [argument for argument in get_args(hint) if argument is not NoneType]
        if len(inner) == 1 and get_origin(inner[0]) is Annotated:
            return inner[0]
    return hint
