"""The GPU kernels in interpret mode against the reference: every option, small shapes, small tiles.

Tiles are small, because interpret mode takes longer to compile a longer strip.
`tests.pallas_kernels.pallas.emulate` shows that compiled kernels do the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import implementations, local_relation
from pallas_kernels.pallas import backward_pass, forward_kernel
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Residuals, Spec
from pallas_kernels.tools.comparison import RESULTS, errors, gross, reference_results
from pallas_kernels.tools.shapes import SHAPES, Shape, make_cotangent, make_inputs

MUL = "multiplication"
CASES = [
    (Shape("partial_group", 5, 7, 12, Spec((3, 3), 8)), "float32"),
    (Shape("bfloat16", 5, 7, 12, Spec((3, 3), 8)), "bfloat16"),
    (Shape("stride2_float16", 5, 8, 4, Spec((3, 3), 4, stride=2), batch=2), "float16"),
    (Shape("dilation2_stride2", 7, 8, 4, Spec((3, 3), 2, stride=2, dilation=2)), "float32"),
    (Shape("dilation2", 5, 6, 4, Spec((3, 3), 4, dilation=2)), "float32"),
    (Shape("depth2", 4, 5, 4, Spec((3, 3), 2, similarity=MUL, scale=0.5), depth=2), "float32"),
    (
        Shape(
            "absolute_depth3",
            4,
            5,
            4,
            Spec((3, 3), 4, similarity="absolute_difference"),
            depth=3,
            has_prior=False,
        ),
        "float32",
    ),
    (SHAPES["odd/rounds_of_images"], "float32"),
    (Shape("negative_scale", 4, 5, 4, Spec((3, 3), 4, scale=-0.3)), "float32"),
    (Shape("one_group_in_chunks", 4, 5, 21, Spec((3, 3), 21)), "float32"),
    (
        Shape("no_softmax", 4, 5, 5, Spec((3, 3), 2, similarity=MUL, normalization="none")),
        "float32",
    ),
]


def run(shape, *arrays):
    """All five results of the kernels, with tiles that use every feature."""
    stride = shape.spec.stride
    inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
    forward = Tile(2, 1)
    out, normalizer = forward_kernel.forward(shape.spec, inputs, interpret=True, tile=forward)
    tiles = (Tile(2, 1, strips_per_lane=2), Tile(-(-2 // stride) * stride, 1))
    gradients = backward_pass.backward(
        shape.spec, Residuals(inputs, out, normalizer), d_out, interpret=True, tiles=tiles
    )
    return out, *gradients


def jitted(shape):
    # Compilation is nearly all of the time, and a quarter less at this level.
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda *arrays: run(shape, *arrays), compiler_options=fast)


# CI runs the cases that share the least code. Interpret mode takes seconds to compile each.
SLOW = {"bfloat16", "dilation2_stride2", "absolute_depth3", "negative_scale"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(*case, id=case[0].name, marks=[pytest.mark.slow] * (case[0].name in SLOW))
        for case in CASES
    ],
)
def test_results(shape, dtype):
    for error in errors(shape, jnp.dtype(dtype), jitted(shape)):
        assert error.ok, error


class TestExtremes:
    """Inputs that need the exact pass of the forward kernel, all in one compiled program."""

    shape = Shape("extreme", 4, 5, 4, Spec((3, 3), 4))
    kernels = staticmethod(jitted(shape))
    # Compiled once: operation by operation, the reference takes longer than the kernels.
    reference = staticmethod(jax.jit(functools.partial(reference_results, shape)))
    gross = staticmethod(jax.jit(functools.partial(gross, shape)))

    def check(self, query, key, value, prior, roundings=16):
        inputs = Inputs(*(jnp.asarray(x, jnp.float32) for x in (query, key, value, prior)))
        d_out = make_cotangent(self.shape)
        got = self.kernels(*inputs, d_out)
        want = self.reference(inputs, d_out)
        terms = self.gross(inputs, d_out)
        for result, a, b in zip(RESULTS, got, want, strict=True):
            error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
            assert error <= roundings * 2.0**-24 * terms[result], result

    def inputs(self):
        return [np.asarray(x) for x in make_inputs(self.shape)]

    def test_far_queries(self):
        query, key, value, prior = self.inputs()
        # The last bit of a logit of 1e6 is worth 6 %, so all numbers are on a coarse grid.
        self.check(np.round(query * 300), np.round(key * 300), value, prior * 0)

    def test_all_logits_equal_and_low(self):
        query, key, value, prior = self.inputs()
        self.check(query * 0 + 1000, key * 0, value, prior * 0)

    @pytest.mark.parametrize("scale", [1e3, 1e8, 3e37])
    def test_priors_of_any_range(self, scale):
        query, key, value, prior = self.inputs()
        self.check(query, key, value, np.round(prior) * scale)

    def test_some_priors_minus_infinity(self):
        query, key, value, prior = self.inputs()
        prior = np.where(np.arange(9).reshape(1, 3, 3) % 2, -np.inf, prior)
        inputs = Inputs(*(jnp.asarray(x) for x in (query, key, value, prior)))
        d_out = make_cotangent(self.shape)
        got = self.kernels(*inputs, d_out)
        # The reference's gradient of -inf is nan, so it gets a finite prior.
        finite = jnp.where(jnp.isinf(inputs.prior), -1e4, inputs.prior)
        want = self.reference(inputs._replace(prior=finite), d_out)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

    def test_large_values_do_not_overflow(self):
        query, key, value, prior = self.inputs()
        value = value / np.abs(value).max() * 1e38
        inputs = Inputs(*(jnp.asarray(x, jnp.float32) for x in (query, key, value, prior + 30)))
        out = self.kernels(*inputs, make_cotangent(self.shape) * 1e-38)[0]
        want = self.reference(inputs, make_cotangent(self.shape) * 1e-38)[0]
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e33)

    def test_repeats_bit_for_bit(self):
        arrays = [*make_inputs(self.shape), make_cotangent(self.shape)]
        for a, b in zip(self.kernels(*arrays), self.kernels(*arrays), strict=True):
            np.testing.assert_array_equal(a, b)


class TestChoice:
    """When the public function runs the kernels, and what it reports where it cannot."""

    shape = Shape("choice", 3, 4, 4, Spec((3, 3), 4))

    def call(self, implementation, shape=shape, dtype=jnp.float32):
        return local_relation(
            *make_inputs(shape, dtype), **shape.options, implementation=implementation
        )

    def test_named_pallas_without_a_gpu_says_what_to_do(self):
        with pytest.raises(ValueError, match=r"needs? an NVIDIA GPU; use 'xla'"):
            self.call("pallas")

    def test_interpret_runs_here(self):
        np.testing.assert_allclose(self.call("pallas_interpret"), self.call("reference"), atol=1e-6)

    def test_none_runs_here_and_differentiates(self):
        inputs = make_inputs(self.shape)

        def loss(*inputs):
            return local_relation(*inputs, **self.shape.options).sum()

        assert all(np.isfinite(x).all() for x in jax.grad(loss, argnums=(0, 1, 2, 3))(*inputs))

    def test_what_the_kernels_do_not_run(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="query is float64; use float32"):
            self.call("pallas_interpret", dtype=jnp.float64)
        deep = dataclasses.replace(self.shape, depth=17)
        with pytest.raises(ValueError, match="is 17; use at most 16"):
            self.call("pallas_interpret", deep)
        assert self.call(None, deep).shape == deep.out

    def test_implementations_give_reasons(self):
        supports = implementations(*make_inputs(self.shape), **self.shape.options)
        assert not supports["pallas"].runs
        assert "NVIDIA GPU" in supports["pallas"].reason
        assert supports["pallas_interpret"].runs
