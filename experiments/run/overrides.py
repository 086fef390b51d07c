"""Fields of a configuration as text: what is typed after --config.a.b=, and what is printed."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import lrnet_jax
from experiments.config import SECTIONS, Config, ConfigError, flatten, remat_on_gpu

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def override(config: Config, path: str, text: str) -> Config:
    """A Config with one field set from the command line; see `override_all`."""
    return override_all(config, [(path, text)])


def override_all(config: Config, changes: Sequence[tuple[str, str]]) -> Config:
    """A Config with fields set from the command line.

    They are set at once, so that their order does not matter and only the outcome is checked. The
    network comes first, because the fields of `model` follow it.

    Args:
      config: the Config to start from.
      changes: the path of each field, such as "optim.learning_rate", and the value as typed: "none"
        where the field may be None, "3,4,6,3" for tuples.

    Raises:
      ConfigError: there is no such field (the message names the nearest), a path is a section, or
        a value has the wrong type or is out of range.
    """
    for path, text in changes:
        if path == "network":
            config = _change_network(config, text)
    sections: dict[str, dict[str, Any]] = {}  # "" for the fields of Config itself
    for path, text in changes:
        if path != "network":
            section, name = _locate(config, path)
            kind = typing.get_type_hints(SECTIONS.get(section, Config))[name]
            sections.setdefault(section, {})[name] = parse(kind, text, path)
    fields = sections.pop("", {})
    arguments = " ".join(f"config.{path}={text}" for path, text in changes)
    try:
        for section, values in sections.items():
            fields[section] = dataclasses.replace(getattr(config, section), **values)
        return dataclasses.replace(config, **fields)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{arguments}: {error}") from error


def describe(config: Config) -> str:
    """All fields, one a line, as they would be typed."""
    return "\n".join(_line(path, value) for path, value in flatten(config).items())


def describe_changes(config: Config, base: Config) -> list[str]:
    """The fields in which a Config differs from another, one a line, as they would be typed.

    Fields of `model` that follow from another network are not among them.
    """
    if config.network != base.network:
        base = override(base, "network", config.network)
        changes = [_line("network", config.network)]
    else:
        changes = []
    before = flatten(base)
    return changes + [
        _line(path, value) for path, value in flatten(config).items() if value != before[path]
    ]


def _line(path: str, value: Any) -> str:
    return f"  --config.{path}={typed(value)}"


def parse(kind: Any, text: str, path: str) -> Any:
    """The value of a field from its text.

    Args:
      kind: type hint of the field.
      text: the value as typed.
      path: path of the field, for messages.

    Raises:
      ConfigError: the text is no value of that type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(arguments, text, path)
    if origin is Literal:
        if text not in arguments:
            near = difflib.get_close_matches(text, arguments, n=1)
            raise ConfigError(
                f"config.{path} must be one of {', '.join(arguments)}; got {text!r}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        return text
    if origin is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        return tuple(parse(arguments[0], item, path) for item in items)
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"config.{path} must be true or false, got {text!r}")
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            raise ConfigError(f"config.{path} must be {number}, got {text!r}") from None
    return text


def _parse_union(kinds: Sequence[Any], text: str, path: str) -> Any:
    if type(None) in kinds and text.lower() == "none":
        return None
    # Where a field takes both, "256" is an int and "256,512" a tuple.
    kind, *_ = sorted(
        (kind for kind in kinds if kind is not type(None)),
        key=lambda kind: (typing.get_origin(kind) is tuple) != ("," in text),
    )
    return parse(kind, text, path)


def typed(value: Any) -> str:
    """The value of a field as it would be typed."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _locate(config: Config, path: str) -> tuple[str, str]:
    """The section and the name of a field; the section of Config's own fields is ""."""
    name, *rest = path.split(".")
    section = ""
    node: Any = config
    if name in SECTIONS:
        if not rest:
            fields = ", ".join(_fields(SECTIONS[name]))
            raise ConfigError(f"config.{path} is a section; set one of its fields: {fields}")
        section, node = name, getattr(config, name)
        name, *rest = rest
    if name not in _fields(node) or path == "recipe":
        raise ConfigError(f"no field config.{path}; {_nearest(_fields(node), name, path)}")
    if rest:
        raise ConfigError(f"config.{path}: {name} is a field, not a section")
    return section, name


def _nearest(known: Sequence[str], name: str, path: str) -> str:
    """What the user may have meant by a name that is not among the known ones."""
    parent = path.rsplit(name, 1)[0]
    near = [parent + match for match in difflib.get_close_matches(name, known, n=1)]
    # The usual slip is to forget the section.
    near += [f"{section}.{name}" for section, kind in SECTIONS.items() if name in _fields(kind)]
    return f"did you mean {near[0]}?" if near else f"fields here are {', '.join(known)}"


def _fields(node: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(node)]


def _change_network(config: Config, network: str) -> Config:
    """Another network of the zoo, with the recipe's own changes kept.

    `remat` is no such change where the network decided it: in a recipe for GPUs, which computes in
    bfloat16. There the other network gets its own.
    """
    before = lrnet_jax.get_variant(config.network)
    changed = {
        name: getattr(config.model, name)
        for name in _fields(before)
        if getattr(config.model, name) != getattr(before, name)
    }
    decided = config.model.dtype == "bfloat16" and config.model.remat == remat_on_gpu(config.model)
    try:
        variant = dataclasses.replace(lrnet_jax.get_variant(network), **changed)
        if decided:
            variant = dataclasses.replace(variant, remat=remat_on_gpu(variant))
        return dataclasses.replace(config, network=network, model=variant)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.network={network}: {error}") from error
