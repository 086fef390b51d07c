"""Runs recipes one after another on this machine, and prints their table.

    python -m experiments.sweep --recipes='table3/*,table8/*' --runs=runs
    python -m experiments.sweep --recipes='quickstart*' --config.train.epochs=3
    python -m experiments.sweep --recipes='study/*' --seeds=0,1,2 --runs=runs/study
    python -m experiments.sweep --recipes='table9/*' --attack=untargeted

Each run is `python -m experiments.train` in a process of its own. Its workdir is RUNS/RECIPE, or
RUNS/seedN/RECIPE with --seeds, which runs all recipes with one seed before the next seed. A run
that is finished is skipped, also if it computed the same under another name. An unfinished run
resumes from its checkpoint. `tableN/*` is every recipe of Table N, also of Tables 7 and 8. Changed
fields apply to all recipes, and so do --writer and --profile_steps, which each training gets.

With --attack, each finished run is then evaluated under that attack, unless its numbers are stored
already; all flags of an attack of `experiments.evaluate` may be given. A run that fails is listed
at the end, and the other runs continue. SIGINT and SIGTERM end the current run and the sweep. Rerun
the same command to resume it.
"""

import pathlib
import sys

from absl import flags

from experiments.cli import attack_flags, command_line, config_flags, watch_flags
from experiments.report.sweep_report import describe_sweep
from experiments.run.job_runner import run_jobs
from experiments.run.jobs import match_recipes, parse_seeds, plan_jobs


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
    watch_flags.define_flags(flag_values)
    attack_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> int:
    """Runs the recipes; the exit code is 1 if a run fails."""
    names = match_recipes(command_line.require(options, "recipes", "'table3/*'"))
    root = pathlib.Path(options.runs)
    seeds = parse_seeds(options.seeds or ())
    jobs = plan_jobs(names, root, config_flags.chosen_changes(options), seeds)
    watching, attack = watch_flags.typed(options), attack_flags.chosen_plan(options)
    failed = run_jobs(jobs, root, watching=watching, attack=attack)
    print(describe_sweep(jobs, root))
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(main, define_flags)
