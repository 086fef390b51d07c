"""Versions: which were compiled, and that the mends of jax-triton are still needed.

What fails here says in a line what to do.
"""

import importlib.metadata
import inspect
import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.jax_triton import launch, stack
from pallas_kernels.spec import Inputs, Spec
from pallas_kernels.tools.shapes import Shape

PROJECT = pathlib.Path(__file__).parents[3] / "pyproject.toml"

needs_triton = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))


@needs_triton
def test_these_versions_were_compiled():
    """When all other tests of kernels pass with new versions, add them to the table."""
    assert stack.untested() is None, f"{stack.untested()}; see stack.COMPILED"


def test_the_extras_have_what_was_compiled():
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    for name in ("cuda12", "cuda13"):
        text = "\n".join(extras[name])
        assert set(re.findall(r"jax-triton==([\d.]+)", text)) == {x[0] for x in stack.COMPILED}
        assert set(re.findall(r"^triton==(\d+\.\d+)", text, re.M)) == {x[1] for x in stack.COMPILED}
        [bound] = re.findall(r"jax\[\w+\]>=[\d.]+,<0\.(\d+)", text)
        assert int(bound) == 1 + max(int(x[2].partition(".")[2]) for x in stack.COMPILED)


@pytest.mark.parametrize(
    ("versions", "known"),
    [
        (("0.3.1", "3.9.0", "0.10.2"), True),
        (("0.4.1", "3.9.1", "0.12.0.1"), True),
        (("0.3.1", "3.9.0", "0.12.0"), False),
        (("0.4.1", "3.9.0", "0.1"), False),
        (("0.4.1", "3.10.0", "0.12.0"), False),
        (("0.4.2", "3.9.0", "0.12.0"), False),
    ],
)
def test_what_was_never_compiled_is_named_in_a_line(monkeypatch, versions, known):
    names = dict(zip(("jax-triton", "triton", "jax"), versions, strict=True))
    monkeypatch.setattr(importlib.metadata, "version", names.__getitem__)
    found = stack.untested.__wrapped__()
    assert (found is None) == known
    if found:
        assert found == (
            "jax-triton {}, triton {} and jax {} were never compiled together; known to work: "
            "0.3.1, 3.9 and 0.10, or 0.4.1, 3.9 and 0.11, or 0.4.1, 3.9 and 0.12".format(*versions)
        )


def test_without_the_packages_nothing_is_said_of_versions(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert stack.untested.__wrapped__() is None


@needs_triton
@pytest.mark.parametrize("line", [None, "jax-triton 9, triton 9 and jax 9 were never compiled"])
def test_an_error_of_the_packages_says_that_they_were_never_compiled(monkeypatch, line):
    def fail():
        raise AttributeError("module 'jax_triton' has no attribute 'triton_call'")

    monkeypatch.setattr(stack, "load", fail)
    monkeypatch.setattr(stack, "untested", lambda: line)
    shape = Shape("small", 3, 4, 4, Spec((3, 3), 4))
    inputs = shape.abstract_inputs(jnp.float32)
    with pytest.raises(AttributeError) as caught:
        jax.eval_shape(lambda *x: launch.forward(shape.spec, Inputs(*x)), *inputs)
    notes = [x for x in getattr(caught.value, "__notes__", []) if "never compiled" in x]
    assert notes == ([f"{line}; {stack.INSTALL}"] if line else [])


@needs_triton
def test_an_old_version_has_no_options_of_the_backend():
    jax_triton = stack.load()
    if not stack.takes_out_shape(jax_triton):
        pytest.skip(f"jax-triton {jax_triton.__version__} has them")
    assert "backend_options" not in inspect.signature(jax_triton.triton_call).parameters, (
        "remove stack._pass_options_in_lowering"
    )


@needs_triton
def test_the_rule_for_dead_code_takes_too_few_arguments():
    jax_triton = stack.load()
    if stack.takes_out_shape(jax_triton) or jax.__version_info__ < (0, 12):
        pytest.skip(f"JAX {jax.__version__} and jax-triton {jax_triton.__version__} agree")
    from jax_triton import triton_lib

    rule = triton_lib._triton_kernel_call_dce_rule
    assert len(inspect.signature(rule).parameters) == 2, "remove stack._mend_dead_code_rule"
    assert not stack.needs_dead_code_rule()  # mended
