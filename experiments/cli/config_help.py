"""What --config=help prints: the recipes, and each field with its meaning, its values, its default.

The meanings are those of the docstrings of the dataclasses, their sections "Attributes:".
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import lrnet_jax
from experiments.cli.command_line import paragraph
from experiments.config import FREE, SECTIONS, Config
from experiments.config.types import describe_type
from experiments.run.overrides import typed
from lrnet_jax.data.in_memory import EMBEDDED
from pallas_kernels.api import IMPLEMENTATIONS

DEFAULT_NETWORK = "lrnet26"  # that of `lrnet_jax.Variant`


def help_text() -> str:
    """The recipes and the fields."""
    return "\n".join([*_recipes(), "", *_fields()])


def meanings(kind: Any) -> dict[str, str]:
    """The meaning of each field of a dataclass, from its docstring, in one line each."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[2]
    listed = re.split(r"\n(?=\S)", text)[0]  # up to the next section
    entries = re.findall(r"^  (\w+): ((?:.+\n?)(?:    .+\n?)*)", listed, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _recipes() -> Iterator[str]:
    from experiments.recipes import RECIPES

    yield "recipes (--config=NAME):"
    group = None
    for name, config in RECIPES.items():
        if name.partition("/")[1] and name.partition("/")[0] != group:
            group = name.partition("/")[0]
            table = group.removeprefix("table")
            yield f" rows of the paper's Table {table}:" if table != group else f" {group}:"
        yield f"  {name:26s} {config.network} on {config.data.name}"


def _fields() -> Iterator[str]:
    yield "fields (--config.FIELD=VALUE), with their defaults, which a recipe may change:"
    yield from _entries("", Config, skipped={"recipe", *SECTIONS})
    for name, kind in SECTIONS.items():
        first = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
        yield f"\n{name}: {first}"
        if name == "model":
            yield "  They follow --config.network where neither recipe nor command line sets them."
        yield from _entries(f"{name}.", kind)


def _entries(prefix: str, kind: Any, skipped: set[str] | frozenset[str] = frozenset()) -> Any:
    hints, texts = typing.get_type_hints(kind), meanings(kind)
    for field in dataclasses.fields(kind):
        if field.name in skipped:
            continue
        path = prefix + field.name
        default = DEFAULT_NETWORK if field.default is dataclasses.MISSING else field.default
        flag = f"--config.{path}={typed(default)}"
        yield paragraph(f"{flag}  ({_values(path, hints[field.name])})", first=2)
        resumed = " It may change when a run is resumed." if path in FREE else ""
        yield paragraph(_as_typed(texts[field.name]) + resumed)


def _as_typed(meaning: str) -> str:
    """A meaning as a sentence, with constants as they are typed."""
    for constant in ("None", "True", "False"):
        meaning = re.sub(rf"\b{constant}\b", constant.lower(), meaning)
    word = re.split(r"\W", meaning)[0]
    return meaning if word == "m" else meaning[0].upper() + meaning[1:]  # the paper's m


def _values(path: str, hint: Any) -> str:
    """What may be typed for a field."""
    if path == "network":
        return "one of " + ", ".join(lrnet_jax.list_models())
    if path == "data.name":
        return f"one of {', '.join(EMBEDDED)}, folder, imagenet2012, or a data set of TFDS"
    if path == "model.implementation":
        return f"one of {', '.join(IMPLEMENTATIONS)} or none"
    return describe_type(hint, none="none", items="{} separated by commas")
