"""Compares fine-tuning with training from fresh weights, on few images.

    python -m experiments.transfer --runs=runs/transfer

For each seed it trains the recipes `transfer/*` (`experiments/recipes/finetune.py`) and prints
their accuracy: a network that knows five classes of Fashion-MNIST learns five others from 500
images, and so does one with fresh weights. Each run is a process of its own. A run that is finished
is skipped. SIGINT and SIGTERM end the current run and the comparison. Rerun the same command to
resume it.
"""

import pathlib
import sys

from absl import flags

from experiments.cli import command_line
from experiments.recipes import RECIPES
from experiments.recipes.finetune import PRETRAIN
from experiments.report.transfer_table import transfer_table
from experiments.run.job_runner import run_jobs
from experiments.run.jobs import Job, match_recipes, parse_seeds, plan_jobs


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("runs", "runs/transfer", "Folder of the workdirs.", flag_values=flag_values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the runs.", flag_values=flag_values)


def main(options: flags.FlagValues) -> int:
    """Trains and compares; the exit code is 1 if a run fails."""
    root, seeds = pathlib.Path(options.runs), parse_seeds(options.seeds)
    failed = run_jobs(plan(root, seeds), root)
    print(transfer_table(root, seeds).markdown())
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def plan(root: pathlib.Path, seeds: list[int]) -> list[Job]:
    """All runs; each fine-tuning starts from the pre-training of its seed."""
    jobs = []
    for seed in seeds:
        (pretrain,) = plan_jobs([PRETRAIN], root, (), [seed])
        jobs.append(pretrain)
        for recipe in match_recipes(["transfer/*_*"]):
            from_pretrained = RECIPES[recipe].train.init_from is not None
            origin = [("train.init_from", str(pretrain.workdir))] if from_pretrained else []
            jobs += plan_jobs([recipe], root, origin, [seed])
    return jobs


if __name__ == "__main__":
    command_line.run(main, define_flags)
