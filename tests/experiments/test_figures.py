"""The command line of the figures."""

import pytest

from experiments import figures
from experiments.cli import command_line
from experiments.config import ConfigError
from lrnet_jax.training.checkpoints import CheckpointError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run is missing"),
        (["--run=nowhere"], "nowhere|matplotlib"),
        (["--checkpoint=nowhere"], "nowhere|matplotlib"),
    ],
)
def test_what_is_missing_is_named(arguments, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        figures.main(command_line.parse(arguments, figures.define_flags))
