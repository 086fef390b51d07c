"""Every network of the paper as data, and two small ones for 28 x 28 images."""

import dataclasses
import difflib
import fnmatch
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lrnet_jax.networks import Network
from lrnet_jax.variant import Variant

_LRNET26 = Variant()
_RESNET26 = Variant(operator="convolution", stem="convolution", kernel_size=3, width=64)
_LRNET_SMALL = Variant(
    depths=(2, 2),
    width=32,
    stage_channels=64,
    stem="convolution",
    stem_channels=32,
    stem_kernel_size=3,
    stem_pool=False,
    channels_per_group=4,
    prior_hidden=32,  # the default is the number of groups, only 8 in some layers
    prior_stddev=1.0,  # a short run that starts from a flat prior loses its first epochs
)

# The widths are the paper's. They make the networks equal in computation (Tables 3, 7 and 8).
_ZOO = {
    "lrnet18": dataclasses.replace(_LRNET26, block="basic", width=136),
    "lrnet26": _LRNET26,
    "lrnet50": dataclasses.replace(_LRNET26, depths=(3, 4, 6, 3), width=100),
    "lrnet101": dataclasses.replace(_LRNET26, depths=(3, 4, 23, 3), width=103),
    "resnet18": dataclasses.replace(_RESNET26, block="basic"),
    "resnet26": _RESNET26,
    "resnet50": dataclasses.replace(_RESNET26, depths=(3, 4, 6, 3)),
    "resnet101": dataclasses.replace(_RESNET26, depths=(3, 4, 23, 3)),
    "resnet26_dw": dataclasses.replace(_RESNET26, operator="depthwise", width=126),
    "nl26": dataclasses.replace(_RESNET26, operator="non_local", width=110),
    "resnet26_nl": dataclasses.replace(_RESNET26, non_local_blocks=True),
    "lrnet26_nl": dataclasses.replace(_LRNET26, width=102, non_local_blocks=True),
    "lrnet_small": _LRNET_SMALL,
    "resnet_small": dataclasses.replace(
        _LRNET_SMALL, operator="convolution", kernel_size=3, width=22
    ),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo that match a shell pattern, such as "lrnet*"."""
    return [name for name in _ZOO if fnmatch.fnmatchcase(name, pattern)]


def get_variant(name: str) -> Variant:
    """The variant of a network of the zoo; `dataclasses.replace` changes its fields.

    Raises:
      ValueError: there is no such name. The message has the nearest ones.
    """
    if name not in _ZOO:
        raise ValueError(f"no network is named {name!r}; {_suggest(name, list(_ZOO))}")
    return _ZOO[name]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
    **fields: Any,
) -> Network:
    """Builds a network of the zoo with fresh weights, in training mode.

        model = create_model("lrnet50", dtype=jnp.bfloat16, rngs=nnx.Rngs(0), kernel_size=5)

    Args:
      name: one of `list_models()`.
      num_classes: number of logits.
      dtype: of activations, a dtype or its name, float32 or bfloat16. None is that of the variant.
      rngs: the source of the initial weights.
      **fields: fields of `Variant` to change.

    Raises:
      ValueError: there is no such name, or a value is out of range.
      TypeError: there is no such field, or a value is of the wrong type.
    """
    variant = get_variant(name)
    if fields.pop("pretrained", False):
        raise TypeError(
            "pretrained=True: no weights are shipped; load your own by "
            "lrnet_jax.load_checkpoint(path)"
        )
    known = [field.name for field in dataclasses.fields(Variant)]
    for field in fields:
        if field not in known:
            raise TypeError(f"a network has no field {field!r}; {_suggest(field, known)}")
    if dtype is not None:
        fields["dtype"] = jnp.dtype(dtype).name
    return create_from_variant(dataclasses.replace(variant, **fields), num_classes, rngs)


def create_from_variant(variant: Variant, num_classes: int, rngs: nnx.Rngs) -> Network:
    """Builds the network of a variant with fresh weights, in training mode.

    Raises:
      ValueError: num_classes is less than 1.
    """
    return Network(variant, num_classes, rngs=rngs)


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(known)}"
