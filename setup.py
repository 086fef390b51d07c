"""Compiles the C++ implementation of the operator where there is a C++ compiler.

All else about the package is in pyproject.toml. A wheel that holds the library is for one platform
and any Python 3. A wheel without it is for all platforms, and the operator runs by XLA.
"""

import pathlib
import runpy
import sys
import types

import setuptools
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = pathlib.Path("pallas_kernels/native")
# By its path, because the package itself needs JAX.
native = types.SimpleNamespace(**runpy.run_path(str(FOLDER / "build.py")))


class BuildWithLibrary(build_py):
    """Adds the library to the package, in the source tree for an editable install."""

    def run(self) -> None:
        """Copies the modules and compiles the library; goes on without it if that fails."""
        super().run()
        folder = FOLDER if self.editable_mode else pathlib.Path(self.build_lib) / FOLDER
        try:
            native.build(folder / native.LIBRARY)
        except RuntimeError as error:
            # An installation without it is complete. `implementations()` says why it is not there.
            (folder / native.LIBRARY).unlink(missing_ok=True)
            sys.stderr.write(f"built without the C++ implementation: {error}\n")


class WheelOfPlatform(bdist_wheel):
    """Names the platform if the library is inside. It does not depend on the version of Python."""

    def run(self) -> None:
        """Builds the package first, to see whether it has the library."""
        self.run_command("build")
        built = pathlib.Path(self.get_finalized_command("build").build_lib)
        self.root_is_pure = not (built / FOLDER / native.LIBRARY).exists()
        self.distribution.has_ext_modules = lambda: not self.root_is_pure
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of Python, ABI and platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setuptools.setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelOfPlatform})
