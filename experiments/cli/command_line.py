"""Reads `--config=NAME --config.a.b=value` beside absl flags, and ends runs in one line."""

import difflib
import logging as standard_logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.config import Config, ConfigError, describe, override
from lrnet_jax.data import BadImageError, DamagedDatasetError, MissingDatasetError
from lrnet_jax.training import processes
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.training.divergence import DivergedError
from lrnet_jax.training.processes import LostProcessError
from lrnet_jax.training.workdir_lock import WorkdirInUseError

USAGE_ERROR = 2  # exit code, as for every misused Unix command
USERS_ERRORS = (
    BadImageError,
    CheckpointError,
    ConfigError,
    DamagedDatasetError,
    DivergedError,
    LostProcessError,
    MissingDatasetError,
    WorkdirInUseError,
)

_CONFIG = flags.DEFINE_string(
    "config", None, "A recipe; --config=help lists them, --config.FIELD=VALUE changes a field."
)
_overrides: list[tuple[str, str]] = []


def run(main: Callable[[], None]) -> None:
    """Parses the command line, runs `main`, and turns the user's errors into one line each.

    What the user can mend (`USERS_ERRORS`: a data set that is not there, a full disk) ends with its
    message and exit code 2, without a traceback; a bug of ours keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; options are written --name=value")
        # Orbax and others tell of their own affairs as warnings, and print with a traceback what
        # they raise again later.
        logging.set_verbosity(logging.FATAL)
        # Of ours: an index that takes a while, an image that had to be replaced.
        standard_logging.getLogger("lrnet_jax").setLevel(standard_logging.INFO)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.unraisablehook = _without_orbax
        try:
            main()
        except USERS_ERRORS as error:
            if processes.are_several():
                # Without the farewell of jax.distributed, which waits for the others: they wait
                # for this one, and notice at once that it is gone.
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(USAGE_ERROR)
            _fail(str(error))

    app.run(guarded, flags_parser=_parse)


def _without_orbax(unraisable: Any) -> None:
    """Leaves out what Orbax leaves where a save failed: callbacks of a loop that is closed."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def chosen_config() -> Config:
    """The configuration that --config and its overrides describe.

    Raises:
      ConfigError: no such recipe or field, or a bad value.
    """
    from experiments.recipes import RECIPES

    name = _CONFIG.value
    if name is None:
        raise ConfigError("--config=NAME is missing; --config=help lists the recipes")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else "--config=help lists them"
        raise ConfigError(f"no recipe is named {name!r}; {hint}")
    config = RECIPES[name]
    # The network first: the fields of `model` follow it.
    for path, text in sorted(_overrides, key=lambda item: item[0] != "network"):
        config = override(config, path, text)
    return config


def overrides() -> list[tuple[str, str]]:
    """The fields that the command line changes, as (path, text)."""
    return list(_overrides)


def wants_help() -> bool:
    """Whether --config=help was given."""
    return _CONFIG.value == "help"


def print_help() -> None:
    """Lists recipes, and fields with the values of one of them."""
    from experiments.recipes import RECIPES

    print("recipes (--config=NAME):")
    group = None
    for name, config in RECIPES.items():
        if name.partition("/")[1] and name.partition("/")[0] != group:
            group = name.partition("/")[0]
            table = group.removeprefix("table")
            print(f" rows of the paper's Table {table}:" if table != group else f" {group}:")
        print(f"  {name:26s} {config.network} on {config.data.name}")
    example = RECIPES[_overrides[0][0]] if _overrides and _overrides[0][0] in RECIPES else None
    example = example or RECIPES["lrnet50"]
    print(f"\nfields, with the values of {example.recipe}:\n{describe(example)}")


def _parse(argv: Sequence[str]) -> list[str]:
    rest = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        path = argument.lstrip("-")
        if not (argument.startswith("-") and path.startswith("config.")):
            rest.append(argument)
            continue
        path, equals, text = path.removeprefix("config.").partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                _fail(f"--config.{path} has no value; write --config.{path}=VALUE")
            text = arguments.pop(0)
        _overrides.append((path, text))
    try:
        return flags.FLAGS(rest)
    except flags.Error as error:
        return _fail(str(error))


def _fail(message: str) -> list[str]:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(USAGE_ERROR)
