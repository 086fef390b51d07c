"""One training step and one evaluation step, as pure functions of arrays.

They know nothing of pmap but the name of its axis. The caller wraps them (`devices.parallel` is the
one line that does), and a test or a notebook can call them under plain vmap.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lrnet_jax import random_keys
from lrnet_jax.data.mixing import Mixed, swap_pairs
from lrnet_jax.functional import Functional, Tree, Variables
from lrnet_jax.training.accumulation import mean_over_parts
from lrnet_jax.training.devices import AXIS, DeviceBatch
from lrnet_jax.training.freezing import NOTHING, Frozen, join, keep_frozen, split_frozen
from lrnet_jax.training.norm import global_norm
from lrnet_jax.training.state import TrainState, average


class Examples(NamedTuple):
    """Images and targets of some rows, as the network is trained on them.

    Attributes:
      images: (B, H, W, 3) normalised.
      labels: (B,) int32.
      other_labels: (B,) int32, the label of the image that is mixed in.
      share: (B,) float32, how much of each image has the first label; 1 without mixing.
      branch_scales: (blocks, B) float32 with drop path, None without.
    """

    images: jax.Array
    labels: jax.Array
    other_labels: jax.Array
    share: jax.Array
    branch_scales: jax.Array | None = None


class Gradients(NamedTuple):
    """What some rows contribute to a step; means over the rows.

    Attributes:
      params: of the loss, like the parameters that are not frozen.
      batch_stats: the updated running statistics that are not frozen.
      loss: float32 scalar.
      accuracy: float32 scalar. Of a mixed image, each label counts for its share.
    """

    params: Tree
    batch_stats: Tree
    loss: jax.Array
    accuracy: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The training step of one device: (state, batch) -> (state, metrics).

    The batch holds this device's share of image, label and index. Metrics are float32 scalars,
    averaged over the devices.

    Attributes:
      functional: the network.
      optimizer: from `optimizer.make_optimizer`, or any other of optax.
      schedule: only to report the learning rate.
      augment: (images uint8 (b,H,W,3), index int32 (b,), key) -> normalised float images. It draws
        per position in the global batch, so that a batch is augmented alike on any devices.
      mix: (images as `augment` returns them, index, key) -> mixed images and how much of each is
        its own; see `lrnet_jax.data.mixing`. None in the paper's recipes.
      drop_path: (index, key) -> factors of the branches; see `training.drop_path`. None in the
        paper's recipes.
      label_smoothing: 0 in the paper's recipes.
      ema_decay: of the averages of weights and running statistics, where the state keeps them
        (see `average`); 0 in the paper's recipes, which keep none.
      accumulate: number of parts into which a device cuts its share, with one in memory at a time.
        The gradients and running statistics are the means over the parts. Up to rounding they equal
        those of the whole share where statistics are taken over groups of images that a part holds
        whole.
      attack: (variables, batch with the images as `augment` returns them, key) -> normalised images
        that mislead this network, to train on; see `training.attack`. None for regular training.
      frozen: parameters and statistics that stay as they are. No gradient of them is computed. The
        optimiser has no state for them, and `functional` normalises with the statistics.

    Raises:
      ValueError: ema_decay is not in [0, 1), or (the call) contradicts the state.
    """

    functional: Functional
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    _: dataclasses.KW_ONLY
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    mix: Callable[[jax.Array, jax.Array, jax.Array], Mixed] | None = None
    drop_path: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    attack: Callable[[Variables, DeviceBatch, jax.Array], jax.Array] | None = None
    frozen: Frozen = NOTHING

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def __call__(
        self, state: TrainState, batch: DeviceBatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step."""
        if (state.ema is not None) != (self.ema_decay > 0):
            raise ValueError(
                f"ema_decay is {self.ema_decay}, and the state keeps {'no ' * (state.ema is None)}"
                "averages; give init_state ema=True exactly where ema_decay is above 0"
            )
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradients = functools.partial(self.gradients, state, key)
        # Shares are of equal size, so the mean over devices is the mean over the global batch.
        # Running statistics are averaged too, so that every device holds the same state.
        means = jax.lax.pmean(mean_over_parts(gradients, batch, self.accumulate), AXIS)
        new_state = self.apply_gradients(state, means)
        metrics = {
            "loss": means.loss,
            "accuracy": means.accuracy,
            "gradient_norm": global_norm(means.params),
            "learning_rate": jnp.asarray(self.schedule(state.step), jnp.float32),
        }
        return new_state, metrics

    def gradients(self, state: TrainState, key: jax.Array, batch: DeviceBatch) -> Gradients:
        """Gradients, running statistics, loss and accuracy of some rows."""
        examples = self.examples(state, key, batch)
        trained, frozen = split_frozen(state.params, self.frozen.params)

        def loss_fn(trained: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
            return self.loss(join(trained, frozen), state.batch_stats, examples)

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        batch_stats, _ = split_frozen(batch_stats, self.frozen.statistics)
        return Gradients(grads, batch_stats, loss, accuracy(logits, examples))

    def examples(self, state: TrainState, key: jax.Array, batch: DeviceBatch) -> Examples:
        """The rows augmented, then attacked, then mixed, and what of the network they skip."""
        labels, index = batch["label"], batch["index"]
        images = self.augment(batch["image"], index, key)
        if self.attack is not None:
            attack_key = jax.random.fold_in(key, random_keys.ATTACK)
            variables = (state.params, state.batch_stats)
            images = self.attack(variables, {**batch, "image": images}, attack_key)
        scales = None if self.drop_path is None else self.drop_path(index, key)
        if self.mix is None:
            return Examples(images, labels, labels, jnp.ones(len(labels)), scales)
        images, share = self.mix(images, index, jax.random.fold_in(key, random_keys.MIX))
        return Examples(images, labels, swap_pairs(labels), share, scales)

    def loss(
        self, params: Tree, batch_stats: Tree, examples: Examples
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Mean cross-entropy of some rows; beside it, logits and running statistics."""
        logits, batch_stats = self.functional.apply_train(
            params, batch_stats, examples.images, examples.branch_scales
        )
        targets = jax.nn.one_hot(examples.labels, logits.shape[-1])
        if self.mix is not None:
            others = jax.nn.one_hot(examples.other_labels, logits.shape[-1])
            share = examples.share[:, None]
            targets = share * targets + (1 - share) * others
        targets = optax.smooth_labels(targets, self.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, batch_stats)

    def apply_gradients(self, state: TrainState, means: Gradients) -> TrainState:
        """The state after a step with these gradients."""
        updates, opt_state = self.optimizer.update(means.params, state.opt_state, state.params)
        trained, _ = split_frozen(state.params, self.frozen.params)
        params = optax.apply_updates(trained, updates)
        params = keep_frozen(params, state.params, self.frozen.params)
        batch_stats = keep_frozen(means.batch_stats, state.batch_stats, self.frozen.statistics)
        ema = state.ema
        if ema is not None:
            # Statistics are averaged too: those of the newest weights do not fit averaged weights.
            new = {"params": params, "batch_stats": batch_stats}
            ema = average(ema, new, state.step + 1, self.ema_decay)
            ema = {  # the mean of equal numbers would differ from them by rounding
                "params": keep_frozen(ema["params"], params, self.frozen.params),
                "batch_stats": keep_frozen(ema["batch_stats"], batch_stats, self.frozen.statistics),
            }
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            rng=state.rng,
            ema=ema,
        )


def accuracy(logits: jax.Array, examples: Examples) -> jax.Array:
    """The share of rows whose label has the highest logit; of a mixed image, each label's share."""
    chosen = jnp.argmax(logits, -1)
    labels, others, share = examples.labels, examples.other_labels, examples.share
    return jnp.mean(share * (chosen == labels) + (1 - share) * (chosen == others))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the unmasked images of all devices.

    Attributes:
      count: int32, the images.
      loss: float32, their losses.
      top1: int32, those whose label has the highest logit.
      top5: int32, those whose label is among the five highest.
    """

    count: jax.Array
    loss: jax.Array
    top1: jax.Array
    top5: jax.Array


def eval_step(
    functional: Functional, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[Variables, DeviceBatch], Sums]:
    """Builds the evaluation step of one device.

    Args:
      functional: the network.
      normalize: images uint8 -> normalised float images.

    Returns:
      ((params, batch_stats), batch) -> sums. The batch holds image, label and mask.
    """

    def step(variables: Variables, batch: DeviceBatch) -> Sums:
        logits = functional.apply(*variables, normalize(batch["image"]))
        labels, mask = batch["label"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        # A class tied with the label counts as ahead of it, so that a network whose logits are all
        # equal (or NaN, which no comparison passes) scores nothing.
        ahead = jnp.sum(~(logits < label_logits), axis=-1) - 1
        sums = Sums(
            count=jnp.sum(mask, dtype=jnp.int32),
            loss=jnp.sum(jnp.where(mask, losses, 0)),
            top1=jnp.sum(mask & (ahead < 1), dtype=jnp.int32),
            top5=jnp.sum(mask & (ahead < 5), dtype=jnp.int32),
        )
        return jax.lax.psum(sums, AXIS)

    return step
