"""The face of an implementation, and what the public function may know of it."""

import ast
import inspect

import pytest

from pallas_kernels import api
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.spec import Implementation

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
