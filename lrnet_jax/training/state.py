"""Everything that training changes, and how it starts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from lrnet_jax.functional import Tree, Variables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, in plain nested dicts.

    Attributes:
      step: int32 scalar, the number of steps taken. With the global batch size, it is also the
        position in the data.
      params: float32 weights.
      batch_stats: float32 running mean and variance of every BatchNorm.
      opt_state: the optimiser's.
      rng: uint32 key data; step n draws from fold_in(rng, n).
      ema: {"params": .., "batch_stats": ..} averaged over the steps taken, or None.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    rng: jax.Array
    ema: Tree | None = None

    @property
    def evaluated(self) -> Variables:
        """The variables to evaluate with: the averages, where there are any."""
        if self.ema is None:
            return self.params, self.batch_stats
        return self.ema["params"], self.ema["batch_stats"]


def init_state(
    params: Tree,
    batch_stats: Tree,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; with `ema`, it keeps averages (see `TrainStep`)."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(jax.random.key(seed)),
        # Copied, because the state is donated to the step and no buffer may be donated twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
    )


def average(ema: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    """The exponential moving average after one more step.

        ema[n] = sum over i = 1..n of decay^(n - i) new[i]  /  sum over i of decay^(n - i)

    A weighted mean from the first step on, without a bias towards the initial values: early in
    training it is nearly the plain mean of all steps, later the last 1 / (1 - decay) count.

    Args:
      ema: ema[n - 1].
      new: new[n], of the same structure.
      step: n, from 1.
      decay: in (0, 1).
    """
    # 1 - decay^n written so that it keeps its digits in float32, where decay^n is nearly 1.
    share = math.expm1(math.log(decay)) / jnp.expm1(step.astype(jnp.float32) * math.log(decay))
    return optax.incremental_update(new, ema, share)
