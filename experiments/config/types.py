"""Whether a record, as JSON has it, fits the fields of a dataclass."""

import types
import typing
from typing import Any, Literal

from experiments.config.sections import ConfigError

_PLAIN = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_MANY = {str: "texts", int: "whole numbers", float: "numbers"}


def check_record(kind: Any, record: Any, prefix: str = "", *, values: bool = True) -> None:
    """Raises unless a record has only fields of a dataclass, each with a value of its type.

    Fields that are dataclasses themselves are not looked at.

    Args:
      kind: the dataclass.
      record: as read from JSON.
      prefix: of the names in messages, such as "optim.".
      values: whether those are looked at, and not names alone.

    Raises:
      ConfigError: it has not; the message names the field and its value.
    """
    if not isinstance(record, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'it'} must be an object, got {record!r}")
    hints = typing.get_type_hints(kind)
    for name, value in record.items():
        if name not in hints:
            raise ConfigError(f"there is no field {prefix}{name}")
        if values and not _fits(value, hints[name]):
            raise ConfigError(f"{prefix}{name} must be {describe_type(hints[name])}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str):
        return isinstance(value, hint) and not isinstance(value, bool)
    return hint is not bool or isinstance(value, bool)


def describe_type(hint: Any, *, none: str = "null", items: str = "a list of {}") -> str:
    """The values of a type hint in words, such as "a whole number or null".

    Args:
      hint: of a field.
      none: how None is written.
      items: how the items of a tuple, {}, are written.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(kind, none=none, items=items) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return items.format(_MANY[arguments[0]])
    return none if hint is types.NoneType else _PLAIN.get(hint, str(hint))
