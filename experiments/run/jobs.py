"""The jobs of a sweep: recipes, changes and seeds as runs in an order."""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Sequence

from experiments.config import Config, ConfigError
from experiments.recipes import RECIPES
from experiments.recipes.paper_tables import PAPER_ROWS
from experiments.run import pasteable
from experiments.run.finished_runs import FinishedRun, find_match, find_runs
from experiments.run.overrides import override_all


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: the recipe, and the seed if the sweep has several.
      config: what the run computes.
      workdir: folder of the run, unless another run has computed the same.
      changes: the changed fields as arguments of `experiments.train`.
    """

    name: str
    config: Config
    workdir: pathlib.Path
    changes: tuple[str, ...]


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """The values of --seeds, each once.

    Raises:
      ConfigError: a value is not a whole number from 0 on.
    """
    for text in texts:
        if not text.isdecimal():
            raise ConfigError(f"--seeds must be whole numbers such as 0,1,2; got {text!r}")
    return list(dict.fromkeys(map(int, texts)))


def match_recipes(patterns: Sequence[str]) -> list[str]:
    """The recipes that shell patterns match, each once, in the order of the patterns.

    `tableN/*` matches every row of Table N, also where the recipes have the names of networks.

    Raises:
      ConfigError: a pattern matches no recipe.
    """
    rows = {f"table{row.table}/{row.recipe}": row.recipe for row in PAPER_ROWS if row.table > 6}
    known = {**{name: name for name in RECIPES}, **rows}
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [known[name] for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f"--recipes: no recipe matches {pattern!r}; "
                f"{pasteable.command('experiments.train', ['--config=help'])} lists them"
            )
        names.update(dict.fromkeys(found))
    return list(names)


def plan_jobs(
    names: Sequence[str],
    root: pathlib.Path,
    changes: Sequence[tuple[str, str]] = (),
    seeds: Sequence[int] = (),
) -> list[Job]:
    """The runs of a sweep in their order: all recipes with one seed before the next seed.

    So a sweep that ends early has whole seeds, and compares recipes on equal terms.

    Args:
      names: of recipes.
      root: folder of the workdirs.
      changes: (field, value) as typed, for every recipe.
      seeds: seeds for every recipe; none for the recipe's own.

    Raises:
      ConfigError: a change does not fit a recipe, or the seed is set twice.
    """
    if not seeds:
        return [_job(name, name, root / name, changes) for name in names]
    if "seed" in dict(changes):
        raise ConfigError("--config.seed and --seeds both set the seed; leave one out")
    return [
        _job(f"{name}, seed {seed}", name, root / f"seed{seed}" / name,
             [*changes, ("seed", str(seed))])
        for seed in seeds
        for name in names
    ]  # fmt: skip


def _job(title: str, recipe: str, workdir: pathlib.Path, changes: Sequence[tuple[str, str]]) -> Job:
    config = override_all(RECIPES[recipe], changes)
    typed = tuple(f"--config.{path}={text}" for path, text in changes)
    return Job(title, config, workdir, typed)


def finished_run(job: Job, root: pathlib.Path) -> FinishedRun | None:
    """The finished run below a folder that computed what a job does, under any name."""
    match = find_match(job.config, find_runs(root))
    return None if match is None or match.changed else match.run
