"""The library is built where there is a compiler, and its absence is never a failure."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import zipfile

import pytest

from pallas_kernels.native import build

ROOT = pathlib.Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Werror")


@needs_compiler
@pytest.mark.slow
def test_objects_share_no_function(tmp_path):
    """A function that the linker may take from any object could have any instructions."""
    objects = build.compile_kernels(tmp_path, [*build.compiler(), *build.FLAGS, *WARNINGS])
    for file in objects:
        symbols = subprocess.check_output(["nm", "--demangle", file], text=True).splitlines()
        assert symbols
        kinds = [line.removeprefix("0" * 16).split()[0] for line in symbols]
        assert not {"W", "V", "u"} & set(kinds)


@needs_compiler
@pytest.mark.slow
def test_the_whole_library_has_no_warning(tmp_path):
    build.build(tmp_path / build.LIBRARY, WARNINGS)
    assert (tmp_path / build.LIBRARY).exists()


def test_a_compiler_that_fails_says_so(monkeypatch, tmp_path, capsys):
    """Nothing is left behind, and the command ends with code 2."""
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'import sys; sys.exit(\"1234\")'")
    if build.headers() is None:
        pytest.skip("jaxlib has no headers")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 2
    assert "was not built" in (message := capsys.readouterr().err)
    assert "1234" in message
    assert not list(tmp_path.iterdir())


def test_no_compiler_in_the_environment(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert build.obstacle().startswith("no C++ compiler found; install")


def test_a_compiler_that_is_not_there(monkeypatch, capsys):
    """`CXX` may be set for another machine. An installation then goes on without the library."""
    monkeypatch.setenv("CXX", "g++-1234 -m64")
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("which is not found; install g++-1234, or unset CXX")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["here", "none"])
def test_wheels(compiler, tmp_path):
    """A wheel with the library is for this platform. Both have the sources."""
    if compiler == "here" and build.obstacle() is not None:
        pytest.skip(build.obstacle())
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "tests", "docs", "runs", "*.so", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored)
    environment = {**os.environ, **({} if compiler == "here" else {"CXX": ""})}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, f"--wheel-dir={tmp_path}", "."], cwd=tree, env=environment, check=True
    )
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pallas_kernels/native/kernels.cc" in names
    assert ("pallas_kernels/native/liblocal_relation.so" in names) == (compiler == "here")
    tag = wheel.stem.split("-", 2)[2]
    assert tag == "py3-none-any" or compiler == "here"
    assert f"_{platform.machine()}" in tag or compiler == "none"
