"""The command line of every command: absl flags, one line for each error, the exit code.

A command is a module with two functions and one last line:

    def define_flags(flag_values: flags.FlagValues) -> None:
        flags.DEFINE_string("runs", "runs", "Folder of the workdirs.", flag_values=flag_values)

    def main(options: flags.FlagValues) -> int | None:
        print(options.runs)

    if __name__ == "__main__":
        command_line.run(main, define_flags)

Flags are defined on the command's own `FlagValues`, so importing a command defines none, and a test
calls `main(parse(["--runs=elsewhere"], define_flags))`. Groups of flags that several commands share
(`config_flags`, `attack_flags`, `distributed_flags`, `run_flags`) have a `define_flags` of their
own, which the command's one calls.
"""

import dataclasses
import logging as standard_logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.cli.host_memory import keep_freed_memory
from experiments.cli.stdout import leave_closed_pipe, print_lines
from experiments.config import SECTIONS, Config, ConfigError
from lrnet_jax.data import BadImageError, DamagedDatasetError, MissingDatasetError
from lrnet_jax.training import processes
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.training.divergence import DivergedError
from lrnet_jax.training.processes import LostProcessError
from lrnet_jax.training.workdir_lock import WorkdirInUseError

USAGE_ERROR = 2  # exit code, as for every misused Unix command
# What the user can mend. All other exceptions are bugs and keep their traceback.
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
# Stands for all flags --config.a.b=value (`config_flags`). `parse` rewrites those to this one.
FIELD_FLAG = "config.FIELD"
# Stands for all arguments that are no flags, such as files. A command that defines it takes them.
ARGUMENTS = "ARGUMENT..."
USERS_INTERRUPT = 130  # exit codes of processes that SIGINT and SIGPIPE end
CLOSED_PIPE = 141

Main = Callable[[flags.FlagValues], int | None]
DefineFlags = Callable[[flags.FlagValues], None]


def run(main: Main, define_flags: DefineFlags) -> None:
    """Runs a command with the arguments of the process, and ends the process.

    The exit code is what `main` returns (None is 0), or 2 after one line on stderr if it raises one
    of `USERS_ERRORS`. `--help` prints the docstring of the command's module and its flags. Ctrl-C
    and a reader that closes the pipe, as `head` does, end the command without a traceback.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        _quieten_libraries()
        try:
            if {"--help", "-h"} & set(argv[1:]):
                print_lines(_help(main, define_flags))
                return 0
            code = main(parse(argv[1:], define_flags))
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            leave_closed_pipe()
            return CLOSED_PIPE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return USERS_INTERRUPT
        except USERS_ERRORS as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if processes.are_several():
                # At its exit jax.distributed waits for the other processes. They wait for this
                # one, and notice at once that it is gone.
                os._exit(USAGE_ERROR)
            return USAGE_ERROR

    keep_freed_memory()  # before JAX allocates
    app.run(guarded, flags_parser=_leave_to_command)


def parse(arguments: Sequence[str], define_flags: DefineFlags) -> flags.FlagValues:
    """Reads the arguments of a command, without the name of the program.

    Raises:
      ConfigError: a flag is unknown, given twice or has a bad value, or an argument is no flag.
    """
    options = _defined(define_flags)
    for name in options:
        # Has no effect on flags that may be repeated.
        options[name].allow_overwrite = False
    if FIELD_FLAG in options:
        arguments = list(_fields_as_one_flag(arguments))
    try:
        _, *rest = options(["", *arguments])
    except flags.UnrecognizedFlagError as error:
        field = _field_of(error.flagname) if FIELD_FLAG in options else None
        hint = f"; did you mean --config.{field}?" if field else ""
        raise ConfigError(f"{error}{hint}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if ARGUMENTS in options:
        options[ARGUMENTS].value = rest
    elif rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    return options


def require(options: flags.FlagValues, name: str, example: str) -> Any:
    """The value of a flag that has no default.

    Raises:
      ConfigError: the flag is not given, or empty.
    """
    if not options[name].value:
        raise ConfigError(f"--{name} is missing; for example --{name}={example}")
    return options[name].value


def _leave_to_command(argv: Sequence[str]) -> Sequence[str]:
    """Lets absl take the flags of libraries (Grain reads one) as parsed, with their defaults."""
    flags.FLAGS(argv[:1])
    return argv


def _defined(define_flags: DefineFlags) -> flags.FlagValues:
    options = flags.FlagValues()
    define_flags(options)
    options.set_gnu_getopt(True)
    return options


def _fields_as_one_flag(arguments: Sequence[str]) -> Sequence[str]:
    """Rewrites --config.a.b=value and --config.a.b value to --config.FIELD=a.b=value."""
    rewritten = []
    rest = iter(arguments)
    for argument in rest:
        path, equals, text = argument.lstrip("-").partition("=")
        if not (argument.startswith("-") and path.startswith("config.")):
            rewritten.append(argument)
            continue
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise ConfigError(f"--{path} has no value; write --{path}=VALUE")
        rewritten.append(f"--{FIELD_FLAG}={path.removeprefix('config.')}={text}")
    return rewritten


def _field_of(flag: str) -> str | None:
    """The field of the configuration that an unknown flag may stand for."""
    first, _, rest = flag.partition(".")
    if rest:
        known = {field.name for field in dataclasses.fields(Config)}
        return flag if first in known else None
    for section, kind in SECTIONS.items():
        if flag in {field.name for field in dataclasses.fields(kind)}:
            return f"{section}.{flag}"
    return None


def _help(main: Main, define_flags: DefineFlags) -> str:
    """The docstring of the command's module and its flags, in the order of their definition."""
    options = _defined(define_flags)
    lines = [(sys.modules[main.__module__].__doc__ or "").strip(), "", "flags:"]
    for name in options:
        flag = options[name]
        default = (flag.default_as_str or "").strip("'")
        default = "" if default in ("", "[]") else f" (default: {default})"
        if name == ARGUMENTS:
            lines.append(f"  {name}")
        else:
            lines.append(f"  --[no]{name}" if flag.boolean else f"  --{name}=VALUE")
        text, repeated, _ = (flag.help or "").partition(";\n    repeat this option")  # absl's words
        lines.append(paragraph(text + default + "; may be given several times" * bool(repeated)))
    return "\n".join(lines)


def paragraph(text: str, first: int = 6) -> str:
    """What is said of a flag, below it; the first line may be further left."""
    return textwrap.fill(
        text, 96, initial_indent=" " * first, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _quieten_libraries() -> None:
    # Orbax and others log their internals as warnings, and print with a traceback what they raise
    # again later.
    logging.set_verbosity(logging.FATAL)
    # Messages of this package are shown: an index that takes a while, an image that was replaced.
    standard_logging.getLogger("lrnet_jax").setLevel(standard_logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.unraisablehook = _without_orbax


def _without_orbax(unraisable: Any) -> None:
    """Hides errors of callbacks that Orbax leaves on a closed event loop after a failed save."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
