"""Names and fields of the zoo, and errors for wrong ones."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from flax import nnx

from lrnet_jax import Variant, create_model, get_variant, list_models


def test_names():
    assert list_models("lrnet*") == [
        "lrnet18",
        "lrnet26",
        "lrnet50",
        "lrnet101",
        "lrnet26_nl",
        "lrnet_small",
    ]
    assert set(list_models("resnet26*")) == {"resnet26", "resnet26_dw", "resnet26_nl"}
    assert len(list_models()) == 14


def test_fields_and_dtype_override_the_variant():
    for dtype in (jnp.bfloat16, "bfloat16", jnp.dtype("bfloat16")):
        model = nnx.eval_shape(
            lambda dtype=dtype: create_model(
                "lrnet26", num_classes=3, dtype=dtype, kernel_size=5, rngs=nnx.Rngs(0)
            )
        )
        assert model.variant == dataclasses.replace(
            get_variant("lrnet26"), dtype="bfloat16", kernel_size=5
        )
        assert model.head.kernel.shape == (2048, 3)


def test_equal_seeds_make_equal_weights():
    def head(seed):
        return create_model("resnet_small", num_classes=4, rngs=nnx.Rngs(seed)).head.kernel[...]

    assert jnp.array_equal(head(0), head(0))
    assert not jnp.array_equal(head(0), head(1))


@pytest.mark.parametrize("name", list_models())
def test_variants_survive_json(name):
    variant = get_variant(name)
    text = json.dumps(dataclasses.asdict(variant))
    assert Variant(**json.loads(text)) == variant
    assert hash(Variant(**json.loads(text))) == hash(variant)


def test_unknown_names_and_fields_are_answered():
    with pytest.raises(ValueError, match="no network is named 'lrnet20'; did you mean lrnet"):
        get_variant("lrnet20")
    with pytest.raises(ValueError, match="there are lrnet18, lrnet26"):
        get_variant("?")
    with pytest.raises(TypeError, match="no field 'kernal_size'; did you mean kernel_size"):
        create_model("lrnet26", kernal_size=5, rngs=nnx.Rngs(0))


def test_a_seed_and_pretrained_weights_are_answered():
    with pytest.raises(TypeError, match=r"must be flax.nnx.Rngs, got 0; write rngs=nnx.Rngs\(0\)"):
        create_model("lrnet26", rngs=0)
    with pytest.raises(TypeError, match="no weights are shipped; load your own"):
        create_model("lrnet26", pretrained=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": 8}, "kernel_size must be odd, got 8; use 7 or 9"),
        ({"prior": "G*"}, "prior must be one of network, table, none; got 'G*'"),
        ({"operator": "conv"}, "operator must be one of local_relation, convolution"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"channels_per_group": 0}, "channels_per_group must be at least 1 or -1 for all, got 0"),
        ({"channels_per_group": "all"}, "channels_per_group must be an int, got 'all'"),
        ({"depths": ()}, "depths must be a tuple of ints such as (2, 2, 2, 2), got ()"),
        ({"depths": (2, 0)}, "depths must be at least 1, got 0"),
        ({"stage_channels": (64, 128)}, "for each of the 4 stages, got (64, 128)"),
        ({"scope": "full", "full_image_pool": (4,)}, "full_image_pool must have one number"),
        ({"scope": "full", "operator": "depthwise"}, "use scope='local'"),
        ({"scope": "full", "prior": "table"}, "give image_size, such as 224"),
        ({"batch_norm_images": 8, "batch_norm_axis": "batch"}, "exclude each other"),
        ({"zero_gamma": 1}, "zero_gamma must be True or False, got 1"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
        ({"scale": "1"}, "scale must be a number or None, got '1'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16; got 'float16'"),
        ({"implementation": 3}, "implementation must be a string or None, got 3"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        Variant(**fields)
    assert message in str(caught.value)
