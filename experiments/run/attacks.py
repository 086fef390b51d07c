"""A trained network under attack, at one budget after another; attacks.json keeps the results."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from experiments import config as configs
from experiments.run.results import describe_numbers
from experiments.run.scores import PAPER_BUDGETS, AttackedScores
from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Functional, Variables
from lrnet_jax.training import steps
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.attack import Budget, attack_network, attacked_eval_step
from lrnet_jax.training.devices import DeviceBatch, Precision, parallel, replicate
from lrnet_jax.training.evaluation import evaluate
from lrnet_jax.training.steps import Sums

FILE = "attacks.json"  # in a workdir
KINDS = ("targeted", "untargeted")

# Budget -> the context of an attack, which gives a function of the number of images of a batch.
Progress = Callable[[Budget], contextlib.AbstractContextManager[Callable[[int], object]]]
AttackedStep = Callable[[tuple[Variables, jax.Array, Budget], DeviceBatch], Sums]


@dataclasses.dataclass(frozen=True)
class Plan:
    """An attack at several budgets.

    Attributes:
      kind: "targeted" or "untargeted".
      budgets: of the attack.
      seed: of its random starts and targets.
      typed: the flags of `experiments.evaluate` that request it.
    """

    kind: str
    budgets: tuple[Budget, ...] = PAPER_BUDGETS
    seed: int = 0
    typed: tuple[str, ...] = ()

    def is_done(self, kept: Iterable[AttackedScores]) -> bool:
        """Whether a workdir's numbers of its last step include those of every budget."""
        done = {r.budget for r in kept if (r.kind, r.seed) == (self.kind, self.seed)}
        return done.issuperset(self.budgets)


def parallel_step(
    functional: Functional,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    targeted: bool,
    precision: Precision = "float32",
) -> AttackedStep:
    """The attacked evaluation step on all devices; one compiled program for every budget."""
    attack = attack_network(functional, normalize, targeted=targeted)
    step = attacked_eval_step(steps.eval_step(functional, normalize), attack)
    return parallel(step, precision=precision)


def run(
    attacked_step: AttackedStep,
    variables: Variables,
    batches: Callable[[], Iterable[Batch]],
    plan: Plan,
    step: int,
    progress: Progress = lambda budget: contextlib.nullcontext(lambda images: None),
) -> Iterator[AttackedScores]:
    """Evaluates a checkpoint under attack, at each budget of a plan, one after the other.

    Args:
      attacked_step: from `parallel_step`.
      variables: params and batch_stats, replicated.
      batches: returns the batches of the evaluation split; it is called for each budget.
      plan: the attacks.
      step: of the checkpoint.
      progress: the context of an attack at a budget; it gives what is called after each batch with
        the number of its images.
    """
    rng = replicate(jax.random.key_data(jax.random.key(plan.seed)))
    for budget in plan.budgets:
        budget_arrays = replicate(budget.to_arrays())

        def evaluate_step(
            variables: Variables, batch: DeviceBatch, budget: Budget = budget_arrays
        ) -> Sums:
            return attacked_step((variables, rng, budget), batch)

        with progress(budget) as on_batch:
            numbers = evaluate(evaluate_step, variables, batches(), on_batch)
        yield AttackedScores(
            plan.kind, step, **dataclasses.asdict(budget), seed=plan.seed,
            **dataclasses.asdict(numbers),
        )  # fmt: skip


def describe(result: AttackedScores) -> str:
    """A result in a line."""
    r = result
    return f"{r.kind}, eps {r.epsilon:g}, {r.steps} steps of {r.step_size:g}: {describe_numbers(r)}"


def keep(path: pathlib.Path, results: Sequence[AttackedScores]) -> None:
    """Adds results to those kept in a workdir; does nothing where the path is not a workdir.

    Results of the same kind, step, budget and seed are replaced.
    """
    if not (path / configs.FILE).exists():
        return
    taken = {_place(result) for result in results}
    old = [result for result in kept(path) if _place(result) not in taken]
    records = [dataclasses.asdict(result) for result in (*old, *results)]
    write_atomically(path / FILE, json.dumps(records, indent=2) + "\n")


def kept(workdir: pathlib.Path) -> list[AttackedScores]:
    """The results kept in a workdir, of any step."""
    path = workdir / FILE
    return (
        [AttackedScores.from_dict(record) for record in json.loads(path.read_text())]
        if path.exists()
        else []
    )


def _place(result: AttackedScores) -> tuple[str, int, Budget, int]:
    return result.kind, result.step, result.budget, result.seed
