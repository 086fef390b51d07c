"""Projected gradient descent (PGD): images changed a little to mislead a network.

Everything is in levels of 0 to 255, as images come, before normalisation. Random numbers are keyed
per image by its place in the global batch, as in `lrnet_jax.data.augment`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lrnet_jax.functional import Functional, Tree
from lrnet_jax.training.devices import Batch

WHITE = 255.0
GRID = 2.0**-16  # of eps; a level of 0 to 255 plus any multiple of it is exact in float32

# (params, batch_stats, images uint8, labels, index, key, epsilon, step_size, steps) -> images
Attack = Callable[..., jax.Array]


def pgd(
    logits: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    key: jax.Array,
    *,
    epsilon: ArrayLike,
    step_size: ArrayLike,
    steps: ArrayLike,
    targeted: bool,
    random_start: bool = True,
) -> jax.Array:
    """Moves every pixel by at most epsilon, in steps along the sign of the loss's gradient.

        x[n + 1] = clip( x[n] + step_size * sign( d loss(x[n], label) / dx ) )

    where clip is to the box of [x[0] - epsilon, x[0] + epsilon] and [0, 255], and the loss is
    softmax cross-entropy. Targeted, a random wrong class takes the label's place, and the sign
    is the other one. All numbers may be traced: one compiled program serves every budget.

    The box is exact: epsilon is rounded down to a multiple of 2^-16, so that its corners are
    numbers of float32 and no result is outside by a rounding.

    Args:
      logits: images float32 in 0 to 255 -> (B, classes), a pure function.
      images: (B, H, W, C) uint8.
      labels: (B,) int32.
      index: (B,) int32, each image's place in the global batch.
      key: of the step, the same on every device.
      epsilon: levels; 0 returns the images.
      step_size: levels.
      steps: number of steps.
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
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, levels of 0 to 255, got {images.dtype}")
    epsilon = jnp.floor(jnp.asarray(epsilon, jnp.float32) / GRID) * GRID
    centre = images.astype(jnp.float32)
    low, high = jnp.maximum(centre - epsilon, 0.0), jnp.minimum(centre + epsilon, WHITE)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)  # (B, 2)
    if targeted:
        classes = jax.eval_shape(logits, centre).shape[-1]
        labels = jax.vmap(random_wrong_class, (0, 0, None))(keys[:, 0], labels, classes)
    start = centre
    if random_start:
        draws = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:], minval=-1.0))(keys[:, 1])
        start = jnp.clip(centre + epsilon * draws, low, high)

    def loss(x: jax.Array) -> jax.Array:
        # A sum, so that no image's gradient depends on how many others there are.
        return optax.softmax_cross_entropy_with_integer_labels(logits(x), labels).sum()

    direction = -jnp.float32(step_size) if targeted else jnp.float32(step_size)

    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.clip(x + direction * jnp.sign(jax.grad(loss)(x)), low, high)

    return jax.lax.fori_loop(0, steps, step, start)


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

    With those of the batch an image's own gradient would pass through all others.
    """

    def attack(
        params: Tree,
        batch_stats: Tree,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        key: jax.Array,
        epsilon: ArrayLike,
        step_size: ArrayLike,
        steps: ArrayLike,
    ) -> jax.Array:
        return pgd(
            lambda x: functional.apply(params, batch_stats, normalize(x)),
            images,
            labels,
            index,
            key,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            targeted=targeted,
            random_start=random_start,
        )

    return attack


def attacked_eval_step(
    eval_step: Callable[[tuple[Tree, Tree], Batch], dict[str, jax.Array]], attack: Attack
) -> Callable[[tuple[Tree, Tree, dict[str, jax.Array]], Batch], dict[str, jax.Array]]:
    """An evaluation step of one device that attacks the images first.

    Args:
      eval_step: from `steps.eval_step`.
      attack: from `attack_network`, of the same network and normalisation.

    Returns:
      ((params, batch_stats, settings), batch) -> the sums of `eval_step`. Settings are the arrays
      "rng" (uint32 key data), "epsilon", "step_size" and "steps"; the batch also holds index.
    """

    def step(
        variables: tuple[Tree, Tree, dict[str, jax.Array]], batch: Batch
    ) -> dict[str, jax.Array]:
        params, batch_stats, settings = variables
        images = attack(
            params,
            batch_stats,
            batch["image"],
            batch["label"],
            batch["index"],
            jax.random.wrap_key_data(settings["rng"]),
            settings["epsilon"],
            settings["step_size"],
            settings["steps"],
        )
        return eval_step((params, batch_stats), {**batch, "image": images})

    return step
