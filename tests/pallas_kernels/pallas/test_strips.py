"""How programs cover the images: every place is counted exactly once."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.pallas import key_strip, output_strip
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import MAX_BORDER_CASES, Strips
from pallas_kernels.pallas.tiling import Tile, chosen
from pallas_kernels.spec import Inputs
from pallas_kernels.tools.shapes import NETWORKS, ODD, SHAPES

COVERS = [
    Strips(rows=6, columns=10, strip=3, units=5, batch=4, lanes_per_program=32),
    # The last round has fewer images.
    Strips(rows=6, columns=10, strip=5, units=3, batch=11, lanes_per_program=32),
    # All lanes are active.
    Strips(rows=8, columns=4, strip=4, units=4, batch=2, lanes_per_program=32, phases=2),
    Strips(rows=1, columns=1, strip=1, units=1, batch=1, lanes_per_program=64),
    Strips(rows=9, columns=6, strip=2, units=1, batch=3, lanes_per_program=32, phases=3),
    # Parts are uneven.
    Strips(rows=7, columns=5, strip=2, units=3, batch=3, lanes_per_program=32, parts=3),
    Strips(rows=8, columns=4, strip=4, units=4, batch=5, lanes_per_program=32, parts=2),
]


def problem(shape, batch=2):
    shape = shape.with_batch(batch)
    arrays = [
        None if x is None else jax.ShapeDtypeStruct(x, jnp.bfloat16)
        for x in (shape.query, shape.key, shape.value, shape.prior)
    ]
    return Problem.of(shape.spec, Inputs(*arrays))


def programs(strips):
    along, across, rounds = strips.grid
    parts = range(strips.parts)
    for x, *place in itertools.product(range(along), range(across), range(rounds), parts):
        yield jnp.int32(x * strips.lanes_per_program), *(jnp.int32(n) for n in place)


def active_lanes(place):
    active = np.ones(place.image.shape, bool) if place.active is None else place.active
    return np.flatnonzero(active)


@pytest.mark.parametrize("strips", COVERS)
def test_every_place_is_one_active_lane(strips):
    found = collections.Counter()
    for program in programs(strips):
        place = strips.place(*program)
        active = active_lanes(place)
        found.update(zip(*(np.asarray(x)[active].tolist() for x in place[:-1]), strict=True))
    everything = itertools.product(
        range(strips.batch),
        range(strips.rows),
        range(0, strips.columns, strips.strip),
        range(strips.units),
    )
    assert found == collections.Counter(everything)


@pytest.mark.parametrize("strips", COVERS)
def test_row_range_holds_the_rows_of_a_program(strips):
    for first, strip, images, part in programs(strips):
        low, high, same_phase = strips.row_range(part * strips.lanes_per_part + first)
        place = strips.place(first, strip, images, part)
        rows = np.asarray(place.row)
        assert low <= rows.min()
        assert rows.max() <= high
        if same_phase:
            assert len(set(rows % strips.phases)) == 1
            assert (low, high) == (rows.min(), rows.max())


@pytest.mark.parametrize("strips", COVERS)
def test_a_lane_has_one_unit_in_all_parts_and_rounds(strips):
    """The lane's column of memory sums d_prior of a single group."""
    units = collections.defaultdict(set)
    for first, strip, images, part in programs(strips):
        place = strips.place(first, strip, images, part)
        for lane in active_lanes(place):
            units[int(first) + lane].add(int(place.unit[lane]))
    assert all(len(found) == 1 for found in units.values())


@pytest.mark.parametrize("shape", [*ODD, *NETWORKS[:8]], ids=lambda shape: shape.name)
@pytest.mark.parametrize("side", ["output", "key"])
def test_border_cases_know_which_columns_exist(shape, side):
    p, s = problem(shape), shape.spec.stride
    for strip in (s, 2 * s, 8 // s * s or s):
        if side == "key":
            strips, cases = key_strip.key_strips(p, Tile(strip, 1))
            columns = key_strip.output_columns(p, strip)
            start, step, limit = 0, strip // s, p.out_size[1]
        else:
            strips, cases = output_strip.output_strips(p, Tile(strip, 1), p.groups)
            columns = output_strip.window_columns(p, strip)
            start, step, limit = -p.spec.padding[1], strip * s, p.width
        assert len(cases) <= MAX_BORDER_CASES
        numbers = sorted(x for case in cases for x in case.strips)
        assert numbers == list(range(strips.strips_per_row))
        for case in cases:
            for number in case.strips if case.columns is not None else ():
                existing = [c for c in columns if 0 <= start + number * step + c < limit]
                assert list(case.columns) == existing
                assert (number + 1) * strip <= strips.columns  # it ends in the image
        # The last case is the default; the others are chosen by their first and last strip.
        for case in cases[:-1]:
            assert list(case.strips) == list(range(case.strips[0], case.strips[-1] + 1))


@pytest.mark.parametrize(
    "name", ["lrnet50/res5", "lrnet50/res5_stride2", "odd/dilation2", "odd/dilation3_stride2",
             "odd/stride_exceeds_kernel", "odd/kernel_exceeds_image"],
)  # fmt: skip
def test_loops_over_window_rows_reach_every_row_of_the_image(name):
    """Loops over window rows start before and end after every row that exists."""
    p = problem(SHAPES[name])
    spec, (ho, _) = p.spec, p.out_size
    kh, pad = spec.kernel_size[0], spec.padding[0]
    outputs, _ = output_strip.output_strips(p, chosen(p, "query"), p.groups)
    keys, _ = key_strip.key_strips(p, chosen(p, "key"))
    for first, strip, images, _ in programs(outputs):
        start, end = output_strip.window_rows(p, outputs, first)
        rows = np.asarray(outputs.place(first, strip, images).row)
        inside = [
            n for n in range(kh) if ((rows * spec.stride + n * spec.dilation - pad) >= 0).any()
            and ((rows * spec.stride + n * spec.dilation - pad) < p.height).any()
        ]  # fmt: skip
        assert start <= min(inside)
        assert max(inside) < end
    for first, strip, images, _ in programs(keys):
        start, end = key_strip.output_rows(p, keys, first)
        y = np.asarray(keys.place(first, strip, images).row) + pad
        for yo in range(ho):
            offset = y - yo * spec.stride
            in_window = (offset >= 0) & (offset <= (kh - 1) * spec.dilation)
            in_window &= offset % spec.dilation == 0
            number = offset // spec.dilation if spec.stride == 1 else y // spec.stride - yo
            assert (number[in_window] >= start).all()
            assert (number[in_window] < end).all()


def test_window_rows_outside_the_image_are_skipped():
    p = problem(SHAPES["lrnet50/res5"], batch=128)
    strips, _ = output_strip.output_strips(p, chosen(p, "query"), p.groups)
    firsts = jnp.arange(strips.grid[0]) * strips.lanes_per_program
    start, end = jax.vmap(lambda x: output_strip.window_rows(p, strips, x))(firsts)
    assert float((end - start).mean()) < 6.5  # of 7; 5.3 if every program were within one row
