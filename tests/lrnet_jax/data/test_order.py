"""The order of examples: permutations end to end, resume, sharing between processes."""

import numpy as np
import pytest

from lrnet_jax.data import order


def test_each_epoch_is_a_permutation_of_its_own():
    epochs, examples = order.training_examples(np.arange(3 * 7), 7, seed=5)
    np.testing.assert_array_equal(epochs, np.repeat([0, 1, 2], 7))
    by_epoch = examples.reshape(3, 7)
    np.testing.assert_array_equal(np.sort(by_epoch), [np.arange(7)] * 3)
    assert len({tuple(row) for row in by_epoch}) == 3


def test_order_depends_on_the_seed_alone():
    positions = np.arange(50)
    first = order.training_examples(positions, 100, seed=1)[1]
    np.testing.assert_array_equal(first, order.training_examples(positions, 100, seed=1)[1])
    assert (first != order.training_examples(positions, 100, seed=2)[1]).any()
    # Any part of the stream can be had without what precedes it.
    np.testing.assert_array_equal(
        first[20:30], order.training_examples(positions[20:30], 100, seed=1)[1]
    )


def test_a_batch_larger_than_the_split_spans_epochs():
    epochs, examples = order.training_examples(np.arange(10), 3, seed=0)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert set(examples.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shares_side_by_side_are_the_global_batch(count):
    shares = [order.share(8, index, count) for index in range(count)]
    positions = np.concatenate([share.positions(3) for share in shares])
    np.testing.assert_array_equal(positions, np.arange(24, 32))


def test_evaluation_covers_the_split_once():
    assert order.evaluation_steps(10, 4) == 3
    assert order.evaluation_steps(8, 4) == 2
    examples, mask = order.evaluation_examples(np.arange(12), 10)
    np.testing.assert_array_equal(examples[mask], np.arange(10))
    assert examples[~mask].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 1), "batch_size must be at least 1, got 0"),
        ((-4, 0, 1), "batch_size must be at least 1, got -4"),
        ((10, 0, 4), "multiple of the 4 processes, got 10; use 8 or 12"),
        ((8, 2, 2), "process_index must be in .*, got 2 of 2"),
        ((8, 0, 0), "got 0 of 0"),
    ],
)
def test_share_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        order.share(*arguments)


def test_stream_refuses_negative_numbers():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        order.check_stream(-1, 0)
    with pytest.raises(ValueError, match="start_step must be at least 0, got -2"):
        order.check_stream(0, -2)
