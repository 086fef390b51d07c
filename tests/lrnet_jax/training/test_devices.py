"""A step on several devices: a batch that they share, the two ways to run it, its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.functional import split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import AXIS, parallel, replicate, shard
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import init_state
from tests.lrnet_jax.training.test_steps import TINY, batches, prepare


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 cannot be split over 4 devices"):
        shard({"label": np.zeros(6)}, jax.local_devices()[:4])


def trained(way, devices):
    """State and metrics after three steps, on the host."""
    model = lrnet_jax.create_from_variant(TINY, 5, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    optimizer = sgd(lambda _: 0.05, weight_decay=1e-3)
    step = steps.TrainStep(functional, optimizer, lambda _: 0.05, augment=prepare, ema_decay=0.6)
    step = parallel(step, donate=True, devices=devices, way=way)
    state = replicate(init_state(params, batch_stats, optimizer, seed=3, ema=True), devices)
    for batch in batches(3):
        placed = shard(batch, devices)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, placed)
    return jax.tree.map(np.array, (state, metrics))


def test_shard_map_gives_what_pmap_gives():
    """Each device runs the same program; the sums over devices may be taken in another order."""
    devices = jax.local_devices()[:4]
    for one, other in zip(
        jax.tree.leaves(trained("pmap", devices)),
        jax.tree.leaves(trained("shard_map", devices)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        if one.dtype == np.float32:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_the_batch_is_split_and_the_state_is_whole(way):
    def step(state, batch):
        return {"sum": jax.lax.psum(batch["x"].sum() * state, AXIS), "rows": batch["x"].shape[0]}

    devices = jax.local_devices()[:4]
    x = np.arange(8.0, dtype=np.float32)
    out = parallel(step, way=way, devices=devices)(
        replicate(jnp.float32(2.0), devices), shard({"x": x}, devices)
    )
    assert float(out["sum"]) == 2 * x.sum()
    assert int(out["rows"]) == 2
    assert out["sum"].is_fully_replicated


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
@pytest.mark.parametrize(("precision", "lowered"), [("float32", "HIGHEST"), ("tf32", "HIGH")])
def test_precision_is_that_of_products_and_their_gradients(way, precision, lowered):
    def step(state, batch):
        return jax.lax.psum(jax.grad(lambda x: (batch["x"] @ x).sum())(state), AXIS)

    devices = jax.local_devices()[:1]
    program = parallel(step, way=way, devices=devices, precision=precision)
    state = replicate(jnp.ones((2, 2)), devices)
    text = program.lower(state, shard({"x": np.ones((3, 2), np.float32)}, devices)).as_text()
    (product,) = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert f"[{lowered}, {lowered}]" in product
