"""The local relation operator for JAX: one public function over several implementations."""

from pallas_kernels.api import implementations, local_relation
from pallas_kernels.spec import Spec

__all__ = ["Spec", "implementations", "local_relation"]
