"""What a gradient that is right in float64 loses in the user's own dtype.

A gradient is good if it is the exact one of a point a few roundings away: a function that is
ill-conditioned is not to blame on its program. What is off by more than such roundings explain, and
by more than half the digits, is lost by the program: that is `imprecise`. Only where no digit is
left, or NaN stands in the place of a number, is the gradient wrong.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import (
    ROUNDINGS,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    digits_shared,
    judge,
    judge_all,
    reach_of,
)
from jaxnn.checking.findings import Entry
from jaxnn.checking.locate import HANDFUL
from jaxnn.checking.packed import on_one_cpu
from jaxnn.checking.slope import Slope

# An entry of which more than half is wrong keeps no digit.
NO_DIGIT = 0.5
# How many times what one rounding of each argument moves a gradient by it may be off: its steps
# round as its arguments do.
SHAKES = 10
# An entry that is smaller beside the largest than this, each times its scale, is not looked at by
# itself.
BESIDE = 1e-2


class Loss(NamedTuple):
    """What is lost in a leaf's own dtype.

    Attributes:
      digits: that the gradient shares with the one in float64; of the entries that lost some, those
        that the worst has left.
      verdict: "imprecise" where digits are lost that matter, "differs" where none is left, "not
        finite" where there is no number; else "agrees".
      entries: those concerned, held against the same gradient in float64; worst first.
      hint: what happened.
      lost: which entries lost digits, flat; None for none.
    """

    digits: float
    verdict: Verdict = Verdict.AGREES
    entries: tuple[Entry, ...] = ()
    hint: str = ""
    lost: np.ndarray | None = None

    def outweighs(self, verdict: Verdict) -> bool:
        """Whether it says worse of a leaf than its slope does."""
        if self.verdict.wrong:
            return not verdict.wrong
        return verdict is Verdict.AGREES and self.verdict > verdict


@np.errstate(invalid="ignore")  # infinity less itself is among what is looked for
def own_dtype_loss(
    own: Any,
    wide: Any,
    dtype: Any,
    values: tuple[float, float],
    scales: Callable[[], np.ndarray],
    overall: Callable[[], float],
    slope: Slope,
    rounding: float,
    shaken: Callable[[], Sequence[np.ndarray]],
    vouched: Callable[[], bool],
    own_values_agree: Callable[[], bool] = lambda: False,
) -> Loss:
    """What one leaf's gradient loses.

    Args:
      own: the gradient in the leaf's own dtype.
      wide: the same in float64.
      dtype: of the leaf.
      values: of the function, in the user's dtypes and in float64.
      scales: the size of each entry of the leaf, flat, and
      overall: that of the gradient of all leaves, each entry times its scale; asked for where
        entries differ by more than the dtype lets pass.
      slope: of the leaf, by values.
      rounding: the largest, relative, of any float in the function.
      shaken: by how much roundings of the arguments change `wide`; asked for where that decides.
      vouched: whether the values agree with `wide`; asked for where that is to be said.
      own_values_agree: whether the gradient agrees with the values in its own dtypes; asked for
        where those are of another function, as where a sign is chosen by chance.
    """
    value, centre = values
    epsilon = float(jnp.finfo(dtype).eps)
    coarsest = max(rounding, epsilon)
    tolerance = reach_of(coarsest)
    gap, size, is_near = _distance(own, wide, tolerance)
    loss = Loss(digits_shared(float(np.maximum(gap, epsilon * size)), size))
    has_no_value = math.isfinite(centre) and not math.isfinite(value)
    if is_near and not has_no_value:
        return loss
    flat, true = (np.asarray(g, np.float64).ravel() for g in (own, wide))
    size_of_entry = scales()
    least = float(jnp.finfo(dtype).tiny)  # below it, 0 is what the dtype has
    zeros = true[flat == 0]
    underflows = bool(np.any((zeros != 0) & (np.abs(zeros) < least)))
    bound = np.maximum(_roundings(true, size_of_entry, overall(), centre, coarsest), least)
    if not flat.any() and slope.bound < abs(slope.value) and np.max(np.abs(true)) > least:
        bound[np.abs(true) == np.max(np.abs(true))] = 0.0  # all of it underflows, whatever its size
    verdict, which = judge_all(flat, true, bound, tolerance)
    if verdict is Verdict.DIFFERS:
        bound = np.maximum(bound, SHAKES * np.max([moved.ravel() for moved in shaken()], axis=0))
        verdict, which = judge_all(flat, true, bound, tolerance)
    kind = jnp.dtype(dtype).name
    if not (verdict.wrong or has_no_value):
        below = f"below {least:.1e}, the smallest number of {kind}, it is 0 there"
        return loss._replace(hint=below) if underflows else loss
    apart = ROUNDINGS_BETWEEN_CALLS * coarsest * max(abs(value), abs(centre))
    if verdict is Verdict.DIFFERS and abs(value - centre) > apart and own_values_agree():
        return loss._replace(
            hint=f"in {kind} the function has another value, {value:.6g} for {centre:.6g}, with "
            "which its gradient agrees"
        )
    hint, left = f"in {kind} only: computed in float64 the same gradient is finite", 0.0
    if verdict is Verdict.DIFFERS:
        verdict, left, told = _what_is_left(flat, true, which, bound, size_of_entry)
        hint = _told_of(kind, told, vouched())
    if has_no_value:
        verdict = Verdict.NOT_FINITE
        hint = (
            f"in {kind} only: there the function itself is {value}, computed in float64 it is "
            f"{centre:.6g}"
        )
    entries = []
    for i in which[:HANDFUL]:
        one = Evidence(float(flat[i]), float(true[i]), float(true[i]), float(bound[i]))
        of_entry = verdict if verdict is Verdict.IMPRECISE else judge(one, NO_DIGIT)
        entries.append(Entry.of(i, wide.shape, one, of_entry))
    lost = np.zeros(flat.shape, bool)
    lost[which] = True
    return Loss(min(loss.digits, left), verdict, tuple(entries), hint, lost)


def _roundings(
    true: np.ndarray, size_of_entry: np.ndarray, whole: float, value: float, coarsest: float
) -> np.ndarray:
    """What roundings of what a gradient is summed from make of each entry: nothing beside what the
    whole gradient makes of a step of its own size. Of an entry that is 0 but for float64's
    roundings, the terms that cancel are as large as the value is beside such a step.
    """
    value_size = abs(value) if math.isfinite(value) else 0.0
    part = min(ROUNDINGS * coarsest, reach_of(coarsest))
    rounded = ROUNDINGS_BETWEEN_CALLS * sys.float_info.epsilon * value_size
    nothing = np.abs(true) <= rounded / size_of_entry
    return part * np.maximum(np.where(nothing, value_size, 0.0), whole) / size_of_entry


def _told_of(kind: str, told: str, vouched: bool) -> str:
    """What is left of a gradient in its own dtype, and whether that in float64 is right."""
    if vouched:
        return f"in {kind} only: {told} computed in float64, which is right"
    return f"in {kind} {told} computed in float64, and the values say too little to judge that one"


def _distance(own: Any, wide: Any, tolerance: float) -> tuple[float, float, bool]:
    """How far a gradient is from that in float64, the size of that, and whether no entry is off by
    more than the tolerance. Large arrays stay where they lie.
    """
    if on_one_cpu(wide):
        found = _distances(np.asarray(own, np.float64), np.asarray(wide, np.float64), tolerance, np)
    else:
        with jax.enable_x64(True):
            found = _ON_DEVICE(own, wide, tolerance)
    gap, size, is_near = found
    return float(gap), float(size), bool(is_near)


def _distances(own: Any, wide: Any, tolerance: float, xp: Any) -> tuple[Any, Any, Any]:
    own, wide = own.astype(wide.dtype).ravel(), wide.ravel()
    error = own - wide
    is_near = (xp.abs(error) <= tolerance * xp.abs(wide)).all()
    return xp.linalg.norm(error), xp.linalg.norm(wide), is_near


_ON_DEVICE = jax.jit(functools.partial(_distances, xp=jnp))


def _what_is_left(
    flat: np.ndarray, true: np.ndarray, which: np.ndarray, bound: np.ndarray, scales: np.ndarray
) -> tuple[Verdict, float, str]:
    """The verdict on a gradient that lost digits in the entries `which`, how many are left, and
    that in words.
    """
    # Small entries lose their digits beside large ones; what counts is what is left of those.
    parts = np.abs(true * scales)
    large = which[parts[which] >= BESIDE * np.max(parts)]
    counts = large if len(large) else which
    sizes = np.maximum(np.abs(flat), np.abs(true))[counts]
    left = digits_shared(float(np.max(np.abs(flat - true)[counts] / sizes)), 1.0)
    nothing_left, _ = judge_all(flat[large], true[large], bound[large], NO_DIGIT)
    if nothing_left is Verdict.DIFFERS:
        return Verdict.DIFFERS, left, "it keeps no digit of the gradient"
    return Verdict.IMPRECISE, left, f"it keeps {left:.1f} digits of the gradient"
