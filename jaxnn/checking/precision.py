"""The digits that a gradient loses in the user's own dtype, compared with float64.

A gradient is good if it is the exact gradient at a point a few roundings away: the program is not
to blame if the function is ill-conditioned. If the error exceeds both what such roundings explain
and half the digits, the program loses digits and the verdict is `imprecise`. The gradient is wrong
only if no digits are left, or an entry is NaN that is finite in float64. The check, `explain` and
the report all use this one definition.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._jax import enable_x64
from jaxnn.checking.evidence import (
    BLIND,
    ROUNDINGS,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    digits_shared,
    judge,
    judge_all,
    norm,
    reach_of,
    unit_of,
)
from jaxnn.checking.findings import HANDFUL, Entry
from jaxnn.checking.moves import Direction, scales_of
from jaxnn.checking.packed import on_one_cpu
from jaxnn.checking.programs import Programs
from jaxnn.checking.settings import Claims, Point
from jaxnn.checking.slope import Slope
from jaxnn.checking.untraced import Untraced

# The relative rounding error of a constant in float32.
FLOAT32 = float(np.finfo(np.float32).eps)
# An entry that is wrong by more than half keeps no digit.
NO_DIGIT = 0.5
# An entry may be off by this many times the change that one rounding of each argument causes, since
# every step of the program rounds, too.
SHAKES = 10
# How many random movements of the arguments this change is the largest of, and how many of them are
# repeated in the opposite direction.
DRAWS, PAIRS = 6, 3
# How many roundings the other leaves are moved by to see whether a leaf's gradient depends on them.
AWAY = 64.0
# Entries below this fraction of the largest (each multiplied by its scale) are not judged alone.
BESIDE = 1e-2
# What is this much smaller in float64 than in float32 is rounding error in both: a thousand times
# the ratio of their roundings.
SHRINKS = 1e3 * sys.float_info.epsilon / FLOAT32


class Loss(NamedTuple):
    """The digits that a leaf's gradient loses in its own dtype.

    Attributes:
      digits: how many digits agree with the gradient in float64; if entries lost digits, how many
        the worst of them retains.
      verdict: "imprecise" if digits are lost, "differs" if none is left, "not finite" if an entry
        or the function's value is finite in float64 alone; else "agrees".
      entries: the worst entries that lost digits, compared with the gradient in float64.
      lost: the flat positions of the entries that lost digits; None if none did.
      keeps: how many digits these entries retain, in words; empty if `hint` applies instead.
      hint: what else happened.
      is_rounding: whether the gradient is rounding error in float64, too: it is zero.
    """

    digits: float
    verdict: Verdict = Verdict.AGREES
    entries: tuple[Entry, ...] = ()
    lost: np.ndarray | None = None
    keeps: str = ""
    hint: str = ""
    is_rounding: bool = False

    def outweighs(self, verdict: Verdict) -> bool:
        """Whether the loss is worse than `verdict`, the verdict from the slope."""
        if self.verdict.wrong:
            return not verdict.wrong
        return verdict is Verdict.AGREES and self.verdict > verdict


class _Rounding(NamedTuple):
    """The sizes that determine the rounding error of a leaf's gradient.

    Attributes:
      coarsest: the largest relative rounding error, of a leaf's dtype or inside the function.
      value: the function's value in the user's dtypes.
      centre: the function's value in float64.
      overall: the norm of the whole gradient, each entry multiplied by its scale.
      whole: the norm of the part of the gradient whose rounding errors a leaf shares.
    """

    coarsest: float
    value: float
    centre: float
    overall: float
    whole: float

    @property
    def tolerance(self) -> float:
        """The largest relative error that costs no more than half the digits."""
        return reach_of(self.coarsest)

    @property
    def part(self) -> float:
        """The relative error that rounding in a sum explains."""
        return min(ROUNDINGS * self.coarsest, self.tolerance)

    @property
    def has_no_value(self) -> bool:
        """Whether the value is finite in float64 but not in the user's dtypes."""
        return math.isfinite(self.centre) and not math.isfinite(self.value)

    @property
    def has_another_value(self) -> bool:
        """Whether the values in both dtypes differ by more than rounding."""
        size = max(abs(self.value), abs(self.centre))
        return abs(self.value - self.centre) > ROUNDINGS_BETWEEN_CALLS * self.coarsest * size


@np.errstate(invalid="ignore")  # the gradients compared may be infinite
def losses(
    point: Point,
    programs: Programs | Untraced,
    claims: Claims,
    centre: float,
    leaves: Sequence[int],
    unseen: Mapping[int, Slope | None] = MappingProxyType({}),
) -> dict[int, Loss]:
    """The digits that the gradient of each leaf loses in its own dtype.

    Args:
      point: where the gradient is computed.
      programs: the programs of the function.
      claims: the gradient in both dtypes.
      centre: the function's value in float64.
      leaves: which leaves to compare.
      unseen: those of them whose gradient the values do not show, so that it may be zero, and the
        slope of the values along them; None if it is not resolved.
    """
    both = _Both(point, programs, claims, centre)
    nearest = {k: both.nearest(k) for k in leaves}
    found = {k: loss for k, (loss, _) in nearest.items()}
    has_no_value = math.isfinite(centre) and not math.isfinite(claims.value)
    for k, (loss, is_near) in nearest.items():
        if has_no_value or not is_near:
            found[k] = both.loss(k, loss)
    for k, slope in unseen.items():
        if both.is_zero(k, slope):
            found[k] = Loss(found[k].digits, is_rounding=True)
    return found


class _Both:
    """The gradient of a function in both dtypes, and what judging a leaf needs of all others."""

    def __init__(
        self, point: Point, programs: Programs | Untraced, claims: Claims, centre: float
    ) -> None:
        self.point, self.programs, self.claims, self.centre = point, programs, claims, centre

    def leaf(self, k: int) -> "_Leaf":
        """The gradient of one leaf."""
        own, wide = (
            np.asarray(g[k], np.float64).ravel() for g in (self.claims.own, self.claims.wide)
        )
        x = self.point.leaves[k]
        return _Leaf(own, wide, scales_of(x), np.shape(self.claims.wide[k]), jnp.dtype(x.dtype))

    @functools.cached_property
    def overall(self) -> float:
        """The norm of the whole gradient, each entry multiplied by its scale."""
        return norm([self.whole(k) for k in range(len(self.point.leaves))])

    def whole(self, k: int) -> float:
        """The norm of the finite entries of one leaf, each multiplied by its scale."""
        wide = np.asarray(self.claims.wide[k], np.float64).ravel()
        parts = wide * scales_of(self.point.leaves[k])
        return norm(parts[np.isfinite(parts)])

    @functools.cached_property
    def shaken(self) -> tuple[list[np.ndarray], float]:
        """What moving the arguments changes."""
        return _shaken(self.point, self.programs, self.claims)

    def moves(self, k: int) -> tuple[Any, float]:
        """The change of a leaf's gradient, and the size of what cancels in the value."""
        if not self.claims.in_float64:
            return 0.0, 0.0
        changes, inner = self.shaken
        return changes[k], inner

    def nearest(self, k: int) -> tuple[Loss, bool]:
        """The digits that the gradients of a leaf share, and whether every entry is within half of
        the digits.
        """
        epsilon = float(jnp.finfo(self.point.leaves[k].dtype).eps)
        own, wide = self.claims.own[k], self.claims.wide[k]
        gap, size, is_near = _distance(own, wide, reach_of(epsilon))
        shared = digits_shared(float(np.maximum(gap, epsilon * size)), size)
        return Loss(min(shared, -math.log10(epsilon))), is_near

    def loss(self, k: int, shared: Loss) -> Loss:
        """The loss of a leaf with entries that are off by more than half of the digits."""
        point, programs, claims, leaf = self.point, self.programs, self.claims, self.leaf(k)
        coarsest, moves = max(programs.rounding, leaf.epsilon), functools.partial(self.moves, k)
        rounding = _Rounding(coarsest, claims.value, self.centre, self.overall, self.overall)
        lost = leaf.lost(rounding, moves)
        if lost.verdict is Verdict.AGREES and claims.in_float64:
            by_itself = leaf.lost(rounding._replace(whole=self.whole(k)), moves)
            if by_itself.verdict.wrong and _is_apart(point, programs, claims, k):
                lost = by_itself
        differs = lost.verdict is Verdict.DIFFERS and rounding.has_another_value
        if differs and _own_values_agree(point, programs, claims, k):
            hint = (
                f"in {leaf.dtype.name} the value of the function is {claims.value:.6g} instead of "
                f"{self.centre:.6g}; the gradient agrees with that value"
            )
            return shared._replace(hint=hint)
        loss = leaf.loss(shared, lost, rounding)
        if loss.lost is None and coarsest > leaf.epsilon:
            finer = leaf.lost(rounding._replace(coarsest=leaf.epsilon), moves)
            loss = leaf.loss_to_shorter(loss, finer)
        return loss

    def is_zero(self, k: int, slope: Slope | None) -> bool:
        """Whether the gradient of a leaf is nothing but rounding error, as the slope of the values
        along it is zero or, if it is None, not resolved.
        """
        leaf = self.leaf(k)
        if slope is None:
            return leaf.is_rounding(*self.moves(k))
        shrinks = abs(self.centre) <= SHRINKS * abs(self.claims.value)
        return leaf.is_noise and (slope.constant or (shrinks and leaf.shrinks(slope.value)))


class _Lost(NamedTuple):
    """Entries that lost digits, worst first, the verdict on them, and the explained error."""

    verdict: Verdict
    which: np.ndarray
    bound: np.ndarray


class _Leaf(NamedTuple):
    """The flat gradient of one leaf in both dtypes, and the scales of the leaf's entries."""

    own: np.ndarray
    wide: np.ndarray
    size: np.ndarray
    shape: tuple[int, ...]
    dtype: Any

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the leaf's dtype."""
        return float(jnp.finfo(self.dtype).eps)

    def lost(self, rounding: _Rounding, shaken: Callable[[], tuple[Any, float]]) -> _Lost:
        """The entries whose error rounding does not explain; `shaken` computes the change that one
        rounding of each argument causes, and the size of what cancels in the value.
        """
        bound = _roundings(self, rounding)
        verdict, which = judge_all(self.own, self.wide, bound, rounding.tolerance)
        if verdict is Verdict.DIFFERS:
            moves, inner = shaken()
            cancelled = rounding.part * inner / self.size
            bound = np.where(self.cancels(inner), np.maximum(bound, cancelled), bound)
            bound = np.maximum(bound, SHAKES * moves)
            verdict, which = judge_all(self.own, self.wide, bound, rounding.tolerance)
        return _Lost(verdict, which, bound)

    @property
    def is_noise(self) -> bool:
        """Whether the gradients in both dtypes have no digit in common."""
        apart = norm((self.own - self.wide) * self.size)
        return bool(apart > NO_DIGIT * norm(self.wide * self.size))

    def shrinks(self, slope: float) -> bool:
        """Whether the gradient in float64 and this slope are as small as rounding would make them
        if the gradient in the leaf's own dtype was rounding.
        """
        own, wide = (norm(g * self.size) for g in (self.own, self.wide))
        return bool(max(wide, abs(slope)) <= SHRINKS * own)

    def cancels(self, inner: float) -> np.ndarray:
        """Which entries are zero up to the float64 rounding error of terms of this size."""
        nothing = ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon
        return np.abs(self.wide) * self.size <= nothing * inner

    def is_rounding(self, moves: Any, inner: float) -> bool:
        """Whether the float64 gradient is rounding error: moving the arguments changes it all."""
        whole = norm(self.wide * self.size)
        changes = norm(moves * self.size) > NO_DIGIT * whole
        return bool(changes and np.all(self.cancels(inner)))

    def loss(self, shared: Loss, lost: _Lost, rounding: _Rounding) -> Loss:
        """The loss of this leaf, given the entries that rounding does not explain."""
        kind = self.dtype.name
        if not (lost.verdict.wrong or rounding.has_no_value):
            least = float(jnp.finfo(self.dtype).tiny)
            zeros = self.wide[self.own == 0]
            underflows = bool(np.any((zeros != 0) & (np.abs(zeros) < least)))
            hint = f"in {kind}, entries below {least:.1e} become 0"
            return shared._replace(hint=hint if underflows else "")
        verdict, left, keeps = lost.verdict, 0.0, ""
        hint = f"only in {kind}: the same gradient computed in float64 is finite"
        if verdict is Verdict.DIFFERS:
            verdict, left = self.what_is_left(lost)
            keeps = "no digits" if verdict is Verdict.DIFFERS else f"{left:.1f} digits"
        if rounding.has_no_value:
            verdict, keeps = Verdict.NOT_FINITE, ""
            hint = (
                f"only in {kind}: the function's value is {rounding.value}; in float64 it is "
                f"{rounding.centre:.6g}"
            )
        entries, which = self.entries(lost, verdict), np.sort(lost.which)
        return Loss(min(shared.digits, left), verdict, entries, which, keeps, hint)

    def loss_to_shorter(self, shared: Loss, lost: _Lost) -> Loss:
        """The loss of this leaf to narrower dtypes in the function, which sets no verdict."""
        if lost.verdict is not Verdict.DIFFERS:
            return shared
        hint = (
            f"only {shared.digits:.1f} digits are correct in {self.dtype.name}: parts of the "
            "function use a narrower dtype"
        )
        return shared._replace(lost=np.sort(lost.which), hint=hint)

    def entries(self, lost: _Lost, verdict: Verdict) -> tuple[Entry, ...]:
        """The worst entries that lost digits, at most a handful."""
        entries = []
        for i in lost.which[:HANDFUL]:
            claim, value, bound = (float(x[i]) for x in (self.own, self.wide, lost.bound))
            one = Evidence(claim, value, value, bound)
            judged = verdict if verdict is Verdict.IMPRECISE else judge(one, NO_DIGIT)
            entries.append(Entry.of(i, self.shape, one, judged))
        return tuple(entries)

    def what_is_left(self, lost: _Lost) -> tuple[Verdict, float]:
        """The verdict, and how many digits are left.

        Small entries lose digits next to large ones, so the large ones decide if any lost digits.
        """
        parts = np.abs(self.wide * self.size)
        large = lost.which[parts[lost.which] >= BESIDE * np.max(parts)]
        counts = large if len(large) else lost.which
        sizes = np.maximum(np.abs(self.own), np.abs(self.wide))[counts]
        left = digits_shared(float(np.max(np.abs(self.own - self.wide)[counts] / sizes)), 1.0)
        verdict, _ = judge_all(self.own[large], self.wide[large], lost.bound[large], NO_DIGIT)
        return (verdict if verdict is Verdict.DIFFERS else Verdict.IMPRECISE), left


def _roundings(leaf: _Leaf, rounding: _Rounding) -> np.ndarray:
    """For each entry, the error that rounding in the terms of its sum explains.

    An error below the rounding error of the whole gradient is not a loss: an entry may be the sum
    of terms of that size that cancel. If an entry is zero up to float64 rounding error, its terms
    do cancel, and may be as large as the function's value, too.
    """
    own, wide, size = leaf.own, leaf.wide, leaf.size
    least = float(jnp.finfo(leaf.dtype).tiny)
    value = abs(rounding.centre) if math.isfinite(rounding.centre) else 0.0
    everything = max(value, rounding.overall)
    nothing = ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon
    if not own.any():  # in float64, rounded constants do not cancel as they do in their own dtype
        nothing = min(rounding.coarsest, FLOAT32)
    zero = np.abs(wide) * size <= nothing * everything
    whole = np.where(zero, everything, rounding.whole)
    bound = np.maximum(rounding.part * whole / size, least)
    if not own.any():  # total underflow is a loss, whatever the size
        bound[~zero & (np.abs(wide) == np.max(np.abs(wide))) & (np.abs(wide) > least)] = 0.0
    return bound


def _shaken(point: Point, programs: Any, claims: Claims) -> tuple[list[np.ndarray], float]:
    """What moving the arguments at random by up to one rounding changes: for each leaf, the largest
    change of each entry of the float64 gradient; and the size of the numbers that cancel in the
    function's value, 0 unless they cancel completely.

    A value's second difference over so small a movement is the rounding error of the value.
    """
    once = np.ones(len(point.leaves))
    moved = [programs.in_float64(point, once, seed) for seed in range(DRAWS)]
    moves = [
        np.max([np.abs(np.asarray(g) - np.asarray(exact)).ravel() for g in some], axis=0)
        for *some, exact in zip(*(gradient for _, gradient in moved), claims.wide, strict=True)
    ]
    back = [programs.in_float64(point, -once, seed)[0] for seed in range(PAIRS)]
    pairs = zip(moved[:PAIRS], back, strict=True)
    second = [abs(there + here - 2 * claims.forward) for (there, _), here in pairs]
    inner = max(filter(math.isfinite, second), default=0.0) / sys.float_info.epsilon
    # Where a value is left, its size is what counts.
    is_zero = abs(claims.forward) <= ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon * inner
    return moves, inner if is_zero else 0.0


def _is_apart(point: Point, programs: Any, claims: Claims, leaf: int) -> bool:
    """Whether the gradient of a leaf is independent of all other leaves, so that no terms from
    them can cancel in it.
    """
    shakes = [AWAY * (k != leaf) for k in range(len(point.leaves))]
    moved = programs.in_float64(point, shakes)[1][leaf]
    return np.array_equal(np.asarray(moved), np.asarray(claims.wide[leaf]))


def _own_values_agree(
    point: Point, programs: Programs | Untraced, claims: Claims, leaf: int
) -> bool:
    """Whether the gradient in the user's dtypes agrees with the values in those dtypes.

    A function can differ between dtypes, for instance if rounding decides a sign.
    """
    if not isinstance(programs, Programs):
        return False
    line = programs.own_line(point)
    asked = line.compare(claims.own, Direction((line.whole(leaf),)))
    return asked.slope.known_to(BLIND) and not asked.excess


def _distance(own: Any, wide: Any, tolerance: float) -> tuple[float, float, bool]:
    """The distance to the float64 gradient and the norm of that gradient, both in units of its
    largest entry, and whether every entry is within the tolerance. Arrays on devices stay there.
    """
    if on_one_cpu(wide):
        found = _distances(np.asarray(own, np.float64), np.asarray(wide, np.float64), tolerance, np)
    else:
        with enable_x64(True):
            found = _ON_DEVICE(own, wide, tolerance)
    gap, size, is_near = found
    return float(gap), float(size), bool(is_near)


def _distances(own: Any, wide: Any, tolerance: float, xp: Any) -> tuple[Any, Any, Any]:
    own, wide = own.astype(wide.dtype).ravel(), wide.ravel()
    error = own - wide
    is_near = (xp.abs(error) <= tolerance * xp.abs(wide)).all()
    unit = unit_of(xp.abs(wide).max(initial=0), xp)
    return xp.linalg.norm(error / unit), xp.linalg.norm(wide / unit), is_near


_ON_DEVICE = jax.jit(functools.partial(_distances, xp=jnp))
