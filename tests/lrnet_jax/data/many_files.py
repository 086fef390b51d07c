"""Times the listing of as many files as ImageNet has, all of them empty.

python -m tests.lrnet_jax.data.many_files
"""

import logging
import os
import pathlib
import resource
import tempfile
import time

from lrnet_jax.data import open_dataset

CLASSES = 1000
TRAIN, VALIDATION = 1_281_167, 50_000


def write_empty(folder, count, name):
    """Writes files "CLASS/CLASS_number.JPEG", the same number in each class but for one more."""
    for i in range(CLASSES):
        synset = f"n{i:08d}"
        path = pathlib.Path(folder, synset)
        path.mkdir(parents=True)
        for number in range(i, count, CLASSES):
            file = path / name.format(synset=synset, number=number)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY))


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        write_empty(f"{folder}/train", TRAIN, "{synset}_{number}.JPEG")
        write_empty(f"{folder}/val", VALIDATION, "ILSVRC2012_val_{number:08d}.JPEG")
        for attempt in ("first", "second"):
            start = time.perf_counter()
            dataset = open_dataset("folder", data_dir=folder)
            seconds = time.perf_counter() - start
            count = dataset.num_train + dataset.num_eval
            print(f"{attempt} time: {count} files in {seconds:.1f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
