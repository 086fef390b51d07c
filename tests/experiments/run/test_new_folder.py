"""Folders that commands write: new ones only, whole or not at all."""

import errno
import importlib
import pathlib

import pytest

from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.run.new_folder import new_folder


@pytest.mark.parametrize(
    ("command", "typed", "flag"),
    [
        ("export", ("--run=absent",), "out"),
        ("export", ("--run=absent", "--format=safetensors"), "out"),
        ("export", ("--run=absent", "--format=onnx"), "out"),
        ("evaluate", ("--run=absent",), "report"),
        ("import_weights", ("--network=resnet18", "--from=absent"), "out"),
        ("photographs", (), "out"),
    ],
)
def test_one_that_exists_is_refused_before_anything_is_read(tmp_path, command, typed, flag):
    module = importlib.import_module(f"experiments.{command}")
    (tmp_path / "note").touch()
    options = command_line.parse([*typed, f"--{flag}={tmp_path}"], module.define_flags)
    with pytest.raises(ConfigError, match=f"^{tmp_path} exists; give another --{flag}$"):
        module.main(options)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_it_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "a" / "b"
    with new_folder(folder) as part:
        part.mkdir()
        (part / "file").touch()
        assert not folder.exists()
    assert (folder / "file").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/a/b", "No such file or directory"),
        (f"{__file__}/b", "(Not a directory|File exists)"),
    ],
)
def test_one_that_cannot_be_made(path, reason):
    with (
        pytest.raises(ConfigError, match=f"cannot write --report={path}: {reason}; give another"),
        new_folder(pathlib.Path(path), "report") as part,
    ):
        part.mkdir()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ConfigError), (errno.ENOTCONN, OSError)]
)
def test_an_error_leaves_nothing(tmp_path, number, kind):
    def write(folder):
        with new_folder(folder) as part:
            part.mkdir()
            raise OSError(number, "message")

    with pytest.raises(kind):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
