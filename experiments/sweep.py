"""Runs recipes one after another on this machine, and ends with their table.

    python -m experiments.sweep --recipes='table3/*,table8/*' --runs=runs
    python -m experiments.sweep --recipes='quickstart*' --config.train.epochs=3

Each run is `python -m experiments.train` in a process of its own, in the folder RUNS/RECIPE; what
is finished is skipped, under whatever name it computed the same, and what is not goes on from its
checkpoint. `tableN/*` is every recipe of Table N, those of Tables 7 and 8 too. Changes of fields
are for all of them. A run that fails is told of at the end, and the others go on; SIGINT and
SIGTERM are passed to the run and end the sweep, which the same command continues.
"""

import contextlib
import fnmatch
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from absl import flags

from experiments import command_line, tables
from experiments.config import Config, ConfigError, override
from experiments.finished_runs import find_runs, run_of
from experiments.recipes import RECIPES
from experiments.recipes.paper_tables import ROBUST_ROWS, ROWS
from experiments.tables import Table

_RECIPES = flags.DEFINE_list("recipes", None, "Names of recipes, or patterns such as table3/*.")
_RUNS = flags.DEFINE_string("runs", "runs", "The folder of the workdirs.")


def main() -> None:
    """Entry point."""
    if not _RECIPES.value:
        raise ConfigError("--recipes=NAME,... is missing; such as --recipes='table3/*'")
    names = matching(_RECIPES.value)
    failed = sweep(names, pathlib.Path(_RUNS.value), command_line.overrides())
    if failed:
        sys.exit(1)


def matching(patterns: Sequence[str]) -> list[str]:
    """The recipes that shell patterns name, in the order of the patterns, each once.

    Raises:
      ConfigError: a pattern that names none.
    """
    of_tables = {f"table{row.table}/{row.recipe}": row.recipe for row in ROWS if row.table > 6}
    known = {**{name: name for name in RECIPES}, **of_tables}
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [known[name] for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f"--recipes: none is named {pattern!r}; "
                "python -m experiments.train --config=help lists them"
            )
        names.update(dict.fromkeys(found))
    return list(names)


def sweep(
    names: Sequence[str], root: pathlib.Path, changes: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Trains what is not finished, one after another, and prints the tables.

    Args:
      names: of recipes.
      root: where the workdirs are.
      changes: (field, value) as typed, for every recipe.

    Returns:
      The recipes whose run failed.

    Raises:
      ConfigError: a change does not fit a recipe; nothing was started then.
    """
    configs: dict[str, Config] = {}
    for name in names:
        configs[name] = RECIPES[name]
        for path, text in changes:
            configs[name] = override(configs[name], path, text)
    typed = [f"--config.{path}={text}" for path, text in changes]
    failed: list[str] = []
    child = Child()
    with child.signals_passed_on():
        for number, (name, config) in enumerate(configs.items(), start=1):
            place = f"[{number}/{len(names)}] {name}"
            done = run_of(config, find_runs(root))
            if done is not None and not done[1]:
                print(f"{place}: finished in {done[0].workdir}", flush=True)
                continue
            workdir = root / name
            print(f"{place}: in {workdir}", flush=True)
            code = child.run(
                [sys.executable, "-m", "experiments.train", f"--config={name}",
                 f"--workdir={workdir}", *typed]
            )  # fmt: skip
            if child.stopped:
                print("stopped; the same command goes on", flush=True)
                break
            if code != 0:
                print(f"{place}: failed with exit code {code}", flush=True)
                failed.append(name)
    print(f"\n{summary(configs, root).markdown()}\n")
    swept = {str(row.table) for row in ROWS if row.recipe in configs}
    swept |= {"9" for row in ROBUST_ROWS if row.recipe in configs}
    runs = find_runs(root)
    for table in sorted(swept):
        print(f"## {tables.TITLES[table]}\n\n{tables.TABLES[table](runs).markdown()}\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return failed


def summary(configs: dict[str, Config], root: pathlib.Path) -> Table:
    """What the swept recipes reached."""
    runs = find_runs(root)
    rows = []
    for name, config in configs.items():
        found = run_of(config, runs)
        if found is None or found[1]:
            rows.append((name, tables.NOT_RUN, "", "", ""))
        else:
            result = found[0].result
            numbers = (f"{result['top1']:.2f}", f"{result['top5']:.2f}", f"{result['loss']:.4f}")
            rows.append((name, *numbers, str(found[0].workdir)))
    return Table(("recipe", "top-1", "top-5", "loss", "run"), tuple(rows))


class Child:
    """One process at a time, to which the signals that come here are passed on.

    Attributes:
      stopped: whether one came.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end, and returns its exit code."""
        # In a session of its own: a terminal's Ctrl-C would else reach it twice.
        with subprocess.Popen(command, start_new_session=True) as self._process:
            return self._process.wait()

    @contextlib.contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """A context in which SIGINT and SIGTERM go to the process, and set `stopped`."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [(number, signal.signal(number, pass_on)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


if __name__ == "__main__":
    command_line.run(main)
