"""The learning rate of the paper, and the optimisers, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrnet_jax.training.optimizer import Adaptive, learning_rate_schedule, make_optimizer, sgd


def test_the_papers_schedule():
    """0.4 after 5 epochs of warm-up, x0.1 at 30, 60 and 90 of 110; here 10 steps an epoch."""
    rate = learning_rate_schedule(
        0.4, total_steps=1100, warmup_steps=50, boundaries=[300, 600, 900]
    )
    want = {0: 0.4 / 50, 24: 0.2, 49: 0.4, 299: 0.4, 300: 0.04, 600: 0.004, 900: 4e-4, 1099: 4e-4}
    for step, value in want.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_cosine_falls_from_the_warm_up_to_zero():
    rate = learning_rate_schedule(1.0, total_steps=110, warmup_steps=10, decay="cosine")
    rates = np.array([float(rate(step)) for step in range(111)])
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5, abs=1e-6)
    assert rates[110] == pytest.approx(0.0, abs=1e-6)
    assert (np.diff(rates[10:]) < 0).all()


PARAMS = {
    "layer": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([1.0, -1.0])},
}
GRADIENTS = [
    {"layer": {"kernel": np.array([[3.0, 4.0], [0.0, 0.1]]) * (n + 1), "bias": np.ones(2) * n}}
    for n in range(3)
]
RATE, DECAY, BETAS, EPSILON = 0.1, 0.02, (0.8, 0.95), 1e-4


def run(optimizer):
    """The parameters after some steps."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)["layer"]


def by_hand(name, limit=None, factor=1.0):
    """The same by the formulas of the papers, in float64 and one array at a time."""
    found = {leaf: array.copy() for leaf, array in PARAMS["layer"].items()}
    means = {leaf: np.zeros_like(array) for leaf, array in found.items()}
    squares = {leaf: np.zeros_like(array) for leaf, array in found.items()}
    for n, gradient in enumerate(GRADIENTS, start=1):
        norm = np.sqrt(sum((array**2).sum() for array in gradient["layer"].values()))
        for leaf, array in gradient["layer"].items():
            if limit is not None:
                array = array * min(1.0, limit / norm)
            means[leaf] = BETAS[0] * means[leaf] + (1 - BETAS[0]) * array
            squares[leaf] = BETAS[1] * squares[leaf] + (1 - BETAS[1]) * array**2
            update = means[leaf] / (1 - BETAS[0] ** n)
            update = update / (np.sqrt(squares[leaf] / (1 - BETAS[1] ** n)) + EPSILON)
            if leaf == "kernel":
                update = update + DECAY * found[leaf]
            if name == "lamb":
                sizes = np.linalg.norm(found[leaf]), np.linalg.norm(update)
                update = update * (sizes[0] / sizes[1] if all(sizes) else 1.0)
            rate = RATE * (factor if leaf == "kernel" else 1.0)
            found[leaf] = found[leaf] - rate * update
    return found


def made(name, **options):
    return make_optimizer(
        name, lambda _: RATE, adaptive=Adaptive(*BETAS, EPSILON), weight_decay=DECAY, **options
    )


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adaptive_optimisers_follow_their_papers(name):
    for leaf, want in by_hand(name).items():
        np.testing.assert_allclose(run(made(name))[leaf], want, rtol=1e-5)


def test_gradients_are_clipped_and_rates_multiplied():
    got = run(made("adamw", clip_norm=2.0, factors={"layer/kernel": 0.1, "layer/bias": 1.0}))
    for leaf, want in by_hand("adamw", limit=2.0, factor=0.1).items():
        np.testing.assert_allclose(got[leaf], want, rtol=1e-5)


def test_sgd_by_name_is_the_papers_sgd_to_the_bit_and_in_its_state():
    plain = sgd(lambda _: RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    named = make_optimizer(
        "sgd", lambda _: RATE, nesterov=True, weight_decay=DECAY,
        factors={"layer/kernel": 1.0, "layer/bias": 1.0},
    )  # fmt: skip
    assert jax.tree.structure(plain.init(PARAMS)) == jax.tree.structure(named.init(PARAMS))
    for leaf, want in run(plain).items():
        np.testing.assert_array_equal(run(named)[leaf], want)


def test_lamb_refuses_nesterov():
    with pytest.raises(ValueError, match="lamb has no Nesterov momentum; use nesterov=false"):
        make_optimizer("lamb", lambda _: RATE, nesterov=True)
