"""Products with a kernel: derivatives as those of jnp.dot, and the program of each platform."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax.layers import matrix_products
from lrnet_jax.layers.channel_transformation import ChannelTransformation, apply_jointly
from lrnet_jax.layers.matrix_products import product
from pallas_kernels.native import library
from pallas_kernels.platform_switch import without_switch
from tests.lrnet_jax.test_networks import FAST, create, small

needs_library = pytest.mark.skipif(library.obstacle() is not None, reason=str(library.obstacle()))
RNG = np.random.default_rng(0)
ROWS, KERNEL, WEIGHTS = (RNG.normal(size=s).astype(np.float32) for s in ((12, 7), (7, 5), (12, 5)))


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch):
    """The products themselves are C++ too, where XLA would take those of so few rows."""
    monkeypatch.setattr(matrix_products.row_products, "MIN_ROWS", 1)


def loss(multiply, rows, kernel):
    """With derivatives of every order."""
    return jnp.sum(jnp.sin(multiply(rows, kernel)) * WEIGHTS)


TRANSFORMS = {
    "of the kernel": lambda f: jax.grad(f, 1),
    "of the rows": lambda f: jax.grad(f, 0),
    "forward": lambda f: lambda *x: jax.jvp(f, x, x),
    "linearize": lambda f: lambda *x: jax.linearize(f, *x)[1](*x),
    "hessian": lambda f: jax.hessian(f, (0, 1)),
    "twice backward": lambda f: jax.jacrev(jax.grad(f, (0, 1)), (0, 1)),
    "recomputed": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "third": lambda f: jax.jacfwd(jax.hessian(f, 1), 1),
}


def assert_close(found, want):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def both(transform):
    """The function of `product` and that of jnp.dot."""
    return [jax.jit(transform(functools.partial(loss, f))) for f in (product, jnp.dot)]


@needs_library
@pytest.mark.parametrize("name", TRANSFORMS)
def test_derivatives(name):
    found, want = both(TRANSFORMS[name])
    assert_close(found(ROWS, KERNEL), want(ROWS, KERNEL))


@needs_library
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("name", ["of the kernel", "hessian"])
def test_vmap(name, axes):
    arrays = [
        x if axis is None else np.stack([x, -2 * x, x + 1])
        for x, axis in zip((ROWS, KERNEL), axes, strict=True)
    ]
    found, want = both(lambda f: jax.vmap(TRANSFORMS[name](f), axes))
    assert_close(found(*arrays), want(*arrays))


@needs_library
def test_vmap_of_vmap():
    rows, kernels = np.stack([ROWS, -ROWS]), np.stack([KERNEL, 2 * KERNEL, KERNEL - 1])
    found, want = both(
        lambda f: jax.vmap(jax.vmap(jax.grad(f, (0, 1)), (None, 0)), (0, None)),
    )
    assert_close(found(rows, kernels), want(rows, kernels))


@needs_library
def test_without_jit():
    """The primitives run by themselves."""
    found = jax.grad(functools.partial(loss, product), (0, 1))(ROWS, KERNEL)
    assert_close(found, jax.grad(functools.partial(loss, jnp.dot), (0, 1))(ROWS, KERNEL))


def summed(multiply, rows, kernel):
    return jnp.sum(jnp.sin(multiply(rows, kernel)))


@needs_library
def test_in_shard_map():
    """The gradient of a kernel that all devices share is summed over the devices."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (jax.P("d"), jax.P())

    def gradient(multiply):
        f = jax.grad(functools.partial(summed, multiply), 1)
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=jax.P()))

    assert_close(gradient(product)(ROWS, KERNEL), gradient(jnp.dot)(ROWS, KERNEL))
    assert "psum" in str(gradient(product).trace(ROWS, KERNEL).jaxpr)


def texts(platform, precision=None):
    found = []
    for function in both(lambda f: jax.grad(f, (0, 1))):
        with jax.default_matmul_precision(precision):
            traced = function.trace(ROWS, KERNEL)
        found.append(traced.lower(lowering_platforms=(platform,)).as_text())
    return found


@needs_library
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("precision", [None, "highest"])
def test_other_platforms_have_the_program_of_dot(platform, precision):
    found, want = texts(platform, precision)
    assert found == want


@needs_library
def test_a_cpu_has_the_custom_calls(monkeypatch):
    found, want = texts("cpu")
    assert found.count(f"@{library.WEIGHT_GRADIENT}") == 1
    assert found.count(f"@{library.ROW_PRODUCT}") == 2  # the product and the gradient of the rows
    assert "custom_call" not in want
    monkeypatch.setattr(matrix_products.row_products, "MIN_ROWS", 13)
    assert library.ROW_PRODUCT not in texts("cpu")[0]


@needs_library
def test_an_exported_program_needs_no_library():
    gradient, _ = both(lambda f: jax.grad(f, (0, 1)))
    exported = jax.export.export(gradient, platforms=("cpu", "cuda"))(ROWS, KERNEL)
    assert "custom_call" not in exported.mlir_module()
    assert_close(exported.call(ROWS, KERNEL), gradient(ROWS, KERNEL))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_are_those_of_dot(dtype):
    rows, kernel = jnp.asarray(ROWS, dtype), jnp.asarray(KERNEL, dtype)
    found, want = (str(jax.make_jaxpr(f)(rows, kernel)) for f in (product, jnp.dot))
    assert found == want


@needs_library
def test_without_switches_it_is_dot():
    """Also of shapes that were traced before: converters know the primitives of JAX alone."""
    before = str(jax.make_jaxpr(lambda *arrays: product(*arrays))(ROWS, KERNEL))
    with without_switch():
        found = str(jax.make_jaxpr(lambda *arrays: product(*arrays))(ROWS, KERNEL))
    assert found == str(jax.make_jaxpr(jnp.dot)(ROWS, KERNEL)) != before


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(matrix_products.weight_gradients, "unavailable", lambda: "not built")
    found, want = (str(jax.make_jaxpr(f)(ROWS, KERNEL)) for f in (product, jnp.dot))
    assert found == want


@needs_library
def test_layers_use_it():
    first, second = (ChannelTransformation(7, n, rngs=nnx.Rngs(n)) for n in (5, 3))
    x = jnp.asarray(RNG.normal(size=(2, 3, 2, 7)), jnp.float32)

    def gradients(layers, x):
        def total(layers):
            return sum(jnp.sum(y**2) for y in (layers[0](x), *apply_jointly(x, *layers)))

        return nnx.grad(total)(layers)

    text = jax.jit(gradients).trace((first, second), x).lower(lowering_platforms=("cpu",)).as_text()
    assert len(re.findall(library.WEIGHT_GRADIENT, text)) == 2


@needs_library
def test_no_gradient_of_a_network_is_a_product_over_pixels_by_xla():
    model = create(small("lrnet26", stage_channels=(16,), depths=(1,), implementation=None))
    graphdef, state = nnx.split(model)

    def gradients(state, x):
        return nnx.grad(lambda model: jnp.sum(model(x) ** 2))(nnx.merge(graphdef, state, copy=True))

    text = jax.jit(gradients).lower(state, jnp.ones((2, 16, 16, 3))).compile(FAST).as_text()
    by_xla = "lhs_contracting_dims={0}, rhs_contracting_dims={0}"
    products = [line for line in text.splitlines() if " dot(" in line and by_xla in line]
    shapes = dict(re.findall(r"%?([\w.-]+) = f32\[(\d+),\d+\]", text))
    summed = [shapes[re.search(r"dot\(%?([\w.-]+)", line)[1]] for line in products]
    assert max(map(int, summed), default=0) < 2 * 4 * 4  # those of the stem's statistics
    assert text.count(f'custom_call_target="{library.WEIGHT_GRADIENT}"') == 7
