"""The one compiled function that every question is asked of: phi(t) = f(x + t v), v masked to a range of entries of one leaf.

v has random signs and sizes and the scale of the entries, so that errors of several entries cannot cancel by chance. It and the
steps are arguments of one program, which runs through the steps in the memory of one evaluation. A function that cannot be
traced is called step by step instead, and the report says so.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.numerical.slope import Slope, estimate_slope, ladder
from jaxnn.numerical.widen import wide_arithmetic

# Values with more noise than this many roundings are looked at more closely, with steps so much finer, in float64.
_QUIET, _CLOSER, _FINE = 1e4, 4.0**10, 1e-12


class Question(NamedTuple):
    """Which entries move, and how: flat entries `low` to `high` (exclusive) of one leaf."""

    leaf: int
    low: int
    high: int
    seed: int = 0  # a negative one moves all entries up
    relative: bool = False  # each entry by its own size, instead of at least the leaf's root mean square


class Answer(NamedTuple):
    """What autodiff claims for a question, and what the values of the function say."""

    question: Question
    claim: float
    slope: Slope
    size: float  # the claim's size if no terms cancelled: sqrt(sum (g_i v_i)^2)

    @property
    def difference(self) -> float:
        """Claimed slope less the measured one."""
        return self.claim - self.slope.value

    @property
    def excess(self) -> float:
        """By how much the difference exceeds what the evidence allows; 0 if it does not, infinite if the claim is none."""
        if not np.isfinite(self.slope.bound):
            return 0.0  # no evidence at all
        if not np.isfinite(self.claim):
            return np.inf
        gap = abs(self.difference) - self.slope.bound
        return max(gap, 0.0) if np.isfinite(gap) else 0.0


class Probe:
    """Asks questions of one function at one point."""

    def __init__(
        self, value: Callable, leaves: Sequence[Any], claims: Sequence[np.ndarray], dtype: Any, epsilon: float, traced: bool
    ):
        """Args: f as a function of a list of leaves, the point, the gradient claimed, and how f is evaluated."""
        self.leaves, self.claims, self.dtype, self.epsilon = leaves, list(claims), dtype, epsilon
        self.value, self.traced = value, traced
        self.scales = [_scales(np.asarray(leaf, np.float64)) for leaf in leaves]
        self.ends = np.cumsum([leaf.size for leaf in leaves])
        self.steps = ladder()
        self.direction = functools.cache(self._direction)

    def ask(self, question: Question) -> Answer:
        """The slope along a question's direction, by values and by the claimed gradient."""
        steps, up, down, centre = self._along(question, self.steps)
        slope = estimate_slope(steps, up, down, centre, self.epsilon)
        if self.epsilon < _FINE and (slope.kink or not slope.noise <= _QUIET * self.epsilon * max(abs(centre), slope.size)):
            # Noise, or a function that bends on a smaller scale than the steps reach? Finer steps of the same program tell.
            finer = self._along(question, self.steps / _CLOSER)
            new = finer[0] < steps[-1]
            steps, up, down = (np.concatenate([a, b[new]]) for a, b in zip((steps, up, down), finer[:3], strict=True))
            slope = estimate_slope(steps, up, down, centre, self.epsilon)
        with np.errstate(all="ignore"):
            terms = self.claims[question.leaf].ravel()[question.low : question.high] * self.moves(question)
            return Answer(question, float(np.sum(terms)), slope, float(np.sqrt(np.sum(terms**2))))

    def centre(self) -> float:
        """The function's value at the point itself."""
        return self._along(Question(0, 0, 0), self.steps)[3]

    def moves(self, question: Question) -> np.ndarray:
        """By how much each entry of a question moves, per unit of the step."""
        return self.direction(question.leaf, question.seed, question.relative)[question.low : question.high]

    def _direction(self, leaf, seed, relative):
        """Numbers of random sign and size for the entries of a leaf, the same ones for any range of them."""
        own, floored = self.scales[leaf]
        rng = np.random.default_rng(abs(seed))
        return (
            rng.choice((-1, 1) if seed >= 0 else (1, 1), own.size)
            * rng.uniform(0.5, 1, own.size)
            * (own if relative else floored)
        )

    def _along(self, question, steps):
        """Steps, and the values at them, at minus them, and at 0."""
        n, both = len(steps), np.concatenate([steps, -steps, [0.0]])
        phi = self._values(question, both)
        return steps, phi[:n], phi[n : 2 * n], float(phi[2 * n])

    def _values(self, question, steps):
        if self.traced:
            try:
                return self._run(question, steps)
            except Exception:  # noqa: BLE001  a host callback may raise anything
                return np.array([self._run_alone(question, t) for t in steps])
        return np.array([self._call(t * self._whole(question)) for t in steps])

    def _whole(self, question):
        """A question's direction through all leaves, flat."""
        direction, start = np.zeros(self.ends[-1]), self.ends[question.leaf] - self.leaves[question.leaf].size
        direction[start + question.low : start + question.high] = self.moves(question)
        return direction

    def _run(self, question, steps):
        with wide_arithmetic(self.dtype):
            return np.asarray(self.value(self.leaves, self._whole(question), steps))

    def _run_alone(self, question, step):
        """A function that raises beyond its domain has no value there; one that raises at the point is not checked."""
        try:
            return self._run(question, np.array([step]))[0]
        except Exception:
            if step == 0:
                raise
            return np.nan

    def _call(self, change):
        changes = zip(self.leaves, np.split(change, self.ends[:-1]), strict=True)
        with wide_arithmetic(self.dtype):
            moved = [np.asarray(leaf, np.float64) + d.reshape(leaf.shape) for leaf, d in changes]
            return float(self.value([jnp.asarray(x, leaf.dtype) for x, leaf in zip(moved, self.leaves, strict=True)]))


def compiled_probe(value: Callable) -> Callable:
    """The program behind a probe: from leaves, a flat direction through all of them, steps and data to values of `value`."""

    @jax.jit
    def program(leaves, direction, steps, *data):
        ends = np.cumsum([x.size for x in leaves])
        parts = [v.reshape(x.shape) for x, v in zip(leaves, jnp.split(direction, ends[:-1]), strict=True)]

        def at(t):
            moved = [x + (t * v).astype(x.dtype) for x, v in zip(leaves, parts, strict=True)]
            return value(moved, *data)

        return jax.lax.map(at, steps)

    return program


def _scales(x):
    """For each entry, flat: its own size (the leaf's for a zero), and its size but at least the leaf's root mean square."""
    size = np.abs(x).ravel()
    mean = float(np.sqrt(np.mean(size**2))) if size.size else 0.0
    mean = mean if mean > 0 else 1.0
    return np.where(size > 0, size, mean), np.maximum(size, mean)
