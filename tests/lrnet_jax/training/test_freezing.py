"""Frozen parameters: they stay, their statistics stay, and nothing is computed for them."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.data.augment import normalize
from lrnet_jax.functional import split
from lrnet_jax.training import steps
from lrnet_jax.training.checkpoints import flatten
from lrnet_jax.training.devices import parallel, replicate, shard
from lrnet_jax.training.freezing import freeze, join, split_frozen, with_frozen_statistics
from lrnet_jax.training.multipliers import frozen_paths, rate_factors
from lrnet_jax.training.optimizer import make_optimizer
from lrnet_jax.training.state import init_state

TINY = lrnet_jax.Variant(
    depths=(1, 1), width=4, stage_channels=8, stem="convolution", stem_channels=4,
    stem_kernel_size=3, stem_strides=1, stem_pool=False, operator="convolution", kernel_size=3,
)  # fmt: skip
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
    "label": RNG.integers(0, 5, 12).astype(np.int32),
    "index": np.arange(12, dtype=np.int32),
}


def prepare(images, index, key):
    del index, key
    return normalize(images, (127.0,) * 3, (60.0,) * 3)


def make(patterns, accumulate=1):
    """A step and its initial state."""
    model = lrnet_jax.create_from_variant(TINY, 5, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    factors = rate_factors(params, patterns)
    frozen = freeze(params, batch_stats, frozen_paths(factors))
    functional = with_frozen_statistics(functional, model, frozen.statistics)
    optimizer = make_optimizer("adamw", lambda _: 0.01, weight_decay=0.1, factors=factors)
    step = steps.TrainStep(
        functional, optimizer, lambda _: 0.01, augment=prepare, ema_decay=0.7, frozen=frozen,
        accumulate=accumulate,
    )  # fmt: skip
    return step, init_state(params, batch_stats, optimizer, seed=0, ema=True)


def test_trees_are_taken_apart_and_joined():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    trained, frozen = split_frozen(tree, {"a/b", "e"})
    assert trained == {"a": {"c": {"d": 2}}}
    assert frozen == {"a": {"b": 1}, "e": 3}
    assert join(trained, frozen) == join(frozen, trained) == tree
    assert split_frozen(tree, frozenset())[0] is tree


@functools.cache
def trained(device_count, accumulate):
    """The state before and after three steps with the stem and the first stage frozen."""
    devices = jax.local_devices()[:device_count]
    step, state = make({"stem": 0, "stages/0": 0}, accumulate)
    before = jax.tree.map(np.array, state)
    step, state = parallel(step, devices=devices), replicate(state, devices)
    for _ in range(3):
        state, _ = step(state, shard(BATCH, devices))
    return before, jax.tree.map(np.array, state)


@pytest.mark.parametrize(("devices", "accumulate"), [(3, 1), (1, 3)])
def test_frozen_numbers_keep_every_bit(devices, accumulate):
    """Weights, statistics and averages. A mean of three equal numbers may differ from them."""
    before, after = trained(devices, accumulate)
    one = flatten({"params": before.params, "batch_stats": before.batch_stats})
    for tree in ({"params": after.params, "batch_stats": after.batch_stats}, after.ema):
        other = flatten(tree)
        assert one.keys() == other.keys()
        same = {path for path in one if np.array_equal(one[path], other[path])}
        assert same == {path for path in one if "/stem/" in path or "/stages/0/" in path}


def test_the_optimiser_keeps_nothing_of_what_is_frozen():
    _, after = trained(1, 3)
    paths = flatten(after.opt_state)
    assert any(path.endswith("stages/1/0/branch/0/layer/kernel") for path in paths)
    assert not any("stem" in path or "stages/0" in path for path in paths)


def test_gradients_of_what_is_frozen_are_not_computed():
    """Operations of the compiled program: with the head alone, hardly more than a forward pass."""

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    def gradients(patterns):
        step, state = make(patterns)
        key = jax.random.key(0)
        return flops(lambda state, batch: step.gradients(state, key, batch).params, state, BATCH)

    step, state = make({"*": 0, "head": 1})
    images = prepare(BATCH["image"], None, None)
    forward = flops(step.functional.apply, state.params, state.batch_stats, images)
    assert gradients({"*": 0, "head": 1}) < 1.1 * forward
    assert 1.1 * forward < gradients({"stem": 0, "stages/0": 0}) < 2.2 * forward
    assert gradients({}) > 2.5 * forward


def test_frozen_layers_normalise_with_their_statistics_in_training():
    step, state = make({"*": 0, "head": 1})
    images = prepare(BATCH["image"], None, None)
    logits, _ = step.functional.apply_train(state.params, state.batch_stats, images)
    want = step.functional.apply(state.params, state.batch_stats, images)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)


def test_statistics_are_kept_where_the_whole_layer_is():
    model = lrnet_jax.create_from_variant(TINY, 5, nnx.Rngs(0))
    _, params, batch_stats = split(model)
    scale = "stem/0/norm/scale"
    assert freeze(params, batch_stats, {scale}).statistics == frozenset()
    kept = freeze(params, batch_stats, {scale, "stem/0/norm/bias"}).statistics
    assert kept == {"stem/0/norm/mean", "stem/0/norm/var"}
