"""The slope of a line at 0, with a bound on its error, from values at +-t for a ladder of steps t.

Central differences C(t) at steps a factor of four apart are extrapolated to t = 0 (Romberg, Richardson). Coarse steps suffer
from truncation, fine ones from noise, and coarse ones can agree with each other by chance. One rule settles all three: an
estimate from step t is as good as its extrapolation disagrees with the column before it, plus what finer steps say against it.
A finer step s that deviates from the estimate by d shows either noise of d s in the values, or that the estimate is wrong; both
are worth d s / t at step t. So the noise is measured, not assumed, and neither a step nor a tolerance is asked for.

Sources: Ridders, Adv. Eng. Software 4 (1982) 75; Moré and Wild, SIAM J. Sci. Comput. 33 (2011) 1292, on noise from differences.
"""

from typing import NamedTuple

import numpy as np

RUNGS = 14
COLUMNS = 4
# A step needs this many finer ones to vouch for it; and this many times the largest deviation that they show.
WITNESSES = 3
CAUTION = 4.0
# Noise above this part of the values is taken for what a function does between steps that are too long for it.
WILD = 1e-4


class Slope(NamedTuple):
    """A slope and what is known of it.

    Attributes:
      value: the estimate; NaN if no step has finite values on both sides.
      bound: on its error; infinite if there is no evidence.
      step: the step that it comes from.
      noise: of the function's values, as the finer steps show it.
      size: of the function's values, up to that step.
      left: the slope from the left; equal to `value` unless there is a kink.
      right: the slope from the right.
      kink: whether the slopes from both sides differ.
      constant: whether no step changed the value.
      differences: C(t) for each step of the ladder, and
      steps: the ladder, for drawing the evidence.
    """

    value: float
    bound: float
    step: float
    noise: float
    size: float
    left: float
    right: float
    kink: bool
    constant: bool
    differences: np.ndarray
    steps: np.ndarray


def ladder(rungs: int = RUNGS) -> np.ndarray:
    """The steps, coarsest first: 1/8, a factor of four apart; exact powers of two."""
    return 0.125 * 4.0 ** -np.arange(rungs)


def estimate_slope(steps: np.ndarray, up: np.ndarray, down: np.ndarray, centre: float, epsilon: float) -> Slope:
    """The slope at 0 of a function with values `up` at `steps`, `down` at `-steps` and `centre` at 0.

    Args:
      steps: positive, falling by a factor of four.
      up: values at the steps; rungs where either side is not finite are left out, or the whole side if its finest is not.
      down: values at minus the steps.
      centre: the value at 0.
      epsilon: rounding of the values, relative; the noise is at least this.

    Returns:
      A `Slope`.
    """
    with np.errstate(all="ignore"):
        growth = 16.0
        if len(steps) and np.isfinite(up[-1]) != np.isfinite(down[-1]):
            # The point lies on the border of the domain: forward differences, whose error falls with t instead of t^2.
            growth = 4.0
            up, down = (up, 2 * centre - up) if np.isfinite(up[-1]) else (2 * centre - down, down)
        differences = up / (2 * steps) - down / (2 * steps)
        usable = np.isfinite(differences)
        # Only an unbroken run of fine rungs: beyond a rung outside the domain, nothing is extrapolated.
        first = int(np.max(np.flatnonzero(~usable), initial=-1)) + 1
        t, c = steps[first:], differences[first:]
        values = np.concatenate([up[first:], down[first:]])
        size = float(np.max(np.abs(values), initial=abs(centre)))
        if _rounded(values, centre, size):
            epsilon = max(epsilon, float(np.finfo(np.float32).eps))
        floor = epsilon * size
        constant = bool(np.all(values == centre))
        none = Slope(np.nan, np.inf, np.nan, np.nan, size, np.nan, np.nan, False, constant, differences, steps)
        if len(t) <= WITNESSES + 1 or not np.isfinite(centre):
            return none
        if (near := first + _before_a_kink(t, up[first:], down[first:], centre, floor)) > first:
            slope = estimate_slope(steps[near:], up[near:], down[near:], centre, epsilon)
            return slope._replace(differences=differences, steps=steps)
        found, table = [], c[:, None]
        for column in range(COLUMNS):
            if column:
                factor = growth**column
                last = table[1:, -1] + (table[1:, -1] - table[:-1, -1]) / (factor - 1)
                last = np.concatenate([np.full(1, np.nan), last])
                table = np.column_stack([table, last])
            for k in range(max(column, 1), len(t) - WITNESSES):
                value = table[k, column]
                before = table[k - 1, column - 1] if column else c[k - 1]
                truncation = max(abs(value - before), abs(value - table[k, column - 1]) if column else 0)
                noise = max(floor, float(np.max(np.abs(c[k + 1 :] - value) * t[k + 1 :])))
                found.append((truncation + CAUTION * noise / t[k], -t[k], value, noise))
        bound, step, value, noise = _not_refuted(found, size)
        near = np.tile(t <= -step, 2)
        size = float(np.max(np.abs(values[near]), initial=abs(centre)))
        found = none._replace(value=value, bound=bound, step=-step, noise=noise, size=size, left=value, right=value)
        best = found if bound < np.inf else none
        noise = max(floor, best.noise if np.isfinite(best.noise) else floor)
        kink = _kink(t, up[first:], down[first:], centre, noise)
        return best if kink is None else best._replace(left=kink[0], right=kink[1], kink=True)


def _not_refuted(found, size):
    """The estimate with the least bound. If its noise is no rounding but the function itself, then a finer one that objects."""
    best = min(found)
    while best[3] > WILD * size and (finer := [e for e in found if e[1] > best[1] and abs(e[2] - best[2]) > e[0] + best[0]]):
        best = min(finer)
    return best


def _rounded(values, centre, size):
    """Whether values were rounded to float32 inside, whatever they are stored in: all fit it, and some differ by its last bits.

    Counts fit float32 too, but they differ by more.
    """
    if not np.all(values == values.astype(np.float32)):
        return False
    steps = np.abs(values - centre)
    return bool(np.min(steps[steps > 0], initial=np.inf) <= 64 * np.finfo(np.float32).eps * size)


def _before_a_kink(t, up, down, centre, floor):
    """The first step that a kink nearby is beyond: where the gap between the sides, constant until then, is closed for good."""
    gap = np.abs(up - 2 * centre + down) / t
    level = np.abs(np.log2(gap[1:] / gap[:-1])) < 0.1
    steady = np.flatnonzero(level[2:] & level[1:-1] & level[:-2] & (gap[3:] > 30 * floor / t[3:])) + 3
    if not len(steady):
        return 0
    constant = gap[steady[-1]]
    closed = np.flatnonzero((gap < 0.1 * constant) & (80 * floor / t < constant) & (t < t[steady[-1]]))
    return int(closed[0]) if len(closed) >= WITNESSES and len(t) - closed[0] > WITNESSES + 1 else 0


def _kink(t, up, down, centre, noise):
    """Slopes from the left and the right, if their gap stops shrinking before it drowns in noise."""
    right, left = (up - centre) / t, (centre - down) / t
    gap = np.abs(right - left)
    clear = np.flatnonzero(gap > 30 * noise / t)
    clear = clear[clear >= 2]
    if not len(clear):
        return None
    k = int(clear[-1])  # the finest step that still shows a gap; a smooth function's gap is 16 times smaller two rungs down
    finer = gap[k + 1 :][gap[k] > 8 * noise / t[k + 1 :]]  # still fine enough to tell a gap from none: a kink nearby has none
    if not gap[k] > 0.5 * gap[k - 2] or np.any(finer < 0.5 * gap[k]):
        return None
    return _towards_zero(left[: k + 1], t, noise), _towards_zero(right[: k + 1], t, noise)


def _towards_zero(slopes, t, noise):
    """The limit of slopes from one side, which change linearly towards 0: the extrapolation that moves and drowns least."""
    limits = slopes[1:] + np.diff(slopes) / 3
    moves = np.abs(np.diff(limits)) + CAUTION * noise / t[2 : len(slopes)]
    return float(limits[1 + int(np.argmin(moves))])
