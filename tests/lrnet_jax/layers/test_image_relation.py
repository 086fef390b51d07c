"""The local relation of images is that of the layers one after the other."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax.layers import image_relation
from lrnet_jax.layers.input_transformation import relate_input
from lrnet_jax.layers.kept import keep, recomputed
from lrnet_jax.layers.local_relation import LocalRelation
from pallas_kernels.native import library
from pallas_kernels.pallas import absent_gpu
from pallas_kernels.platform_switch import compiling_for
from tests.lrnet_jax.layers.joint_maps import (
    assert_close,
    check_shared_parameters,
    check_statistics_over_devices,
    derivatives_of,
)
from tests.lrnet_jax.layers.test_input_transformation import LAYERS, NATIVE, PLAIN, Stem, images

pytestmark = pytest.mark.skipif(library.obstacle() is not None, reason=str(library.obstacle()))
IMAGE_TARGETS = library.IMAGE_FORWARD, library.IMAGE_BACKWARD


class Related(Stem):
    """The output of the relation, by the library or by the layers."""

    def __init__(self, how, strides=2, evaluated=False, relation=None, **options):
        super().__init__(how, strides, evaluated, **options)
        self.relation = LocalRelation(
            10,
            8,
            3,
            strides,
            channels_per_group=4,
            implementation=None if how == LAYERS else how,
            rngs=nnx.Rngs(1),
            **(relation or {}),
        )

    def __call__(self, x):
        if self.how == LAYERS:
            return self.relation(self.norm(self.layer(x), relu=True))
        return relate_input(self.layer, self.norm, self.relation, x)


def cotangent(strides=2, batch=8):
    rows, columns = -(-5 // strides), -(-6 // strides)
    return jnp.asarray(
        np.random.default_rng(2).normal(0.2, 1, (batch, rows, columns, 8)), jnp.float32
    )


def derivatives(how, x, d_y, **options):
    return jax.jit(lambda x, d_y: derivatives_of(Related(how, **options), x, d_y))(x, d_y)


OPTIONS = {
    "training": {},
    "ghost": {"group_images": 2},
    "stride 1": {"strides": 1},
    "evaluation": {"evaluated": True},
    "no softmax": {"relation": {"normalization": "none", "query_key_dim": 2, "dilation": 2}},
    "no prior": {"relation": {"prior": "none", "similarity": "multiplication"}},
}


def assert_near(ours, theirs):
    """The bias of the prior network has no gradient but rounding: softmax does not see it."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", OPTIONS)
def test_agrees_with_the_layers(name):
    options = OPTIONS[name]
    x, d_y = images(), cotangent(options.get("strides", 2))
    ours, theirs = (derivatives(how, x, d_y, **options) for how in (NATIVE, LAYERS))
    assert_near(ours, theirs)


def test_axis_name_takes_statistics_over_devices():
    run = functools.partial(derivatives, NATIVE, relation={"prior": "none"})
    check_statistics_over_devices(run, images(), cotangent())


def test_parameters_that_all_devices_share():
    class Listed(Related):
        def __call__(self, x):
            return [super().__call__(x)]

    stem = Listed(NATIVE, group_images=2, relation={"prior": "table"})
    check_shared_parameters(stem, images(), [cotangent()])


def loss(how, x):
    return jnp.sum(jnp.sin(Related(how, evaluated=True)(x)))


def lowered(how, platform="cpu"):
    program, x = jax.jit(jax.value_and_grad(functools.partial(loss, how))), images()
    with absent_gpu() if platform == "cuda" else contextlib.nullcontext():
        return program.trace(x).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("how", "found"), [(None, 1), (NATIVE, 1), (PLAIN, 0)])
def test_a_cpu_gets_the_library(how, found):
    text = lowered(how)
    assert [text.count(f"@{name}(") > 0 for name in IMAGE_TARGETS] == [found] * 2


def calls_of(gradient, **options):
    """How often a compiled program calls the library, forward and backward."""
    graphdef, params, rest = nnx.split(Related(None, **options), nnx.Param, ...)

    def total(params, x):
        run = recomputed(lambda module, x: keep(module(x)))
        return jnp.sum(jnp.sin(run(nnx.merge(graphdef, params, rest, copy=True), x)))

    program = jax.jit(jax.grad(total, argnums=gradient))
    text = program.lower(params, images()).compile().as_text()
    return [text.count(f'custom_call_target="{name}"') for name in IMAGE_TARGETS]


def test_nothing_is_computed_again_or_in_vain():
    """A training step asks for the gradients of parameters, and an attack for that of the image."""
    assert calls_of(gradient=0) == [1, 1]
    assert calls_of(gradient=1, evaluated=True) == [1, 1]
    assert calls_of(gradient=(0, 1), evaluated=True) == [1, 2]


def test_an_exported_program_has_plain_jax():
    """It runs where this package is not."""
    program = jax.jit(jax.value_and_grad(functools.partial(loss, None)))
    exported = jax.export.export(program, platforms=["cpu"])(images())
    assert "lrnet_cpu" not in exported.mlir_module()
    assert_close(exported.call(images()), program(images()))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_a_program_for_a_gpu_has_its_kernels():
    text = lowered(None, "cuda")
    assert "lrnet_cpu" not in text
    assert '"stem_forward"' in text


def unavailable(how=None, x=None):
    stem = Related(PLAIN)
    options = image_relation.Options(stem.relation.spec, how)
    arrays = jnp.zeros((1, 3)), jnp.zeros((1, 3, 10)), jnp.zeros(10)
    projections = stem.relation.key.kernel[...], stem.relation.query.kernel[...]
    inputs = image_relation.Inputs(images() if x is None else x, *arrays, *projections)
    return image_relation.unavailable(options, inputs)


def test_where_it_is_unavailable(monkeypatch):
    assert unavailable() is None
    assert unavailable("native") is None
    assert unavailable("xla") == "the local relation runs xla"
    assert unavailable(x=images().astype(jnp.bfloat16)) == "it computes in float32, of float32"
    with compiling_for(9.0):
        assert unavailable() == "the program is for a GPU"
    monkeypatch.setattr(library, "obstacle", lambda: "1234")
    assert unavailable() == "1234"
