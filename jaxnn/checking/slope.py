"""The slope of a line at 0, with a bound on its error, from values at +-t for a ladder of steps t.

Central, right and left difference quotients are one problem solved three times: q(t) = slope +
O(t^p) + noise / t, with p = 2 for central and p = 1 for one-sided quotients. Quotients at steps a
factor of four apart are extrapolated to t = 0 (Richardson, Romberg). Coarse steps suffer from
truncation, fine steps from noise, and coarse steps can agree with each other by chance. The bound
of an estimate from step t covers all three: its distance to the previous column of the
extrapolation, plus the deviation of finer steps from it. If a finer step s deviates by d, either
the values have noise of size d s or the estimate is wrong; both count as d s / t at step t. The
noise is thus measured, not assumed, and the user chooses neither a step nor a tolerance.

If a finer estimate excludes the best one, it wins if the coarser steps show why: a kink, or values
that vary by more than rounding. Otherwise neither wins, because a function that drowns in
cancellation looks perfectly flat to the finest steps: the bound then covers both. There is a kink
where the slopes from both sides exclude each other.

A claim needs no finer steps if a few coarse ones confirm it to eight digits.

Sources: Ridders, Adv. Eng. Software 4 (1982) 75; on noise from differences, Moré and Wild, SIAM
J. Sci. Comput. 33 (2011) 1292.
"""

from typing import NamedTuple

import numpy as np

from jaxnn.checking.evidence import BLIND, FLOAT32, Evidence

# A smaller ratio wastes evaluations; a larger one misses the step at which truncation and noise
# balance.
RATIO = 4.0
FIRST_STEP = 0.125  # of the entries' scale; a larger step leaves the neighbourhood of the point
HALF, RUNGS = 14, 24  # steps until half the digits of float64 are noise, and until all are
# Romberg's columns: the fourth removes t^6. One more gains nothing on steps that double precision
# allows (`tests/benchmarks/ablation.py`).
COLUMNS = 4
# An estimate needs this many finer steps. The noise they show is a sample and underestimates the
# largest noise; the factor CAUTION compensates.
WITNESSES = 3
CAUTION = 3.0
# Noise above this fraction of the values is not rounding error but finer structure of the function.
WILD = 1e-5
# Values and changes up to this size may be lost beside terms of size 1 that cancel, as in the
# logarithm of 1 and a little more.
LITTLE = 1e-14
# Values that change by a smallest amount or not at all are rounded, as where terms of moderate size
# cancel, if that amount is at most GRAIN and at most this PART of the value.
GRAIN, PART = 1e-10, 1e-2
# A bound below this fraction of the slope is close.
CLEAR = 1e-3
# How many of the finest steps show a jump, if the changes over them differ by less than this part;
# noise would have to be the same in all of them.
FINEST, ALIKE = 8, 1e-2
# A slope known to this fraction of itself has more digits than any verdict needs.
TIGHT = 1e-9
# A claim is confirmed by a slope that is known to this fraction of itself and agrees as closely.
SURE = 1e-8
# A slope that a reference gradient foretells need not be known better than to this fraction.
FORETOLD = 1e-6
# Values that fit float32 and differ by at most this many roundings were rounded to float32; counts
# fit float32, too, but differ by more.
FLOAT32_ROUNDINGS = 64
# The least step by which a float32 argument is moved with few roundings' error.
LEAST_IN_FLOAT32 = FLOAT32_ROUNDINGS * FLOAT32


class Slope(NamedTuple):
    """An estimated slope with its error bound and evidence.

    Attributes:
      value: the estimate; at a kink, the mean of the two one-sided slopes; NaN if no step has
        finite values.
      bound: the bound on the error of `value`; infinite if there is no evidence.
      step: the step that `value` comes from.
      noise: the noise of the function's values, measured from the finer steps.
      size: the size of the function's values, up to that step.
      left: the slope from the left; equal to `value` unless there is a kink.
      right: the slope from the right; equal to `value` unless there is a kink.
      kink: whether the slopes from both sides differ.
      constant: whether no step changed the value.
      jumps: whether the function jumps at the point, on either side.
      rounding: the relative rounding error of the values.
      differences: the difference quotient at each step, for drawing the evidence.
      steps: the ladder of steps, for drawing the evidence.
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
    jumps: bool
    rounding: float
    differences: np.ndarray
    steps: np.ndarray

    def evidence(self, claim: float, scale: float = 1.0) -> Evidence:
        """The evidence on a claim, where one unit of the line is `scale` units of the claim."""
        left, right = (self.left, self.right) if scale > 0 else (self.right, self.left)
        return Evidence(claim, left / scale, right / scale, self.bound / abs(scale))

    def of_part(self, others: float, weight: float) -> "Slope":
        """The slope of one term, in its own unit. This slope is `weight` times the slope of that
        term plus `others`, the slope of all other terms.
        """
        sides = self.left, self.right
        left, right = sides if weight > 0 else sides[::-1]
        return self._replace(
            value=(self.value - others) / weight,
            left=(left - others) / weight,
            right=(right - others) / weight,
            differences=(self.differences - others) / weight,
            bound=self.bound / abs(weight),
            step=self.step * abs(weight),
            steps=self.steps * abs(weight),
        )

    def known_to(self, part: float) -> bool:
        """Whether the bound is within this fraction of the slope, and there is no kink."""
        return not self.kink and self.bound <= part * abs(self.value)

    def for_claim(self, claim: float) -> "Slope":
        """The same slope, with the bound that its evidence on a claim has: wider if the claim may
        be lost in rounding errors of terms of size 1; infinite if a function with this slope could
        vary by the noise of these values within the finest steps, and so oscillate between them.
        """
        bound, noise, size = self.bound, self.noise, self.size
        seen = (self.value and self.known_to(CLEAR)) or size > LITTLE
        if not seen and 0 < abs(claim) * FIRST_STEP <= LITTLE:
            bound, noise, size = max(bound, LITTLE / FIRST_STEP), LITTLE, 1.0
        outside = abs(claim - self.value) > bound
        runs = abs(claim) * RATIO**WITNESSES * self.steps[-1] > BLIND * noise
        if outside and runs and min(noise, self._noise_of_finest()) > WILD * size:
            bound = np.inf
        return self._replace(bound=bound, noise=noise, size=size)

    def _noise_of_finest(self) -> float:
        """The noise over the finest steps; what differs over coarser ones may be truncation."""
        finest = slice(-WITNESSES, None)
        off = np.abs(self.differences[finest] - self.value) * self.steps[finest]
        return float(np.max(off, initial=0.0))

    @property
    def settled(self) -> bool:
        """Whether finer steps add nothing: no kink, a close bound, and only rounding error."""
        close = self.bound <= CLEAR * abs(self.value) or self.constant
        return not self.kink and close and self.noise <= WILD * self.size


class Limit(NamedTuple):
    """The limit of difference quotients as the step goes to 0, with its bound, step and noise."""

    value: float
    bound: float
    step: float
    noise: float


NONE = Limit(np.nan, np.inf, np.nan, np.nan)


def ladder() -> np.ndarray:
    """The steps, coarsest first."""
    return FIRST_STEP * RATIO ** -np.arange(RUNGS)


def estimate_slope(
    steps: np.ndarray, up: np.ndarray, down: np.ndarray, centre: float, epsilon: float
) -> Slope:
    """The slope at 0 of a function with values `up` at `steps`, `down` at `-steps`, `centre` at 0.

    Args:
      steps: positive steps, each smaller than the one before by `RATIO`.
      up: values at the steps. A step with a non-finite value is skipped, and so are all coarser
        steps. A side that is not finite at its finest step is skipped entirely, because the point
        is on the border of the domain.
      down: values at minus the steps.
      centre: the value at 0.
      epsilon: relative rounding error of the values, a lower limit of the noise.
    """
    with np.errstate(all="ignore"):
        right, left = (up - centre) / steps, (centre - down) / steps
        inside = bool(np.isfinite(up[-1])), bool(np.isfinite(down[-1]))
        central = up / (2 * steps) - down / (2 * steps)
        quotients = central if inside[0] == inside[1] else right if inside[0] else left
        # Extrapolation needs an unbroken run of the finest steps, all inside the domain.
        first = int(np.max(np.flatnonzero(~np.isfinite(quotients)), initial=-1)) + 1
        t, sides = steps[first:], [side for side, on in zip((up, down), inside, strict=True) if on]
        values = np.array([side[first:] for side in sides]).reshape(len(sides), len(t))
        size = float(np.max(np.abs(values), initial=abs(centre)))
        if _in_float32(t, values, centre, size):
            epsilon = max(epsilon, FLOAT32)
        best = from_left = from_right = NONE
        floor, gap = max(epsilon * size, _grain(values, centre)), np.abs(right - left)[first:]
        jumps = _jumps(values, centre, floor)
        if np.isfinite(centre):
            best = limit(t, quotients[first:], 2 if all(inside) else 1, floor, size, gap)
        if jumps == [True, True]:
            best = best._replace(bound=np.inf)
        if np.isfinite(best.bound) and all(inside):
            none = np.zeros_like(t)  # one side alone shows no kink
            from_left = limit(t, left[first:], 1, floor, size, none)
            from_right = limit(t, right[first:], 1, floor, size, none)
        apart = abs(from_left.value - from_right.value)
        kink = bool(apart > from_left.bound + from_right.bound)
        if kink:
            middle = (from_left.value + from_right.value) / 2
            best = best._replace(value=middle, bound=max(from_left.bound, from_right.bound))
        else:
            from_left = from_right = best
        if np.isfinite(best.bound):
            nearby = values[:, t <= best.step]
            size = float(np.max(np.abs(nearby), initial=abs(centre)))
    return Slope(
        *best,
        size=size,
        left=from_left.value,
        right=from_right.value,
        kink=kink,
        constant=bool(values.size) and bool(np.all(values == centre)),
        jumps=any(jumps),
        rounding=epsilon,
        differences=quotients,
        steps=steps,
    )


def confirmed(
    steps: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    centre: float,
    epsilon: float,
    claim: float,
    sure: float = SURE,
) -> Slope | None:
    """The slope as extrapolated from a few coarse steps, if it is known to a fraction of itself and
    a claim agrees with it; None otherwise.

    Eight digits do not agree by chance. A claim that does not agree waits for finer steps, because
    the coarse ones may miss what happens near the point.

    Args:
      steps: the steps, as for `estimate_slope`.
      up: values at the steps.
      down: values at minus the steps.
      centre: the value at 0.
      epsilon: relative rounding error of the values.
      claim: the slope according to the gradient.
      sure: that fraction.
    """
    t, size = steps, float(np.max(np.abs([up, down]), initial=abs(centre)))
    with np.errstate(all="ignore"):
        column = _columns((up - down) / (2 * t), 2)[-1]
        value = float(column[-2])
        if not abs(claim - value) <= sure * abs(claim):
            return None
        slope = estimate_slope(steps, up, down, centre, epsilon)
        right = _columns((up - centre) / t, 1)[-1]
        left = _columns((centre - down) / t, 1)[-1]
        # What the last step changes, and what the sides differ by, is noise, truncation or a kink.
        noise = abs(column[-1] - column[-2]) + abs(right[-1] - left[-1]) / 2
    rounding = slope.rounding * size
    bound = float(CAUTION * (noise + rounding / t[-2]))
    if not abs(claim - value) <= bound <= sure * abs(claim):
        return None
    flat = {"value": value, "left": value, "right": value, "kink": False}
    return slope._replace(bound=bound, step=float(t[-2]), noise=rounding, size=size, **flat)


def _columns(quotients: np.ndarray, order: int) -> np.ndarray:
    """Romberg's columns, as rows; in each, the entries without enough coarser steps are NaN."""
    columns = np.full((COLUMNS, len(quotients)), np.nan)
    columns[0] = quotients
    for j in range(1, COLUMNS):
        step = np.diff(columns[j - 1]) / (RATIO ** (order * j) - 1)
        columns[j, 1:] = columns[j - 1, 1:] + step
    return columns


def limit(
    t: np.ndarray, quotients: np.ndarray, order: int, floor: float, size: float, gap: np.ndarray
) -> Limit:
    """The limit of quotients q(t) = limit + O(t^order) + noise / t, for t to 0.

    Args:
      t: steps, each smaller than the one before by `RATIO`.
      quotients: the quotient at each step.
      order: order of the leading truncation error.
      floor: lower limit of the noise of the values.
      size: size of the values.
      gap: difference between the quotients of both sides at each step.
    """
    n = len(t)
    if n <= WITNESSES + 1:
        return NONE
    columns = _columns(quotients, order)
    before = np.vstack([columns[:1], columns[:-1]])
    coarser = np.hstack([np.full((COLUMNS, 1), np.nan), before[:, :-1]])
    truncation = np.maximum(np.abs(columns - coarser), np.abs(columns - before))
    later = np.triu(np.ones((n, n), bool), 1)  # row: the step of an estimate; column: a finer one
    off = np.abs(quotients - columns[..., None]) * t * later
    noise = np.max(off, axis=-1, initial=floor)
    # An estimate needs coarser steps for its column, and finer ones that show its noise.
    usable = np.maximum(np.arange(COLUMNS), 1)[:, None] <= np.arange(n)
    usable[:, n - WITNESSES :] = False
    value, bound, noise = (x[usable] for x in (columns, truncation + CAUTION * noise / t, noise))
    rung = np.nonzero(usable)[1]
    best, widest = int(np.argmin(bound)), np.fmax.accumulate(gap)
    while True:
        apart = np.abs(value - value[best])
        excluded, finer = apart > bound + bound[best], rung > rung[best]
        # The finer of two estimates wins if the values vary by more than rounding, or a kink is
        # nearby.
        coarse = np.where(finer, best, np.arange(len(rung)))
        shown = (noise[coarse] > WILD * size) | (widest[rung[coarse] + WITNESSES] >= apart)
        better = np.flatnonzero(excluded & finer & shown)
        if not len(better):
            break
        best = int(better[np.argmin(bound[better])])
    # The best is in doubt, too, if a coarser one is known well enough to contradict it.
    doubtful = excluded & ~shown & (finer | ((rung < rung[best]) & (bound < CLEAR * apart)))
    total = float(bound[best] + np.max((apart + bound)[doubtful], initial=0.0))
    return Limit(float(value[best]), total, float(t[rung[best]]), float(noise[best]))


def _jumps(values: np.ndarray, centre: float, floor: float) -> list[bool]:
    """For each side, whether the function changes by the same amount over each of the finest steps,
    by more than the noise. If it does on both sides, the value at the point stands alone, and a
    slope across it would say nothing about the point.
    """
    finest = min(FINEST, values.shape[1] // 2)
    if finest < WITNESSES:
        return [False] * len(values)
    changes = (values - centre)[:, -finest:]
    least = np.min(np.abs(changes), axis=1)
    return ((np.ptp(changes, axis=1) <= ALIKE * least) & (least > CAUTION * floor)).tolist()


def _grain(values: np.ndarray, centre: float) -> float:
    """The smallest change of the values if they look flat over the finest steps because they are
    rounded; 0 if they do not.
    """
    changes = np.abs(values - centre)
    grain = float(np.min(changes[changes > 0], initial=np.inf))
    is_flat = not changes[:, -WITNESSES:].any()
    return grain if is_flat and grain <= min(GRAIN, PART * abs(centre)) else 0.0


def _in_float32(t: np.ndarray, values: np.ndarray, centre: float, size: float) -> bool:
    """Whether the values or the arguments of the function were rounded to float32, whatever the
    dtype that stores them. Such values change by few roundings of float32, or stop changing at
    steps that float32 arguments cannot resolve.
    """
    if not np.all(values == values.astype(np.float32)):
        return False
    changes = np.max(np.abs(values - centre), axis=0, initial=0)
    moving = changes > 0
    least = np.min(changes[moving], initial=np.inf)
    last = np.min(t[moving], initial=np.inf)
    return bool(
        least <= FLOAT32_ROUNDINGS * FLOAT32 * size
        or np.min(t, initial=np.inf) < last <= LEAST_IN_FLOAT32
    )
