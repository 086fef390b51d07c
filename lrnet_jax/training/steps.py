"""One training step and one evaluation step, as pure functions of arrays.

They know nothing of pmap but the name of its axis: the caller wraps them (`devices.parallel` has
the one line that does), and a test or a notebook can call them under plain vmap.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrnet_jax.data.mixing import Mixed, swap_pairs
from lrnet_jax.functional import Functional, Tree
from lrnet_jax.training.accumulation import mean_over_parts
from lrnet_jax.training.devices import AXIS, Batch
from lrnet_jax.training.state import TrainState, average


def train_step(
    functional: Functional,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    mix: Callable[[jax.Array, jax.Array, jax.Array], Mixed] | None = None,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    attack: Callable[..., jax.Array] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the training step of one device.

    Args:
      functional: the network.
      optimizer: from `optimizer.sgd`, or any other of optax.
      schedule: only to report the rate.
      augment: (images uint8 (b,H,W,3), index int32 (b,), key) -> normalised float images. Draws
        per position in the global batch, so that a batch is augmented alike on any devices.
      mix: (images as `augment` returns them, index, key) -> mixed images and how much of each is
        its own; see `lrnet_jax.data.mixing`. None in the paper's recipes.
      label_smoothing: 0 in the paper's recipes.
      ema_decay: of the averages of weights and running statistics, where the state keeps them
        (see `average`); 0 in the paper's recipes, which keep none.
      accumulate: parts into which a device cuts its share, one in memory at a time. The gradients
        and running statistics are the means over the parts: what the whole share gives, but for
        rounding, where statistics are taken over groups of images that a part holds whole.
      attack: (params, batch_stats, images as `augment` returns them, labels, index, key) ->
        normalised images that mislead this network, to train on; see `training.attack`. None for
        regular training.

    Returns:
      (state, batch) -> (state, metrics). The batch holds this device's share of image, label,
      index. Metrics are float32 scalars, averaged over the devices.

    Raises:
      ValueError: ema_decay is not in [0, 1), or (the step) contradicts the state.
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        if (state.ema is not None) != (ema_decay > 0):
            raise ValueError(
                f"ema_decay is {ema_decay}, and the state keeps {'no ' * (state.ema is None)}"
                "averages; give init_state ema=True exactly where ema_decay is above 0"
            )
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def gradients(batch: Batch) -> tuple[Tree, Tree, jax.Array, jax.Array]:
            """Gradients, running statistics, loss and accuracy of some rows."""
            images, labels = augment(batch["image"], batch["index"], key), batch["label"]
            if attack is not None:
                # 2^32 - 2 is no place in a batch either, see below.
                attack_key = jax.random.fold_in(key, np.uint32(2**32 - 2))
                images = attack(
                    state.params, state.batch_stats, images, labels, batch["index"], attack_key
                )
            if mix is None:
                share, other_labels = jnp.ones(len(labels)), labels
            else:
                # 2^32 - 1 is no place in a batch: no bits in common with the augmentation.
                mix_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
                images, share = mix(images, batch["index"], mix_key)
                other_labels = swap_pairs(labels)

            def loss_fn(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
                logits, batch_stats = functional.apply_train(params, state.batch_stats, images)
                classes = logits.shape[-1]
                targets = jax.nn.one_hot(labels, classes)
                if mix is not None:
                    others = jax.nn.one_hot(other_labels, classes)
                    targets = share[:, None] * targets + (1 - share[:, None]) * others
                targets = optax.smooth_labels(targets, label_smoothing)
                loss = optax.softmax_cross_entropy(logits, targets).mean()
                return loss, (logits, batch_stats)

            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, (logits, batch_stats)), grads = grad_fn(state.params)
            chosen = jnp.argmax(logits, -1)
            # Of a mixed image, each label counts for its share.
            right = share * (chosen == labels) + (1 - share) * (chosen == other_labels)
            return grads, batch_stats, loss, jnp.mean(right)

        # Shares are of equal size, so the mean over devices is the mean over the global batch.
        # Running statistics are averaged too: one state, whatever device is asked for it.
        grads, batch_stats, loss, accuracy = jax.lax.pmean(
            mean_over_parts(gradients, batch, accumulate), AXIS
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # Statistics too: those of the newest weights do not fit the averaged ones.
            new = {"params": params, "batch_stats": batch_stats}
            ema = average(ema, new, state.step + 1, ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            rng=state.rng,
            ema=ema,
        )
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return new_state, metrics

    return step


def eval_step(
    functional: Functional, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[tuple[Tree, Tree], Batch], dict[str, jax.Array]]:
    """Builds the evaluation step of one device.

    Args:
      functional: the network.
      normalize: images uint8 -> normalised float images.

    Returns:
      ((params, batch_stats), batch) -> sums over the unmasked images of all devices: count, top1
      and top5 (int32) and loss (float32). The batch holds image, label and mask.
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> dict[str, jax.Array]:
        logits = functional.apply(*variables, normalize(batch["image"]))
        labels, mask = batch["label"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        # The label's rank. A class tied with it counts as ahead, so that a network whose logits
        # are all equal (or NaN, which no comparison passes) scores nothing.
        ahead = jnp.sum(~(logits < own), axis=-1) - 1
        sums = {
            "count": jnp.sum(mask, dtype=jnp.int32),
            "top1": jnp.sum(mask & (ahead < 1), dtype=jnp.int32),
            "top5": jnp.sum(mask & (ahead < 5), dtype=jnp.int32),
            "loss": jnp.sum(jnp.where(mask, losses, 0)),
        }
        return jax.lax.psum(sums, AXIS)

    return step
