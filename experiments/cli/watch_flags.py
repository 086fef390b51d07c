"""The flags of a training for those who look at it: --profile_steps and --writer."""

import importlib
import re
from collections.abc import Callable

from absl import flags

from experiments.config import ConfigError
from lrnet_jax.training.metric_writers import MetricWriter, missing_methods


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --profile_steps and --writer."""
    flags.DEFINE_string(
        "profile_steps", None,
        "Steps to trace with the profiler of JAX, such as 10:15 for six of them.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "writer", [],
        "MODULE:NAME of a class of yours that also gets the metrics, see docs/howto/watching.md.",
        flag_values=flag_values,
    )  # fmt: skip


def chosen_steps(options: flags.FlagValues) -> range:
    """The steps to trace; none without the flag.

    Raises:
      ConfigError: the flag is not FIRST:LAST, with FIRST from 1 on and LAST not before it.
    """
    text = options.profile_steps
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise ConfigError(
            f"--profile_steps must be the first and the last step, such as 10:15; got {text!r}"
        )
    first, last = map(int, found.groups())
    if first < 1:
        raise ConfigError(f"--profile_steps={text}: steps are numbered from 1 on")
    if last < first:
        raise ConfigError(f"--profile_steps={text} ends before it begins; use {last}:{first}")
    return range(first, last + 1)


def chosen_writers(options: flags.FlagValues) -> list[MetricWriter]:
    """The writers that --writer names, which are not started yet.

    Raises:
      ConfigError: one cannot be imported, or lacks a method.
    """
    return [_make(text) for text in options.writer]


def typed(options: flags.FlagValues) -> tuple[str, ...]:
    """The flags as arguments of `experiments.train`, after a check of their values.

    Raises:
      ConfigError: the steps are no range, or a writer cannot be made.
    """
    chosen_steps(options)
    chosen_writers(options)
    steps = [] if options.profile_steps is None else [f"--profile_steps={options.profile_steps}"]
    return (*steps, *(f"--writer={text}" for text in options.writer))


def _make(text: str) -> MetricWriter:
    factory = _find(text)
    writer = factory()
    if missing := missing_methods(writer):
        raise ConfigError(
            f"--writer={text} has no method {', '.join(missing)}; see "
            "lrnet_jax.training.metric_writers.MetricWriter"
        )
    return writer


def _find(text: str) -> Callable[[], MetricWriter]:
    module, _, name = text.partition(":")
    if not module or not name:
        raise ConfigError(f"--writer must be MODULE:NAME, such as my_writers:Wandb; got {text!r}")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--writer={text} cannot be imported: {error}; modules are looked for in the current "
            "folder, in $PYTHONPATH and in the environment"
        ) from error
    factory = getattr(found, name, None)
    if not callable(factory):
        raise ConfigError(f"--writer={text}: {found.__file__} has no class or function {name!r}")
    return factory
