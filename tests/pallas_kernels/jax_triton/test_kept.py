"""Compiled kernels on disk. What needs Triton runs in `make test-compiled`."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import subprocess
import sys
import time
import warnings

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import jax_triton
from pallas_kernels.jax_triton import kept, stack
from pallas_kernels.platform_switch import compiling_for
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape

ROOT = pathlib.Path(__file__).parents[3]
SHAPE = Shape("kept", 3, 4, 4, Spec((3, 3), 4))

needs_triton = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))


def lowered(shape=SHAPE, dtype=jnp.float32):
    """The text of the forward pass, lowered for a GPU by a new function."""
    inputs = shape.abstract_inputs(dtype)
    program = jax.jit(lambda *x: jax_triton.forward(shape.spec, type(inputs)(*x)))
    return program.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()


def test_what_is_written_is_read(tmp_path):
    kept.write(tmp_path / "folder" / "file", b"artifact")
    assert kept.read(tmp_path / "folder" / "file") == b"artifact"
    assert [x.name for x in (tmp_path / "folder").iterdir()] == ["file"]  # no other is left


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x[:-1] + b"?", lambda x: b""])
def test_a_damaged_file_is_as_none(tmp_path, damage):
    file = tmp_path / "file"
    assert kept.read(file) is None
    kept.write(file, b"artifact")
    file.write_bytes(damage(file.read_bytes()))
    assert kept.read(file) is None


def test_the_oldest_files_leave_a_full_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MAX_BYTES", 3 * (kept.DIGEST + 8))
    for age, name in enumerate("abcde"):
        kept.write(tmp_path / name, b"artifact")
        os.utime(tmp_path / name, ns=(age, age))
        assert kept.read(tmp_path / name) == b"artifact"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "d", "e"]


def test_a_folder_without_room_costs_one_warning_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a name that differs")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        kept.write(tmp_path / "one", b"artifact")
        kept.write(tmp_path / "other", b"artifact")
    [warning] = found
    assert str(warning.message) == (
        "compiled kernels are not kept, each start compiles them: "
        f"{tmp_path}: No space left on device"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_nothing_is_kept(tmp_path):
    assert kept.folder() is None
    with kept.keeping(tmp_path):
        assert kept.folder() == tmp_path


@needs_triton
def test_a_second_start_compiles_nothing(tmp_path, monkeypatch):
    with kept.keeping(tmp_path):
        first = lowered()
        assert "triton_kernel_call" in first
        assert len(list(tmp_path.iterdir())) == 1
        with monkeypatch.context() as patch:
            patch.setattr(stack.Call, "run", None)
            assert "triton_kernel_call" in lowered()
            with pytest.raises(TypeError):
                lowered(dtype=jnp.bfloat16)  # another kernel


@needs_triton
def test_a_damaged_file_is_compiled_again_and_replaced(tmp_path):
    with kept.keeping(tmp_path):
        first = lowered()
        [file] = tmp_path.iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert lowered() == first
        assert kept.read(file) is not None
        assert list(tmp_path.iterdir()) == [file]


@needs_triton
def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    warned = pytest.warns(UserWarning, match="not kept, each start compiles them: .*Not a dir")
    with kept.keeping(tmp_path / "file" / "triton"), warned:
        text = lowered()
    assert "triton_kernel_call" in text


# A process that waits with the others, lowers a kernel, and prints a hash of the program.
START = """
import hashlib, pathlib, sys, time
from pallas_kernels.jax_triton import kept, stack
from tests.pallas_kernels.jax_triton.test_kept import lowered

folder, ready, go = map(pathlib.Path, sys.argv[1:4])
stack.load()
if go.exists():
    stack.Call.run = None  # whoever starts later compiles nothing
ready.touch()
while not go.exists():
    time.sleep(0.001)
with kept.keeping(folder):
    print(hashlib.sha256(lowered().encode()).hexdigest())
"""


@needs_triton
def test_eight_processes_start_on_an_empty_folder(tmp_path):
    """A reader sees whole files only, all processes get the same program, and one file remains."""
    folder, go = tmp_path / "kept", tmp_path / "go"
    folder.mkdir()

    def start(name):
        command = [sys.executable, "-c", START, folder, tmp_path / name, go]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
        process = started.enter_context(subprocess.Popen(command, **options))
        started.callback(process.kill)  # if the test fails
        return process

    with contextlib.ExitStack() as started:
        processes = [start(f"ready{i}") for i in range(8)]
        while len(list(tmp_path.glob("ready*"))) < 8:
            assert all(process.poll() in (None, 0) for process in processes)
            time.sleep(0.01)
        go.touch()
        while any(process.poll() is None for process in processes):
            for file in folder.glob("local_relation_forward-*"):
                assert kept.read(file) is not None
            time.sleep(0.001)
        results = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * 8, results
        [program] = {out for out, _ in results}
        [file] = folder.iterdir()
        assert file.name.startswith("local_relation_forward-")
        later = start("later")
        out, error = later.communicate()
        assert (later.returncode, out) == (0, program), error


@needs_triton
def test_a_name_holds_all_that_an_artifact_depends_on():
    inputs = SHAPE.abstract_inputs(jnp.float32)
    with stack.recorded() as calls:
        jax.eval_shape(lambda *x: jax_triton.forward(SHAPE.spec, type(inputs)(*x)), *inputs)
    [(call, arrays)] = calls
    name = kept.name_of(call, arrays)
    assert name == kept.name_of(dataclasses.replace(call), arrays)
    others = [
        dataclasses.replace(call, compute_capability=90),
        dataclasses.replace(call, warps=2),
        dataclasses.replace(call, grid=(9, 9, 9)),
        dataclasses.replace(call, plan=dataclasses.replace(call.plan, m=2)),
    ]
    assert len({name, *(kept.name_of(other, arrays) for other in others)}) == 5
    assert name != kept.name_of(call, arrays[::-1])


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_tools_see_the_code_that_runs(capability):
    """`Call.compile` is what jax-triton embeds in the program."""
    ptxsim = pytest.importorskip("ptxsim.jaxtriton")
    inputs = SHAPE.abstract_inputs(jnp.float32)

    def forward(*x):
        return jax_triton.forward(SHAPE.spec, type(inputs)(*x))

    with compiling_for(capability / 10), stack.recorded() as calls:
        program = jax.jit(forward).trace(*inputs)
        [embedded] = ptxsim.calls(program.lower(lowering_platforms=("cuda",)))
    [(call, arrays)] = calls
    assert call.compute_capability == capability
    assert instructions(call.compile(arrays)[0]) == instructions(embedded.ptx)


def instructions(ptx):
    """The instructions, without lines and files of the source.

    Triton's own cache may hold a program that was compiled in another checkout.
    """
    code = ptx.partition(".section")[0].splitlines()
    return [line for line in code if line.strip() and "//" not in line and ".file" not in line]
