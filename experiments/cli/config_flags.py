"""The flags of a configuration: --config=RECIPE, and --config.a.b=value for fields to change."""

import difflib

from absl import flags

from experiments.cli.command_line import FIELD_FLAG
from experiments.config import Config, ConfigError
from experiments.run.overrides import override_all


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --config and --config.FIELD."""
    flags.DEFINE_string(
        "config", None, "Name of a recipe; --config=help lists recipes and fields.",
        flag_values=flag_values,
    )  # fmt: skip
    define_changes(flag_values)


def define_changes(flag_values: flags.FlagValues) -> None:
    """Defines --config.FIELD alone, for commands that choose recipes otherwise."""
    flags.DEFINE_multi_string(
        FIELD_FLAG, [],
        "Changes a field of the configuration, such as --config.optim.learning_rate=0.2",
        flag_values=flag_values,
    )  # fmt: skip


def chosen_config(options: flags.FlagValues) -> Config:
    """The configuration that --config and the changed fields describe.

    Raises:
      ConfigError: there is no such recipe or field, or a value is bad.
    """
    return override_all(chosen_recipe(options), chosen_changes(options))


def chosen_recipe(options: flags.FlagValues) -> Config:
    """The recipe that --config names.

    Raises:
      ConfigError: there is no such recipe.
    """
    from experiments.recipes import RECIPES

    name = options.config
    if name is None:
        raise ConfigError("--config=NAME is missing; --config=help lists the recipes")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3)
        plain = [recipe for recipe in RECIPES if "/" not in recipe]
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"recipes are {', '.join(plain)}, and those that --config=help lists"
        )
        raise ConfigError(f"no recipe is named {name!r}; {hint}")
    return RECIPES[name]


def chosen_changes(options: flags.FlagValues) -> list[tuple[str, str]]:
    """The fields that the command line changes, as (path, text), in its order.

    Raises:
      ConfigError: a field is given twice.
    """
    changes: dict[str, str] = {}
    for argument in options[FIELD_FLAG].value or ():
        path, _, text = argument.partition("=")
        if path in changes:
            raise ConfigError(
                f"--config.{path} is given twice, as {changes[path]!r} and {text!r}; leave one out"
            )
        changes[path] = text
    return list(changes.items())
