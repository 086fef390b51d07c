"""Damaged checkpoints, full disks, read-only places: noticed, named, survived."""

import errno
import json
import os
import pathlib
import random
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest

from lrnet_jax.training import checkpoint_saver, checkpoints, seal
from lrnet_jax.training.checkpoint_saver import CheckpointSaver, surplus
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.training.devices import replicate
from lrnet_jax.training.state import TrainState

# Where one array cannot be written, Orbax closes its event loop while others are in flight.
orbax_closes_early = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
METADATA = {"variant": {}, "num_classes": 5}


def state(step, size=40):
    """A state without a network: what is in it does not matter to files."""
    numbers = np.random.default_rng(step)
    return replicate(
        TrainState(
            step=np.asarray(step, np.int32),
            params={"a": {"kernel": numbers.normal(size=(size, 3)).astype(np.float32)}},
            batch_stats={"mean": numbers.normal(size=size).astype(np.float32)},
            opt_state=({"trace": numbers.normal(size=(size, 3)).astype(np.float32)},),
            rng=np.array([0, step], np.uint32),
        )
    )


def write(workdir, *steps, newest=None, **kwargs):
    workdir.mkdir(exist_ok=True)
    with CheckpointSaver(workdir, newest=newest or len(steps)) as saver:
        for step in steps:
            saver.save(state(step, **kwargs), METADATA)


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def corrupt(folder, choice):
    """Damages a checkpoint in one of many ways; says what was done, and to which file."""
    name = choice.choice(files_of(folder))
    path = folder / name
    data = bytearray(path.read_bytes())
    kind = choice.choice(["flip", "burst", "cut", "empty", "delete", "grow", "swap", "folder"])
    if kind == "flip":
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    elif kind == "burst":
        place = choice.randrange(len(data))
        length = len(data[place : place + 16])
        data[place : place + length] = bytes(x ^ 0x5A for x in data[place : place + length])
    elif kind == "cut":
        del data[choice.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    elif kind == "grow":
        data += choice.randbytes(9)
    elif kind == "swap":  # a file of another checkpoint
        other = folder.parent / "1" / name
        data = bytearray(other.read_bytes()) if other.exists() else bytearray(b"{}")
    path.write_bytes(data)
    if kind == "delete":
        path.unlink()
    elif kind == "folder":
        shutil.rmtree(path.parent if path.parent != folder else folder / "model")
    return f"{kind} {name}"


def check_corruptions(workdir, count, seed):
    """Corrupts the newest of three checkpoints in `count` ways."""
    write(workdir, 1, 2, 3)
    like = jax.tree.map(np.zeros_like, state(0))
    whole = workdir / checkpoints.FOLDER / "3"
    backup = workdir / "backup"
    shutil.copytree(whole, backup)
    choice = random.Random(seed)
    seen = set()
    for _ in range(count):
        done = corrupt(whole, choice)
        seen.add(done.split()[1])
        restored = checkpoints.restore(workdir, like)
        name = done.split()[1]
        if name in seal.UNSEALED[1:] and not done.startswith("folder"):
            # Orbax's notes on the directory: no value is in them, and none may change.
            assert same(restored.state, state(3)), done
        elif restored.damaged == ():
            # "swap" may bring back the same bytes, such as an equal commit mark.
            assert files_equal(whole, backup), done
            assert same(restored.state, state(3)), done
        else:
            assert same(restored.state, state(2)), done
            assert len(restored.damaged) == 1
            assert f"{whole} " in restored.damaged[0]
            assert not whole.exists()
            assert checkpoints.find(workdir).folder.name == "2"
        shutil.rmtree(whole, ignore_errors=True)
        for aside in whole.parent.glob(f"*{checkpoints.DAMAGED}*"):
            shutil.rmtree(aside)
        shutil.copytree(backup, whole)
    return seen, set(files_of(whole))


def files_equal(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files_of(other))


def test_corrupted_checkpoints_are_passed_over(tmp_path):
    check_corruptions(tmp_path, 25, seed=0)


@pytest.mark.slow
def test_two_hundred_corrupted_checkpoints(tmp_path):
    seen, files = check_corruptions(tmp_path, 200, seed=1)
    assert seen == files  # each kind of file had its turn


def test_each_file_is_missed(tmp_path):
    """Whichever file is deleted, and whichever is replaced by an older checkpoint's."""
    write(tmp_path, 1, 2)
    folder = tmp_path / checkpoints.FOLDER / "2"
    for name in files_of(folder):
        if name in seal.UNSEALED[1:]:
            continue
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        assert checkpoints.find(tmp_path).folder.name == "1", name
        (folder / name).write_bytes(data)
    assert checkpoints.find(tmp_path).folder.name == "2"


def test_the_check_does_see(tmp_path, monkeypatch):
    """The control: without the seal, damaged arrays are loaded as if they were good."""
    write(tmp_path, 1)
    folder = tmp_path / checkpoints.FOLDER / "1" / "metadata" / "metadata"
    folder.write_text(folder.read_text().replace("5", "6"))
    with pytest.raises(CheckpointError, match="metadata/metadata has other bytes than were"):
        checkpoints.find(tmp_path)
    monkeypatch.setattr(seal, "check_seal", lambda folder: None)
    assert checkpoints.find(tmp_path).metadata["num_classes"] == 6


def test_where_no_checkpoint_is_good_nothing_starts_from_scratch(tmp_path):
    write(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / checkpoints.FOLDER / str(step) / seal.FILE).write_text("[]")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is good, of 2; .*Bring back"):
        checkpoints.restore(tmp_path, state(0))


def test_a_set_aside_checkpoint_makes_room_for_its_successor(tmp_path):
    write(tmp_path, 1, 2)
    for number in ("", "2"):
        (tmp_path / checkpoints.FOLDER / "2" / "model" / "manifest.ocdbt").unlink()
        assert int(checkpoints.restore(tmp_path, state(0)).state.step) == 1
        assert (tmp_path / checkpoints.FOLDER / f"2.damaged{number}").is_dir()
        write(tmp_path, 1, 2)
        assert int(checkpoints.restore(tmp_path, state(0)).state.step) == 2


@pytest.mark.parametrize(
    ("kept", "removed"),
    [
        ({"newest": 2}, [1, 2, 3, 4]),
        ({"newest": 1, "every": 3}, [1, 2, 4, 5]),
        ({"newest": 2, "best": 2}, [1, 3, 4]),
        ({"newest": 9}, []),
    ],
)
def test_what_is_kept(kept, removed):
    assert surplus([1, 2, 3, 4, 5, 6], **kept) == removed


def test_what_a_killed_process_left_is_cleared(tmp_path):
    write(tmp_path, 1)
    folder = tmp_path / checkpoints.FOLDER
    for name in ("2.orbax-checkpoint-tmp", "0.removed"):
        shutil.copytree(folder / "1", folder / name)
    write(tmp_path, 1)
    assert [path.name for path in folder.iterdir()] == ["1"]


def saving_fails(workdir, message):
    """Saves a second, larger state where there is no room; the first must survive."""
    with pytest.raises(CheckpointError, match=message) as raised:
        write(workdir, 2, newest=3, size=400_000)
    assert "\n" not in str(raised.value)
    assert "Checkpoints before it are untouched, the newest one is of step 1" in str(raised.value)
    restored = checkpoints.restore(workdir, state(0))
    assert same(restored.state, state(1))
    # A thread of Orbax that was still writing may leave its folder to the next start.
    names = {path.name for path in (workdir / checkpoints.FOLDER).iterdir()}
    assert names - {f"2{checkpoint_saver.TEMPORARY}"} == {"1"}


@orbax_closes_early
def test_a_full_disk(tmp_path):
    """On a real one of a few megabytes, where it may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        write(disk / "run", 1)
        saving_fails(disk / "run", "saving step 2 .* failed: .*[Nn]o space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@orbax_closes_early
def test_a_quota(tmp_path):
    """The same without root: no file may grow beyond a limit."""
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        saving_fails(tmp_path, "saving step 2 .* failed: .*File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_seal_that_cannot_be_written(tmp_path, monkeypatch):
    """The last write of a save fails: the checkpoint does not get its name."""
    write(tmp_path, 1)

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_saver, "write_seal", full)
    saving_fails(tmp_path, "No space left on device")


def test_reading_needs_no_right_to_write(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)
    (tmp_path / checkpoints.FOLDER / "2" / "model" / "manifest.ocdbt").unlink()

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("rename", "mkdir", "write_text", "write_bytes", "unlink"):
        monkeypatch.setattr(pathlib.Path, name, refuse)
    found = checkpoints.find(tmp_path)
    assert found.folder.name == "1"
    assert "checkpoints/2 is damaged: model/manifest.ocdbt is missing" in found.damaged[0]


def test_a_seal_names_every_file_with_its_size(tmp_path):
    write(tmp_path, 1)
    folder = tmp_path / checkpoints.FOLDER / "1"
    record = json.loads((folder / seal.FILE).read_text())
    assert sorted(record["files"]) == [n for n in files_of(folder) if n not in seal.UNSEALED]
    for name, (size, _) in record["files"].items():
        assert (folder / name).stat().st_size == size
