"""The flag --compilation_cache of the commands that compile networks."""

from absl import flags

from experiments.run import device_settings


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --compilation_cache."""
    flags.DEFINE_string(
        "compilation_cache", None,
        "Folder of compiled programs, which the next start loads; none switches it off "
        "(default: lrnet_jax in the user's cache folder, or $JAX_COMPILATION_CACHE_DIR).",
        flag_values=flag_values,
    )  # fmt: skip


def apply(options: flags.FlagValues, *, beside_training: bool = False) -> None:
    """Makes the settings; before the first use of a device.

    Args:
      options: of the command.
      beside_training: leave the memory of a GPU to others, see `device_settings.share_gpu`.

    Raises:
      ConfigError: the folder cannot be written.
    """
    device_settings.keep_programs(options.compilation_cache)
    if beside_training:
        device_settings.share_gpu()
