"""Runs recipes one after another on this machine, and ends with their table.

    python -m experiments.sweep --recipes='table3/*,table8/*' --runs=runs
    python -m experiments.sweep --recipes='quickstart*' --config.train.epochs=3
    python -m experiments.sweep --recipes='study/*' --seeds=0,1,2 --runs=runs/study
    python -m experiments.sweep --recipes='table9/*' --attack=untargeted

Each run is `python -m experiments.train` in a process of its own, in the folder RUNS/RECIPE, or
with --seeds RUNS/seedN/RECIPE, all recipes with one seed before the next; what is finished is
skipped, under whatever name it computed the same, and what is not goes on from its checkpoint.
`tableN/*` is every recipe of Table N, those of Tables 7 and 8 too. Changes of fields are for all of
them. With --attack, each finished run is then evaluated under that attack (all of its flags in
`experiments.evaluate` are taken), unless its numbers are there. A run that fails is told of at the
end, and the others go on; SIGINT and SIGTERM are passed to the run and end the sweep, which the
same command continues.
"""

import contextlib
import dataclasses
import fnmatch
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from absl import flags

from experiments import tables
from experiments.cli import attack_flags, command_line, config_flags
from experiments.cli.overrides import override
from experiments.config import Config, ConfigError
from experiments.recipes import RECIPES
from experiments.recipes.paper_tables import ROBUST_ROWS, ROWS
from experiments.report.finished_runs import Run, find_runs, run_of
from experiments.run.attacks import Plan
from experiments.tables import Table


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: as the sweep tells of it.
      config: what it computes.
      workdir: where, unless it is finished elsewhere.
      typed: the fields that it changes, as arguments of `experiments.train`.
    """

    name: str
    config: Config
    workdir: pathlib.Path
    typed: tuple[str, ...]


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list(
        "recipes", None, "Names of recipes, or patterns such as table3/*.", flag_values=flag_values
    )
    flags.DEFINE_string("runs", "runs", "Folder of the workdirs.", flag_values=flag_values)
    flags.DEFINE_list(
        "seeds", None, "Run every recipe with each of these seeds, such as 0,1,2.",
        flag_values=flag_values,
    )  # fmt: skip
    config_flags.define_changes(flag_values)
    attack_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> int:
    """Entry point."""
    names = matching(command_line.require(options, "recipes", "'table3/*'"))
    failed = sweep(
        names,
        pathlib.Path(options.runs),
        config_flags.chosen_changes(options),
        seeds=whole_numbers(options.seeds) if options.seeds else (),
        attack=attack_flags.chosen_plan(options),
    )
    return 1 if failed else 0


def whole_numbers(texts: Sequence[str]) -> list[int]:
    """What --seeds describes, each number once.

    Raises:
      ConfigError: something is no whole number from 0 on.
    """
    for text in texts:
        if not text.isdecimal():
            raise ConfigError(f"--seeds must be whole numbers such as 0,1,2; got {text!r}")
    return list(dict.fromkeys(map(int, texts)))


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


def plan(
    names: Sequence[str],
    root: pathlib.Path,
    changes: Sequence[tuple[str, str]],
    seeds: Sequence[int],
) -> list[Job]:
    """The runs of a sweep in their order: all recipes with one seed before the next.

    So a sweep that ends early has whole seeds, and compares recipes on equal terms.

    Raises:
      ConfigError: a change does not fit a recipe.
    """
    if seeds and "seed" in dict(changes):
        raise ConfigError("--config.seed and --seeds both set the seed; leave one out")
    jobs = []
    for seed in seeds or (None,):
        own = [*changes, *([("seed", str(seed))] if seed is not None else [])]
        typed = tuple(f"--config.{path}={text}" for path, text in own)
        for name in names:
            config = RECIPES[name]
            for path, text in own:
                config = override(config, path, text)
            if seed is None:
                jobs.append(Job(name, config, root / name, typed))
            else:
                jobs.append(Job(f"{name}, seed {seed}", config, root / f"seed{seed}" / name, typed))
    return jobs


def sweep(
    names: Sequence[str],
    root: pathlib.Path,
    changes: Sequence[tuple[str, str]] = (),
    *,
    seeds: Sequence[int] = (),
    attack: Plan | None = None,
) -> list[str]:
    """Trains what is not finished, one after another, and prints the tables.

    Args:
      names: of recipes.
      root: where the workdirs are.
      changes: (field, value) as typed, for every recipe.
      seeds: to run every recipe with; none for each recipe's own.
      attack: to evaluate finished runs under.

    Returns:
      The runs that failed, in training or under the attack.

    Raises:
      ConfigError: a change does not fit a recipe; nothing was started then.
    """
    jobs = plan(names, root, changes, seeds)
    failed: list[str] = []
    child = Child()
    with child.signals_passed_on():
        for number, job in enumerate(jobs, start=1):
            place = f"[{number}/{len(jobs)}] {job.name}"
            if (done := run_of_job(job, root)) is not None:
                print(f"{place}: finished in {done.workdir}", flush=True)
            else:
                print(f"{place}: in {job.workdir}", flush=True)
                code = child.run(
                    [sys.executable, "-m", "experiments.train", f"--config={job.config.recipe}",
                     f"--workdir={job.workdir}", *job.typed]
                )  # fmt: skip
                if code != 0 and not child.stopped:
                    print(f"{place}: failed with exit code {code}", flush=True)
                    failed.append(job.name)
                    continue
            if attack is not None and not child.stopped:
                done = run_of_job(job, root)
                assert done is not None  # it ended with 0 and was not stopped
                if not attack.is_done(done.attacked):
                    print(f"{place}: {attack.kind} attack on {done.workdir}", flush=True)
                    code = child.run(
                        [sys.executable, "-m", "experiments.evaluate",
                         f"--run={done.workdir}", *attack.typed]
                    )  # fmt: skip
                    if code != 0 and not child.stopped:
                        print(f"{place}: attack failed with exit code {code}", flush=True)
                        failed.append(job.name)
            if child.stopped:
                print("stopped; the same command goes on", flush=True)
                break
    print(f"\n{summary(jobs, root).markdown()}\n")
    swept = {str(row.table) for row in ROWS if row.recipe in names}
    swept |= {"9" for row in ROBUST_ROWS if row.recipe in names}
    runs = find_runs(root)
    for table in sorted(swept):
        print(f"## {tables.TITLES[table]}\n\n{tables.TABLES[table](runs).markdown()}\n")
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return failed


def run_of_job(job: Job, root: pathlib.Path) -> Run | None:
    """The finished run below a folder that computed what a job does."""
    found = run_of(job.config, find_runs(root))
    return None if found is None or found[1] else found[0]


def summary(jobs: Sequence[Job], root: pathlib.Path) -> Table:
    """What the swept recipes reached."""
    rows = []
    for job in jobs:
        run = run_of_job(job, root)
        if run is None:
            rows.append((job.name, tables.NOT_RUN, "", "", ""))
        else:
            result = run.result
            numbers = (f"{result['top1']:.2f}", f"{result['top5']:.2f}", f"{result['loss']:.4f}")
            rows.append((job.name, *numbers, str(run.workdir)))
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
    command_line.run(main, define_flags)
