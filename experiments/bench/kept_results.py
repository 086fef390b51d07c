"""Results of long measurements, each kept on disk as soon as it is there."""

import json
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from experiments.config import ConfigError
from lrnet_jax.training.atomic import write_atomically

Result = dict[str, Any]  # JSON of one unit; {"error": ...} where it failed


class Unit(NamedTuple):
    """One measurement.

    Attributes:
      key: its name within its part.
      run: measures, and returns JSON.
    """

    key: str
    run: Callable[[], Result]


class KeptResults:
    """Results by part and key, in a JSON file that always is whole.

    Attributes:
      path: of the file.
      results: {part: {key: result}}.
    """

    def __init__(self, path: pathlib.Path, results: dict[str, dict[str, Result]]) -> None:
        self.path = path
        self.results = results

    @classmethod
    def read(cls, path: pathlib.Path) -> "KeptResults":
        """The results of a file; none where there is no file.

        Raises:
          ConfigError: it holds something else.
        """
        if not path.exists():
            return cls(path, {})
        try:
            results = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} holds no results; remove it, or name another") from error
        if not isinstance(results, dict) or not all(isinstance(x, dict) for x in results.values()):
            raise ConfigError(f"{path} holds no results; remove it, or name another")
        return cls(path, results)

    def drop(self, parts: Iterable[str]) -> None:
        """Forgets the results of some parts."""
        for part in parts:
            self.results.pop(part, None)

    def keep(self, part: str, key: str, result: Result) -> None:
        """Adds a result and writes the file."""
        self.results.setdefault(part, {})[key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.results, indent=1) + "\n")

    def has(self, part: str, key: str) -> bool:
        """Whether a unit was measured and did not fail."""
        result = self.results.get(part, {}).get(key)
        return result is not None and "error" not in result


def _what_is_left(left: int, units: int) -> str:
    if not units:
        return "nothing to do on this machine"
    kept = f", {units - left} kept from before (--again measures anew)" if left < units else ""
    return f"{left} of {units} to do{kept}"


def run_units(part: str, units: Iterable[Unit], kept: KeptResults, *, seconds: float) -> None:
    """Runs the units of a part that have no result yet, and prints a line of each.

    A unit that fails has its error as result, and the next one runs. No unit starts after the time
    is over.
    """
    units = list(units)
    left = [unit for unit in units if not kept.has(part, unit.key)]
    print(f"\n{part}: {_what_is_left(len(left), len(units))}", flush=True)
    start = time.monotonic()
    for n, unit in enumerate(left):
        if time.monotonic() - start > seconds:
            print(f"  time is over, {len(left) - n} are left; rerun the same command", flush=True)
            return
        before = time.monotonic()
        try:
            result = unit.run()
        except Exception as error:  # what else is measured must not be lost
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        kept.keep(part, unit.key, result)
        outcome = result.get("error") or result.get("summary", "done")
        spent = time.monotonic() - before
        print(f"  [{n + 1}/{len(left)}] {unit.key}: {outcome} ({spent:.0f} s)", flush=True)
