"""Verdicts, and the one place where they are made.

A gradient claims a number; the evidence is an interval that the true one lies in. `judge` holds the
one against the other, for a whole leaf, one entry, a custom rule, and what a dtype loses alike.
"""

import enum
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# A verdict is withheld where an error of this part of what counts could have gone unseen.
BLIND = 0.1
# Beside the value of the function, a leaf's slope is nothing below this part: its entries would
# have to move a million times their size to change the value by as much as itself.
NOTHING = 1e-6
# What equal numbers share.
ALL_DIGITS = -math.log10(sys.float_info.epsilon)
# Roundings, relative to the value, that a gradient in one dtype throughout may be off by: a sum of
# ten thousand terms, each rounded at random, is off by the square root of their number.
ROUNDINGS = 100
# What two evaluations of one function may differ by, in roundings, for it to be the same function:
# sums whose order is left to the machine (atomics on a GPU) differ by many.
ROUNDINGS_BETWEEN_CALLS = 1e3


class Verdict(enum.StrEnum):
    """What the evidence says of a gradient, from best to worst.

    Example:
      >>> Verdict.AGREES < Verdict.DIFFERS, Verdict("kink").ok
      (True, True)
    """

    AGREES = "agrees"
    KINK = "kink"
    IMPRECISE = "imprecise"
    DETACHED = "detached"
    UNRESOLVED = "unresolved"
    DIFFERS = "differs"
    NOT_FINITE = "not finite"
    NOT_DETERMINISTIC = "not deterministic"

    def __repr__(self) -> str:
        return repr(self.value)

    @functools.cached_property
    def rank(self) -> int:
        """The position in the order: 0 is best."""
        return list(Verdict).index(self)

    @property
    def ok(self) -> bool:
        """Whether the gradient passes: it agrees, lies between the slopes on both sides, or is
        right but for digits that its dtype loses.
        """
        return self <= Verdict.IMPRECISE

    @property
    def wrong(self) -> bool:
        """Whether the gradient is known not to be the derivative of the function."""
        return self in (Verdict.DETACHED, Verdict.DIFFERS, Verdict.NOT_FINITE)

    @property
    def exit_code(self) -> int:
        """Of a command: 0 right, 1 wrong, 2 where the evidence cannot tell."""
        return 0 if self.ok else 2 if self is Verdict.UNRESOLVED else 1

    def __lt__(self, other: str) -> bool:
        return self.rank < Verdict(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Verdict(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Verdict(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Verdict(other).rank


class Evidence(NamedTuple):
    """A claim, and what there is to hold it against.

    Attributes:
      claim: the number that is judged.
      left: what it should be, from the left, and
      right: from the right; the same number unless there is a kink.
      bound: on the error of both; infinite where there is no evidence.
    """

    claim: float
    left: float
    right: float
    bound: float


@functools.cache
def reach(dtype: Any) -> float:
    """How far a dtype's digits reach: the largest relative error that is no mistake.

    Half its digits, sqrt(eps), because what an iterative solver or an approximation inside a
    function costs is beyond its rounding, and nobody writes one with less than half the digits. Of
    a dtype shorter than float32, four roundings: half of bfloat16's digits would pass an error of 9
    %.
    """
    return reach_of(float(jnp.finfo(dtype).eps))


def reach_of(epsilon: float) -> float:
    """The same of a rounding instead of a dtype."""
    return min(epsilon**0.5, max(float(jnp.finfo(jnp.float32).eps) ** 0.5, 4 * epsilon))


def judge(
    evidence: Evidence, tolerance: float, size: float = 0.0, counts: float = np.inf
) -> Verdict:
    """What the evidence says of the claim.

    Args:
      evidence: the claim and what it is held against.
      tolerance: the largest error, relative, that is no mistake: `reach` of a dtype.
      size: what the error is relative to, where that is more than the numbers themselves: of a sum
        whose terms cancel, what they would be if they did not.
      counts: the size beside which an error that went unseen would matter.
    """
    claim, left, right, bound = evidence
    if not math.isfinite(claim):
        return Verdict.NOT_FINITE
    if not math.isfinite(bound):
        return Verdict.UNRESOLVED
    if not (left == right and abs(claim - left) <= bound):  # as most are
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
    """Whether a claim, or each of an array of them, is off by more than can be explained.

    That is outside the interval from `left` to `right` by more than the bound, and by more than the
    tolerance lets pass; the arguments are those of `Evidence` and `judge`.
    """
    with np.errstate(invalid="ignore"):  # infinity less itself, which is no accusation
        outside = np.maximum(np.minimum(left, right) - claim, claim - np.maximum(left, right))
    return (outside > bound) & (outside > _negligible(claim, left, right, tolerance, size))


def judge_all(
    claims: np.ndarray, values: np.ndarray, bounds: np.ndarray, tolerance: float
) -> tuple[Verdict, np.ndarray]:
    """The verdict on an array of claims, the worst of any, and which of them it is for.

    Where the values themselves are not finite, there is nothing to hold a claim against.

    Returns:
      The verdict, and the positions that it is for, the largest error first; none for "agrees".
    """
    with np.errstate(invalid="ignore"):  # of infinite ones, which are looked at below
        within = np.abs(claims - values) <= np.minimum(bounds, sys.float_info.max)
    if within.all():
        return Verdict.AGREES, np.array([], int)
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


def excess(difference: float, bound: float) -> float:
    """How many bounds a difference lies beyond the first, to be led by: no verdict.

    0 within the bound and where there is no evidence; infinite where there is no claim.
    """
    if not math.isfinite(bound):
        return 0.0
    if not math.isfinite(difference):
        return np.inf
    return max((abs(difference) - bound) / (bound + np.finfo(float).tiny), 0.0)


def is_diffuse(entries: Sequence[Evidence], verdicts: Sequence[Verdict], tolerance: float) -> bool:
    """Whether the error is one that all entries share, and none beside the whole.

    So is what an approximation inside leaves: the small entries are off by as much as the large
    ones, and judged alone they would be wrong.
    """
    claims = np.array([evidence.claim for evidence in entries])
    values = np.array([(evidence.left + evidence.right) / 2 for evidence in entries])
    errors = np.abs(claims - values)
    wrong = np.array([verdict is Verdict.DIFFERS for verdict in verdicts], bool)
    if not wrong.any() or wrong.all():
        return False
    shared = np.max(errors[~wrong]) > BLIND * np.median(errors[wrong])
    return bool(shared and np.linalg.norm(errors) <= tolerance * np.linalg.norm(values))


def same_value(first: float, second: float, epsilon: float) -> bool:
    """Whether two evaluations of a function at one point are of one function."""
    slack = ROUNDINGS_BETWEEN_CALLS * epsilon * max(abs(first), abs(second))
    return not abs(first - second) > slack


def digits_shared(difference: float, size: float) -> float:
    """Decimal digits to which two numbers of a size agree: 0 if none, 15.7 if they are equal."""
    if not (math.isfinite(difference) and math.isfinite(size)):
        return 0.0
    if difference == 0:
        return ALL_DIGITS
    return 0.0 if size == 0 else min(ALL_DIGITS, max(0.0, -math.log10(difference / size)))


def relative_error(own: Any, exact: Any) -> float:
    """The error of an array beside its size; 0 of what are no numbers."""
    a, b = np.asarray(own), np.asarray(exact)
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        return 0.0
    size = float(np.linalg.norm(b))
    error = float(np.linalg.norm((a.astype(b.dtype) - b).ravel()))
    return error / size if size else float(bool(error))


def _negligible(claim: Any, left: Any, right: Any, tolerance: float, size: float) -> Any:
    """The largest error that the tolerance lets pass."""
    slopes = np.maximum(np.abs(left), np.abs(right))
    return tolerance * np.maximum(np.maximum(np.abs(claim), slopes), size)
