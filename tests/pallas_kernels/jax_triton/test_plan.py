"""The numbers that the Triton kernels are compiled with, and what the implementation reports."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import pytest

from pallas_kernels import api, implementations, local_relation, pallas
from pallas_kernels.jax_triton import beyond_limits, stack
from pallas_kernels.jax_triton.plan import Plan
from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.platform_switch import compiling_for
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import SHAPES, Shape, make_inputs

SMALL = Shape("small", 5, 7, 12, Spec((3, 3), 8))


def plan(shape, dtype=jnp.bfloat16, by_key=False, strip=None):
    inputs = shape.abstract_inputs(dtype)
    name = "key" if by_key else "forward"
    strip = strip or tiling.heuristic(Problem.of(shape.spec, inputs), name).strip
    return Plan.of(shape.spec, inputs, by_key=by_key, strip=strip)


RUN = [s for s in SHAPES.values() if beyond_limits(s.spec, s.abstract_inputs(jnp.float32)) is None]


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("shape", RUN, ids=lambda shape: shape.name)
def test_cases_visit_every_tap_inside_the_image_once(shape, by_key):
    """Counted pixel by pixel, from the definition of a window."""
    p = plan(shape, by_key=by_key)
    s, found = shape.spec.stride, set()
    for strip in range(p.strips):
        case = next(c for c in p.cases if c.first <= strip <= c.last)
        for i in range(p.strip):
            x = strip * p.strip + i
            for column in range(case.low, case.high):
                other = strip * (p.strip // s) + column
                other = other if by_key else strip * p.strip * s - p.left + column
                inside = 0 <= other < (p.out_width if by_key else p.width)
                assert case.masked or inside
                if x < p.columns and inside and p.tap(column, i) >= 0:
                    assert (x, other, p.tap(column, i)) not in found
                    found.add((x, other, p.tap(column, i)))
    want = set()
    for output in range(p.out_width):
        for tap in range(p.kw):
            key = output * s + tap - p.kw // 2
            if 0 <= key < p.width:
                want.add((key, output, tap) if by_key else (output, key, tap))
    assert found == want


@pytest.mark.parametrize("shape", RUN, ids=lambda shape: shape.name)
def test_lanes_cover_the_output(shape):
    p = plan(shape)
    along, strips, rounds = p.grid
    assert along * p.lanes >= p.together * p.rows * p.groups
    assert strips * p.strip >= p.columns
    assert rounds * p.together * p.repeats >= p.batch


def test_registers_by_kernel_and_alignment_of_channels():
    """A forward kernel sums no prior."""
    aligned, odd = (plan(SHAPES[f"{name}/res2"]) for name in ("lrnet50", "lrnet26"))
    assert (aligned.registers, odd.registers) == (160, 160)
    aligned, odd = (dataclasses.replace(p, sums_prior=True) for p in (aligned, odd))
    assert (aligned.registers, odd.registers) == (168, 255)


@pytest.mark.parametrize(
    ("name", "kernel", "dtype", "implementation", "strips"),  # on an H100, and on a B200
    [
        ("lrnet50/res2", "key", "bfloat16", "jax_triton", (8, 8)),
        ("lrnet26/res2", "key", "bfloat16", "jax_triton", (8, 7)),
        ("lrnet26/res3_stride2", "key", "bfloat16", "jax_triton", (8, 8)),
        ("lrnet50/res2", "key", "float32", "jax_triton", (8, 7)),
        ("stem", "key", "float32", "jax_triton", (8, 6)),
        ("stem", "query", "float32", "jax_triton", (8, 7)),
        ("lrnet50/res2", "query", "float32", "jax_triton", (8, 8)),
        # 6 keys would be three strips for 14, with 4 keys beyond the border.
        ("lrnet50/res5_stride2", "key", "float32", "jax_triton", (8, 8)),
        ("lrnet26/res2", "key", "float32", "pallas", (8, 8)),
        ("stem", "query", "float32", "pallas", (8, 8)),
    ],
)
def test_strips_leave_registers_for_pairs(name, kernel, dtype, implementation, strips):
    shape = SHAPES[name].with_batch(128)
    problem = Problem.of(shape.spec, shape.abstract_inputs(dtype))
    found = []
    for capability in (9.0, 10.0):
        with compiling_for(capability):
            found.append(tiling.chosen(problem, kernel, implementation).strip)
    assert tuple(found) == strips


def test_caches_see_another_source_of_the_plan():
    p = plan(SMALL)
    other = dataclasses.replace(p)
    object.__setattr__(other, "source", "another")
    assert (repr(p) == repr(dataclasses.replace(p)), repr(p) == repr(other)) == (True, False)


def test_a_vector_stays_in_its_group():
    p = plan(SHAPES["odd/partial_group"])  # 20 channels of groups of 8
    assert (p.vector(2), p.last_group, p.m) == (4, 4, 8)
    assert plan(SHAPES["odd/partial_group"], jnp.float32).vector(2) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dilation": 2}, "dilation is 2; use at most 1, or 'pallas' or 'xla'"),
        ({"stride": 3}, "stride is 3; use at most 2"),
        ({"kernel_size": (3, 11)}, "the kernel's width is 11; use at most 9"),
        ({"channels_per_group": 17}, "channels_per_group is 17; use at most 16"),
    ],
)
def test_what_the_kernels_do_not_run(change, message):
    shape = dataclasses.replace(SMALL, channels=34, spec=dataclasses.replace(SMALL.spec, **change))
    assert beyond_limits(shape.spec, shape.abstract_inputs(jnp.float32)).startswith(message)
    # The default runs it all the same.
    assert local_relation(*make_inputs(shape), **shape.options).shape == shape.out


def test_here_it_says_what_is_missing():
    support = implementations(*make_inputs(SMALL), **SMALL.options)["jax_triton"]
    assert not support.runs
    assert "the kernels need an NVIDIA GPU; use 'xla'" in support.reason


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    here = {"triton"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in here or None)
    assert stack.missing.__wrapped__().startswith(
        "the package jax-triton is not installed; python -m pip install -e '.[cuda12]'"
    )
    here |= {"jax_triton"}
    assert stack.missing.__wrapped__().startswith(
        "JAX has no CUDA plugin here; python -m pip install"
    )
    here |= {"jax_cuda13_plugin"}
    assert stack.missing.__wrapped__() is None


class TestDefault:
    """What `implementation=None` takes for a GPU."""

    def chosen(self, shape=SMALL):
        return dict(api._choose(shape.spec, make_inputs(shape), None).by_platform).get("cuda")

    def test_pallas_where_jax_has_it(self, monkeypatch):
        monkeypatch.setattr(stack, "missing", lambda: None)
        assert self.chosen() == "pallas"

    def test_jax_triton_where_it_has_not(self, monkeypatch):
        monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
        monkeypatch.setattr(stack, "missing", lambda: None)
        assert self.chosen() == "jax_triton"
        dilated = dataclasses.replace(SMALL, spec=dataclasses.replace(SMALL.spec, dilation=2))
        assert self.chosen(dilated) is None  # xla then, as on every other platform

    def test_xla_without_the_packages_either(self, monkeypatch):
        monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
        monkeypatch.setattr(stack, "missing", lambda: "the package triton is not installed")
        assert self.chosen() is None

    @pytest.mark.parametrize(("capability", "first"), [(9.0, "pallas"), (10.0, "jax_triton")])
    def test_what_a_gpu_prefers(self, monkeypatch, capability, first):
        monkeypatch.setattr(api, "compute_capability", lambda: capability)
        assert api.preferred("cuda")[0] == first
        monkeypatch.setattr(stack, "missing", lambda: None)
        assert self.chosen() == first


def test_without_a_gpu_code_is_for_the_oldest():
    assert stack.capability() == 80
    with compiling_for(10.0):
        assert stack.capability() == 100
    assert stack.capability() == 80
