"""The one compiled function that every question is asked of: phi(t) = f(x + t v), v masked to a range of entries of one leaf.

v has random signs and sizes and the scale of the entries, so that errors of several entries cannot cancel by chance. Leaf,
range, direction and steps are arguments of one program, which runs through the steps in the memory of one evaluation. A
function that cannot be traced is called step by step instead, and the report says so.
"""

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
    seed: int = 0
    relative: bool = False  # each entry by its own size, instead of at least the leaf's root mean square


class Answer(NamedTuple):
    """What autodiff claims for a question, and what the values of the function say."""

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
        self.steps = ladder()

    def ask(self, question: Question) -> Answer:
        """The slope along a question's direction, by values and by the claimed gradient."""
        low, high = question.low, question.high
        direction = _direction(np.arange(low, high), question.seed) * self._scale(question)
        # The program draws the same direction from the same seed: only its bounds travel.
        steps, up, down, centre = self._along(question, self.steps)
        slope = estimate_slope(steps, up, down, centre, self.epsilon)
        if self.epsilon < _FINE and (slope.kink or not slope.noise <= _QUIET * self.epsilon * max(abs(centre), slope.size)):
            # Noise, or a function that bends on a smaller scale than the steps reach? Finer steps of the same program tell.
            finer = self._along(question, self.steps / _CLOSER)
            new = finer[0] < steps[-1]
            steps, up, down = (np.concatenate([a, b[new]]) for a, b in zip((steps, up, down), finer[:3], strict=True))
            slope = estimate_slope(steps, up, down, centre, self.epsilon)
        with np.errstate(all="ignore"):
            terms = self.claims[question.leaf].ravel()[low:high] * direction
            return Answer(float(np.sum(terms)), slope, float(np.sqrt(np.sum(terms**2))))

    def centre(self) -> float:
        """The function's value at the point itself."""
        return self._along(Question(0, 0, 0), self.steps)[3]

    def entry_scale(self, question: Question) -> float:
        """The length of the direction along a single entry: what divides a slope into a derivative."""
        return float((_direction(np.arange(question.low, question.high), question.seed) * self._scale(question))[0])

    def _scale(self, question):
        own, floored = self.scales[question.leaf]
        return (own if question.relative else floored)[question.low : question.high]

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
        direction = np.zeros(self.leaves[question.leaf].size)
        direction[question.low : question.high] = _direction(np.arange(question.low, question.high), question.seed)
        direction[question.low : question.high] *= self._scale(question)
        return np.array([self._call(question.leaf, t * direction) for t in steps])

    def _run(self, question, steps):
        with wide_arithmetic(self.dtype):
            return np.asarray(self.value(self.leaves, np.asarray(question[:4], np.int32), question.relative, steps))

    def _run_alone(self, question, step):
        """A function that raises beyond its domain has no value there; one that raises at the point is not checked."""
        try:
            return self._run(question, np.array([step]))[0]
        except Exception:
            if step == 0:
                raise
            return np.nan

    def _call(self, k, change):
        moved = np.asarray(self.leaves[k], np.float64).ravel() + change
        with wide_arithmetic(self.dtype):
            leaf = jnp.asarray(moved.reshape(self.leaves[k].shape), self.leaves[k].dtype)
            return float(self.value([*self.leaves[:k], leaf, *self.leaves[k + 1 :]]))


def compiled_probe(value: Callable) -> Callable:
    """The program behind a probe: from leaves, (leaf, low, high, seed), relative, steps and data to values of `value`."""

    @jax.jit
    def program(leaves, question, relative, steps, *data):
        leaf, low, high, seed = question

        def direction(k, x):
            index = jnp.arange(x.size, dtype=jnp.int32)
            inside = (leaf == k) & (index >= low) & (index < high)
            own, floored = _scales(x, jnp)
            v = _direction(index, seed, jnp).astype(x.dtype) * jnp.where(relative, own, floored)
            return jnp.where(inside, v, 0).reshape(x.shape)

        directions = [direction(k, x) for k, x in enumerate(leaves)]

        def at(t):
            moved = [x + t.astype(x.dtype) * v for x, v in zip(leaves, directions, strict=True)]
            return value(moved, *data)

        return jax.lax.map(at, steps)

    return program


def _scales(x, np: Any = np):
    """For each entry, flat: its own size (the leaf's for a zero), and its size but at least the leaf's root mean square."""
    size = np.abs(x).ravel()
    mean = np.sqrt(np.mean(size**2)) if size.size else 0.0
    mean = np.where(mean > 0, mean, 1.0)
    return np.where(size > 0, size, mean), np.maximum(size, mean)


def _direction(index, seed, np: Any = np):
    """Numbers of size 1/2 to 1 and random sign, one per index, the same in NumPy and in a program: a hash of index and seed."""
    seed = np.full(index.shape, seed).astype(np.uint32)
    h = index.astype(np.uint32) * np.uint32(2654435761) + seed * np.uint32(2246822519)
    for shift, factor in ((15, 2146121005), (13, 2221713035)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h = h ^ (h >> np.uint32(16))
    size = 0.5 + (h >> np.uint32(9)).astype(np.float32) * np.float32(2.0**-24)
    return np.where(h & np.uint32(1), size, -size)
