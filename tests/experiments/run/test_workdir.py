"""Whose run a workdir holds."""

import errno
import os
import pathlib
import subprocess

import pytest

from experiments import config as configs
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run.overrides import override
from experiments.run.workdir import check_checkpoint, check_workdir, claim_workdir, is_new
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import DamagedCheckpointError
from lrnet_jax.training.metric_writers import METRICS

QUICK = RECIPES["quickstart"]


def take_step(workdir):
    """What the record of a first step leaves."""
    (workdir / METRICS).write_text('{"kind": "train", "step": 1}\n')


def test_new_then_ours_then_still_ours(tmp_path):
    workdir = tmp_path / "runs" / "a"
    check_workdir(QUICK, workdir)
    assert is_new(workdir)
    with claim_workdir(QUICK, workdir):
        assert is_new(workdir)
        take_step(workdir)
    assert not is_new(workdir)
    check_workdir(QUICK, workdir)
    with claim_workdir(QUICK, workdir):
        pass
    assert configs.load(workdir / configs.FILE) == QUICK


def test_a_run_killed_in_its_first_moments_is_new(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "config.json.tmp").touch()
    assert is_new(tmp_path)
    check_workdir(QUICK, tmp_path)


def test_a_run_that_failed_before_its_first_step_does_not_hold_its_workdir(tmp_path):
    """What it leaves is overwritten, whatever its configuration was."""
    other = override(QUICK, "seed", "5")
    with claim_workdir(other, tmp_path):
        (tmp_path / checkpoints.FOLDER).mkdir()
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / METRICS).touch()
    with claim_workdir(QUICK, tmp_path):
        pass
    assert configs.load(tmp_path / configs.FILE) == QUICK


@pytest.mark.parametrize("path", ["checkpoints/4", "checkpoints/4.damaged", "bad_step/2"])
def test_what_a_step_leaves_holds_a_workdir(tmp_path, path):
    with claim_workdir(override(QUICK, "seed", "5"), tmp_path):
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"another configuration \(seed: 5 -> 0\)"):
        check_workdir(QUICK, tmp_path)


@pytest.mark.parametrize("place", ["/proc/run", "/proc/runs/a", "/dev/null/run"])
def test_places_where_no_folder_can_be(place):
    workdir = pathlib.Path(place)
    check_workdir(QUICK, workdir)
    with pytest.raises(ConfigError, match=f"cannot make --workdir={place}: .*; give another"):  # noqa: SIM117
        with claim_workdir(QUICK, workdir):
            pass


def test_a_run_that_another_process_starts_after_the_check(tmp_path):
    check_workdir(QUICK, tmp_path)
    with claim_workdir(override(QUICK, "seed", "5"), tmp_path):
        take_step(tmp_path)
    with pytest.raises(ConfigError, match=r"another configuration \(seed: 5 -> 0\)"):  # noqa: SIM117
        with claim_workdir(QUICK, tmp_path):
            pass
    assert configs.load(tmp_path / configs.FILE).seed == 5


def test_a_disk_that_fills_up_later_ends_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No space left on device; checkpoints before this are"):  # noqa: SIM117
        with claim_workdir(QUICK, tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ConnectionError):  # noqa: SIM117
        with claim_workdir(QUICK, tmp_path):
            raise ConnectionError("not a matter of the disk")


def test_a_read_only_place(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(ConfigError, match="Read-only file system"):  # noqa: SIM117
            with claim_workdir(QUICK, tmp_path / "run"):
                pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_checkpoints_of_other_runs_are_foreign():
    more_logs = override(QUICK, "train.log_every", "7")
    check_checkpoint(QUICK, {"step": 3, "config": configs.to_dict(more_logs)})
    other = override(QUICK, "seed", "5")
    with pytest.raises(DamagedCheckpointError, match=r"step 3 is of another run \(seed: 5 -> 0\)"):
        check_checkpoint(QUICK, {"step": 3, "config": configs.to_dict(other)})
    with pytest.raises(DamagedCheckpointError, match="has no configuration of lrnet_jax"):
        check_checkpoint(QUICK, {"step": 3})


def test_checkpoints_without_their_configuration(tmp_path):
    (tmp_path / checkpoints.FOLDER / "4").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"holds checkpoints and no config\.json; bring that file"
    ):
        check_workdir(QUICK, tmp_path)
