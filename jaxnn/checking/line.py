"""The function restricted to a line: phi(t) = f(x + t v), v in any entries of any leaves.

v has random signs and sizes and the scale of the entries, so that errors of several entries cannot
cancel by chance; it is drawn where the leaves are, from a counter. A gradient claims phi'(0) =
<g, v>, leaf by leaf; the values show another slope, or the same. One program goes through the steps
in the memory of one evaluation. Steps are asked for coarse to fine, a few at a time, and no finer
than it helps.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import excess
from jaxnn.checking.packed import on_one_cpu
from jaxnn.checking.slope import HALF, RUNGS, Slope, estimate_slope, ladder
from jaxnn.numerical.float64 import widen_leaf

# More entries than these are drawn by a compiled program.
ON_HOST = 2**17
# Leaves of no more than these are drawn together.
TOGETHER = 2**12
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


class Along(NamedTuple):
    """Sums along a direction, of the entries of each leaf.

    Attributes:
      terms: g_i v_i: what the gradient claims.
      squares: (g_i v_i)^2.
      moves: v_i.
    """

    terms: Any
    squares: Any
    moves: Any


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

    def size_of(self, leaf: int) -> float:
        """The part of the size that is one leaf's."""
        return float(np.sqrt(self.along.squares[leaf]))

    def share(self, part: Part) -> "Comparison":
        """What is known of one leaf alone, in its own unit, if the claims of the others hold."""
        term, weight = float(self.along.terms[part.leaf]), part.weight
        slope = self.slope.shifted(self.claim - term).scaled(1 / weight)
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
        program: Callable[..., tuple[np.ndarray, Along]],
        sizes: Sequence[int],
        epsilon: float,
        roundings: Sequence[float],
        watch: Callable[["Line"], None] = lambda line: None,
    ):
        """Take what is asked.

        Args:
          program: `(claims, question, steps) -> phi(steps) and the sums along the direction`.
          sizes: of the leaves.
          epsilon: the rounding of the values, relative.
          roundings: of the claims, relative, leaf by leaf; 0 where they are in float64.
          watch: called with the line before each question.
        """
        self.sizes, self.epsilon, self.evaluations = sizes, epsilon, 0
        self.centres: list[float] = []
        self._program, self._watch = program, watch
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
        question, lots = self._question(direction), []
        slope, along = None, None
        for start in (0, LOT, 2 * LOT, RUNGS - LOT):
            steps = self._steps[start : start + LOT]
            phi, along = self._ask(claims, question, steps)
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
        assert slope is not None and along is not None
        claim, size = float(np.sum(along.terms)), float(np.sqrt(np.sum(along.squares)))
        if slope.is_outrun_by(claim):
            slope = slope._replace(bound=np.inf)
        with np.errstate(invalid="ignore"):  # of a claim that is not finite
            slack = float(np.sqrt(np.sum(self._roundings**2 * along.squares)))
        return Comparison(direction, claim, slope, size, slack, along)

    def _ask(self, claims: Sequence[Any], question: Any, steps: np.ndarray) -> tuple[Any, Along]:
        self._watch(self)
        phi, along = self._program(claims, question, np.concatenate([steps, -steps, [0.0]]))
        self.evaluations += len(phi)
        self.centres.append(float(phi[-1]))
        return phi, along

    def _question(self, direction: Direction) -> "Question":
        low, high = (np.zeros(len(self.sizes), np.int64) for _ in range(2))
        weight = np.ones(len(self.sizes))
        for part in direction.parts:
            low[part.leaf], high[part.leaf], weight[part.leaf] = part[1:]
        seed = np.uint32(direction.seed)
        return Question(
            low, high, weight, seed, np.bool_(direction.relative), np.bool_(direction.up)
        )


class Question(NamedTuple):
    """A direction as arrays, all of them traced: `low`, `high` and `weight` for each leaf."""

    low: Any
    high: Any
    weight: Any
    seed: Any
    relative: Any
    up: Any


class _Span(NamedTuple):
    """What tells how the entries of leaves move: from `low` to `high`, each by a number of the
    leaf's `salt` times its `weight`.
    """

    low: Any
    high: Any
    weight: Any
    salt: Any


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


def drawer(points: Sequence[Any], dtype: Any) -> Callable[..., tuple[list[Any], Along]]:
    """A function of claims and a question: what each leaf moves by, and the sums along that.

    Leaves draw where they are: on a device, and cut into parts as they are; few numbers that a CPU
    holds are not worth a compilation, and of small leaves not a call for each.
    """
    sizes = np.array([x.size for x in points], np.int64)
    on_the_host = [k for k, x in enumerate(points) if x.size <= ON_HOST and on_one_cpu(x)]
    small = {k: np.asarray(points[k], np.float64).ravel() for k in on_the_host}
    scales = functools.cache(lambda k: entry_scales(small[k]))
    last: list[Any] = []  # steps are asked for a few at a time, along a line that is drawn once

    def on_host(lot, claims, spans, q):
        ends = np.cumsum(sizes[lot])
        begins = ends - sizes[lot]
        of_entry = _Span(*(np.repeat(of_leaf[lot], sizes[lot]) for of_leaf in spans))
        index = (np.arange(ends[-1]) - np.repeat(begins, sizes[lot])).astype(np.uint32)
        x, claim, own, floored = (
            np.concatenate(parts)
            for parts in (
                [small[k] for k in lot],
                [np.ravel(claims[k]) for k in lot],
                *zip(*map(scales, lot), strict=True),
            )
        )
        v, terms = _moves(x, (own, floored), index, claim, of_entry, q.relative, q.up, np)
        for k, low, high in zip(lot, begins, ends, strict=True):
            part, moves = terms[low:high], v[low:high]
            with np.errstate(invalid="ignore"):  # of claims that are infinite, of both signs
                along = np.sum(part), np.sum(part**2), np.sum(moves)
            yield k, moves.reshape(points[k].shape), along

    def draw(claims, q):
        if last and last[0] is claims and last[1] is q:
            return last[2]
        last.clear()
        salts = np.arange(len(points), dtype=np.uint32) + q.seed * np.array([0x9E3779B9], np.uint32)
        spans = _Span(q.low, q.high, q.weight, _hashed(salts, np))
        still = q.high <= q.low
        moving = [k for k in range(len(points)) if not still[k]]
        few = np.array([k for k in moving if k in small and sizes[k] <= TOGETHER], int)
        moves: list[Any] = [np.zeros(x.shape) if still[k] else None for k, x in enumerate(points)]
        sums = np.zeros((len(points), 3))
        alone = [np.array([k]) for k in moving if k in small and sizes[k] > TOGETHER]
        for lot in (few, *alone) if len(few) else alone:
            for k, v, along in on_host(lot, claims, spans, q):
                moves[k], sums[k] = v, along
        for k in moving:
            if k not in small:
                span = _Span(*(of_leaf[k] for of_leaf in spans))
                given = points[k], claims[k], span, q.relative, q.up
                moves[k], sums[k] = _moves_on_device(*given, dtype)
        last.extend([claims, q, (moves, Along(*sums.T))])
        return last[2]

    return draw


@functools.partial(jax.jit, static_argnames="dtype")
def _moves_on_device(x: Any, claim: Any, span: _Span, relative: Any, up: Any, dtype: Any) -> Any:
    x = widen_leaf(x, dtype)
    index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    claim = claim.reshape(x.shape)
    v, terms = _moves(x, entry_scales(x, jnp), index, claim, span, relative, up, jnp)
    return v, jnp.stack([jnp.sum(terms), jnp.sum(terms**2), jnp.sum(v)])


def entry_scales(x: Any, xp: Any = np) -> tuple[Any, Any]:
    """For each entry its size (the leaf's for a zero), and that but at least the leaf's: the root
    mean square. What is not finite has the size 0.
    """
    size = xp.where(xp.isfinite(x), xp.abs(x), 0)
    most = xp.max(size, initial=0)
    most = xp.where(most > 0, most, 1)
    mean = most * xp.sqrt(xp.mean((size / most) ** 2)) if x.size else most
    mean = xp.where(mean > 0, mean, 1)
    return xp.where(size > 0, size, mean), xp.maximum(size, mean)


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


def _moves(
    x: Any,
    scales: tuple[Any, Any],
    index: Any,
    claim: Any,
    span: _Span,
    relative: Any,
    up: Any,
    xp: Any,
) -> tuple[Any, Any]:
    """Numbers of random sign and size for the entries that move, the same ones in any range; and
    those times the claims.
    """
    bits = _hashed(index ^ span.salt, xp)
    sign = xp.where(up | (bits & 1 == 0), 1.0, -1.0)
    size = 0.5 + (bits >> 8) / (2**25 + 1)  # of all 53 bits: short steps would show less noise
    own, floored = scales
    moving = (index >= span.low) & (index < span.high) & xp.isfinite(x)
    v = xp.where(moving, sign * size * span.weight * xp.where(relative, own, floored), 0)
    v = v.astype(x.dtype)
    return v, xp.where(moving, claim, 0) * v


def _hashed(bits: Any, xp: Any) -> Any:
    """32 bits mixed so that neighbours have nothing in common (the finaliser of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * xp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * xp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
