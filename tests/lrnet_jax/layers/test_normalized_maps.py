"""One rule for a normalisation, its ReLU, keys and queries agrees with the layers in turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax import Variant, create_from_variant
from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.normalized_maps import is_joint, normalized_maps
from pallas_kernels import pallas
from pallas_kernels.pallas import absent_gpu
from pallas_kernels.pallas.stem import Maps
from tests.lrnet_jax.layers.joint_maps import (
    assert_close,
    check_shared_parameters,
    check_statistics_over_devices,
    cotangent,
    derivatives_of,
)

SHAPE = (8, 5, 6, 10)
LAYERS, PLAIN, KERNELS = "xla", None, "pallas_interpret"


class Before(nnx.Module):
    """Values, keys and queries, by an implementation or by the layers one after the other."""

    def __init__(self, how, strides=1, **options):
        rng = np.random.default_rng(1)
        self.norm = BatchNorm(10, **options)
        for variable, least in ((self.norm.scale, 0.5), (self.norm.bias, -1), (self.norm.mean, 0)):
            variable[...] = jnp.asarray(rng.uniform(least, 1, 10), jnp.float32)
        self.relation = LocalRelation(
            10, 8, 3, strides, channels_per_group=4, implementation=how, rngs=nnx.Rngs(1)
        )

    def __call__(self, x):
        multiple = 8 if x.shape[-1] == 16 else 1
        if self.relation.implementation != LAYERS:
            return normalized_maps(self.norm, self.relation, x, multiple)
        for projection in (self.relation.query, self.relation.key):
            projection.dtype = x.dtype
        y = self.norm(x, relu=True, multiple=multiple)
        query, key = self.relation.query_and_key(y, multiple)
        return Maps(y, key[..., 0], query[..., 0])


def channels(shape=SHAPE):
    return jnp.asarray(np.random.default_rng(0).normal(0.7, 2.0, shape), jnp.float32)


@functools.partial(jax.jit, static_argnames=("how", "strides", "group_images", "axis_name"))
def derivatives(how, x, d_y, **options):
    """Maps, running averages, and the gradients of parameters and channels."""
    return derivatives_of(Before(how, **options), x, d_y)


@pytest.mark.parametrize("how", [PLAIN, KERNELS])
@pytest.mark.parametrize(("group_images", "strides"), [(None, 1), (2, 2)])
def test_agrees_with_the_layers(how, group_images, strides):
    x, d_y = channels(), cotangent(strides)
    ours, theirs = (
        derivatives(h, x, d_y, group_images=group_images, strides=strides) for h in (how, LAYERS)
    )
    assert_close(ours, theirs)


def test_channels_that_are_filled_up():
    x = jnp.pad(channels(), [(0, 0)] * 3 + [(0, 6)])
    ours, theirs = (derivatives(how, x, cotangent(width=16)) for how in (KERNELS, LAYERS))
    assert_close(ours, theirs)
    assert not np.any(ours[0].value[..., 10:])


def test_axis_name_takes_statistics_over_devices():
    check_statistics_over_devices(functools.partial(derivatives, PLAIN), channels(), cotangent())


def test_parameters_that_all_devices_share():
    check_shared_parameters(Before(PLAIN, group_images=2), channels(), cotangent())


@functools.cache
def bfloat16_errors(how):
    """Relative errors of the gradients, that of the channels last, against float32."""
    x, d_y = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (channels(), cotangent()))
    exact = derivatives(LAYERS, *jax.tree.map(lambda a: a.astype(jnp.float32), (x, d_y)))
    got = derivatives(how, x, d_y)
    assert got[0].value.dtype == got[3].dtype == jnp.bfloat16
    return [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in zip(jax.tree.leaves(got[2:]), jax.tree.leaves(exact[2:]), strict=True)
        if jnp.linalg.norm(b) > 0  # the relation's own parameters do not take part
    ]


def test_bfloat16_gradients_of_the_kernels_are_as_near_to_float32_as_those_of_the_layers():
    assert len(bfloat16_errors(KERNELS)) == 5
    # What both have to round decides about some of them.
    assert np.all(np.less_equal(bfloat16_errors(KERNELS), 1.1 * np.array(bfloat16_errors(LAYERS))))
    assert sum(bfloat16_errors(KERNELS)) < sum(bfloat16_errors(LAYERS))


def lowered(platform, **options):
    """The text of a program with the gradients of a network of bfloat16."""
    variant = Variant(
        depths=(1, 1),
        width=16,
        stage_channels=(32, 64),
        dtype="bfloat16",
        stem_channels=16,
        **options,
    )
    graphdef, params, rest = nnx.split(create_from_variant(variant, 5, nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, images):
        return jnp.sum(nnx.merge(graphdef, params, rest, copy=True)(images))

    images = jnp.zeros((2, 16, 16, 3), jnp.bfloat16)
    with absent_gpu():
        traced = jax.jit(jax.grad(loss)).trace(params, images)
        return traced.lower(lowering_platforms=(platform,)).as_text()


# JAX 0.11 and later say so at each lowering.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(
    ("platform", "options", "found"),
    [
        ("cuda", {}, True),
        ("cuda", {"remat": "blocks"}, True),
        ("cuda", {"implementation": "xla"}, False),
        ("cpu", {}, False),
    ],
)
def test_a_gpu_gets_the_kernels(platform, options, found):
    text = lowered(platform, **options)
    for name in ("forward", "sums", "gradient"):
        assert (f'"projections_{name}"' in text) == found


def test_a_jax_without_the_backend_gets_the_layers(monkeypatch):
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
    assert "projections_forward" not in lowered("cuda")


def test_what_the_rule_is_for():
    before, x = Before(None), channels().astype(jnp.bfloat16)
    assert is_joint(before.relation, before.norm, x)
    assert not is_joint(before.relation, before.norm, channels())
    assert not is_joint(before.relation.key, before.norm, x)
    assert not is_joint(Before("xla").relation, before.norm, x)
    before.relation.dtype = jnp.dtype("float32")
    assert not is_joint(before.relation, before.norm, x)
    before.relation.dtype = x.dtype
    assert is_joint(before.relation, before.norm, x)
    before.eval()
    assert not is_joint(before.relation, before.norm, x)
