"""A folder of images is a data set: a folder a class, split into train and validation or not.

    data_dir/train/CLASS/*.jpg  data_dir/val/CLASS/*.jpg     val, validation or test
    data_dir/CLASS/*.jpg                                     with a share that is held out

The images of a split are in the order in which TFDS would write them, so an unpacked ImageNet
trains with the batches of the records of the same images.
"""

import functools
import hashlib
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from lrnet_jax.data import listing
from lrnet_jax.data.class_folders import FolderSplit, Listed, list_folder, some
from lrnet_jax.data.examples import Examples, MissingDatasetError, Selection
from lrnet_jax.data.flat_imagenet import list_validation
from lrnet_jax.data.on_disk import OnDiskDataset, check_options
from lrnet_jax.data.records import DamagedDatasetError
from lrnet_jax.data.splits import SplitSize, select

TRAIN = "train"
EVALUATION = ("val", "validation", "test")


def open_folder(
    data_dir: str | None,
    *,
    image_size: int | None = None,
    num_workers: int | None = None,
    tolerate_bad_images: int = 0,
    holdout: float = 0.0,
    train_split: str | None = None,
    eval_split: str | None = None,
) -> OnDiskDataset:
    """Opens a folder of images, after listing all of it.

    Args:
      data_dir: the folder.
      image_size: height and width of the crops; None for 224.
      num_workers: processes that load batches; None for one per CPU, 0 for none.
      tolerate_bad_images: see `OnDiskDataset`.
      holdout: share of the images that evaluation gets and training does not; for folders without
        a split of their own. Each image's side follows from its path alone.
      train_split: a folder, or a slice such as "train[:90%]"; None for "train". The class folders
        of a folder without splits are "train".
      eval_split: the same; None for "val", "validation" or "test".

    Raises:
      MissingDatasetError: there is no such folder.
      DamagedDatasetError: it is not laid out as above, or its splits contradict one another.
      ValueError: an argument does not fit.
    """
    options = check_options(image_size, num_workers, tolerate_bad_images)
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be in [0, 1), got {holdout}")
    if data_dir is None:
        raise ValueError("the data set 'folder' needs data_dir, the folder of the images")
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        raise MissingDatasetError(f"data_dir {root} is no folder")
    folders = _split_folders(root)
    train: Examples
    evaluation: Examples
    if holdout:
        if eval_split or train_split:
            raise ValueError(f"holdout {holdout} and the choice of a split exclude each other")
        train, evaluation, classes = _hold_out(root, folders, holdout)
    else:
        eval_split = eval_split or _usual_evaluation(root, folders)
        train, evaluation, classes = _select(root, folders, train_split or TRAIN, eval_split)
    return OnDiskDataset(
        name="folder",
        train=train,
        evaluation=evaluation,
        class_names=classes,
        digest=_digest(train, evaluation),
        image_size=options.image_size,
        num_workers=options.num_workers,
        tolerate_bad_images=options.tolerate_bad_images,
    )


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of the splits by name; a folder without splits is "train" itself."""
    below = listing.class_folders(root)
    if TRAIN not in below or not listing.class_folders(root / TRAIN):
        evaluation = [name for name in EVALUATION if name in below]
        if evaluation and set(below) <= {TRAIN, *EVALUATION}:
            raise DamagedDatasetError(
                f"{root / TRAIN} has no class folders beside {root / evaluation[0]}; images belong "
                f"in a folder for each class, as in {root / TRAIN}/CLASS/1.jpg"
            )
        return {TRAIN: root}
    return {name: root / name for name in below}


def _usual_evaluation(root: pathlib.Path, folders: Mapping[str, pathlib.Path]) -> str:
    """The split to evaluate on where none is chosen."""
    found = [name for name in EVALUATION if name in folders]
    if not found:
        raise ValueError(
            f"{root} has no split to evaluate on: no folder {', '.join(EVALUATION)} beside train; "
            "holdout=0.1 holds out a tenth of the images"
        )
    if "val" in found and "validation" in found:
        raise ValueError(f"{root} has both val and validation; choose one as eval_split")
    return found[0]


def _select(
    root: pathlib.Path, folders: Mapping[str, pathlib.Path], train: str, evaluation: str
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Two slices of the splits, and their classes."""
    listed: dict[str, Listed] = {}
    for spec in (train, evaluation):
        names = [name for name in folders if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", spec)]
        names = [spec] if spec in folders else names
        if not names:
            raise ValueError(f"split {spec!r}: {root} has the folders {', '.join(folders)}")
        for name in names:
            if name not in listed:
                classes = next(iter(listed.values())).classes if listed else ()
                listed[name] = list_validation(folders[name], classes) or list_folder(folders[name])
    first, *others = listed.values()
    for other in others:
        _check_same_classes(first, other)
    sizes = {name: SplitSize(len(one.paths), [len(one.paths)]) for name, one in listed.items()}

    @functools.cache
    def open_split(name: str) -> FolderSplit:
        return listed[name].split(name)

    return select(train, sizes, open_split), select(evaluation, sizes, open_split), first.classes


def _check_same_classes(one: Listed, other: Listed) -> None:
    for here, there in ((one, other), (other, one)):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            raise DamagedDatasetError(
                f"{there.folder} lacks classes that {here.folder} has: {some(missing)}; "
                "all splits must have the same class folders"
            )


def _hold_out(
    root: pathlib.Path, folders: Mapping[str, pathlib.Path], share: float
) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """Training images, those held out, and their classes."""
    extra = [name for name in EVALUATION if name in folders]
    if extra:
        raise ValueError(
            f"holdout {share}: {root / extra[0]} is there to evaluate on; leave it out"
        )
    listed = list_folder(folders[TRAIN])
    is_held_out = listing.held_out(listed.paths, share)
    if not is_held_out.any():
        raise ValueError(f"holdout {share} holds out none of {len(listed.paths)} images; use more")
    left = np.bincount(listed.labels[~is_held_out], minlength=len(listed.classes))
    if not left.all():
        lost = [listed.classes[i] for i in np.flatnonzero(left == 0)]
        raise ValueError(f"holdout {share} leaves no training image of: {some(lost)}; use less")
    train, evaluation = listed.split(TRAIN, ~is_held_out), listed.split("validation", is_held_out)
    return train, evaluation, listed.classes


def _digest(*splits: Examples) -> str:
    """Changes when an image is added, removed or renamed."""
    digest = hashlib.sha256()
    for split in splits:
        if isinstance(split, Selection):
            for part in split.ranges:
                digest.update(f"{_digest(part.split)} {part.start} {part.stop}".encode())
        elif isinstance(split, FolderSplit):
            for array in (split.paths.text, split.paths.ends, split.labels):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
