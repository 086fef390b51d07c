"""The canary of a new JAX: every name that JAX does not promise, and that this code uses, is there.

A name that is gone fails in one line, before kernels fail in many.
"""

import ast
import functools
import importlib
import pathlib
from collections import defaultdict

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("pallas_kernels", "lrnet_jax", "experiments")
# jax_triton and triton, which need not be installed: tests/pallas_kernels/jax_triton/test_stack.py.
UNPROMISED = ("jax._src", "jax.interpreters", "jax.extend", "jax.experimental", "grain._src")


def used_by(file):
    """The dotted names that a file uses of modules without promises."""
    tree = ast.parse(file.read_text())
    local, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(PREFIXES):
            for alias in node.names:
                local[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            found |= {x.name for x in node.names if f"{x.name}.".startswith(PREFIXES)}
    found |= set(local.values())
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name(name), attribute) if name in local:
                found.add(f"{local[name]}.{attribute}")
    return found


PREFIXES = tuple(f"{name}." for name in UNPROMISED)


@functools.cache
def names():
    """Each name and the files that use it."""
    found = defaultdict(list)
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for name in used_by(file):
                found[name].append(str(file.relative_to(ROOT)))
    return found


def resolve(name):
    """The object of a dotted name.

    Raises:
      ImportError, AttributeError: there is none.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise ModuleNotFoundError(f"No module named {parts[0]!r}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(names()))
def test_a_name_is_there(name):
    try:
        resolve(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{name} is gone ({error}), used by {', '.join(names()[name])}", pytrace=False)


def test_names_are_found():
    """Of those in use, some that would be missed most."""
    assert {
        "jax._src.pallas.triton.lowering",
        "jax._src.interpreters.partial_eval.dce_rules",
        "jax.experimental.pallas.pallas_call",
        "jax.experimental.pallas.triton.load",
        "jax.interpreters.mlir.register_lowering",
        "jax.extend.core.Primitive",
    } <= set(names())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("jax._src.no_module.name", "no_module"),
        ("jax.interpreters.mlir.no_name", "no_name"),
        ("no_package.name", "no_package"),
    ],
)
def test_a_name_that_is_gone_is_found_out(name, error):
    with pytest.raises((ImportError, AttributeError), match=error):
        resolve(name)
