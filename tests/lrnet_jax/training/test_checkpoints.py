"""Checkpoints: what is saved comes back bit for bit; what cannot be read is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.functional import split
from lrnet_jax.training import checkpoints, seal
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.training.devices import replicate
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import init_state

TINY = lrnet_jax.Variant(
    depths=(1,), width=4, stage_channels=8, stem_channels=4, stem_kernel_size=3,
    kernel_size=3, channels_per_group=3, implementation="reference",
)  # fmt: skip


def new_state(variant=TINY, classes=5, seed=0, ema=False):
    model = lrnet_jax.create_from_variant(variant, classes, nnx.Rngs(seed))
    _, params, batch_stats = split(model)
    state = init_state(params, batch_stats, sgd(lambda _: 0.1), seed, ema=ema)
    # Values that no initialisation gives, so that a restored state is known to be restored.
    state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)
    if ema:
        state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x * 2, state.ema))
    return replicate(dataclasses.replace(state, step=jnp.asarray(7)))


def metadata(variant=TINY, classes=5):
    return {
        "network": "lrnet26",
        "variant": json.loads(json.dumps(dataclasses.asdict(variant))),
        "num_classes": classes,
    }


def save(workdir, state, **kwargs):
    with CheckpointSaver(workdir, newest=2) as saver:
        saver.save(state, metadata(**kwargs))


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_comes_back_bit_for_bit(tmp_path, ema):
    state = new_state(ema=ema)
    save(tmp_path, state)
    like = jax.tree.map(jnp.zeros_like, state)
    restored = checkpoints.restore(tmp_path, like)
    assert restored is not None
    assert restored.damaged == ()
    assert restored.metadata == {**metadata(), "step": 7}
    assert_same(restored.state, state)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert restored.state.rng.sharding == state.rng.sharding


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.restore(tmp_path, new_state()) is None


def test_load_checkpoint_rebuilds_the_network(tmp_path):
    state = new_state()
    save(tmp_path, state)
    images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    model = lrnet_jax.create_from_variant(TINY, 5, nnx.Rngs(0))
    functional, _, _ = split(model)
    want = jax.jit(functional.apply)(*jax.device_get((state.params, state.batch_stats)), images)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "7"):
        loaded, record = lrnet_jax.load_checkpoint(path)
        # Two programs: XLA may round them apart.
        np.testing.assert_allclose(nnx.jit(loaded)(images), want, rtol=1e-5)
        assert record["step"] == 7
        assert record["skipped"] == []


def test_load_checkpoint_with_another_head(tmp_path):
    state = new_state()
    save(tmp_path, state)
    loaded, record = lrnet_jax.load_checkpoint(tmp_path, num_classes=3)
    assert nnx.jit(loaded)(jnp.zeros((1, 12, 12, 3))).shape == (1, 3)
    assert record["skipped"] == ["params/head/bias", "params/head/kernel"]
    _, params, batch_stats = split(loaded)
    stored = jax.device_get(state)
    assert_same(params["stem"], stored.params["stem"])
    assert_same(batch_stats, stored.batch_stats)


def test_another_dtype_only_when_asked(tmp_path):
    save(tmp_path, new_state())
    for dtype, want in ((None, "float32"), ("bfloat16", "bfloat16")):
        loaded, _ = lrnet_jax.load_checkpoint(tmp_path, dtype=dtype)
        shapes = nnx.eval_shape(lambda net: net.features(jnp.zeros((1, 12, 12, 3))), loaded)
        assert shapes["res2"].dtype == want
        assert {leaf.dtype for leaf in jax.tree.leaves(split(loaded)[1])} == {jnp.dtype("float32")}
    with pytest.raises(CheckpointError, match="cannot build: dtype must be one of"):
        lrnet_jax.load_checkpoint(tmp_path, dtype="float64")


def test_averages_are_loaded_where_the_run_kept_them(tmp_path):
    state = new_state(ema=True)
    save(tmp_path / "ema", state)
    stored = jax.device_get(state)
    for ema in (None, True, False):
        loaded, record = lrnet_jax.load_checkpoint(tmp_path / "ema", ema=ema)
        assert record["ema"] == (ema is not False)
        want = (stored.params, stored.batch_stats) if ema is False else stored.evaluated
        assert_same(jax.device_get(split(loaded)[1:]), want)

    save(tmp_path / "none", new_state())
    _, record = lrnet_jax.load_checkpoint(tmp_path / "none")
    assert record["ema"] is False
    with pytest.raises(CheckpointError, match=r"no averaged weights; its run had train.ema_deca"):
        lrnet_jax.load_checkpoint(tmp_path / "none", ema=True)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        checkpoints.restore(tmp_path / "none", new_state(ema=True))


def test_a_missing_directory_is_named(tmp_path):
    assert_unusable(tmp_path / "run", "is not a directory")


def test_an_empty_directory_is_named(tmp_path):
    assert_unusable(tmp_path, "neither a step directory nor checkpoints/")


def without(name):
    return lambda folder: (folder / name).unlink()


def with_metadata(record):
    """Metadata that was written on purpose, so the seal fits it."""

    def damage(folder):
        (folder / "metadata" / "metadata").write_text(json.dumps(record))
        seal.write_seal(folder)

    return damage


def rename(folder):
    folder.rename(folder.with_name("8"))


def cut_arrays(folder):
    for file in (folder / "model" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("seal.json"), "7 is damaged: seal.json is missing"),
        (without("metadata/metadata"), "7 is damaged: metadata/metadata is missing"),
        (with_metadata({}), "was not written by lrnet_jax"),
        (rename, "8 is of step 7; it was renamed or copied here"),
        (
            with_metadata({"variant": {"wings": 2}, "num_classes": 5, "step": 7}),
            "describes a network that this version cannot build",
        ),
        (cut_arrays, r"7 is damaged: model/d/\w+ has 10 bytes instead of"),
        (
            with_metadata({**metadata(dataclasses.replace(TINY, width=8)), "step": 7}),
            r"has batch_stats/.* as float32\[4\], the network as float32\[8\]",
        ),
    ],
    ids=[
        "no seal", "no metadata", "foreign metadata", "renamed", "unknown field", "cut arrays",
        "other network",
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, damage, message):
    save(tmp_path, new_state())
    damage(tmp_path / "checkpoints" / "7")
    assert_unusable(tmp_path, message)


def assert_unusable(path, message):
    """Loading fails with one line that names the path."""
    with pytest.raises(CheckpointError, match=message) as raised:
        lrnet_jax.load_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_resuming_into_another_network_is_refused(tmp_path):
    save(tmp_path, new_state())
    with pytest.raises(CheckpointError, match="params/head/bias"):
        checkpoints.restore(tmp_path, new_state(classes=6))
