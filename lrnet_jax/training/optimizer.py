"""Optimisers, and the schedule of their rate: warm-up, then steps (the paper's) or a cosine."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lrnet_jax.functional import Tree
from lrnet_jax.training.freezing import without_frozen
from lrnet_jax.training.multipliers import frozen_paths, scale_by_factors

Decay = Literal["steps", "cosine"]
OptimizerName = Literal["sgd", "adamw", "lamb"]


class Adaptive(NamedTuple):
    """What Adam's moments need.

    Attributes:
      beta1: decay of the mean of gradients.
      beta2: decay of the mean of their squares.
      epsilon: added to the root of the second mean.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


ADAM = Adaptive()


def learning_rate_schedule(
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int,
    decay: Decay = "steps",
    boundaries: Sequence[int] = (),
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate as a function of the step number.

    Args:
      learning_rate: the rate after the warm-up, for the whole (global) batch.
      total_steps: length of training; the cosine ends at 0 there.
      warmup_steps: linear from learning_rate / warmup_steps to learning_rate.
      decay: "steps" multiplies by decay_factor at each boundary, "cosine" falls to 0.
      boundaries: step numbers of the drops, counted from the start of training.
      decay_factor: what a boundary multiplies by.

    Source: paper section 4.1 (0.4 at batch 1024, 5 epochs of warm-up, x0.1 at 30/60/90 of 110).
    """

    # Written out, because schedules joined by optax differ in the last bits during the warm-up and
    # on the cosine, and a resumed run must continue with the rates that it began with.
    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))
        if decay == "steps":
            drops = sum((step >= boundary).astype(jnp.float32) for boundary in boundaries)
            after = jnp.asarray(decay_factor, jnp.float32) ** drops
        else:
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            after = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return learning_rate * warm * after

    return schedule


def decay_mask(params: Tree) -> Tree:
    """True for the parameters that weight decay applies to: conv, 1x1 and fc weights.

    Biases, BatchNorm and the geometric prior are exempt. The prior is a network of coordinates or a
    table of logits, and at zero it is a uniform window. The paper does not specify which weights
    decay; this is the common choice.
    """

    def decays(path: jax.tree_util.KeyPath, _: jax.Array) -> bool:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        return names[-1] == "kernel" and "prior" not in names

    return jax.tree_util.tree_map_with_path(decays, params)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """SGD whose weight decay is part of the gradient (coupled), as the paper's framework has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(schedule),
    )


def make_optimizer(
    name: OptimizerName,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    adaptive: Adaptive = ADAM,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """An optimiser by its name, with everything around it.

    Args:
      name: "sgd", or "adamw" and "lamb" of optax. Weight decay is part of the gradient in sgd, and
        multiplied by the rate alone in the others. It applies to `decay_mask`.
      schedule: step to learning rate.
      momentum: of sgd.
      nesterov: whether the momentum of sgd, or the first moment of adamw, looks ahead.
      adaptive: of adamw and lamb.
      weight_decay: see `name`.
      clip_norm: gradients with a larger norm are scaled down to it; None for no limit.
      factors: path of each parameter to the factor of its rate; see `multipliers.rate_factors`.
        Those with 0 are frozen: the optimiser has no state for them and takes no gradients of them.

    Raises:
      ValueError: lamb has no Nesterov momentum.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101; You
    et al., "Large Batch Optimization for Deep Learning", arXiv 1904.00962.
    """
    if name == "lamb" and nesterov:
        raise ValueError("lamb has no Nesterov momentum; use nesterov=false, or adamw")
    beta1, beta2, epsilon = adaptive
    if name == "sgd":
        optimizer = sgd(schedule, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    elif name == "adamw":
        optimizer = optax.adamw(
            schedule, beta1, beta2, epsilon, nesterov=nesterov,
            weight_decay=weight_decay, mask=decay_mask,
        )  # fmt: skip
    else:
        optimizer = optax.lamb(
            schedule, beta1, beta2, epsilon, weight_decay=weight_decay, mask=decay_mask
        )
    # Where nothing is added, the state keeps the form that checkpoints have.
    if clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if factors is None or all(factor == 1 for factor in factors.values()):
        return optimizer
    optimizer = optax.chain(optimizer, scale_by_factors(factors))
    return without_frozen(optimizer, frozen_paths(factors))
