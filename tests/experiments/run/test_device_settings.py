"""Compiled programs that are kept, and memory of a GPU that is left to others."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments.config import ConfigError
from experiments.run import device_settings

PROGRAM = """
import os
import jax, jax.numpy as jnp
from experiments.run import device_settings
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
device_settings.keep_programs({folder})
print(float(jax.jit(lambda x: jnp.sin(x) * 3)(0.0)))
"""


def run(folder, environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=folder)], env=kept | environment, check=True
    )


def files(folder):
    return [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]


def test_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(None, {})
    assert files(device_settings.default_cache())
    assert device_settings.default_cache().is_relative_to(tmp_path / "lrnet_jax")


def test_another_folder_and_none(tmp_path):
    run(repr(str(tmp_path / "chosen")), {"XDG_CACHE_HOME": str(tmp_path)})
    assert files(tmp_path / "chosen") == files(tmp_path)
    run("'none'", {"XDG_CACHE_HOME": str(tmp_path / "off")})
    assert not files(tmp_path / "off")


def test_the_variable_of_jax_is_respected(tmp_path):
    folder = tmp_path / "of_the_user"
    run(None, {"JAX_COMPILATION_CACHE_DIR": str(folder), "XDG_CACHE_HOME": str(tmp_path / "not")})
    assert files(folder)
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--comp.*: .*file/x cannot be made \(Not a d"):
        device_settings.keep_programs(str(tmp_path / "file" / "x"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="is not writable; give another folder, or --compil"):
        device_settings.keep_programs(str(tmp_path))


def test_what_was_used_longest_ago_is_deleted_first(tmp_path):
    for age, name in enumerate(["new", "old", "older"]):
        (tmp_path / name).write_bytes(b"1" * 100)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    device_settings.shrink(tmp_path, 300)
    assert len(files(tmp_path)) == 3
    device_settings.shrink(tmp_path, 299)
    assert {path.name for path in files(tmp_path)} == {"new", "old"}
    os.utime(tmp_path / "new", (2e9, 1e8))  # read lately, written long ago
    os.utime(tmp_path / "old", (1.5e9, 1.5e9))
    device_settings.shrink(tmp_path, 100)
    assert {path.name for path in files(tmp_path)} == {"new"}


def test_memory_is_shared_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "x")  # restored after the test
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    device_settings.share_gpu()
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    device_settings.share_gpu()
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
