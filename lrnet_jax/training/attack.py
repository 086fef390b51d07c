"""Projected gradient descent (PGD): images changed a little to mislead a network.

Everything is in levels of 0 to 255, as images come, before normalisation. Random numbers are keyed
per image by its place in the global batch, as in `lrnet_jax.data.augment`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lrnet_jax.functional import Functional, Variables
from lrnet_jax.training.devices import DeviceBatch
from lrnet_jax.training.steps import Sums

WHITE = 255.0
GRID = 2.0**-16  # of epsilon; a level of 0 to 255 plus any multiple of it is exact in float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Budget:
    """What an attack may do. All numbers may be traced, so one program serves every budget.

    Attributes:
      epsilon: how far a pixel may be moved, in levels; 0 changes nothing.
      step_size: of one step, in levels.
      steps: number of steps.
    """

    epsilon: ArrayLike
    step_size: ArrayLike
    steps: ArrayLike

    def to_arrays(self) -> "Budget":
        """The same as arrays of fixed dtypes, as an argument of a compiled program."""
        return Budget(jnp.float32(self.epsilon), jnp.float32(self.step_size), jnp.int32(self.steps))


# (variables, batch of image (uint8), label and index, key, budget) -> images
Attack = Callable[[Variables, DeviceBatch, jax.Array, Budget], jax.Array]


def pgd(
    logits: Callable[[jax.Array], jax.Array],
    batch: DeviceBatch,
    key: jax.Array,
    budget: Budget,
    *,
    targeted: bool,
    random_start: bool = True,
) -> jax.Array:
    """Moves every pixel by at most epsilon, in steps along the sign of the loss's gradient.

        x[n + 1] = clip( x[n] + step_size * sign( d loss(x[n], label) / dx ) )

    where clip is to the box of [x[0] - epsilon, x[0] + epsilon] and [0, 255], and the loss is
    softmax cross-entropy. A targeted attack uses a random wrong class in place of the label, and
    the other sign.

    The box is exact, because epsilon is rounded down to a multiple of 2^-16: its corners are then
    numbers of float32.

    Args:
      logits: images float32 in 0 to 255 -> (B, classes), a pure function.
      batch: image (B, H, W, C) uint8, label (B,) int32, and index (B,) int32, each image's place in
        the global batch.
      key: of the step, the same on every device.
      budget: of the attack.
      targeted: towards a random wrong class, instead of away from the label.
      random_start: from a uniformly random point of the box, instead of from the image.

    Returns:
      (B, H, W, C) float32 in 0 to 255: the last iterate, whatever its loss.

    Raises:
      TypeError: images are not uint8.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv
    1706.06083. Section 4.4 of the paper names it and its eps and steps; the uniform start and the
    random wrong class as target are likely, not certain.
    """
    if batch["image"].dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, levels of 0 to 255, got {batch['image'].dtype}")
    epsilon = jnp.floor(jnp.asarray(budget.epsilon, jnp.float32) / GRID) * GRID
    images = batch["image"].astype(jnp.float32)
    low, high = jnp.maximum(images - epsilon, 0.0), jnp.minimum(images + epsilon, WHITE)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(batch["index"])
    labels, start = batch["label"], images
    if targeted:
        classes = jax.eval_shape(logits, images).shape[-1]
        labels = jax.vmap(random_wrong_class, (0, 0, None))(keys[:, 0], labels, classes)
    if random_start:
        draws = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:], minval=-1.0))(keys[:, 1])
        start = jnp.clip(images + epsilon * draws, low, high)
    step_size = jnp.float32(budget.step_size)
    direction = -step_size if targeted else step_size

    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        gradient = jax.grad(_loss)(x, logits, labels)
        return jnp.clip(x + direction * jnp.sign(gradient), low, high)

    return jax.lax.fori_loop(0, budget.steps, step, start)


def _loss(
    images: jax.Array, logits: Callable[[jax.Array], jax.Array], labels: jax.Array
) -> jax.Array:
    # A sum, so that no image's gradient depends on the number of the others.
    return optax.softmax_cross_entropy_with_integer_labels(logits(images), labels).sum()


def random_wrong_class(key: jax.Array, label: jax.Array, classes: int) -> jax.Array:
    """A class other than the label, all equally likely."""
    other = jax.random.randint(key, (), 0, classes - 1)
    return (other + (other >= label)).astype(label.dtype)


def attack_network(
    functional: Functional,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    targeted: bool,
    random_start: bool = True,
) -> Attack:
    """PGD on a network as it is evaluated, with running statistics and normalised images.

    With the statistics of the batch, an image's own gradient would pass through all others.
    """

    def attack(
        variables: Variables, batch: DeviceBatch, key: jax.Array, budget: Budget
    ) -> jax.Array:
        def logits(images: jax.Array) -> jax.Array:
            return functional.apply(*variables, normalize(images))

        return pgd(logits, batch, key, budget, targeted=targeted, random_start=random_start)

    return attack


def attacked_eval_step(
    eval_step: Callable[[Variables, DeviceBatch], Sums], attack: Attack
) -> Callable[[tuple[Variables, jax.Array, Budget], DeviceBatch], Sums]:
    """An evaluation step of one device that attacks the images first.

    Args:
      eval_step: from `steps.eval_step`.
      attack: from `attack_network`, of the same network and normalisation.

    Returns:
      ((variables, rng, budget), batch) -> the sums of `eval_step`, where rng is uint32 key data.
      The batch also holds index.
    """

    def step(arguments: tuple[Variables, jax.Array, Budget], batch: DeviceBatch) -> Sums:
        variables, rng, budget = arguments
        images = attack(variables, batch, jax.random.wrap_key_data(rng), budget)
        return eval_step(variables, {**batch, "image": images})

    return step
