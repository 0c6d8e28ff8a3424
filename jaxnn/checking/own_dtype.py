"""What a gradient that is right in float64 loses in the user's own dtype.

A rule can be right and its float32 gradient still poor. That is reported in digits, and is an error
only where nothing is left: NaN or infinity where the gradient is finite, or no right digit in an
entry that matters.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import (
    ROUNDINGS,
    Evidence,
    Verdict,
    digits_shared,
    judge,
    judge_all,
    reach,
)
from jaxnn.checking.findings import Entry
from jaxnn.checking.locate import HANDFUL
from jaxnn.checking.slope import Slope

# An entry of which more than half is wrong keeps no digit.
NO_DIGIT = 0.5
# How many times what one rounding of each argument moves a gradient by it may be off: its steps
# round as its arguments do.
SHAKES = 10


class Loss(NamedTuple):
    """What is lost in a leaf's own dtype.

    Attributes:
      digits: that the gradient shares with the one in float64.
      verdict: "differs" or "not finite" where no digit is left that matters, else "agrees".
      entries: those concerned, held against the same gradient in float64; worst first.
      hint: what happened.
    """

    digits: float
    verdict: Verdict = Verdict.AGREES
    entries: tuple[Entry, ...] = ()
    hint: str = ""


@np.errstate(invalid="ignore")  # infinity less itself is among what is looked for
def own_dtype_loss(
    own: np.ndarray,
    wide: np.ndarray,
    dtype: Any,
    values: tuple[float, float],
    scales: np.ndarray,
    slope: Slope,
    rounding: float,
    shaken: Callable[[], Sequence[np.ndarray]],
) -> Loss:
    """What one leaf's gradient loses.

    Args:
      own: the gradient in the leaf's own dtype.
      wide: the same in float64.
      dtype: of the leaf.
      values: of the function, in the user's dtypes and in float64.
      scales: the size of each entry of the leaf, flat.
      slope: of the leaf, by values.
      rounding: the largest, relative, of any float in the function.
      shaken: by how much roundings of the arguments change `wide`; asked for where that decides.
    """
    kind, flat, true = jnp.dtype(dtype).name, own.ravel(), wide.ravel()
    value, centre = values
    known, epsilon = np.isfinite(true), float(jnp.finfo(dtype).eps)
    gap, size = float(np.linalg.norm(flat - true)), float(np.linalg.norm(true))
    loss = Loss(digits_shared(float(np.maximum(gap, epsilon * size)), size))
    # What counts is a difference that a step of the entry's own size would make more of than
    # rounding does of the value.
    part = ROUNDINGS * epsilon if rounding <= epsilon else reach(dtype)
    bound = part * max(abs(centre), float(np.linalg.norm((true * scales)[known]))) / scales
    least = float(jnp.finfo(dtype).tiny)  # below it, 0 is what the dtype has
    underflows = bool(np.any((flat == 0) & (true != 0) & (np.abs(true) < least)))
    bound = np.maximum(bound, least)
    if not flat.any() and slope.bound < abs(slope.value) and np.max(np.abs(true)) > least:
        bound[np.abs(true) == np.max(np.abs(true))] = 0.0  # all of it underflows, whatever its size
    verdict, which = judge_all(flat, true, bound, NO_DIGIT)
    if verdict is Verdict.DIFFERS:
        # Near a stationary point, rounding the arguments alone costs the digits.
        bound = np.maximum(bound, SHAKES * np.max([moved.ravel() for moved in shaken()], axis=0))
        verdict, which = judge_all(flat, true, bound, NO_DIGIT)
    hint = "computed in float64 the same gradient is finite"
    if verdict is Verdict.DIFFERS:
        hint = f"computed in float64 the same gradient is right, in {kind} it keeps no digit of it"
    of_value, _ = judge_all(np.array([value]), np.array([centre]), np.array([np.inf]), NO_DIGIT)
    if of_value.wrong:
        verdict = of_value
        hint = f"there the function itself is {value}, computed in float64 it is {centre:.6g}"
    if not verdict.wrong and underflows:
        return loss._replace(
            hint=f"below {least:.1e}, the smallest number of {kind}, it is 0 there"
        )
    if not verdict.wrong:
        return loss
    evidence = [
        (i, Evidence(float(flat[i]), float(true[i]), float(true[i]), float(bound[i])))
        for i in which[:HANDFUL]
    ]
    entries = tuple(Entry.of(i, wide.shape, one, judge(one, NO_DIGIT)) for i, one in evidence)
    return loss._replace(verdict=verdict, entries=entries, hint=f"in {kind} only: {hint}")
