"""Verdicts; every verdict is made in this module.

A gradient claims a number; the evidence is an interval that contains the true one. `judge` compares
the two, in the same way for a whole leaf, an entry, a custom rule and a loss of digits.
"""

import enum
import functools
import math
import sys
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

# The verdict is "unresolved" if an error of this fraction of the relevant size could go unseen.
BLIND = 0.1
# Slopes below this fraction of the function value are treated as zero: changing the value by 100%
# would take a step a million times the entry's size.
NOTHING = 1e-6
# The relative rounding error of float32.
FLOAT32 = float(np.finfo(np.float32).eps)
# How many digits two equal numbers share.
ALL_DIGITS = -math.log10(sys.float_info.epsilon)
# Relative error, in roundings, that a gradient computed in one dtype may have: summing ten thousand
# terms with random rounding errors costs the square root of their number.
ROUNDINGS = 100
# The error that a derivative rule may have: OF_RULES roundings, since its constants and repeated
# computations are rounded; or OF_SERIES, where float64 series for special functions are truncated.
OF_RULES, OF_SERIES = 100, 1e-9
# Two evaluations of the same function may differ by this many roundings, since the order of
# summation can vary between runs (atomics on a GPU).
ROUNDINGS_BETWEEN_CALLS = 1e3


class Verdict(enum.StrEnum):
    """What the evidence says about a gradient, from best to worst.

    Attributes:
      kind: "good", "look" or "bad"; selects the colour.
      exit_code: exit code of the command: 0 if correct, 1 if wrong, 2 if inconclusive.
      meaning: the verdict in one sentence.

    Example:
      >>> Verdict.AGREES < Verdict.DIFFERS, Verdict("kink").ok
      (True, True)
    """

    kind: Literal["good", "look", "bad"]
    exit_code: int
    meaning: str

    AGREES = "agrees", "good", 0, "the gradient matches the numerical slope"
    KINK = "kink", "look", 0, "two slopes meet here, and the gradient is between them"
    IMPRECISE = "imprecise", "look", 0, "correct, but it has lost digits in its own dtype"
    DETACHED = (
        "detached",
        "look",
        1,
        "correct if the operands of stop_gradient are treated as constant",
    )
    UNRESOLVED = "unresolved", "look", 2, "inconclusive evidence"
    DIFFERS = "differs", "bad", 1, "the gradient does not match the numerical slope"
    NOT_FINITE = "not finite", "bad", 1, "the gradient is NaN or infinite"
    NOT_DETERMINISTIC = "not deterministic", "bad", 1, "two calls gave different results"

    def __new__(cls, text: str, *data: Any) -> "Verdict":
        """A member; each is written as one line of data, in the order of the attributes."""
        verdict = str.__new__(cls, text)
        verdict._value_ = text
        verdict.kind, verdict.exit_code, verdict.meaning = data
        return verdict

    def __repr__(self) -> str:
        return repr(self.value)

    @functools.cached_property
    def rank(self) -> int:
        """Position in the order: 0 is best."""
        return list(Verdict).index(self)

    @property
    def ok(self) -> bool:
        """Whether the gradient passes."""
        return self.exit_code == 0

    @property
    def wrong(self) -> bool:
        """Whether the gradient is known not to be the derivative of the function."""
        return self.exit_code == 1 and self is not Verdict.NOT_DETERMINISTIC

    def __lt__(self, other: str) -> bool:
        return self.rank < Verdict(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Verdict(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Verdict(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Verdict(other).rank


class Evidence(NamedTuple):
    """A claim, and the interval it is compared with.

    Attributes:
      claim: the number that is judged.
      left: the slope from the left.
      right: the slope from the right; equal to `left` unless there is a kink.
      bound: the bound on the error of both; infinite if there is no evidence.
    """

    claim: float
    left: float
    right: float
    bound: float


@functools.cache
def reach(dtype: Any) -> float:
    """The largest relative error in a dtype that does not count as a mistake.

    It is sqrt(eps), half of the digits: an iterative solver or an approximation inside a function
    costs more than rounding, but rarely leaves fewer than half the digits. For dtypes narrower than
    float32 it is four roundings, because half of bfloat16's digits would pass an error of 9%.
    """
    return reach_of(float(jnp.finfo(dtype).eps))


def reach_of(epsilon: float) -> float:
    """`reach` for a relative rounding error instead of a dtype."""
    return min(epsilon**0.5, max(FLOAT32**0.5, 4 * epsilon))


@functools.cache
def explained(dtype: Any) -> float:
    """The relative error of a derivative that rounding and series in a dtype explain."""
    return max(OF_RULES * float(jnp.finfo(dtype).eps), OF_SERIES)


def judge(
    evidence: Evidence, tolerance: float, size: float = 0.0, counts: float = np.inf
) -> Verdict:
    """The verdict on a claim.

    Args:
      evidence: the claim and its interval.
      tolerance: the largest relative error that is not a mistake: `reach` of a dtype.
      size: the size that the error is relative to, if larger than the numbers themselves: for a sum
        whose terms cancel, its size without cancellation.
      counts: the size relative to which an unseen error would matter.
    """
    claim, left, right, bound = evidence
    if not math.isfinite(claim):
        return Verdict.NOT_FINITE
    if not math.isfinite(bound):
        return Verdict.UNRESOLVED
    if not (left == right and abs(claim - left) <= bound):  # the common case
        if differs(claim, left, right, bound, tolerance, size):
            return Verdict.DIFFERS
        if abs(right - left) > bound + _negligible(claim, left, right, tolerance, size):
            return Verdict.KINK
    if bound > BLIND * counts and bound > 0:
        return Verdict.UNRESOLVED
    return Verdict.AGREES


def differs(
    claim: Any, left: Any, right: Any, bound: Any, tolerance: float, size: float = 0.0
) -> Any:
    """Whether a claim, or each entry of an array of claims, is off by more than can be explained.

    Such a claim is outside the interval from `left` to `right` both by more than the bound and by
    more than the tolerance allows. The arguments are those of `Evidence` and `judge`.
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity does not count as an error
        outside = np.maximum(np.minimum(left, right) - claim, claim - np.maximum(left, right))
        return (outside > bound) & (outside > _negligible(claim, left, right, tolerance, size))


def judge_all(
    claims: np.ndarray, values: np.ndarray, bounds: Any, tolerance: float
) -> tuple[Verdict, np.ndarray]:
    """The worst verdict on any entry of an array of claims, and the entries it applies to.

    Entries whose values are not finite are "unresolved".

    Returns:
      The verdict, and the positions that it applies to, largest error first; none for "agrees".
    """
    known = np.isfinite(values)
    verdicts = {
        Verdict.NOT_FINITE: known & ~np.isfinite(claims),
        Verdict.DIFFERS: known & differs(claims, values, values, bounds, tolerance),
        Verdict.UNRESOLVED: ~known,
    }
    for verdict, where in verdicts.items():
        if where.any():
            which = np.flatnonzero(where)
            with np.errstate(invalid="ignore"):
                order = np.argsort(-np.abs(claims - values)[which], kind="stable")
            return verdict, which[order]
    return Verdict.AGREES, np.array([], int)


def norm(x: Any) -> float:
    """The Euclidean norm, from squares that neither overflow nor underflow."""
    unit = unit_of(np.max(np.abs(x), initial=0))
    return float(unit * np.linalg.norm(np.asarray(x) / unit))


def unit_of(most: Any, xp: Any = np) -> Any:
    """A unit in which squares neither overflow nor underflow: the largest number, if it is one."""
    return xp.where((most > 0) & xp.isfinite(most), most, 1)


def excess(difference: float, bound: float) -> float:
    """By how many times the bound a difference exceeds it; guides the search and sets no verdict.

    It is 0 within the bound or without evidence, and infinite if the difference is not finite.
    """
    if not math.isfinite(bound):
        return 0.0
    if not math.isfinite(difference):
        return np.inf
    return max((abs(difference) - bound) / (bound + np.finfo(float).tiny), 0.0)


def same_value(first: float, second: float, epsilon: float) -> bool:
    """Whether two values at one point can come from the same function."""
    slack = ROUNDINGS_BETWEEN_CALLS * epsilon * max(abs(first), abs(second))
    return not abs(first - second) > slack


def digits_shared(difference: float, size: float) -> float:
    """The decimal digits that two numbers of this size share: 15.7 if they are equal."""
    if not (math.isfinite(difference) and math.isfinite(size)):
        return 0.0
    if difference == 0:
        return ALL_DIGITS
    return 0.0 if size == 0 else min(ALL_DIGITS, max(0.0, -math.log10(difference / size)))


def relative_error(own: Any, exact: Any) -> float:
    """The error of an array relative to the norm of `exact`; 0 unless `exact` is inexact."""
    a, b = np.asarray(own), np.asarray(exact)
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        return 0.0
    size = norm(b)
    with np.errstate(invalid="ignore"):  # both may be infinite
        error = norm((a.astype(b.dtype) - b).ravel())
    return error / size if size else float(bool(error))


def _negligible(claim: Any, left: Any, right: Any, tolerance: float, size: float) -> Any:
    """The largest error that the tolerance allows."""
    slopes = np.maximum(np.abs(left), np.abs(right))
    return tolerance * np.maximum(np.maximum(np.abs(claim), slopes), size)
