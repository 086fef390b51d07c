"""A trained network under attack, at one budget after another, and where the numbers are kept."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import config as configs
from experiments.run.results import describe_numbers
from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Functional, Tree
from lrnet_jax.training import steps
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.attack import attack_network, attacked_eval_step
from lrnet_jax.training.devices import parallel, replicate
from lrnet_jax.training.evaluation import evaluate

FILE = "attacks.json"  # in a workdir
KINDS = ("targeted", "untargeted")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an attack may do, in levels of 0 to 255.

    Attributes:
      epsilon: how far a pixel may be moved.
      step_size: of one step.
      steps: their number.
    """

    epsilon: float
    step_size: float
    steps: int


# Table 9 gives eps; the steps are likely those of the work it follows, not certain.
PAPER_BUDGETS: tuple[Budget, ...] = (Budget(16.0, 1.0, 20), Budget(16.0, 2.0, 10))


@dataclasses.dataclass(frozen=True)
class Plan:
    """An attack at several budgets, as a command asks for it.

    Attributes:
      kind: "targeted" or "untargeted".
      budgets: of the attack.
      seed: of its random starts and targets.
      typed: the flags of `experiments.evaluate` that ask for it.
    """

    kind: str
    budgets: tuple[Budget, ...]
    seed: int
    typed: tuple[str, ...]


def parallel_step(
    functional: Functional,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    targeted: bool,
) -> Callable[..., dict[str, jax.Array]]:
    """The attacked evaluation step on all devices; one compiled program for every budget."""
    attack = attack_network(functional, normalize, targeted=targeted)
    return parallel(attacked_eval_step(steps.eval_step(functional, normalize), attack))


def run(
    step: Callable[..., dict[str, jax.Array]],
    params: Tree,
    batch_stats: Tree,
    batches: Callable[[], Iterable[Batch]],
    budgets: Sequence[Budget],
    seed: int,
) -> list[dict[str, Any]]:
    """Evaluates under attack at each budget.

    Args:
      step: from `parallel_step`.
      params: replicated.
      batch_stats: replicated.
      batches: of the evaluation split, anew for each budget.
      budgets: the attacks.
      seed: of random starts and targets, the same for all budgets.

    Returns:
      For each budget its fields, the seed, and top1, top5, loss and count of `evaluate`.
    """
    results = []
    for budget in budgets:
        settings = {
            "rng": jax.random.key_data(jax.random.key(seed)),
            "epsilon": jnp.float32(budget.epsilon),
            "step_size": jnp.float32(budget.step_size),
            "steps": jnp.int32(budget.steps),
        }
        settings = replicate(settings)

        def attacked(
            variables: tuple[Tree, Tree],
            batch: Batch,
            settings: dict[str, jax.Array] = settings,
        ) -> dict[str, jax.Array]:
            return step((*variables, settings), batch)

        numbers = evaluate(attacked, params, batch_stats, batches())
        results.append({**dataclasses.asdict(budget), "seed": seed, **numbers})
    return results


def describe(kind: str, results: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each budget."""
    return [
        f"{kind}, eps {r['epsilon']:g}, {r['steps']} steps of {r['step_size']:g}: "
        f"{describe_numbers(r)}"
        for r in results
    ]


def keep(path: pathlib.Path, kind: str, result: dict[str, Any]) -> None:
    """Adds numbers to those kept in a workdir; a path that is none keeps nothing.

    Those of the same kind, step and budget are replaced.
    """
    if not (path / configs.FILE).exists():
        return
    new = [{"kind": kind, "step": result["step"], **r} for r in result["attacked"]]
    taken = {_place(record) for record in new}
    old = [record for record in kept(path) if _place(record) not in taken]
    write_atomically(path / FILE, json.dumps([*old, *new], indent=2) + "\n")


def kept(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The numbers kept in a workdir, each with its kind and step."""
    path = workdir / FILE
    return json.loads(path.read_text()) if path.exists() else []


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    names = ("kind", "step", "epsilon", "step_size", "steps", "seed")
    return tuple(record[name] for name in names)
