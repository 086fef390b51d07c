"""Factors of the learning rate for parts of a network, chosen by patterns over parameter paths.

    {"stem": 0, "stages/0": 0.1, "head": 10}

A pattern means the parameters whose path it matches, and all below a path that it matches. In a
pattern, `*` is any text, also with slashes: `*/norm` means all batch normalisations, `*bias` all
biases. Where several patterns match a path, the last one counts. A factor of 0 freezes.
"""

import fnmatch
from collections.abc import Iterable, Mapping

import jax
import optax

from lrnet_jax.functional import Tree
from lrnet_jax.training.checkpoints import flatten


def rate_factors(
    params: Tree, patterns: Mapping[str, float], *, layer_decay: float = 1.0
) -> dict[str, float]:
    """The factor of each parameter's learning rate, by its path.

    Args:
      params: the parameters of a network.
      patterns: pattern to factor, in the order in which they apply.
      layer_decay: the factor from each block to the one below it. The head has 1, the last block
        `layer_decay`, the stem the smallest. It multiplies with the factors of patterns.

    Raises:
      ValueError: a pattern matches no parameter, or everything is frozen. The message has what
        there is.
    """
    paths = list(flatten(params))
    depths = _depths(paths)
    deepest = max(depths.values(), default=0)
    factors = {path: layer_decay ** (deepest - depths[path]) for path in paths}
    chosen = dict.fromkeys(paths, 1.0)
    for pattern, factor in patterns.items():
        found = [path for path in paths if _matches(path, pattern)]
        if not found:
            raise ValueError(
                f"{pattern!r} matches no parameter; their paths begin with "
                f"{', '.join(_beginnings(paths))}, and end with {', '.join(_ends(paths))}"
            )
        chosen.update(dict.fromkeys(found, factor))
    factors = {path: factors[path] * chosen[path] for path in paths}
    if factors and not any(factors.values()):
        raise ValueError("every parameter is frozen; leave some with a factor above 0, as head=1")
    return factors


def frozen_paths(factors: Mapping[str, float]) -> frozenset[str]:
    """The paths of the parameters that are frozen, which have the factor 0."""
    return frozenset(path for path, factor in factors.items() if factor == 0)


def scale_by_factors(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by its factor, which scales its learning rate."""

    def scale(updates: Tree, params: Tree | None) -> Tree:
        del params
        leaves, structure = jax.tree.flatten(updates)
        scaled = [leaf * factors[path] for path, leaf in zip(flatten(updates), leaves, strict=True)]
        return jax.tree.unflatten(structure, scaled)

    return optax.stateless(scale)


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/")
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")


def _depths(paths: Iterable[str]) -> dict[str, int]:
    """Path to the number of its layer: 0 for the stem, then a number for each block, then the head.

    Source: the groups of Bao et al., "BEiT", arXiv 2106.08254, with residual blocks as layers.
    """
    paths = list(paths)
    blocks = sorted({_block(path) for path in paths if path.startswith("stages/")})
    numbers = {block: number for number, block in enumerate(blocks, start=1)}
    return {
        path: 0 if path.startswith("stem/") else numbers.get(_block(path), len(blocks) + 1)
        for path in paths
    }


def _block(path: str) -> tuple[int, ...]:
    """("stages/2/11/...") -> (2, 11), so that blocks have the order of the network."""
    return tuple(int(name) for name in path.split("/")[1:3] if name.isdecimal())


def _beginnings(paths: Iterable[str]) -> list[str]:
    """The names of the parts of a network: head, stages/0, ..., stem."""
    parts = ("/".join(path.split("/")[: 2 if path.startswith("stages/") else 1]) for path in paths)
    return list(dict.fromkeys(parts))


def _ends(paths: Iterable[str]) -> list[str]:
    return sorted({path.rpartition("/")[2] for path in paths})
