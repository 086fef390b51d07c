"""The picture of one output pixel."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import figures
from experiments.cli import command_line
from experiments.report.layer_picture import aggregate_pixel, example
from pallas_kernels import local_relation


def test_the_pixel_is_that_of_the_operator():
    inputs = example()
    vectors = jnp.asarray(inputs.query)[None, :, :, None, None]
    out = local_relation(
        vectors,
        vectors,
        jnp.asarray(inputs.x)[None],
        jnp.asarray(inputs.prior, jnp.float32)[None],
        kernel_size=7,
        channels_per_group=3,
        implementation="reference",
    )
    parts = aggregate_pixel(inputs)
    np.testing.assert_allclose(out[0][inputs.pixel], parts.result, atol=1e-5)
    assert parts.keys.shape == parts.similarity.shape == parts.weights.shape == (7, 7)


def test_the_command_draws_it(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "layer.png"
    figures.main(command_line.parse([f"--layer={file}"], figures.define_flags))
    assert file.read_bytes().startswith(b"\x89PNG")
