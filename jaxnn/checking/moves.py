"""How far each entry moves along a direction, and what a gradient claims along that direction.

Entries move by random signs and sizes, in the scale of their leaf, so that errors do not cancel by
chance. The random numbers come from a counter and are drawn where the leaves are: on their devices,
with the same sharding. NumPy draws those of small leaves on a CPU, together and without
compilation.
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
# NumPy draws this many numbers at once, so that intermediate results stay in a core's cache.
BLOCK = 2**15
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


class _Span(NamedTuple):
    """How the entries of leaves move: those from `low` to `high`, by random numbers that depend on
    the leaf's `salt`, times its `weight`.
    """

    low: Any
    high: Any
    weight: Any
    salt: Any


def drawer(points: Sequence[Any], dtype: Any) -> Callable[..., tuple[list[Any], Along]]:
    """A function that maps claims and a direction to each leaf's movement and the sums along it.

    Args:
      points: the leaves.
      dtype: the wide dtype.
    """
    laid_out = functools.cache(lambda: _Small.of(points))

    def draw(claims, direction):
        low, high = np.zeros((2, len(points)), np.int64)
        weight = np.ones(len(points))
        for part in direction.parts:
            low[part.leaf], high[part.leaf], weight[part.leaf] = part[1:]
        first = np.uint32(direction.seed) * np.array([0x9E3779B9], np.uint32)
        salts = np.arange(len(points), dtype=np.uint32) + first
        spans = _Span(low, high, weight, _hashed(salts, np))
        small, sums = laid_out(), np.zeros((len(points), 3))
        flat, sums[small.leaves] = small.moves(claims, spans, direction)

        def of_leaf(k):
            if k in small.places:
                return flat[small.places[k]].reshape(points[k].shape)
            if low[k] == high[k]:
                return np.zeros(points[k].shape)
            span = _Span(*(of_all[k] for of_all in spans))
            with wide_arithmetic(dtype):
                given = points[k], claims[k], span, direction.relative, direction.up
                moves, sums[k] = _moves_on_device(*given, dtype)
            return moves

        moves = list(map(of_leaf, range(len(points))))
        return moves, Along(*sums.T)

    return draw


class _Small(NamedTuple):
    """The small leaves on a CPU, concatenated.

    Attributes:
      leaves: numbers of the small leaves.
      places: the slice of `x` for each of them.
      sizes: the number of entries of each.
      x: their entries.
      usual: the usual size of each leaf's entries.
      lots: ranges of leaves that have about BLOCK entries each.
    """

    leaves: np.ndarray
    places: dict[int, slice]
    sizes: np.ndarray
    x: np.ndarray
    usual: np.ndarray
    lots: list[slice]

    @classmethod
    def of(cls, points: Sequence[Any]) -> "_Small":
        """The small leaves among all leaves."""
        small = [k for k, x in enumerate(points) if 0 < x.size <= ON_HOST and on_one_cpu(x)]
        flat = [np.asarray(points[k], np.float64).ravel() for k in small]
        sizes = np.array([x.size for x in flat], np.int64)
        ends, usual = np.cumsum(sizes), np.array([usual_size(x) for x in flat])
        x = np.concatenate([*flat, []])
        places = dict(zip(small, map(slice, ends - sizes, ends), strict=True))
        _, firsts = np.unique((ends - sizes) // BLOCK, return_index=True)
        lots = list(map(slice, firsts, [*firsts[1:], len(small)]))
        return cls(np.array(small, np.int64), places, sizes, x, usual, lots)

    def moves(
        self, claims: Sequence[Any], spans: _Span, direction: Direction
    ) -> tuple[np.ndarray, np.ndarray]:
        """The movement of each entry, and the sums along it for each leaf."""
        moves, sums = np.zeros(self.x.shape), np.zeros((len(self.leaves), 3))
        spans = _Span(*(of_leaf[self.leaves] for of_leaf in spans))
        for here in self.lots:
            if not np.any(spans.low[here] < spans.high[here]):
                continue
            leaves, sizes = self.leaves[here], self.sizes[here]
            begins = np.cumsum(sizes) - sizes
            spread = functools.partial(np.repeat, repeats=sizes)
            index = (np.arange(np.sum(sizes)) - spread(begins)).astype(np.uint32)
            claim = np.concatenate([np.ravel(claims[k]) for k in leaves])
            where = slice(self.places[leaves[0]].start, self.places[leaves[-1]].stop)
            span = _Span(*(spread(of_leaf[here]) for of_leaf in spans))
            x, usual = self.x[where], spread(self.usual[here])
            v, terms = _moves(x, usual, index, claim, span, direction.relative, direction.up, np)
            moves[where] = v
            with np.errstate(invalid="ignore"):  # claims may be infinite, of both signs
                add = functools.partial(np.add.reduceat, indices=begins)
                unit = unit_of(np.maximum.reduceat(np.abs(terms), begins))
                size = unit * np.sqrt(add((terms / spread(unit)) ** 2))
                sums[here] = np.stack([add(terms), size, add(v)], axis=-1)
        return moves, sums


@functools.partial(jax.jit, static_argnames="dtype")
def _moves_on_device(x: Any, claim: Any, span: _Span, relative: Any, up: Any, dtype: Any) -> Any:
    x = widen_leaf(x, dtype)
    index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    claim = claim.reshape(x.shape)
    v, terms = _moves(x, usual_size(x, jnp), index, claim, span, relative, up, jnp)
    unit = unit_of(jnp.max(jnp.abs(terms)), jnp)
    size = unit * jnp.sqrt(jnp.sum((terms / unit) ** 2))
    return v, jnp.stack([jnp.sum(terms), size, jnp.sum(v)])


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


def _moves(
    x: Any, usual: Any, index: Any, claim: Any, span: _Span, relative: Any, up: Any, xp: Any
) -> tuple[Any, Any]:
    """The movement of each entry, and the movement times the claim. An entry moves by the same
    random number in any range that contains it.
    """
    bits = _hashed(index ^ span.salt, xp)
    sign = xp.where(up | (bits & 1 == 0), 1.0, -1.0)
    # Narrower floats cannot hold 24 bits.
    kind = max(np.dtype(np.float32), x.dtype, key=lambda dtype: dtype.itemsize)
    # All digits are random, because numbers with few digits would show less noise.
    size = 0.5 + (bits >> 8).astype(kind) / (2**25 + 1)
    low, high = (end.astype(np.uint32) for end in (span.low, span.high))
    moving = (index >= low) & (index < high) & xp.isfinite(x)
    own = entry_sizes(x, usual, xp)
    scale = xp.where(relative, own, xp.maximum(own, usual)).astype(kind)
    v = xp.where(moving, sign * size * span.weight.astype(kind) * scale, 0)
    v = v.astype(x.dtype)
    return v, xp.where(moving, claim, 0).astype(kind) * v.astype(kind)


def _hashed(bits: Any, xp: Any) -> Any:
    """32 bits, mixed so that neighbours are uncorrelated (the finaliser of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * xp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * xp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
