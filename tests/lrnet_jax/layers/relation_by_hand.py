"""Parts of a relation between pixels, computed in numpy one weight at a time."""

import numpy as np


def kernel(linear):
    """The weights of a channel transformation in float64."""
    return np.asarray(linear.kernel[...], np.float64)


def similarity(kind, q, k):
    if kind == "squared_difference":
        return -np.sum((q - k) ** 2)
    if kind == "absolute_difference":
        return -np.sum(np.abs(q - k))
    return np.sum(q * k)


def network_prior(prior, y, x):
    """The prior network at one relative position, (G,)."""
    hidden = np.asarray([y, x]) @ kernel(prior.hidden) + np.asarray(prior.hidden.bias[...])
    return np.maximum(hidden, 0) @ kernel(prior.output) + np.asarray(prior.output.bias[...])


def aggregate(logits, values, normalize):
    """Weighted sum of values for one pixel and group; logits (T,), values (T, M)."""
    weights = np.asarray(logits)
    if normalize:
        weights = np.exp(weights - weights.max())
        weights /= weights.sum()
    return weights @ np.asarray(values)
