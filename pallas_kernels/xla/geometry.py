"""The sizes of one image's problem that both passes of the XLA path need."""

import dataclasses

from pallas_kernels.spec import Inputs, Spec
from pallas_kernels.xla.stages import Plan, phase_and_steps


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of one image and of the row blocks that it is cut into.

    Attributes:
      spec: the options.
      height: H.
      width: W.
      channels: C.
      depth: D.
      rows: R, output rows of a block.
      blocks: number of blocks; together they may have more rows than the output.
    """

    spec: Spec
    height: int
    width: int
    channels: int
    depth: int
    rows: int
    blocks: int

    @classmethod
    def of(cls, spec: Spec, plan: Plan, inputs: Inputs, gaps: bool) -> "Geometry":
        """Reads the sizes from a batch of inputs.

        Args:
          spec: the options.
          plan: how to cut the image.
          inputs: with the batch axis.
          gaps: whether a block's rows have Wq columns, not Wo.
        """
        _, height, width, channels = inputs.value.shape
        whole = cls(spec, height, width, channels, inputs.query.shape[-1], rows=0, blocks=0)
        ho, wo = whole.out_size
        columns = whole.columns if gaps else wo
        rows, blocks = plan.rows(ho, columns * whole.groups)
        return dataclasses.replace(whole, rows=rows, blocks=blocks)

    @property
    def out_size(self) -> tuple[int, int]:
        """(Ho, Wo)."""
        return self.spec.output_size(self.height, self.width)

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.groups(self.channels)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised."""
        return self.spec.normalization == "softmax"

    @property
    def overhang(self) -> tuple[int, int]:
        """How many steps the last tap is beyond the first, per axis."""
        kh, kw = self.spec.kernel_size
        return phase_and_steps(self.spec, kh - 1)[1], phase_and_steps(self.spec, kw - 1)[1]

    @property
    def columns(self) -> int:
        """Wq, columns of a row with its gap: Wo outputs and the overhang of the window."""
        return self.out_size[1] + self.overhang[1]
