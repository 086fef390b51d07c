"""On a CPU, XLA leaves a stage with several users alone."""

import jax
import jax.numpy as jnp

from lrnet_jax.layers.isolation import computed_once


def _sum(x, y):
    return x + y


def compiled(stage):
    def two_users(x, y):
        total = stage(x, y)
        return total[:, 1:] * 2, total[1:] * 3

    return jax.jit(two_users).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile().as_text()


def test_a_stage_is_computed_once_and_a_plain_function_by_each_user():
    assert compiled(_sum).count(" add(") == 2
    assert compiled(computed_once(_sum)).count(" add(") == 1


def test_stages_of_one_function_are_one():
    assert computed_once(_sum) is computed_once(_sum)
