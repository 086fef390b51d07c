"""The flags of an attack, for every command that makes one."""

import dataclasses

from absl import flags

from experiments.config import ConfigError
from experiments.run import attacks
from experiments.run.attacks import Budget, Plan

_ATTACK = flags.DEFINE_enum("attack", None, attacks.KINDS, "Attack the images first.")
_EPSILON = flags.DEFINE_multi_float(
    "epsilon", 16.0, "How far a pixel may be moved, of 255; several are several attacks.",
    lower_bound=0.0,
)  # fmt: skip
_STEPS = flags.DEFINE_integer(
    "steps", None, "Of the attack, with --step_size: instead of the paper's two.", lower_bound=0
)
_STEP_SIZE = flags.DEFINE_float("step_size", None, "Of the attack, of 255.", lower_bound=0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the attack's random starts and targets.", lower_bound=0)


def chosen_plan() -> Plan | None:
    """What the flags describe; None without --attack.

    Raises:
      ConfigError: see `chosen_budgets`; or flags of an attack without --attack.
    """
    if _ATTACK.value is None:
        for flag in (_EPSILON, _STEPS, _STEP_SIZE, _SEED):
            if flag.present:
                raise ConfigError(
                    f"--{flag.name} is of an attack; give --attack=untargeted or "
                    "--attack=targeted as well"
                )
        return None
    typed = [f"--attack={_ATTACK.value}", f"--seed={_SEED.value}"]
    typed += [f"--epsilon={epsilon!r}" for epsilon in _EPSILON.value]
    if _STEPS.value is not None:  # and so is the step size
        typed += [f"--steps={_STEPS.value}", f"--step_size={_STEP_SIZE.value!r}"]
    return Plan(_ATTACK.value, chosen_budgets(), _SEED.value, tuple(typed))


def chosen_budgets() -> tuple[Budget, ...]:
    """What --epsilon, --steps and --step_size describe.

    Raises:
      ConfigError: one of --steps and --step_size without the other.
    """
    steps, size = _STEPS.value, _STEP_SIZE.value
    if (steps is None) != (size is None):
        raise ConfigError(
            f"--steps={steps} and --step_size={size} make one budget; give both or none"
        )
    budgets = attacks.PAPER_BUDGETS
    if steps is not None and size is not None:
        budgets = (Budget(0.0, size, steps),)
    return tuple(
        dataclasses.replace(budget, epsilon=epsilon)
        for epsilon in _EPSILON.value
        for budget in budgets
    )
