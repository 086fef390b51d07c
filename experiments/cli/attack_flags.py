"""The flags of an attack, for every command that makes one."""

import dataclasses

from absl import flags

from experiments.config import ConfigError
from experiments.run import attacks
from experiments.run.attacks import Plan
from experiments.run.scores import PAPER_BUDGETS
from lrnet_jax.training.attack import WHITE, Budget

_OPTIONAL = ("epsilon", "steps", "step_size", "seed")  # have no meaning without --attack


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --attack and its budget."""
    flags.DEFINE_enum(
        "attack", None, attacks.KINDS, "Attack the images first.", flag_values=flag_values
    )
    flags.DEFINE_multi_float(
        "epsilon", 16.0,
        "How far a pixel may be moved, of 255; each value makes an attack",
        lower_bound=0.0, upper_bound=WHITE, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps", None,
        "Steps of the attack, instead of the paper's two budgets; needs --step_size.",
        lower_bound=0, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_float(
        "step_size", None, "How far a step moves a pixel, of 255; needs --steps.",
        lower_bound=0.0, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "seed", 0, "Seed of the attack's random starts and targets.",
        lower_bound=0, flag_values=flag_values,
    )  # fmt: skip


def chosen_plan(options: flags.FlagValues) -> Plan | None:
    """The attack that the flags describe; None without --attack.

    Raises:
      ConfigError: see `chosen_budgets`; or a flag of an attack is given without --attack.
    """
    if options.attack is None:
        for name in _OPTIONAL:
            if options[name].present:
                raise ConfigError(
                    f"--{name} is of an attack; give --attack=untargeted or --attack=targeted as "
                    "well"
                )
        return None
    typed = [f"--attack={options.attack}", f"--seed={options.seed}"]
    typed += [f"--epsilon={epsilon!r}" for epsilon in options.epsilon]
    if options.steps is not None:  # and so is the step size
        typed += [f"--steps={options.steps}", f"--step_size={options.step_size!r}"]
    return Plan(options.attack, chosen_budgets(options), options.seed, tuple(typed))


def chosen_budgets(options: flags.FlagValues) -> tuple[Budget, ...]:
    """The budgets that --epsilon, --steps and --step_size describe.

    Raises:
      ConfigError: one of --steps and --step_size is given without the other.
    """
    steps, size = options.steps, options.step_size
    if (steps is None) != (size is None):
        raise ConfigError(
            f"--steps={steps} and --step_size={size} make one budget; give both or none"
        )
    budgets = PAPER_BUDGETS
    if steps is not None and size is not None:
        budgets = (Budget(0.0, size, steps),)
    return tuple(
        dataclasses.replace(budget, epsilon=epsilon)
        for epsilon in options.epsilon
        for budget in budgets
    )
