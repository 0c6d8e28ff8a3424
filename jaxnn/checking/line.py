"""The function restricted to a line: phi(t) = f(x + t v), v masked to a range of entries of a leaf.

v has random signs and sizes and the scale of the entries, so that errors of several entries cannot
cancel by chance. It and the steps are arguments of one program, which goes through the steps in the
memory of one evaluation. A gradient claims phi'(0) = <g, v>; the values show another slope.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import excess
from jaxnn.checking.slope import HALF, Slope, estimate_slope, ladder


class Direction(NamedTuple):
    """Which entries move, and how: flat entries `low` to `high` (exclusive) of one leaf.

    Attributes:
      leaf: its number.
      low: the first entry that moves.
      high: the one behind the last.
      seed: of signs and sizes; a negative one moves all entries up.
      relative: each entry by its own size, instead of at least the leaf's root mean square.
    """

    leaf: int
    low: int
    high: int
    seed: int = 0
    relative: bool = False


class Comparison(NamedTuple):
    """What a gradient claims along a direction, and what the values of the function say.

    Attributes:
      direction: along which.
      claim: the slope by the gradient.
      slope: by the values.
      size: of the claim if no terms cancelled: sqrt(sum (g_i v_i)^2).
    """

    direction: Direction
    claim: float
    slope: Slope
    size: float

    @property
    def difference(self) -> float:
        """Claimed slope less the measured one."""
        return self.claim - self.slope.value

    @property
    def excess(self) -> float:
        """How many bounds the difference lies beyond the first."""
        return excess(self.difference, self.slope.bound)


class Line:
    """Asks for slopes of one function at one point."""

    def __init__(
        self,
        values: Callable[[np.ndarray, np.ndarray], np.ndarray],
        points: Sequence[Any],
        epsilon: float,
    ):
        """Take what is asked, and where.

        Args:
          values: `(direction, steps) -> phi(steps)`, the direction through all leaves, flat.
          points: the leaves.
          epsilon: the rounding of the values, relative.
        """
        self.epsilon = epsilon
        self._ends = np.cumsum([np.size(x) for x in points])
        self.scales = [_scales(np.asarray(x, np.float64)) for x in points]
        self._values = values
        self._steps = ladder()
        # Not a cached method: a circle would hold the user's function until it is collected.
        self._drawn: dict[tuple[int, int, bool], np.ndarray] = {}

    def compare(self, claims: np.ndarray, direction: Direction) -> Comparison:
        """Hold the claims of one leaf against the slope along a direction."""
        slope = self.slope(direction)
        with np.errstate(all="ignore"):
            terms = claims.ravel()[direction.low : direction.high] * self.moves(direction)
            size = float(np.sqrt(np.sum(terms**2)))
            return Comparison(direction, float(np.sum(terms)), slope, size)

    def slope(self, direction: Direction) -> Slope:
        """The slope along a direction, from coarse steps; from finer ones where they may tell."""
        steps, up, down, centre = self._along(direction, self._steps[:HALF])
        slope = estimate_slope(steps, up, down, centre, self.epsilon)
        if slope.settled or self.epsilon > sys.float_info.epsilon:  # coarser values show no more
            return slope
        # The same program, for as many steps: the finest, some of which are known already.
        _, *finer, _ = self._along(direction, self._steps[-HALF:])
        new = 2 * HALF - len(self._steps)
        up, down = (np.concatenate([a, b[new:]]) for a, b in zip((up, down), finer, strict=True))
        return estimate_slope(self._steps, up, down, centre, self.epsilon)

    def centre(self) -> float:
        """The function's value at the point itself."""
        return self._along(Direction(0, 0, 0), self._steps[:HALF])[3]

    def moves(self, direction: Direction) -> np.ndarray:
        """By how much each entry of a direction moves, per unit of the step."""
        which = (direction.leaf, direction.seed, direction.relative)
        if which not in self._drawn:
            self._drawn[which] = self._draw(*which)
        return self._drawn[which][direction.low : direction.high]

    def _draw(self, leaf: int, seed: int, relative: bool) -> np.ndarray:
        """Numbers of random sign and size for all entries, the same ones for any range of them."""
        own, floored = self.scales[leaf]
        rng = np.random.default_rng(abs(seed))
        signs = rng.choice((-1, 1) if seed >= 0 else (1, 1), own.size)
        return signs * rng.uniform(0.5, 1, own.size) * (own if relative else floored)

    def _along(self, direction: Direction, steps: np.ndarray) -> tuple[Any, Any, Any, float]:
        """Steps, and the values at them, at minus them, and at 0."""
        whole, leaf, n = np.zeros(self._ends[-1]), direction.leaf, len(steps)
        start = self._ends[leaf - 1] if leaf else 0
        whole[start + direction.low : start + direction.high] = self.moves(direction)
        phi = self._values(whole, np.concatenate([steps, -steps, [0.0]]))
        return steps, phi[:n], phi[n : 2 * n], float(phi[2 * n])


def along_program(value: Callable) -> Callable:
    """The jitted function behind a line: `(points, direction, steps, *data) -> values`."""

    @jax.jit
    def program(points, direction, steps, *data):
        parts = split_like(direction, points)

        def at(t):
            pairs = zip(points, parts, strict=True)
            return value([x + (t * v).astype(x.dtype) for x, v in pairs], *data)

        return jax.lax.map(at, steps)

    return program


def split_like(flat: Any, leaves: Sequence[Any]) -> list[Any]:
    """A flat vector through all leaves, cut into arrays of their shapes."""
    ends = np.cumsum([np.size(x) for x in leaves])
    split = np.split if isinstance(flat, np.ndarray) else jnp.split
    pairs = zip(leaves, split(flat, ends[:-1]), strict=True)
    return [part.reshape(np.shape(x)) for x, part in pairs]


def one_by_one(evaluate: Callable[[Any], float], steps: np.ndarray) -> np.ndarray:
    """Values at single steps, of a function that may raise beyond its domain: it has none there.

    One that raises at the point itself is not checked.
    """

    def at(step):
        try:
            return evaluate(step)
        except Exception:
            if step == 0:
                raise
            return np.nan

    return np.array([at(step) for step in steps])


def _scales(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each entry, flat: its size (the leaf's for a zero), and that but at least the leaf's."""
    size = np.abs(x).ravel()
    mean = float(np.sqrt(np.mean(size**2))) if size.size else 0.0
    mean = mean if mean > 0 else 1.0
    return np.where(size > 0, size, mean), np.maximum(size, mean)
