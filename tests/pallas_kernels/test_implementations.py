"""The face of an implementation, and what the public function may know of it."""

import ast
import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import api, native, pallas_interpret, xla
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.spec import (
    Implementation,
    Inputs,
    Residuals,
    Spec,
    backward_shapes,
    forward_shapes,
)
from pallas_kernels.xla import backward_pass, forward_pass

FACE = ("unsupported", "unavailable", "forward", "backward")

each_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def arguments(function):
    """Names and types of the arguments, without `self`."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.annotation) for p in parameters if p.name != "self"]


def test_the_protocol_has_the_four_functions():
    found = [name for name, member in vars(Implementation).items() if inspect.isfunction(member)]
    assert tuple(name for name in found if not name.startswith("_")) == FACE


@each_implementation
def test_an_implementation_is_the_module_of_its_name(name):
    assert IMPLEMENTATIONS[name].__name__ == f"pallas_kernels.{name}"


@each_implementation
@pytest.mark.parametrize("function", FACE)
def test_an_implementation_has_the_face(name, function):
    """Arguments have the same names, order and types in every implementation."""
    found = getattr(IMPLEMENTATIONS[name], function)
    assert arguments(found) == arguments(getattr(Implementation, function))


@each_implementation
def test_an_implementation_describes_itself(name):
    assert IMPLEMENTATIONS[name].DESCRIPTION.strip()


@each_implementation
def test_the_public_function_uses_the_table_only(name):
    """Outside the table, api.py does not use the module of an implementation."""
    tree = ast.parse(inspect.getsource(api))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    assert len(uses) == 1


# What they trace, behind their own switches.
PASSES = {
    "xla": tuple(
        functools.partial(module.run, xla.DEFAULT) for module in (forward_pass, backward_pass)
    ),
    "native": (native.forward, native.backward),
    "pallas_interpret": (pallas_interpret.forward, pallas_interpret.backward),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("normalization", ["softmax", "none"])
def test_results_have_the_shapes_that_a_switch_assumes(name, normalization):
    """Of mixed dtypes, with and without a prior."""
    if obstacle := IMPLEMENTATIONS[name].unavailable():
        pytest.skip(obstacle)
    forward, backward = PASSES[name]
    spec = Spec((3, 5), 4, stride=2, normalization=normalization)
    query, key, value, prior = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((2, 3, 4, 2, 2), jnp.bfloat16),
            ((2, 6, 7, 2, 2), jnp.float32),
            ((2, 6, 7, 6), jnp.float16),
            ((2, 3, 5), jnp.bfloat16),
        )
    )
    for inputs in (Inputs(query, key, value, prior), Inputs(query, key, value)):
        out, normalizer = jax.eval_shape(functools.partial(forward, spec), inputs)
        assumed = jax.eval_shape(functools.partial(forward_shapes, spec), inputs)
        assert (out, normalizer) == assumed
        arrays = Residuals(inputs, out, normalizer), out
        gradients = jax.eval_shape(functools.partial(backward, spec), *arrays)
        assert gradients == jax.eval_shape(functools.partial(backward_shapes, spec), *arrays)
