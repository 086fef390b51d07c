"""Builds the library from its C++ sources: `python -m pallas_kernels.native`.

`make env` and `pip install` run it (`setup.py`). It needs a C++17 compiler, GCC or Clang, and the
headers that come with jaxlib. The kernels are compiled once for each instruction set.

It imports nothing but the standard library, because `setup.py` runs it before JAX can be imported.
"""

import hashlib
import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).parent
LIBRARY = "liblocal_relation.so"

# Products and sums are fused where the instruction set can, so that a logit has the same bits in
# both passes. Nothing here traps or reads errno. Infinities and NaN are kept.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=fast",
    "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip

# Sources that are compiled for each instruction set.
KERNELS = ("kernels", "stem", "channel_sums", "weight_gradients", "row_products")
INSTRUCTION_SETS = {
    "x86_64": {
        "baseline": (),
        "avx2": ("-mavx2", "-mfma"),
        "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    }
}
ELSEWHERE: dict[str, tuple[str, ...]] = {"baseline": ()}


def compiler() -> list[str] | None:
    """The command of the C++ compiler: `CXX`, or the first of g++, clang++ and c++ found."""
    chosen = os.environ.get("CXX")
    if chosen is not None:
        return shlex.split(chosen) or None
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    return [found] if found else None


def headers() -> pathlib.Path | None:
    """The folder of XLA's headers in the installed jaxlib, found without importing it."""
    found = importlib.util.find_spec("jaxlib")
    if found is None or not found.submodule_search_locations:
        return None
    folder = pathlib.Path(next(iter(found.submodule_search_locations))) / "include"
    return folder if folder.is_dir() else None


def sources() -> str:
    """A digest of the sources, which the library carries."""
    files = sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def obstacle() -> str | None:
    """Why the library cannot be built here, with the mend; None if it can."""
    command = compiler()
    if command is None:
        return "no C++ compiler found; install g++ or clang++, or name one in CXX"
    if shutil.which(command[0]) is None:
        return f"CXX names {command[0]}, which is not found; install {command[0]}, or unset CXX"
    if headers() is None:
        return "no headers of jaxlib found; install jaxlib first"
    return None


def build(target: pathlib.Path, extra: tuple[str, ...] = ()) -> None:
    """Compiles and links the library.

    Args:
      target: the file to write.
      extra: more flags of the compiler.

    Raises:
      RuntimeError: there is no compiler, or it failed. Its messages are in the text.
    """
    reason = obstacle()
    if reason is not None:
        raise RuntimeError(reason)
    command = [*(compiler() or ()), *FLAGS, *extra]
    with tempfile.TemporaryDirectory() as folder:
        objects = compile_kernels(pathlib.Path(folder), command)
        library = f"{folder}/{LIBRARY}"
        include = f"-isystem{headers()}"
        define = f'-DSOURCES="{sources()}"'
        _run([*command, define, include, "-shared", f"{FOLDER}/ffi.cc", *objects, "-o", library])
        target.parent.mkdir(parents=True, exist_ok=True)
        # In one step, so that no process loads half a file.
        partial = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(library, partial)
        partial.rename(target)


def compile_kernels(folder: pathlib.Path, command: list[str]) -> list[str]:
    """Compiles the kernels for every instruction set of this machine; returns the objects."""
    command = [*command, "-fno-exceptions", "-c"]
    objects = []
    for name, flags in INSTRUCTION_SETS.get(platform.machine(), ELSEWHERE).items():
        for source in KERNELS:
            objects.append(f"{folder}/{name}_{source}.o")
            define = f"-DINSTRUCTIONS={name}_{source}"
            _run([*command, *flags, define, f"{FOLDER}/{source}.cc", "-o", objects[-1]])
    return objects


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")


def main() -> None:
    """Builds the library beside the sources; ends with exit code 2 if it cannot."""
    try:
        build(FOLDER / LIBRARY)
    except RuntimeError as error:
        sys.stderr.write(f"the C++ implementation was not built: {error}\n")
        sys.exit(2)
    print(f"built {FOLDER / LIBRARY}")


if __name__ == "__main__":
    main()
