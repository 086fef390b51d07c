"""The training step: it gives the same on one device and on four, and it is plain SGD."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax import networks
from lrnet_jax.data.augment import augment, normalize
from lrnet_jax.functional import split
from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.training import steps
from lrnet_jax.training.devices import AXIS, parallel, replicate, shard
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import TrainState, init_state

TINY = lrnet_jax.Variant(
    depths=(1,), width=8, stage_channels=16, stem_channels=8, stem_kernel_size=3,
    stem_strides=1, stem_pool=False, kernel_size=3, channels_per_group=4,
    implementation="reference",
)  # fmt: skip
MEAN, STD = (127.0, 127.0, 127.0), (60.0, 60.0, 60.0)


def prepare(images, index, key):
    return normalize(augment(images, index, key, flip=True, shift=1), MEAN, STD)


def batches(count, size=16):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
            "label": rng.integers(0, 5, size).astype(np.int32),
            "index": np.arange(size, dtype=np.int32),
        }
        for _ in range(count)
    ]


DECAY = 0.6


@contextlib.contextmanager
def smooth():
    """Replaces ReLU by tanh, so that a rounding error changes a gradient by roundings alone.

    A ReLU whose input is zero but for rounding passes its gradient with one order of sums and
    stops it with another. That alone changed a gradient by 1.5e-4 of its size, at one step of five.
    """
    normalize_alone = BatchNorm.__call__

    def normalize_and_tanh(norm, x, *, relu=False, multiple=1):
        y = normalize_alone(norm, x, multiple=multiple)
        return jnp.tanh(y) if relu else y

    with (
        mock.patch.object(jax.nn, "relu", jnp.tanh),  # of the priors
        mock.patch.object(networks, "relu", jnp.tanh),
        mock.patch.object(networks, "is_input", return_value=False),
        mock.patch.object(BatchNorm, "__call__", normalize_and_tanh),
    ):
        yield


class Program(NamedTuple):
    """A training step on some devices, from host arrays to host arrays."""

    initial: TrainState
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]


@functools.cache
def program(variant, device_count, accumulate=1):
    """Compiles the step once for all tests."""
    devices = jax.local_devices()[:device_count]
    model = lrnet_jax.create_from_variant(variant, 5, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    optimizer = sgd(lambda _: 0.05, weight_decay=1e-3)
    initial = init_state(params, batch_stats, optimizer, seed=3, ema=True)
    step = steps.TrainStep(
        functional,
        optimizer,
        lambda _: 0.05,
        augment=prepare,
        ema_decay=DECAY,
        accumulate=accumulate,
    )
    step = parallel(step, donate=True, devices=devices)

    def on_host(state, batch):
        with smooth():
            after = step(replicate(state, devices), shard(batch, devices))
        return jax.tree.map(np.array, after)  # copies: the state is donated

    return Program(jax.tree.map(np.array, initial), on_host)


@functools.cache
def history(variant, device_count):
    """Five steps: (state before, batch, state after, metrics) of each."""
    before, step = program(variant, device_count)
    found = []
    for batch in batches(5):
        after, metrics = step(before, batch)
        found.append((before, batch, after, metrics))
        before = after
    return found


def assert_steps_agree(base, other):
    """Repeats every step of the program `base` with `other`, from the state that `base` had.

    From equal states, one step differs by its own rounding. Five steps in a row would differ by
    rounding that the network amplifies, for which there is no bound.
    """
    # A mean over 1,024 pixels, summed in another order: at most 1,024 roundings of its terms.
    relative = 1024 * 2.0**-24
    for n, (before, batch, want, want_metrics) in enumerate(history(*base)):
        got, metrics = program(*other).step(before, batch)
        assert got.step == want.step == n + 1
        # Gradients are zero where terms of about 0.1 cancel.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=relative, atol=0.1 * relative),
            got,
            want,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=relative), metrics, want_metrics
        )


GROUPS = dataclasses.replace(TINY, batch_norm_images=4)
SYNCHRONIZED = dataclasses.replace(TINY, batch_norm_axis="batch")


def test_one_device_in_parts_trains_as_four():
    """The paper's batch on one GPU: four parts of one device's share, one after the other."""
    assert_steps_agree((GROUPS, 4), (GROUPS, 1, 4))


def test_averages_are_the_weighted_mean_of_all_steps():
    """decay^(n - i) for step i of n, over all steps and in float64; weights and statistics."""
    states = [after for _, _, after, _ in history(GROUPS, 4)]
    for n in range(1, 6):
        weights = DECAY ** np.arange(n - 1, -1, -1.0)
        trees = [{"params": s.params, "batch_stats": s.batch_stats} for s in states[:n]]
        want = jax.tree.map(
            lambda *leaves, weights=weights: np.average(
                np.stack(leaves).astype(np.float64), axis=0, weights=weights
            ),
            *trees,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            states[n - 1].ema,
            want,
        )
    last = states[-1]
    assert last.evaluated == (last.ema["params"], last.ema["batch_stats"])


def test_averages_and_decay_come_together():
    optimizer = sgd(lambda _: 0.05)
    state = init_state({}, {}, optimizer, seed=0)
    assert state.evaluated == ({}, {})
    step = steps.TrainStep(Fixed(), optimizer, lambda _: 0.05, augment=prepare, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"ema_decay is 0\.9, and the state keeps no averages"):
        step(state, batches(1)[0])
    step = steps.TrainStep(Fixed(), optimizer, lambda _: 0.05, augment=prepare)
    with pytest.raises(ValueError, match=r"ema_decay is 0\.0, and the state keeps averages"):
        step(dataclasses.replace(state, ema={}), batches(1)[0])
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1"):
        steps.TrainStep(Fixed(), optimizer, lambda _: 0.05, augment=prepare, ema_decay=1)


@pytest.mark.parametrize(
    "variant", [GROUPS, SYNCHRONIZED], ids=["groups of 4 images", "synchronised"]
)
def test_four_devices_train_as_one(variant):
    assert_steps_agree((variant, 4), (variant, 1))


def test_statistics_of_a_whole_device_do_depend_on_the_devices():
    """The control of the test above: without groups or synchronisation the two differ."""
    before, batch, four, _ = history(TINY, 4)[0]
    one, _ = program(TINY, 1).step(before, batch)
    difference = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), one.batch_stats, four.batch_stats
    )
    assert max(jax.tree.leaves(difference)) > 1e-3


@smooth()
def test_step_is_sgd_with_momentum_and_decay_on_weights_only():
    """Two steps of the step function, each against the update of its state in numpy."""
    model = lrnet_jax.create_from_variant(TINY, 5, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    rate, decay = 0.05, 1e-2
    optimizer = sgd(lambda _: rate, momentum=0.9, weight_decay=decay)
    state = init_state(params, batch_stats, optimizer, seed=3)
    step = steps.TrainStep(
        functional,
        optimizer,
        lambda _: rate,
        augment=lambda images, index, key: normalize(images, MEAN, STD),
    )
    step = jax.jit(jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=AXIS))

    def loss(params, batch_stats, batch):
        images = normalize(jnp.asarray(batch["image"]), MEAN, STD)
        logits, stats = functional.apply_train(params, batch_stats, images)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(log_p[jnp.arange(len(images)), batch["label"]]), stats

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    momentum = jax.tree.map(np.zeros_like, params)
    for batch in batches(2):
        before = state
        state, _ = step(before, jax.tree.map(lambda x: x[None], batch))
        grads, stats = gradient(before.params, before.batch_stats, batch)
        flat = jax.tree_util.tree_flatten_with_path(grads)[0]
        decays = {
            path for path, _ in flat
            if path[-1].key == "kernel" and not any(p.key == "prior" for p in path)
        }  # fmt: skip
        assert 0 < len(decays) < len(flat)
        grads = jax.tree_util.tree_map_with_path(
            lambda path, g, w, decays=decays: g + (decay * w if path in decays else 0),
            grads,
            before.params,
        )
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        want = jax.tree.map(lambda w, m: w - rate * m, before.params, momentum)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            (state.params, state.batch_stats),
            (want, stats),
        )


class Fixed:
    """Stands for a network whose logits are the images' first row, times a parameter."""

    def apply_train(self, params, batch_stats, images, branch_scales=None):
        del branch_scales
        return params * self.apply(params, batch_stats, images), batch_stats

    def apply(self, params, batch_stats, images):
        del params, batch_stats
        return images[:, 0, :, 0]


@pytest.mark.parametrize("devices", [1, 4])
def test_targets_of_mixed_images(devices):
    """Loss, accuracy and gradient of mixed, smoothed targets, one row at a time in float64."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(8, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 8).astype(np.int32)
    shares = rng.uniform(size=8).astype(np.float32)

    def mix(images, index, key):
        del key
        return images, jnp.asarray(shares)[index]

    step = steps.TrainStep(
        Fixed(), optax.sgd(1.0), lambda _: 1.0, augment=lambda images, index, key: images,
        mix=mix, label_smoothing=0.1,
    )  # fmt: skip
    step = parallel(step, devices=jax.local_devices()[:devices])
    batch = {
        "image": np.broadcast_to(logits[:, None, :, None], (8, 2, 7, 3)),
        "label": labels,
        "index": np.arange(8, dtype=np.int32),
    }
    state = init_state(jnp.float32(2.0), {}, optax.sgd(1.0), seed=0)
    state = replicate(state, jax.local_devices()[:devices])
    new, metrics = step(state, shard(batch, jax.local_devices()[:devices]))

    losses, right, slopes = [], [], []
    for row in range(8):
        other = labels[row + 1 if row % 2 == 0 else row - 1]
        target = np.full(7, 0.1 / 7)
        target[labels[row]] += 0.9 * shares[row]
        target[other] += 0.9 * (1 - shares[row])
        z = 2.0 * logits[row].astype(np.float64)
        log_p = z - np.log(np.exp(z).sum())
        losses.append(-(target * log_p).sum())
        best = logits[row].argmax()
        right.append(shares[row] * (best == labels[row]) + (1 - shares[row]) * (best == other))
        slopes.append(((np.exp(log_p) - target) * logits[row]).sum())
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(right), rel=1e-5)
    assert float(new.params) == pytest.approx(2.0 - np.mean(slopes), rel=1e-5)
