"""Compiled kernels are kept on disk, so that a process that starts again compiles none.

JAX keeps compiled programs in the folder `jax_compilation_cache_dir`, but Triton runs before that,
while a program is lowered. So each call is kept there too, as an artifact of `jax.export`: under a
name that everything it depends on goes into. Files are written under another name and then renamed,
so any number of processes may start at once. Each of them compiles, and all write the same.

Nothing depends on this folder: what is missing or damaged is compiled again, and where it cannot be
written, one warning says so. It holds at most `MAX_BYTES`, without the oldest files.
"""

import contextlib
import contextvars
import hashlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax import export

from pallas_kernels.jax_triton import stack
from pallas_kernels.platform_switch import current_platform

CHECKS = tuple(
    export.DisabledSafetyCheck.custom_call(name)
    for name in ("triton_kernel_call", "triton_kernel_call_ffi")
)
DIGEST = 32  # bytes of SHA-256 before the artifact
MAX_BYTES = 2**28  # a training step of LR-Net-50 leaves 24 files, 3.4 MB

_folder: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar(
    "folder", default=None
)


def folder() -> pathlib.Path | None:
    """Where calls are kept; None if they are not: programs for a GPU elsewhere keep none."""
    chosen = _folder.get()
    if chosen is not None:
        return chosen
    of_jax = jax.config.values["jax_compilation_cache_dir"]
    if not of_jax or current_platform() != "cuda":
        return None
    return pathlib.Path(of_jax) / "triton"


@contextlib.contextmanager
def keeping(path: pathlib.Path) -> Iterator[None]:
    """Keeps calls in a folder, on a machine without a GPU too."""
    token = _folder.set(path)
    try:
        yield
    finally:
        _folder.reset(token)


def run(call: stack.Call, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Calls a kernel, compiled now or before."""
    stack.record(call, arrays)
    place = folder()
    if place is None:
        return call.run(*arrays)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    file = place / name_of(call, shapes)
    artifact = read(file)
    if artifact is None:
        exporter = export.export(jax.jit(call.run), platforms=("cuda",), disabled_checks=CHECKS)
        artifact = bytes(exporter(*shapes).serialize())
        write(file, artifact)
    return tuple(export.deserialize(bytearray(artifact)).call(*arrays))


def name_of(call: stack.Call, shapes: Sequence[Any]) -> str:
    """The name of a call's file: a hash of all that the artifact depends on."""
    jax_triton = stack.load()
    import triton

    parts = (
        *(jax.__version__, jax.lib.__version__, jax_triton.__version__, triton.__version__),
        call.kernel.cache_key,  # its source, and that of all it calls
        *(call.name, call.grid, call.options, call.compute_capability, call.plan),
        *((x.shape, str(x.dtype)) for x in (*shapes, *call.results)),
    )
    return f"{call.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def read(file: pathlib.Path) -> bytes | None:
    """The artifact in a file; None if there is none, or if it is damaged or cannot be read."""
    try:
        data = file.read_bytes()
    except OSError:  # `write` will say why, unless it replaces the file
        return None
    digest, artifact = data[:DIGEST], data[DIGEST:]
    return artifact if hashlib.sha256(artifact).digest() == digest else None


def write(file: pathlib.Path, artifact: bytes) -> None:
    """Writes a file at once, for readers in other processes; warns if it cannot."""
    try:
        _write(file, hashlib.sha256(artifact).digest() + artifact)
        prune(file.parent)
    except OSError as error:
        # The text is the same for all files, so that Python shows it once.
        why = error.strerror or error
        text = f"compiled kernels are not kept, each start compiles them: {file.parent}: {why}"
        warnings.warn(text, stacklevel=1)


def _write(file: pathlib.Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(data)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def prune(folder: pathlib.Path) -> None:
    """Removes the oldest files beyond `MAX_BYTES`, also those that a killed process left half."""
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process renamed or removed it
            state = file.stat()
            found.append((state.st_mtime_ns, state.st_size, file))
    spare = sum(size for _, size, _ in found) - MAX_BYTES
    for _, size, file in sorted(found):
        if spare <= 0:
            return
        file.unlink(missing_ok=True)
        spare -= size
