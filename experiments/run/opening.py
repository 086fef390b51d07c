"""The start of a run: what its workdir holds is restored, and a session is opened.

Only the first of several processes reads the workdir. It tells the others what it found.
"""

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import jax

from experiments import config as configs
from experiments.config import Config
from experiments.recipes import RECIPES
from experiments.run import profiles
from experiments.run.assemble import Run, num_params
from experiments.run.check_data import check_same_images
from experiments.run.overrides import describe_changes
from experiments.run.session import Session
from experiments.run.workdir import check_checkpoint, claim_workdir
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.training import checkpoints, processes
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import replicate
from lrnet_jax.training.display import Display
from lrnet_jax.training.metric_writers import (
    JsonlWriter,
    MetricWriter,
    MetricWriters,
    RunStart,
    TensorBoardWriter,
)
from lrnet_jax.training.progress import Progress
from lrnet_jax.training.step_trace import StepTrace
from lrnet_jax.training.stopping import StopRequest


class Found(NamedTuple):
    """What the first process found in the workdir, as JSON types for the other processes.

    Attributes:
      new: whether no run was there.
      resumed: whether there was a checkpoint.
      damaged: a message for each checkpoint that was set aside.
      progress: the fields of the checkpoint's `Progress`.
      changed: the fields that have another value than in the checkpoint, which may.
    """

    new: bool
    resumed: bool
    damaged: list[str]
    progress: dict[str, Any]
    changed: list[str]


@contextlib.contextmanager
def open_session(
    config: Config,
    workdir: pathlib.Path,
    dataset: Dataset,
    run: Run,
    *,
    new: bool,
    started: float,
    writers: Sequence[MetricWriter] = (),
    profile_steps: range = range(0),
) -> Iterator[Session]:
    """Locks the workdir, restores its newest good checkpoint, opens the files.

    However the context ends, a save in flight is finished and the files are closed.

    Args:
      config: the configuration of the run.
      workdir: folder of the run.
      dataset: its images.
      run: from `assemble`. The caller keeps no reference to it: of a resumed run the memory of the
        initial state is freed.
      new: whether the workdir was new when it was checked.
      started: `time.monotonic()` at the start of the command.
      writers: of metrics, besides those of the workdir; the first process starts them.
      profile_steps: steps to trace in the first process.

    Raises:
      ConfigError, WorkdirInUseError: see `claim_workdir`.
      CheckpointError: no checkpoint is good.
      LostProcessError: another process of the run is gone.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.explain_losses())
        stop = stack.enter_context(StopRequest())
        found, saver = Found(new, resumed=False, damaged=[], progress={}, changed=[]), None
        if processes.is_first():
            stack.enter_context(claim_workdir(config, workdir))
            newest, every = config.train.keep_checkpoints, config.train.keep_every
            saver = stack.enter_context(CheckpointSaver(workdir, newest=newest, every=every))
            found, run = _restore(config, workdir, dataset, found, run)
        found = Found(**processes.broadcast(found._asdict()))
        if found.resumed:
            run = run._replace(state=replicate(processes.broadcast_arrays(run.state)))
        progress = Progress(**found.progress)
        step = int(jax.device_get(run.state.step))

        first = processes.is_first()
        metrics = MetricWriters([JsonlWriter(), TensorBoardWriter(), *writers] if first else [])
        metrics.start(RunStart(workdir, configs.to_dict(config), step, progress.evaluated))
        stack.callback(metrics.close)
        display = stack.enter_context(_display(run.total_steps, step))
        trace = StepTrace(workdir / profiles.FOLDER, profile_steps if first else range(0))
        session = Session(
            config, workdir, dataset, run, step, progress, started, stop, saver, metrics, display,
            trace,
        )  # fmt: skip
        stack.callback(session.end_trace)
        for line in [*_beginning(session, found), *profiles.describe_past(profile_steps, step)]:
            display.line(line)
        yield session


@contextlib.contextmanager
def _display(total_steps: int, step: int) -> Iterator[Display]:
    """A bar where a person looks at all that is printed, and lines otherwise.

    Processes but the first print nowhere.
    """
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stderr
        if not processes.is_first():
            stream = stack.enter_context(pathlib.Path(os.devnull).open("w"))
        is_terminal = stream.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        display = Display(stream, total_steps=total_steps, first_step=step, is_terminal=is_terminal)
        stack.callback(display.close)
        yield display


def _restore(
    config: Config, workdir: pathlib.Path, dataset: Dataset, found: Found, run: Run
) -> tuple[Found, Run]:
    """The newest good checkpoint of the workdir, if there is one."""
    restored = checkpoints.restore(
        workdir, like=run.state, check=functools.partial(check_checkpoint, config)
    )
    if restored is None:
        return found, run
    check_same_images(restored.metadata, dataset)
    saved = configs.from_dict(restored.metadata["config"])
    found = found._replace(
        resumed=True,
        damaged=list(restored.damaged),
        progress=restored.metadata["progress"],
        changed=configs.differences(saved, config, ignored=frozenset()),
    )
    return found, run._replace(state=restored.state)


def _beginning(session: Session, found: Found) -> Iterator[str]:
    """What runs where, from which step, in lines."""
    for message in found.damaged:
        yield f"{message}; set aside"
    beginning = "new run" if found.new else f"resumed at step {session.step}"
    yield f"{beginning} in {session.workdir}"
    if found.changed:
        yield f"it goes on with other settings: {'; '.join(found.changed)}"
    if not found.resumed:
        yield from session.run.origin
    if found.new:
        yield from _configuration(session.config, session.workdir)
    dataset, train = session.dataset, session.config.train
    yield (
        f"{session.config.network} ({num_params(session.state.params) / 1e6:.3f} M parameters) "
        f"on {dataset.name} "
        f"({dataset.num_train} + {dataset.num_eval} images), {session.run.total_steps} steps of "
        f"{train.batch_size} on {jax.device_count()} x {jax.devices()[0].device_kind}"
    )


def _configuration(config: Config, workdir: pathlib.Path) -> Iterator[str]:
    """What differs from the recipe, in lines."""
    base = RECIPES.get(config.recipe) or configs.recipe(config.recipe, config.network)
    changes = describe_changes(config, base)
    changed = (
        f"with {len(changes)} changed field{'s' * (len(changes) > 1)}" if changes else "as it is"
    )
    yield f"recipe {config.recipe} {changed}; all fields are in {workdir / configs.FILE}"
    yield from changes
