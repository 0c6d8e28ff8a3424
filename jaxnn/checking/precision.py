"""Precision, apart from correctness: what a gradient that is right in float64 loses in the user's own dtype.

A rule can be right and its float32 gradient still poor. That is reported in digits, and is an error only where nothing is left:
NaN or infinity where the gradient is finite, or no right digit in an entry that matters.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.checking.report import digits_shared
from jaxnn.checking.search import HANDFUL
from jaxnn.numerical.slope import Slope


def half_digits(dtype: Any) -> float:
    """Half the digits of a dtype; of one that is shorter than float32, what a few roundings of constants in a rule explain."""
    epsilon, single = (float(jnp.finfo(kind).eps) for kind in (dtype, jnp.float32))
    return min(epsilon**0.5, max(single**0.5, 4 * epsilon))


def own_precision(
    own: np.ndarray,
    wide: np.ndarray,
    shaken: Callable[[], Any],
    scales: np.ndarray,
    value: float,
    centre: float,
    dtype: Any,
    rounding: float,
    slope: Slope,
) -> tuple[float, tuple[str, list[int], str] | None]:
    """Digits that the gradient keeps in the user's dtype; and `(verdict, entries, hint)` if it keeps none that matter.

    Args:
      own: the gradient by one leaf, in its own dtype.
      wide: the same in float64.
      shaken: gives by how much roundings of the arguments change `wide`; called where that decides.
      scales: the size of each entry of the leaf, flat.
      value: of the function, in the user's dtypes.
      centre: the same in float64.
      dtype: of the leaf.
      rounding: the largest of any float in the function.
      slope: of the leaf, by values.
    """
    kind, flat, true = jnp.dtype(dtype).name, own.ravel(), wide.ravel()
    finite = np.isfinite(true)
    bad = [int(i) for i in np.flatnonzero(~np.isfinite(flat) & finite)[:HANDFUL]]
    if not np.isfinite(value) and np.isfinite(centre):
        hint = f"in {kind} only: there the function itself is {value}, computed in float64 it is {centre:.6g}"
        return 0.0, ("not finite", bad or [int(np.argmax(np.abs(flat - true)))], hint)
    if bad:
        return 0.0, ("not finite", bad, f"in {kind} only: computed in float64 the same gradient is finite")
    if not np.all(np.isfinite(flat)) or not np.all(finite):
        return 0.0, None
    gap, size = np.abs(flat - true), float(np.linalg.norm(true))
    epsilon = float(jnp.finfo(dtype).eps)
    digits = digits_shared(max(float(np.linalg.norm(gap)), epsilon * size), size)
    # What counts is a difference that a step of the entry's own size would make more of than rounding does of the value.
    least = 100 * epsilon if rounding <= epsilon else half_digits(dtype)
    matters = gap * scales > least * max(abs(centre), float(np.linalg.norm(true * scales)))
    lost = matters & (gap > 0.5 * np.maximum(np.abs(flat), np.abs(true)))
    if not flat.any() and slope.bound < np.inf and abs(slope.value) > 10 * slope.bound:
        lost |= np.abs(true) == np.max(np.abs(true))
    if lost.any():
        # Near a stationary point rounding the arguments alone costs a gradient its digits.
        lost &= gap > 10 * np.max(shaken(), initial=0)
    lost = np.flatnonzero(lost)
    if not len(lost):
        return digits, None
    worst = [int(i) for i in lost[np.argsort(-gap[lost])][:HANDFUL]]
    hint = f"in {kind} only: computed in float64 the same gradient is right, in {kind} it keeps no digit of it"
    return digits, ("differs", worst, hint)
