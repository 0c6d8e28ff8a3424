"""How far each entry moves along a direction, and what a gradient claims along that direction.

Entries move by random signs and sizes, in the scale of their leaf, so that errors do not cancel by
chance. The random numbers come from a counter and are drawn where the leaves are: on their devices,
with the same sharding. NumPy draws those of small leaves on a CPU, without compilation.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import unit_of
from jaxnn.checking.packed import on_one_cpu
from jaxnn.numerical.float64 import wide_arithmetic, widen_leaf

# A compiled program draws for leaves with more entries than this.
ON_HOST = 2**17
# A sum of squares above this has lost no digits to underflow.
_LEAST_SQUARE = sys.float_info.min / sys.float_info.epsilon


class Along(NamedTuple):
    """Sums over the entries of each leaf, along a direction.

    Attributes:
      terms: sums of g_i v_i, the leaf's claim.
      sizes: roots of the sums of (g_i v_i)^2.
      moves: sums of v_i.
    """

    terms: Any
    sizes: Any
    moves: Any

    @property
    def size(self) -> float:
        """The size of the claim of all leaves, if no terms cancelled."""
        return math.hypot(*self.sizes)


class Part(NamedTuple):
    """Flat entries `low` to `high` (exclusive) of one leaf, moved by `weight` times their scale."""

    leaf: int
    low: int
    high: int
    weight: float = 1.0


class Direction(NamedTuple):
    """Which entries move, and how.

    Attributes:
      parts: the entries, leaf by leaf.
      seed: seed of the random signs and sizes.
      relative: whether each entry moves in proportion to its own size, instead of by at least its
        leaf's root mean square.
      up: whether every entry moves upwards.
    """

    parts: tuple[Part, ...]
    seed: int = 1
    relative: bool = False
    up: bool = False

    @classmethod
    def through(cls, sizes: Sequence[int]) -> "Direction":
        """A direction through all entries of leaves of these sizes."""
        return cls(tuple(Part(leaf, 0, size) for leaf, size in enumerate(sizes)))


def drawer(points: Sequence[Any], dtype: Any) -> Callable[..., tuple[list[Any], Along]]:
    """A function that maps claims and a direction to each leaf's movement and the sums along it.

    Args:
      points: the leaves.
      dtype: the wide dtype.
    """

    @functools.cache
    def in_numpy(leaf):
        """A small leaf, flat, and the usual size of its entries."""
        x = np.asarray(points[leaf], np.float64).ravel()
        return x, usual_size(x)

    def draw(claims, direction):
        first = np.uint32(direction.seed) * np.array([0x9E3779B9], np.uint32)
        salts = _hashed(np.arange(len(points), dtype=np.uint32) + first, np)
        moves, sums = [np.zeros(x.shape) for x in points], np.zeros((len(points), 3))
        for part in direction.parts:
            if part.low == part.high:
                continue
            leaf, x = part.leaf, points[part.leaf]
            how = part, salts[leaf], direction.relative, direction.up
            if x.size <= ON_HOST and on_one_cpu(x):
                claim = np.ravel(claims[leaf])
                with np.errstate(invalid="ignore"):  # claims may be infinite, of both signs
                    v, sums[leaf] = _moved(*in_numpy(leaf), claim, *how, np)
                moves[leaf] = v.reshape(x.shape)
            else:
                with wide_arithmetic(dtype):
                    moves[leaf], sums[leaf] = _moved_on_device(x, claims[leaf], *how, dtype)
        return moves, Along(*sums.T)

    return draw


@functools.partial(jax.jit, static_argnames="dtype")
def _moved_on_device(
    x: Any, claim: Any, part: Part, salt: Any, relative: Any, up: Any, dtype: Any
) -> tuple[Any, Any]:
    x = widen_leaf(x, dtype)
    return _moved(x, usual_size(x, jnp), claim.reshape(x.shape), part, salt, relative, up, jnp)


def usual_size(x: Any, xp: Any = np) -> Any:
    """The root mean square of a leaf's entries, with non-finite entries as 0; 1 if that is 0."""
    if xp is np and _LEAST_SQUARE < (square := float(np.vdot(x, x))) < math.inf:  # the common case
        return math.sqrt(square / x.size)
    size = xp.where(xp.isfinite(x), xp.abs(x), 0)
    most = unit_of(xp.max(size, initial=0), xp)
    mean = most * xp.sqrt(xp.mean((size / most) ** 2)) if x.size else most
    return xp.where(mean > 0, mean, 1)


def entry_sizes(x: Any, usual: Any, xp: Any = np) -> Any:
    """The size of each entry, or its leaf's `usual` size if the entry is zero or non-finite."""
    size = xp.where(xp.isfinite(x), xp.abs(x), 0)
    return xp.where(size > 0, size, usual)


def scales_of(x: Any) -> np.ndarray:
    """The size of each entry of a leaf, flat."""
    flat = np.asarray(x, np.float64).ravel()
    return entry_sizes(flat, usual_size(flat))


def _moved(
    x: Any, usual: Any, claim: Any, part: Part, salt: Any, relative: Any, up: Any, xp: Any
) -> tuple[Any, Any]:
    """The movement of each entry of a leaf, and the sums along it. An entry moves by the same
    random number, which depends on the leaf's `salt`, in any part that contains it.
    """
    index = xp.arange(x.size, dtype=xp.uint32).reshape(x.shape)
    bits = _hashed(index ^ salt, xp)
    sign = xp.where(up | (bits & 1 == 0), 1.0, -1.0)
    # Narrower floats cannot hold 24 bits.
    kind = max(np.dtype(np.float32), x.dtype, key=lambda dtype: dtype.itemsize)
    # All digits are random, because numbers with few digits would show less noise.
    size = 0.5 + (bits >> 8).astype(kind) / (2**25 + 1)
    moving = (index >= part.low) & (index < part.high) & xp.isfinite(x)
    own = entry_sizes(x, usual, xp)
    scale = xp.where(relative, own, xp.maximum(own, usual)).astype(kind)
    v = xp.where(moving, sign * size * part.weight * scale, 0).astype(x.dtype)
    terms = xp.where(moving, claim, 0).astype(kind) * v.astype(kind)
    unit = unit_of(xp.max(xp.abs(terms)), xp)
    total = unit * xp.sqrt(xp.sum((terms / unit) ** 2))
    return v, xp.stack([xp.sum(terms), total, xp.sum(v)])


def _hashed(bits: Any, xp: Any) -> Any:
    """32 bits, mixed so that neighbours are uncorrelated (the finaliser of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * xp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * xp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
