"""The flags of the commands that measure networks of the zoo."""

import dataclasses

from absl import flags

import lrnet_jax
from experiments.config import ConfigError
from lrnet_jax import Variant
from pallas_kernels.api import IMPLEMENTATIONS


def define_networks(
    flag_values: flags.FlagValues, networks: str, *, batch_size: int, dtype: str
) -> None:
    """Defines --networks, --batch_size, --image_size and --dtype, with these defaults."""
    flags.DEFINE_list(
        "networks", networks,
        "Names of the zoo; NAME:IMPLEMENTATION names the local relation's implementation as well.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", batch_size, "Images of a batch.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "image_size", 224, "Height and width of the images.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_enum(
        "dtype", dtype, ("float32", "bfloat16"), "Dtype of the activations.",
        flag_values=flag_values,
    )  # fmt: skip


def chosen_networks(options: flags.FlagValues) -> dict[str, Variant]:
    """The variants that --networks and --dtype describe, by their names as typed.

    Raises:
      ConfigError: a network or an implementation does not exist.
    """
    variants = {}
    for text in options.networks:
        name, _, implementation = text.partition(":")
        if implementation and implementation not in IMPLEMENTATIONS:
            raise ConfigError(
                f"--networks: {text} names no implementation; use {', '.join(IMPLEMENTATIONS)}"
            )
        try:
            variants[text] = dataclasses.replace(
                lrnet_jax.get_variant(name),
                dtype=options.dtype,
                implementation=implementation or None,
            )
        except ValueError as error:
            raise ConfigError(f"--networks: {error}") from error
    return variants
