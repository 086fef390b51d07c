"""PGD: exact bounds, what it does to a linear network by hand, and foolbox's on the same images."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.data import open_dataset
from lrnet_jax.data.augment import normalize
from lrnet_jax.functional import split
from lrnet_jax.training import steps
from lrnet_jax.training.attack import Budget, attack_network, pgd, random_wrong_class
from lrnet_jax.training.devices import AXIS
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import init_state

SHAPE, CLASSES = (8, 4, 4, 3), 5
RNG = np.random.default_rng(0)
IMAGES = RNG.choice(np.uint8([0, 1, 7, 128, 250, 255]), SHAPE)
LABELS, INDEX = jnp.arange(8, dtype=jnp.int32) % CLASSES, jnp.arange(8, dtype=jnp.int32)
WEIGHTS = jnp.asarray(RNG.normal(size=(np.prod(SHAPE[1:]), CLASSES)), jnp.float32)
KEY = jax.random.key(3)


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS / 50


@functools.partial(jax.jit, static_argnames=("targeted", "random_start"))
def attacked(images, epsilon, step_size, number, index=INDEX, *, targeted, random_start):
    batch = {"image": images, "label": LABELS, "index": index}
    budget = Budget(epsilon, step_size, number)
    return pgd(linear, batch, KEY, budget, targeted=targeted, random_start=random_start)


@pytest.mark.parametrize(("targeted", "random_start"), [(False, True), (True, False)])
def test_no_pixel_leaves_the_box(targeted, random_start):
    """In exact arithmetic: differences of float32 numbers below 256 are exact in float64."""
    for epsilon in (0.0, 1e-6, 0.3, 1 / 3, 8.0, 15.999999, 16.0, 300.0):
        for step_size, number in ((0.1, 1), (0.7, 3), (1.0, 40), (1e6, 2)):
            out = attacked(
                IMAGES, epsilon, step_size, number, targeted=targeted, random_start=random_start
            )
            assert out.dtype == jnp.float32
            exact = np.asarray(out, np.float64)
            moved = np.abs(exact - IMAGES)
            assert moved.max() <= float(np.float32(epsilon))
            assert exact.min() >= 0
            assert exact.max() <= 255
            if epsilon == 16 and step_size > 1:  # and it uses what it may
                inner = (IMAGES > 16) & (IMAGES < 239)
                assert (moved[inner] == 16).all()


def test_a_linear_network_by_hand():
    """Two classes: the gradient's sign is that of the difference of their weights."""

    def two(x):
        return linear(x)[:, :2] / 100

    labels = LABELS % 2
    budget = Budget(epsilon=3.0, step_size=1.0, steps=3)
    toward = np.sign(WEIGHTS[:, 1] - WEIGHTS[:, 0]).reshape(SHAPE[1:])
    away = np.where((labels == 0)[:, None, None, None], toward, -toward)
    want = np.clip(IMAGES + 3 * away, 0, 255)
    for targeted in (False, True):  # of two classes, the target is the other one
        attack = jax.jit(functools.partial(pgd, two, targeted=targeted, random_start=False))
        out = attack({"image": IMAGES, "label": labels, "index": INDEX}, KEY, budget)
        np.testing.assert_array_equal(out, want)


def test_steps_raise_the_loss_and_none_changes_nothing():
    def loss(images):
        logits = linear(images.astype(jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    kind = {"targeted": False, "random_start": True}
    np.testing.assert_array_equal(attacked(IMAGES, 0.0, 1.0, 20, **kind), IMAGES)
    losses = [loss(attacked(IMAGES, 16.0, 1.0, number, **kind)) for number in (0, 4, 12)]
    assert losses == sorted(losses)
    assert loss(IMAGES) < losses[-1]


def test_images_are_attacked_alike_on_any_devices():
    kind = {"targeted": True, "random_start": True}
    whole = attacked(IMAGES, 16.0, 2.0, 3, **kind)
    split = jax.pmap(lambda batch: pgd(linear, batch, KEY, Budget(16.0, 2.0, 3), **kind))
    batch = {"image": IMAGES, "label": LABELS, "index": INDEX}
    parts = split(jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch))
    np.testing.assert_array_equal(parts.reshape(SHAPE), whole)
    other = attacked(IMAGES, 16.0, 2.0, 3, INDEX + 8, **kind)
    assert (np.asarray(other) != whole).any((1, 2, 3)).all()


def test_targets_are_wrong_and_equally_likely():
    keys = jax.random.split(KEY, 8000)
    drawn = jax.vmap(random_wrong_class, (0, None, None))(keys, jnp.int32(2), 5)
    counts = np.bincount(drawn, minlength=5)
    assert counts[2] == 0
    assert counts[[0, 1, 3, 4]] == pytest.approx(2000, rel=0.1)


def test_images_must_be_uint8():
    with pytest.raises(TypeError, match="images must be uint8, levels of 0 to 255, got float32"):
        attacked(IMAGES / np.float32(255), 0.1, 0.1, 1, targeted=False, random_start=False)


# ---- a small network, trained for a second

MEAN, STD = (73.0, 73.0, 73.0), (90.0, 90.0, 90.0)
NETWORK = lrnet_jax.Variant(
    depths=(1,), width=4, stage_channels=16, stem="convolution", stem_channels=8,
    stem_kernel_size=3, kernel_size=3, channels_per_group=2, prior_hidden=4, prior_stddev=1.0,
    implementation="reference",
)  # fmt: skip


def on_one(step):
    """A step of one device, without pmap."""
    mapped = jax.vmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return jax.jit(lambda state, batch: mapped(state, jax.tree.map(lambda x: x[None], batch)))


@functools.cache
def trained():
    """(functional, params, batch_stats, 400 images, their labels) after 200 steps."""
    data = open_dataset("fashion_mnist_subset")
    model = lrnet_jax.create_from_variant(NETWORK, 10, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    optimizer = sgd(lambda _: 0.1, weight_decay=0.0)
    state = init_state(params, batch_stats, optimizer, seed=0)
    step = on_one(
        steps.TrainStep(
            functional, optimizer, lambda _: 0.1, augment=lambda x, i, k: normalize(x, MEAN, STD)
        )
    )
    stream = data.train_batches(100, seed=0)
    for _ in range(200):
        state, _ = step(state, next(stream))
    batch = next(iter(data.eval_batches(400)))
    return functional, state.params, state.batch_stats, batch["image"], batch["label"]


@jax.jit
def network_logits(params, batch_stats, images):
    return trained()[0].apply(params, batch_stats, normalize(images, MEAN, STD))


@functools.partial(jax.jit, static_argnames=("targeted", "random_start"))
def network_attack(images, labels, budget, *, targeted=False, random_start=True):
    functional, params, batch_stats, *_ = trained()
    attack = attack_network(
        functional,
        functools.partial(normalize, mean=MEAN, std=STD),
        targeted=targeted,
        random_start=random_start,
    )
    batch = {"image": images, "label": labels, "index": jnp.arange(len(images))}
    return attack((params, batch_stats), batch, KEY, budget)


def accuracy(images):
    _, params, batch_stats, _, labels = trained()
    return np.mean(np.argmax(network_logits(params, batch_stats, images), -1) == labels)


def test_accuracy_falls_with_eps_and_stays_without():
    *_, images, labels = trained()
    clean = accuracy(images)
    assert clean > 0.6
    budgets = [Budget(epsilon, epsilon / 8 + 1, 20) for epsilon in (0.0, 8.0, 64.0)]
    under = [accuracy(network_attack(images, labels, budget)) for budget in budgets]
    assert under[0] == clean
    assert under[1] < clean
    assert under[2] < 0.02


def test_a_step_trains_on_the_attacked_images():
    """The step with an attack is the plain step on images that were attacked beforehand."""
    functional, params, batch_stats, images, labels = trained()
    optimizer = sgd(lambda _: 0.1, weight_decay=0.0)
    state = init_state(params, batch_stats, optimizer, seed=0)
    finish = functools.partial(normalize, mean=MEAN, std=STD)
    attack = attack_network(functional, finish, targeted=True)
    seen = []

    def craft(*arguments):
        crafted = attack(*arguments, Budget(16.0, 1.0, 3))
        jax.debug.callback(lambda x: seen.append(np.array(x)), crafted)
        return finish(crafted)

    batch = {"image": images[:32], "label": labels[:32], "index": jnp.arange(32)}
    make = functools.partial(steps.TrainStep, functional, optimizer, lambda _: 0.1)
    after, _ = on_one(make(augment=lambda x, i, k: x, attack=craft))(state, batch)
    jax.effects_barrier()
    (crafted,) = seen
    moved = np.abs(crafted.reshape(32, 28, 28, 3) - images[:32])
    assert 2 < moved.mean() < moved.max() <= 16
    batch["image"] = crafted.reshape(32, 28, 28, 3)
    want, _ = on_one(make(augment=lambda x, i, k: finish(x)))(state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (after.params, after.batch_stats),
        (want.params, want.batch_stats),
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_as_strong_as_foolbox(targeted):
    """Foolbox's LinfPGD on the same network, images, targets and budget, from the images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    _, params, batch_stats, images, labels = trained()
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i))[0])(jnp.arange(400))
    target = jax.vmap(random_wrong_class, (0, 0, None))(keys, jnp.asarray(labels), 10)
    aims = foolbox.criteria.TargetedMisclassification(target)
    criterion = aims if targeted else foolbox.criteria.Misclassification(jnp.asarray(labels))
    network = foolbox.JAXModel(
        lambda x: network_logits(params, batch_stats, x),
        bounds=(0, 255),
        data_format="channels_last",
    )
    pixels = jnp.asarray(images, jnp.float32)
    for epsilon, size, number in ((4.0, 1.0, 6), (16.0, 1.0, 20), (16.0, 2.0, 10)):
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=number, random_start=False)
        other = theirs.run(network, pixels, criterion, epsilon=epsilon)
        budget = Budget(epsilon, size, number)
        own = network_attack(images, labels, budget, targeted=targeted, random_start=False)
        print(
            f"targeted {targeted}, eps {epsilon}, {number} steps of {size}: top-1 falls from "
            f"{accuracy(images):.2%} to {accuracy(own):.2%}, with foolbox {accuracy(other):.2%}"
        )
        # The same iteration: gradients that round to the other side of 0 move single images.
        assert accuracy(own) <= accuracy(other) + 2 / 400
        assert np.abs(np.asarray(own) - np.asarray(other)).mean() < 0.05 * epsilon
