"""Distinguishes a good checkpoint from a damaged one by its bytes.

    seal.json   {"files": {"model/d/3f..": [size, sha256], ...}, "digest": sha256 of "files"}

The seal is written into the temporary directory of a checkpoint when all files are complete and
before the directory gets its name (`checkpoint_saver.py`). A directory that has its name therefore
has a seal at every moment. Files are checked before a decoder reads them, because a decoder might
hang, crash or return garbage where bytes are wrong.

Digests of files have three advantages over digests of arrays: they cost less (a checkpoint is
compressed), they name the damaged file, and no network has to be built first. A CRC-32C is not
enough: TensorStore's files end with their CRC-32C, and all such files have the same one.
"""

import hashlib
import json
import pathlib

FILE = "seal.json"
# The seal, and what Orbax writes after it. These files hold no arrays and are not read here.
UNSEALED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")


class BrokenSealError(ValueError):
    """A directory is not what was sealed; the message names the file and the difference."""


def write_seal(folder: pathlib.Path) -> None:
    """Seals all files below a directory as they are now.

    Raises:
      OSError: one cannot be read, or the seal cannot be written.
    """
    files = {
        str(path.relative_to(folder)): list(_measure(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path.relative_to(folder)) not in UNSEALED
    }
    record = {"files": files, "digest": _digest(files)}
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n")


def check_seal(folder: pathlib.Path) -> None:
    """Compares every file of a directory with its seal.

    Raises:
      BrokenSealError: there is no seal, it is damaged itself, or a file is missing, of another
        size, or has other bytes.
    """
    try:
        record = json.loads((folder / FILE).read_text())
        files = record["files"]
        whole = record["digest"] == _digest(files)
    except FileNotFoundError:
        raise BrokenSealError(f"{FILE} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenSealError(f"{FILE} cannot be read: {type(error).__name__}") from error
    if not whole:
        raise BrokenSealError(f"{FILE} does not match its own digest")
    for name, (size, digest) in files.items():
        try:
            found = _measure(folder / name)
        except FileNotFoundError:
            raise BrokenSealError(f"{name} is missing") from None
        except OSError as error:
            raise BrokenSealError(f"{name} cannot be read: {error.strerror}") from error
        if found[0] != size:
            raise BrokenSealError(f"{name} has {found[0]} bytes instead of {size}")
        if found[1] != digest:
            raise BrokenSealError(f"{name} has other bytes than were written")


def _measure(path: pathlib.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _digest(files: dict[str, list[object]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
