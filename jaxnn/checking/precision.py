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
    FLOAT32,
    ROUNDINGS,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    digits_shared,
    judge,
    judge_all,
    norm,
    reach_of,
    same_value,
    unit_of,
)
from jaxnn.checking.findings import HANDFUL, Entry
from jaxnn.checking.moves import Direction, scales_of
from jaxnn.checking.packed import on_one_cpu
from jaxnn.checking.programs import Programs
from jaxnn.checking.settings import OF_CLAIMS, Claims, Point
from jaxnn.checking.slope import Slope
from jaxnn.checking.untraced import Untraced

# An entry that is wrong by more than half keeps no digit, and by more than a tenth not a whole one.
NO_DIGIT, ONE_DIGIT = 0.5, 0.1
# Other cotangents, with which a gradient is rounded differently.
COTANGENTS = 1.1, 1.3, 1.7, 3.0
# An entry may be off by this many times the change that one rounding of each argument causes, since
# every step of the program rounds, too.
SHAKES = 10
# How many random movements of the arguments this change is the largest of, and how many show the
# rounding error of the value.
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
    found: dict[int, Loss] = {}
    for k in leaves:
        found[k], is_near = both.nearest(k)
        if both.has_no_value or not is_near:
            found[k] = both.loss(k, found[k])
        if k in unseen and both.is_zero(k, unseen[k]):
            zero = "the gradient is zero up to rounding error"
            found[k] = Loss(found[k].digits, hint=zero, is_rounding=True)
    return found


def rounding_error(
    programs: Programs, point: Point, value: float, there: Sequence[float] = ()
) -> float:
    """The rounding error of a function's value in float64: its second difference when the arguments
    move at random by one rounding, the largest of a few; `there` are values at the first movements,
    if they are known.
    """

    def moved(way):
        ways = [way] * len(point.leaves)
        return [programs.in_float64(point, ways, seed)[0] for seed in range(PAIRS)]

    pairs = zip(there or moved(1), moved(-1), strict=True)
    second = [abs(a + b - 2 * value) for a, b in pairs]
    return max(filter(math.isfinite, second), default=0.0)


class _Both:
    """The gradient of a function in both dtypes, and what judging a leaf needs of all others."""

    def __init__(self, point: Point, programs: Any, claims: Claims, centre: float) -> None:
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

    @property
    def everything(self) -> float:
        """The norm of the whole gradient, or the function's value if that is larger."""
        return max(abs(self.centre) if math.isfinite(self.centre) else 0.0, self.overall)

    @functools.cached_property
    def shrunk(self) -> float:
        """The size that the rounding error of the user's dtypes has in float64, if the value and
        the whole gradient are no larger there, and so nothing else; else 0.
        """
        own = norm([self.whole(k, self.claims.own) for k in range(len(self.point.leaves))])
        size = SHRINKS * max(abs(self.claims.value), own)
        return size if self.everything <= size else 0.0

    def whole(self, k: int, gradient: Sequence[Any] | None = None) -> float:
        """The norm of the finite entries of one leaf of a gradient, by default that in float64,
        each multiplied by its scale.
        """
        chosen = (self.claims.wide if gradient is None else gradient)[k]
        parts = np.asarray(chosen, np.float64).ravel() * scales_of(self.point.leaves[k])
        return norm(parts[np.isfinite(parts)])

    @functools.cached_property
    def shaken(self) -> tuple[list[np.ndarray], float]:
        """What moving the arguments at random by up to one rounding changes: for each leaf, the
        largest change of each entry of the float64 gradient; and the size of the numbers that
        cancel in the function's value, 0 unless they cancel completely.
        """
        at = functools.partial(self.programs.in_float64, self.point)
        once = np.ones(len(self.point.leaves))
        moved = [at(once, seed) for seed in range(DRAWS)]
        gradients = zip(*(gradient for _, gradient in moved), self.claims.wide, strict=True)
        moves = [
            np.max([np.abs(np.asarray(g) - np.asarray(exact)).ravel() for g in some], axis=0)
            for *some, exact in gradients
        ]
        there = [value for value, _ in moved[:PAIRS]]
        error = rounding_error(self.programs, self.point, self.claims.forward, there)
        # Where a value is left, its size is what counts.
        is_zero = abs(self.claims.forward) <= ROUNDINGS_BETWEEN_CALLS * error
        return moves, error / sys.float_info.epsilon if is_zero else 0.0

    def moves(self, k: int) -> tuple[Any, float]:
        """The change of a leaf's gradient, and the size of what cancels in the value."""
        if not self.claims.in_float64:
            return 0.0, 0.0
        changes, inner = self.shaken
        return changes[k], inner

    @property
    def has_no_value(self) -> bool:
        """Whether the value is finite in float64 but not in the user's dtypes."""
        return math.isfinite(self.centre) and not math.isfinite(self.claims.value)

    def nearest(self, k: int) -> tuple[Loss, bool]:
        """The digits that the gradients of a leaf share, and whether every entry is within half of
        the digits. Arrays on devices stay there.
        """
        epsilon = float(jnp.finfo(self.point.leaves[k].dtype).eps)
        own, wide, tolerance = self.claims.own[k], self.claims.wide[k], reach_of(epsilon)
        if on_one_cpu(wide):
            both = np.asarray(own, np.float64), np.asarray(wide, np.float64)
            found = _distances(*both, tolerance, np)
        else:
            with enable_x64(True):
                found = _ON_DEVICE(own, wide, tolerance)
        gap, size = map(float, found[:2])
        shared = digits_shared(float(np.maximum(gap, epsilon * size)), size)
        return Loss(min(shared, -math.log10(epsilon))), bool(found[2])

    def loss(self, k: int, shared: Loss) -> Loss:
        """The loss of a leaf with entries that are off by more than half of the digits."""
        claims, leaf, overall = self.claims, self.leaf(k), self.overall
        coarsest = max(self.programs.rounding, leaf.epsilon)
        moves = functools.partial(self.moves, k)
        lost = leaf.lost(coarsest, self.everything, overall, moves)
        if lost.verdict is Verdict.AGREES and claims.in_float64:
            by_itself = leaf.lost(coarsest, self.everything, self.whole(k), moves)
            if by_itself.verdict.wrong and self.is_apart(k):
                lost = by_itself
        differs = lost.verdict is Verdict.DIFFERS
        another_value = differs and not same_value(claims.value, self.centre, coarsest)
        if another_value and self.own_values_agree(k):
            hint = (
                f"in {leaf.dtype.name} the function's value is {claims.value:.6g} instead of "
                f"{self.centre:.6g}; the gradient agrees with {leaf.dtype.name} values"
            )
            return shared._replace(hint=hint)
        loss = self.of_lost(leaf, lost, shared)
        if loss.lost is None and coarsest > leaf.epsilon:
            finer = leaf.lost(leaf.epsilon, self.everything, overall, moves)
            loss = leaf.loss_to_shorter(loss, finer)
        return loss

    def of_lost(self, leaf: "_Leaf", lost: "_Lost", shared: Loss) -> Loss:
        """The loss of a leaf, given the entries that rounding does not explain."""
        kind = leaf.dtype.name
        if not (lost.verdict.wrong or self.has_no_value):
            least = float(jnp.finfo(leaf.dtype).tiny)
            zeros = leaf.wide[leaf.own == 0]
            underflows = bool(np.any((zeros != 0) & (np.abs(zeros) < least)))
            hint = f"in {kind}, entries below {least:.1e} become 0"
            return shared._replace(hint=hint if underflows else "")
        verdict, left, keeps = lost.verdict, 0.0, ""
        hint = f"not finite in {kind}; the same gradient in float64 is finite"
        if verdict is Verdict.DIFFERS:
            verdict, left = leaf.what_is_left(lost)
            keeps = "no digits" if verdict is Verdict.DIFFERS else f"{left:.1f} digits"
        if self.has_no_value:
            verdict, keeps = Verdict.NOT_FINITE, ""
            hint = (
                f"the function's value is {self.claims.value} in {kind}; in float64 it is "
                f"{self.centre:.6g}"
            )
        entries, which = leaf.entries(lost, verdict), np.sort(lost.which)
        return Loss(min(shared.digits, left), verdict, entries, which, keeps, hint)

    def is_apart(self, k: int) -> bool:
        """Whether the gradient of a leaf is independent of all other leaves, so that no terms from
        them can cancel in it.
        """
        shakes = [AWAY * (other != k) for other in range(len(self.point.leaves))]
        moved = self.programs.in_float64(self.point, shakes)[1][k]
        return np.array_equal(np.asarray(moved), np.asarray(self.claims.wide[k]))

    def own_values_agree(self, k: int) -> bool:
        """Whether the gradient in the user's dtypes agrees with the values in those dtypes.

        A function can differ between dtypes, for instance if rounding decides a sign.
        """
        if not isinstance(self.programs, Programs):
            return False
        line = self.programs.own_line(self.point)
        asked = line.compare(self.claims.own, Direction((line.whole(k),)))
        return asked.slope.known_to(BLIND) and not asked.excess

    def varies_with_cotangent(self, k: int) -> bool:
        """Whether another cotangent gives a gradient of a leaf that is no multiple of the first, as
        where terms cancel but for their rounding.
        """
        if not self.claims.in_float64:
            return False
        leaf, at = self.leaf(k), functools.partial(self.programs.in_float64, self.point)
        others = [np.asarray(at(cotangent=c)[1][k], np.float64).ravel() for c in COTANGENTS]
        changes = np.max([np.abs(other - leaf.wide) for other in others], axis=0)
        return norm(changes * leaf.size) > ONE_DIGIT * norm(leaf.wide * leaf.size)

    def is_zero(self, k: int, slope: Slope | None) -> bool:
        """Whether the gradient of a leaf is nothing but rounding error, as the slope of the values
        along it is zero or, if it is None, not resolved.
        """
        leaf = self.leaf(k)
        if slope is not None and not slope.constant:
            nothing = OF_CLAIMS * sys.float_info.epsilon * self.everything
            flat = max(norm(leaf.wide * leaf.size), abs(slope.value)) <= nothing
            if not leaf.is_noise and leaf.own.any():
                return flat and self.varies_with_cotangent(k)
            return (leaf.is_noise and flat) or abs(slope.value) < self.shrunk
        if slope is not None and (leaf.is_noise or not leaf.wide.any()):
            return leaf.is_noise
        moves, inner = self.moves(k)
        return leaf.is_rounding(moves, max(inner, self.everything))


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

    def lost(self, coarsest: float, everything: float, whole: float, shaken: Callable) -> _Lost:
        """The entries whose error rounding does not explain.

        Args:
          coarsest: the largest relative rounding error, of the leaf's dtype or inside the function.
          everything: the norm of the whole gradient, each entry multiplied by its scale, or the
            function's value in float64, if that is larger.
          whole: the norm of the part of the gradient whose rounding errors the leaf shares.
          shaken: computes the change that one rounding of each argument causes, and the size of
            what cancels in the value.
        """
        tolerance = reach_of(coarsest)  # costs no more than half the digits
        part = min(ROUNDINGS * coarsest, tolerance)  # what rounding in a sum explains
        bound = self.roundings(coarsest, part, everything, whole)
        verdict, which = judge_all(self.own, self.wide, bound, tolerance)
        if verdict is Verdict.DIFFERS:
            moves, inner = shaken()
            cancelled = part * inner / self.size
            bound = np.where(self.cancels(inner), np.maximum(bound, cancelled), bound)
            bound = np.maximum(bound, SHAKES * moves)
            verdict, which = judge_all(self.own, self.wide, bound, tolerance)
        return _Lost(verdict, which, bound)

    def roundings(
        self, coarsest: float, part: float, everything: float, whole: float
    ) -> np.ndarray:
        """For each entry, the error that rounding in the terms of its sum explains: this part of
        the sum. The other arguments are those of `lost`.

        An error below the rounding error of the whole gradient is not a loss: an entry may be the
        sum of terms of that size that cancel. If an entry is zero up to float64 rounding error, its
        terms do cancel, and may be as large as the function's value, too.
        """
        own, wide, size = self.own, np.abs(self.wide), self.size
        least = float(jnp.finfo(self.dtype).tiny)
        nothing = ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon
        if not own.any():  # rounded constants do not cancel in float64 as in their own dtype
            nothing = min(coarsest, FLOAT32)
        zero = wide * size <= nothing * everything
        bound = np.maximum(part * np.where(zero, everything, whole) / size, least)
        if not own.any():  # total underflow is a loss, whatever the size
            bound[~zero & (wide == np.max(wide)) & (wide > least)] = 0.0
        return bound

    @property
    def is_noise(self) -> bool:
        """Whether the gradients in both dtypes have no digit in common."""
        apart = norm((self.own - self.wide) * self.size)
        return bool(apart > NO_DIGIT * norm(self.wide * self.size))

    def cancels(self, inner: float) -> np.ndarray:
        """Which entries are zero up to the float64 rounding error of terms of this size."""
        nothing = ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon
        return np.abs(self.wide) * self.size <= nothing * inner

    def is_rounding(self, moves: Any, terms: float) -> bool:
        """Whether the float64 gradient is rounding error of terms of this size: it is a few
        roundings, or many and moving the arguments changes it all.
        """
        whole = norm(self.wide * self.size)
        changes = norm(moves * self.size) > NO_DIGIT * whole
        most = ROUNDINGS_BETWEEN_CALLS if changes else OF_CLAIMS
        return bool(whole <= most * sys.float_info.epsilon * terms)

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
            judged = judge(one, NO_DIGIT)
            if verdict is Verdict.IMPRECISE or judged.ok:
                judged = Verdict.IMPRECISE
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


def _distances(own: Any, wide: Any, tolerance: float, xp: Any) -> tuple[Any, Any, Any]:
    error = own.astype(wide.dtype) - wide
    is_near = (xp.abs(error) <= tolerance * xp.abs(wide)).all()
    unit = unit_of(xp.abs(wide).max(initial=0), xp)
    # `ravel` refuses an array that is cut along an explicit axis of a mesh.
    norm = lambda x: xp.sqrt(xp.sum((x / unit) ** 2))  # noqa: E731
    return norm(error), norm(wide), is_near


_ON_DEVICE = jax.jit(functools.partial(_distances, xp=jnp))
