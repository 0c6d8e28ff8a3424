"""The function restricted to a line: phi(t) = f(x + t v), v in any entries of any leaves.

A gradient claims phi'(0) = <g, v>, leaf by leaf; the values show another slope, or the same. One
program goes through the steps in the memory of one evaluation. Steps are asked for coarse to fine,
a few at a time, and no finer than it helps.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.checking.evidence import excess
from jaxnn.checking.moves import Along, Question
from jaxnn.checking.slope import HALF, RUNGS, Slope, estimate_slope, ladder
from jaxnn.numerical.float64 import widen_leaf

# Rungs that are asked for at once; two lots make HALF.
LOT = HALF // 2


class Part(NamedTuple):
    """Flat entries `low` to `high` (exclusive) of one leaf, moved by `weight` times their scale."""

    leaf: int
    low: int
    high: int
    weight: float = 1.0


class Direction(NamedTuple):
    """Which entries move, and how.

    Attributes:
      parts: of which leaves.
      seed: of signs and sizes.
      relative: each entry by its own size, instead of at least the leaf's root mean square.
      up: all entries up.
    """

    parts: tuple[Part, ...]
    seed: int = 1
    relative: bool = False
    up: bool = False

    def only(self, parts: Iterable[Part]) -> "Direction":
        """The same moves of fewer entries."""
        return self._replace(parts=tuple(parts))


class Comparison(NamedTuple):
    """What a gradient claims along a direction, and what the values of the function say.

    Attributes:
      direction: along which.
      claim: the slope by the gradient.
      slope: by the values.
      size: of the claim if no terms cancelled: sqrt(sum (g_i v_i)^2).
      slack: by how much the claim may be off by the rounding of the gradient alone.
      along: the same, and how far each leaf moves, leaf by leaf.
    """

    direction: Direction
    claim: float
    slope: Slope
    size: float
    slack: float
    along: Along

    @property
    def difference(self) -> float:
        """Claimed slope less the measured one."""
        return self.claim - self.slope.value

    @property
    def excess(self) -> float:
        """How many bounds the difference lies beyond the first."""
        return excess(self.difference, self.slope.bound + self.slack)

    @property
    def scale(self) -> float:
        """The size of what is claimed, or of what the values show if that is more."""
        value = self.slope.value
        return max(self.size, abs(value) if math.isfinite(value) else 0.0)

    def size_of(self, leaf: int) -> float:
        """The part of the size that is one leaf's."""
        return math.sqrt(self.along.squares[leaf])

    def share(self, part: Part) -> "Comparison":
        """What is known of one leaf alone, in its own unit, if the claims of the others hold."""
        term, weight = float(self.along.terms[part.leaf]), part.weight
        slope = self.slope.of_part(self.claim - term, weight)
        direction = self.direction.only([part._replace(weight=1.0)])
        size = self.size_of(part.leaf) / weight
        return Comparison(direction, term / weight, slope, size, self.slack / weight, self.along)


class Line:
    """Asks for slopes of one function at one point.

    Attributes:
      sizes: of the leaves.
      epsilon: the rounding of the values, relative.
      evaluations: how many values were asked for.
      centres: the function's value at the point, each time that something was asked.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[Any], Question], tuple[list[Any], Along]],
        values: Callable[[list[Any], np.ndarray], np.ndarray],
        sizes: Sequence[int],
        epsilon: float,
        roundings: Sequence[float],
        watch: Callable[["Line"], None] = lambda line: None,
    ):
        """Take what is asked.

        Args:
          draw: of claims and a question: what each leaf moves by, and the sums along that.
          values: phi at steps along such moves.
          sizes: of the leaves.
          epsilon: the rounding of the values, relative.
          roundings: of the claims, relative, leaf by leaf; 0 where they are in float64.
          watch: called with the line before each question.
        """
        self.sizes, self.epsilon, self.evaluations = sizes, epsilon, 0
        self.centres: list[float] = []
        self._draw, self._values, self._watch = draw, values, watch
        self._roundings = np.asarray(roundings)
        self._steps = ladder()

    @property
    def centre(self) -> float:
        """The function's value at the point, as it was first; NaN if nothing was asked."""
        return self.centres[0] if self.centres else math.nan

    def whole(self, leaf: int, weight: float = 1.0) -> Part:
        """All entries of a leaf."""
        return Part(leaf, 0, self.sizes[leaf], weight)

    def compare(
        self,
        claims: Sequence[Any],
        direction: Direction,
        quick: float = 0.0,
        enough: float = 0.0,
    ) -> Comparison:
        """Hold the claims of the leaves against the slope along a direction.

        Half of the steps are asked for; finer ones until the bound is close, but not where values
        are coarser than float64 and show no more.

        Args:
          claims: the gradient, leaf by leaf.
          direction: along which.
          quick: the part of the slope that it need not be known closer than, if fewer steps do.
          enough: a bound that is small enough for what is asked.
        """
        moves, along = self._draw(claims, self._question(direction))
        slope, lots = None, []
        for start in (0, LOT, 2 * LOT, RUNGS - LOT):
            phi = self._ask(moves, self._steps[start : start + LOT])
            lots.append((start, phi[:LOT], phi[LOT : 2 * LOT]))
            asked = np.concatenate([np.arange(s, s + LOT) for s, *_ in lots])
            _, first = np.unique(asked, return_index=True)
            up, down = (np.concatenate([lot[side] for lot in lots])[first] for side in (1, 2))
            steps = self._steps[: len(first)]
            slope = estimate_slope(steps, up, down, float(phi[-1]), self.epsilon)
            coarse = slope.rounding > sys.float_info.epsilon
            if quick and slope.known_to(quick):
                slope = slope.no_tighter(quick)
                break
            if slope.bound <= enough or (len(first) >= HALF and (slope.settled or coarse)):
                break
        assert slope is not None
        claim, size = float(np.sum(along.terms)), float(np.sqrt(np.sum(along.squares)))
        if slope.is_outrun_by(claim):
            slope = slope._replace(bound=np.inf)
        with np.errstate(invalid="ignore"):  # of a claim that is not finite
            slack = float(np.sqrt(np.sum(self._roundings**2 * along.squares)))
        return Comparison(direction, claim, slope, size, slack, along)

    def claimed_sizes(self, claims: Sequence[Any], leaves: Sequence[int]) -> dict[int, float]:
        """How large the claims of leaves are along a line that moves all of them; no value is asked
        for.
        """
        direction = Direction(tuple(map(self.whole, leaves)))
        _, along = self._draw(claims, self._question(direction))
        return {k: math.sqrt(along.squares[k]) for k in leaves}

    def _ask(self, moves: list[Any], steps: np.ndarray) -> np.ndarray:
        self._watch(self)
        phi = self._values(moves, np.concatenate([steps, -steps, [0.0]]))
        self.evaluations += len(phi)
        self.centres.append(float(phi[-1]))
        return phi

    def _question(self, direction: Direction) -> Question:
        low, high = (np.zeros(len(self.sizes), np.int64) for _ in range(2))
        weight = np.ones(len(self.sizes))
        for part in direction.parts:
            low[part.leaf], high[part.leaf], weight[part.leaf] = part[1:]
        seed = np.uint32(direction.seed)
        return Question(
            low, high, weight, seed, np.bool_(direction.relative), np.bool_(direction.up)
        )


def along_program(value: Callable, dtype: Any) -> Callable:
    """The jitted function behind a line: `(points, moves, steps, data)` to the values at the steps.

    Args:
      value: of widened points, where they are moved to, and the data.
      dtype: the wide dtype.
    """

    @jax.jit
    def program(points, moves, steps, data):
        wide = [widen_leaf(x, dtype) for x in points]

        def at(t):
            pairs = zip(wide, moves, strict=True)
            return value(wide, [x + (t * v).astype(x.dtype) for x, v in pairs], data)

        return jax.lax.map(at, steps)

    return program


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
