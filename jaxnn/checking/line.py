"""The function restricted to a line: phi(t) = f(x + t v), where v moves any entries of any leaves.

A gradient g claims that phi'(0) = <g, v>, a sum over leaves; the measured slope comes from the
function's values. One compiled program evaluates all steps in the memory of a single evaluation.
Steps are evaluated from coarse to fine, a few at a time, and no finer than necessary: most claims
are confirmed by the first few. A slope is measured once per direction, or twice if the first few
steps confirmed one claim but not another.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.evidence import FLOAT32, excess
from jaxnn.checking.moves import Along, Direction, Part, drawer, scales_of
from jaxnn.checking.settings import OF_CLAIMS
from jaxnn.checking.slope import (
    CLEAR,
    FORETOLD,
    HALF,
    LEAST_IN_FLOAT32,
    RUNGS,
    SURE,
    Slope,
    confirmed,
    estimate_slope,
    ladder,
)
from jaxnn.numerical.float64 import widen_leaf
from jaxnn.numerical.interpret import Program

# How many steps are evaluated at a time, so that one program serves all, and how many are known
# after each time. The first steps confirm most claims.
LOT = 5
STOPS = LOT, 2 * LOT, HALF, HALF + LOT, RUNGS
# How many values a check usually takes of a function.
RUNS = 40


class Comparison(NamedTuple):
    """The slope along a direction according to the gradient and according to the values.

    Attributes:
      direction: the line.
      claim: the slope according to the gradient.
      slope: the slope according to the values.
      size: the size of the claim if no terms cancelled: sqrt(sum (g_i v_i)^2).
      slack: how far off the claim may be because of the gradient's own rounding error.
      along: the claim and the movement of each leaf.
    """

    direction: Direction
    claim: float
    slope: Slope
    size: float
    slack: float
    along: Along

    @property
    def difference(self) -> float:
        """Claimed slope minus measured slope."""
        return self.claim - self.slope.value

    @property
    def excess(self) -> float:
        """By how many times the bound the difference exceeds the bound."""
        return excess(self.difference, self.slope.bound + self.slack)

    @property
    def is_off(self) -> bool:
        """Whether the claim needs a closer look: it is outside the bound, or there is a kink."""
        return bool(self.excess or self.slope.kink)

    @property
    def scale(self) -> float:
        """The size of the claim, or of the measured slope if that is larger."""
        value = self.slope.value
        return max(self.size, abs(value) if math.isfinite(value) else 0.0)

    def size_of(self, leaf: int) -> float:
        """The contribution of one leaf to the size."""
        return float(self.along.sizes[leaf])

    def share(self, part: Part) -> "Comparison":
        """The comparison for one leaf in its own unit, assuming that all other claims are right."""
        terms, sizes, moves = (np.asarray(sums, float) / part.weight for sums in self.along)
        along = Along(terms, abs(sizes), moves)
        others = self.claim - float(self.along.terms[part.leaf])
        slope = self.slope.of_part(others, part.weight)
        direction = self.direction._replace(parts=(part._replace(weight=1.0),))
        claim, size = float(terms[part.leaf]), float(along.sizes[part.leaf])
        return Comparison(direction, claim, slope, size, self.slack / abs(part.weight), along)

    @property
    def of_entry(self) -> "Comparison":
        """For a leaf with one entry, the comparison of derivatives with respect to that entry."""
        (part,) = self.direction.parts
        move = float(self.along.moves[part.leaf])
        return self.share(part._replace(weight=move)) if move else self


class Line:
    """Measures slopes of one function at one point.

    Attributes:
      sizes: number of entries of each leaf.
      scales: the scale of each entry of a leaf, flat.
      draw: maps claims and a direction to the movement of each leaf and the sums along it.
      epsilon: relative rounding error of the values.
      evaluations: how many values have been computed.
      centres: the function's value at the point, each time it was computed.
    """

    def __init__(
        self,
        values: Callable[[list[Any], np.ndarray], np.ndarray],
        points: Sequence[Any],
        dtype: Any,
        epsilon: float = 0.0,
        narrow: bool = False,
        own: bool = False,
        watch: Callable[["Line"], None] = lambda line: None,
    ):
        """Set up a line; no values are computed yet.

        Args:
          values: maps the movement of each leaf and steps to the values of phi.
          points: the leaves.
          dtype: the dtype in which leaves move.
          epsilon: relative rounding error of the values, if larger than that of `dtype`.
          narrow: whether a part of the function may be evaluated in float32 or narrower.
          own: whether claims are in the leaves' own dtypes.
          watch: callback that receives the line before values are computed.
        """
        self.sizes, self.evaluations = [x.size for x in points], 0
        self.epsilon = max(epsilon, float(jnp.finfo(dtype).eps))
        self.scales = functools.cache(lambda leaf: scales_of(points[leaf]))
        self.centres: list[float] = []
        self.draw, self._values, self._watch = drawer(points, dtype), values, watch
        self._roundings = np.array(
            [own * OF_CLAIMS * float(jnp.finfo(x.dtype).eps) for x in points]
        )
        self._steps, self._narrow = ladder(), narrow
        self._slopes: dict[tuple[Direction, float, float], Slope] = {}

    @property
    def centre(self) -> float:
        """The function's value at the point, as first computed; NaN before that."""
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
        expected: Sequence[Any] | None = None,
    ) -> Comparison:
        """Compare the claims of the leaves with the slope along a direction.

        Args:
          claims: the gradient, leaf by leaf.
          direction: the line.
          quick: stop once the slope is known to this fraction of itself.
          enough: stop once the bound is this small.
          expected: the gradient that the first few steps may confirm, if not the claims.
        """
        moves, along = self.draw(claims, direction)
        claim, key = float(np.sum(along.terms)), (direction, quick, enough)
        likely, sure = claim, SURE
        if expected is not None:
            likely = float(np.sum(self.draw(expected, direction)[1].terms))
            off = abs(claim / likely - 1) if likely else 0.0
            sure = min(FORETOLD, CLEAR * off)  # the claim's error must be clear, too
        known = self._slopes.get(key)
        if known is None or (known.bound < abs(likely - known.value) and len(known.steps) == LOT):
            self._slopes[key] = self._measure(moves, likely, sure, quick, enough)
        slope = self._slopes[key].for_claim(claim)
        with np.errstate(invalid="ignore"):  # claims may be infinite
            slack = math.hypot(*(self._roundings * along.sizes))
        return Comparison(direction, claim, slope, along.size, slack, along)

    def _measure(
        self, moves: list[Any], likely: float, sure: float, quick: float, enough: float
    ) -> Slope:
        """The slope along a movement, from a few coarse steps if the likely one agrees; else from
        the coarser half of the steps and then finer steps until the bound is close.

        Finer steps add nothing if the values are coarser than float64.
        """
        up, down = np.zeros((2, RUNGS))
        for known in STOPS:
            lot = slice(known - LOT, known)
            steps = self._steps[lot]
            self._watch(self)
            phi = self._values(moves, np.concatenate([steps, -steps, [0.0]]))
            self.evaluations += len(phi)
            self.centres.append(centre := float(phi[-1]))
            up[lot], down[lot] = phi[:LOT], phi[LOT : 2 * LOT]
            given = self._steps[:known], up[:known], down[:known], centre
            if known == LOT:
                if (agreed := confirmed(*given, self.epsilon, likely, sure)) is not None:
                    return agreed
                continue
            if known < HALF and not (quick or enough):
                continue
            slope = estimate_slope(*given, self.epsilon)
            if self._narrow and slope.step <= LEAST_IN_FLOAT32:
                slope = estimate_slope(*given, max(self.epsilon, FLOAT32))
            if quick and slope.known_to(quick):
                return slope._replace(bound=max(slope.bound, quick * abs(slope.value)))
            coarse = slope.rounding > sys.float_info.epsilon
            settled = known >= HALF and (slope.settled or coarse)
            if slope.bound <= enough or settled:
                break
        return slope


def along_program(value: Callable, dtype: Any) -> Callable:
    """A function that maps `(points, moves, steps, data)` to the values along a line, to be jitted.

    Args:
      value: a function of widened points, moved points, and data.
      dtype: the wide dtype.
    """

    def program(points, moves, steps, data):
        wide = [widen_leaf(x, dtype) for x in points]

        def at(t):
            pairs = zip(wide, moves, strict=True)
            return value(wide, [x + (t * v).astype(x.dtype) for x, v in pairs], data)

        return jax.lax.map(at, steps)

    return program


def compiled_along(value: Callable, dtype: Any, program: Program, runs: float = RUNS) -> Callable:
    """`along_program`, jitted for the value of such a program."""
    return jax.jit(along_program(value, dtype), compiler_options=compiler_options(program, runs))
