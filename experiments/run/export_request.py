"""What every kind of export has in common."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import lrnet_jax
from experiments.report import model_card
from experiments.run.results import is_unfinished
from lrnet_jax.loading import DType


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What is exported, and to where.

    Attributes:
      path: a workdir, a step directory or an export.
      out: a folder that does not exist yet.
      ema: which weights, see `lrnet_jax.load_checkpoint`.
      license_: of the weights, for the model card, None if it is not stated.
    """

    path: str | pathlib.Path
    out: pathlib.Path
    ema: bool | None = None
    license_: str | None = None

    def load(
        self, dtype: DType | None = None
    ) -> tuple[lrnet_jax.Network, dict[str, Any], dict[str, Any]]:
        """The network, its metadata, and what the model card says of it.

        Raises:
          CheckpointError: the checkpoint cannot be read.
        """
        model, metadata = lrnet_jax.load_checkpoint(self.path, ema=self.ema, dtype=dtype)
        return model, metadata, model_card.describe_network(self.path, metadata)

    def write_card(self, folder: pathlib.Path, record: Mapping[str, Any], usage: str) -> None:
        """Writes the model card; `usage` tells how the files beside it are used."""
        card = model_card.write(record, title=self.out.name, usage=usage, license_=self.license_)
        (folder / model_card.FILE).write_text(card)

    def describe(self, metadata: Mapping[str, Any]) -> list[str]:
        """Lines about what is exported."""
        weights = "averaged" if metadata["ema"] else "last"
        lines = [f"step {metadata['step']} of {self.path}, {weights} weights"]
        if is_unfinished(self.path):
            lines.append(f"note: {self.path} is not finished; this is an early state of it")
        return lines
