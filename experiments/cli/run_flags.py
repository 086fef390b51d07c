"""The flag --run of the commands that read a trained network."""

from absl import flags

from experiments.cli import command_line


def define_flags(flag_values: flags.FlagValues, *, alias: str | None = None) -> None:
    """Defines --run, and an older name of it where a command had one."""
    flags.DEFINE_string(
        "run", None,
        "The workdir of a run (its newest good checkpoint), one step of it, or an export.",
        flag_values=flag_values,
    )  # fmt: skip
    if alias is not None:
        flags.DEFINE_alias(alias, "run", flag_values=flag_values)


def chosen_run(options: flags.FlagValues) -> str:
    """The folder to read.

    Raises:
      ConfigError: --run is not given.
    """
    return command_line.require(options, "run", "runs/lrnet50")
