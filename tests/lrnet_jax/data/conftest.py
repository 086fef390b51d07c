"""The prepared miniature of ImageNet, unpacked once."""

import shutil

import pytest

from tests.lrnet_jax.data import miniature


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    miniature.unpack(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copy(prepared_dir, tmp_path):
    """Copies a prepared set, for a test to damage."""

    def copy_format(file_format):
        shutil.copytree(prepared_dir / file_format, tmp_path / file_format)
        return tmp_path / file_format / "imagenet2012" / "5.1.0"

    return copy_format
