"""A JAX that has no Pallas-Triton any more: its modules are hidden in a process of its own."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
# What consists of Pallas kernels, or looks into them.
TOOLS = ("empty_kernels", "instruction_counts", "kernel_report", "pallas_programs")

PROGRAM = """
import importlib, json, pathlib, sys

for name in ("jax.experimental.pallas.triton", "jax._src.pallas.triton"):
    sys.modules[name] = None
import jax

from pallas_kernels import api, jax_triton
from pallas_kernels.jax_triton import stack
from pallas_kernels.tools.shapes import SHAPES, make_inputs

failed = []
for package in ("pallas_kernels", "lrnet_jax", "experiments"):
    for file in sorted(pathlib.Path(package).rglob("*.py")):
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        if name.endswith("__main__") or ".kernels" in name:  # the last import Triton
            continue
        try:
            importlib.import_module(name)
        except ImportError:
            failed.append(name)
shape = SHAPES["odd/single_pixel"]
inputs = make_inputs(shape)

def for_gpu():
    return dict(api._choose(shape.spec, inputs, None).by_platform).get("cuda")

stack.missing = lambda: None
with_triton = for_gpu()
stack.missing = lambda: "not installed"
jax.default_backend = lambda: "gpu"
jax_triton.unavailable = api.IMPLEMENTATIONS["pallas"].unavailable = lambda: None
print(json.dumps({
    "failed": failed,
    "with_triton": with_triton,
    "without": for_gpu(),
    "reason": api.implementations(*inputs, **shape.options)["pallas"].reason,
}))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_the_kernels_and_tools_for_them_are_lost(found):
    tools = {f"pallas_kernels.tools.{name}" for name in TOOLS}
    others = set(found["failed"]) - tools
    assert others
    assert all(name.startswith("pallas_kernels.pallas.") for name in others), others


def test_jax_triton_is_chosen_for_a_gpu_or_xla(found):
    assert (found["with_triton"], found["without"]) == ("jax_triton", None)


def test_the_reason_names_what_to_use(found):
    assert "has no Pallas-Triton (" in found["reason"]
    assert found["reason"].endswith("; use 'jax_triton', jax<0.13, or 'xla'")
