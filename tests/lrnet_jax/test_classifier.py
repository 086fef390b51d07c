"""A classifier: probabilities by hand, names, one image or many."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lrnet_jax
from lrnet_jax.classifier import Guess
from lrnet_jax.functional import split
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.training.checkpoint_saver import write_model

TINY = lrnet_jax.Variant(
    operator="convolution", stem="convolution", depths=(1,), width=4, stage_channels=8,
    stem_channels=4, stem_kernel_size=3, kernel_size=3,
)  # fmt: skip
NAMES = tuple("abcdefg")
PREPROCESSING = Preprocessing(8, 8, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0))


@pytest.fixture(scope="module")
def classifier():
    model = lrnet_jax.create_from_variant(TINY, len(NAMES), nnx.Rngs(0))
    return lrnet_jax.Classifier(model, PREPROCESSING, NAMES)


def photos(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(classifier):
    """Probabilities of five photographs in float64, from the logits of one image at a time."""
    normalized = (photos(5) - np.array(PREPROCESSING.mean)) / PREPROCESSING.std
    logits = [classifier.model(jnp.asarray(x[None], jnp.float32))[0] for x in normalized]
    exponentials = np.exp(np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_probabilities(classifier, expected, batch_size):
    got = classifier.probabilities(photos(5), batch_size=batch_size)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_guesses_are_the_most_probable_first(classifier, expected):
    rows = classifier.predict(photos(5), top=3)
    for row, probabilities in zip(rows, expected, strict=True):
        best = sorted(range(7), key=lambda label: -probabilities[label])[:3]
        assert [guess.label for guess in row] == best
        assert [guess.name for guess in row] == [NAMES[label] for label in best]
        np.testing.assert_allclose([g.probability for g in row], probabilities[best], rtol=1e-5)


def test_one_image_has_one_row(classifier):
    one = classifier.predict(photos(1)[0])
    assert isinstance(one[0], Guess)
    assert len(one) == 5
    assert classifier.predict([Image.fromarray(photos(1)[0])], top=99) == [
        classifier.predict(photos(1)[0], top=7)
    ]


def test_the_network_takes_preprocessed_images(classifier, expected):
    images = classifier.preprocess(photos(5))
    assert (images.shape, images.dtype) == ((5, 8, 8, 3), jnp.float32)
    logits = np.asarray(classifier.model(images), np.float64)
    np.testing.assert_allclose(
        logits - logits[:, :1], np.log(expected / expected[:, :1]), atol=1e-4
    )


def test_training_mode_does_not_matter(classifier, expected):
    classifier.model.train()
    np.testing.assert_allclose(classifier.probabilities(photos(5)), expected, rtol=1e-5)


def test_classes_without_names_are_numbered(classifier):
    nameless = lrnet_jax.Classifier(classifier.model, PREPROCESSING)
    for guess in nameless.predict(photos(1)[0]):
        assert guess.name == f"class {guess.label}"


def test_synsets_are_shown_in_words(classifier):
    names = ["n02510455", *NAMES[1:]]
    named = lrnet_jax.Classifier(classifier.model, classifier.preprocessing, names)
    assert named.class_names == ("giant panda", *NAMES[1:])


def test_bad_arguments(classifier):
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        classifier.predict(photos(1), top=0)
    with pytest.raises(ValueError, match=r"class_names must have 7 names, .* got 2"):
        lrnet_jax.Classifier(classifier.model, PREPROCESSING, ["cat", "dog"])
    with pytest.raises(ValueError, match="images is empty"):
        classifier.predict([])


@pytest.fixture(scope="module")
def saved(tmp_path_factory, classifier):
    """A checkpoint for inference of the classifier."""
    _, params, batch_stats = split(classifier.model)
    folder = tmp_path_factory.mktemp("saved") / "export"
    metadata = {
        "network": "tiny", "variant": json.loads(json.dumps(dataclasses.asdict(TINY))),
        "num_classes": 7, "class_names": NAMES, "step": 3, "config": {},
        **dataclasses.asdict(PREPROCESSING),
    }  # fmt: skip
    write_model(folder, {"params": params, "batch_stats": batch_stats}, metadata)
    return folder


def test_load_classifier(saved, expected):
    classifier = lrnet_jax.load_classifier(saved)
    np.testing.assert_allclose(classifier.probabilities(photos(5)), expected, rtol=1e-5)
    assert classifier.preprocessing == PREPROCESSING
    assert classifier.class_names == NAMES
    assert repr(classifier) == "Classifier(tiny, 7 classes, 8 pixels)"
    half = lrnet_jax.load_classifier(saved, dtype="bfloat16")
    assert half.preprocess(photos(1)).dtype == jnp.bfloat16


def test_names_go_with_the_head(saved):
    _, metadata = lrnet_jax.load_checkpoint(saved)
    assert metadata["class_names"] == list(NAMES)
    _, metadata = lrnet_jax.load_checkpoint(saved, num_classes=3)
    assert metadata["class_names"] is None
