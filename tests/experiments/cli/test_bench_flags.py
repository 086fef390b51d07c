"""The flags of the commands that measure networks."""

import dataclasses
import functools

import pytest

import lrnet_jax
from experiments.cli import bench_flags, command_line
from experiments.config import ConfigError

define_flags = functools.partial(
    bench_flags.define_networks, networks="lrnet26", batch_size=2, dtype="float32"
)


def chosen(*arguments):
    return bench_flags.chosen_networks(command_line.parse(arguments, define_flags))


def test_networks_have_the_dtype_and_the_implementation():
    lrnet26 = dataclasses.replace(lrnet_jax.get_variant("lrnet26"), dtype="float32")
    assert chosen() == {"lrnet26": lrnet26}
    found = chosen("--networks=resnet26,lrnet26:xla", "--dtype=bfloat16")
    assert list(found) == ["resnet26", "lrnet26:xla"]
    lrnet26 = dataclasses.replace(lrnet26, dtype="bfloat16", implementation="xla")
    assert found["lrnet26:xla"] == lrnet26


@pytest.mark.parametrize("name", ["lrnet27", "lrnet26:cuda"])
def test_unknown_names_are_errors_of_the_user(name):
    with pytest.raises(ConfigError, match=r"--networks: .*(lrnet27|cuda)"):
        chosen(f"--networks={name}")
