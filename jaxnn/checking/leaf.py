"""Builds the report on one leaf from all evidence."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking import patterns
from jaxnn.checking.evidence import ALL_DIGITS, Verdict, digits_shared, reach
from jaxnn.checking.findings import LEAST_DIGITS, Entry, LeafReport
from jaxnn.checking.line import Comparison
from jaxnn.checking.locate import Located, verdict_of
from jaxnn.checking.packed import count_not_finite
from jaxnn.checking.precision import Loss

# Why no entry of a wrong leaf is named: whether entries were looked for.
_NAMELESS = {
    True: "the slope is wrong, but no single entry is off by enough to be named",
    False: "the slope is wrong; the leaf's entries were not checked, as other leaves are wrong too",
}


class Place(NamedTuple):
    """A leaf, as the report shows it.

    Attributes:
      path: path in the arguments.
      x: the leaf in its real form.
      paired: whether the leaf is complex.
    """

    path: str
    x: Any
    paired: bool

    @property
    def dtype(self) -> str:
        """The name of its dtype in JAX."""
        return _name_of(self.x.dtype, self.paired)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the user's leaf."""
        return self.x.shape[:-1] if self.paired else self.x.shape


@functools.cache
def _name_of(dtype: Any, paired: bool) -> str:
    with jax.numpy_dtype_promotion("standard"):
        return (jnp.promote_types(dtype, jnp.complex64) if paired else jnp.dtype(dtype)).name


def leaf_report(
    place: Place,
    gradient: Any,
    centre: float,
    located: Located,
    loss: Loss,
    counts: frozenset[int],
) -> LeafReport:
    """The report on one leaf.

    Args:
      place: the leaf.
      gradient: the leaf's claims, in float64.
      centre: the function's value.
      located: the evidence on the claims.
      loss: the digits that the gradient loses in the leaf's own dtype.
      counts: possible numbers of examples in the function's data.
    """
    best = located.best.of_entry if place.x.size == 1 else located.best
    report = _by_values(place, gradient, centre, located, best, counts)
    if loss.is_rounding:
        report = report._replace(verdict=Verdict.AGREES, entries=(), pattern="")
    elif loss.outweighs(report.verdict):
        hint = hint_on_loss(loss, place.x.dtype, report.verdict)
        report = report._replace(verdict=loss.verdict, entries=loss.entries, hint=hint)
    immovable = count_not_finite(place.x)
    if immovable and (not report.verdict.wrong or not math.isfinite(centre)):
        hint = (
            f"entries of the argument that are not finite: {immovable} of {place.x.size}; no step "
            "can be taken from them"
        )
        report = report._replace(verdict=Verdict.UNRESOLVED, hint=hint)
    hint, entries = report.hint, list(report.entries)
    if report.verdict is Verdict.AGREES:
        hint = patterns.nothing_there(best.slope, best.scale, gradient) or loss.hint or hint
        hint = hint or patterns.not_counted(located, gradient, place.paired)
        hint = hint or _hint_on_digits(loss.digits, place.dtype)
    else:
        entries.sort(key=lambda e: (-e.verdict.rank, -abs(e.autodiff - e.numerical)))
    entries = Entry.joined(entries) if place.paired else tuple(entries)
    return report._replace(hint=hint, entries=entries, own_dtype_digits=loss.digits)


def _by_values(
    place: Place,
    gradient: Any,
    centre: float,
    located: Located,
    best: Comparison,
    counts: frozenset[int],
) -> LeafReport:
    """What the values show of a leaf, along its best line; like `leaf_report`."""
    verdict, slope = verdict_of(located, centre, reach(place.x.dtype)), best.slope
    pattern, hint = patterns.describe(located, gradient, counts, place.paired)
    if verdict is Verdict.DIFFERS and not any(e.verdict.wrong for e in located.entries):
        pattern = pattern or _NAMELESS[located.searched]
    elif verdict is Verdict.UNRESOLVED and slope.jumps:
        hint = "the values jump at this point, so they show no slope"
    elif beyond := patterns.beyond_the_domain(located.entries, slope, centre):
        hint = beyond
    elif verdict is Verdict.UNRESOLVED:
        hint = f"errors below {slope.bound:.1e} could not be detected"
    if count_not_finite(gradient):
        best = best._replace(claim=math.nan)  # the line used replacements for non-finite claims
    off = float(np.maximum(abs(best.difference), slope.bound))  # NaN if either is
    return LeafReport(
        path=place.path,
        shape=place.shape,
        dtype=place.dtype,
        verdict=verdict,
        autodiff=best.claim,
        numerical=slope.value,
        bound=slope.bound,
        step=slope.step,
        noise=slope.noise,
        digits=digits_shared(off, best.scale or slope.size),
        own_dtype_digits=0.0,
        entries=located.entries,
        pattern=pattern,
        hint=hint,
        steps=tuple(slope.steps.tolist()),
        differences=tuple(slope.differences.tolist()),
    )


def bare_report(place: Place, verdict: Verdict, hint: str) -> LeafReport:
    """The report on a leaf without evidence."""
    digits = ALL_DIGITS if verdict.ok else 0.0
    nothing = (0.0, 0.0, 0.0 if verdict.ok else math.inf, 0.0, 0.0, digits, digits, (), "")
    return LeafReport(place.path, place.shape, place.dtype, verdict, *nothing, hint, (), ())


def hint_on_loss(loss: Loss, dtype: Any, by_values: Verdict) -> str:
    """A hint on the digits lost in the leaf's own dtype, and whether float64 agrees with values."""
    if not loss.keeps:
        return loss.hint
    kind, keeps = _name_of(dtype, False), f"{loss.keeps} match the float64 gradient"
    if by_values is Verdict.AGREES:
        return f"in {kind}, {keeps}; the latter is correct"
    return f"in {kind}, {keeps}; the values cannot confirm it"


def _hint_on_digits(digits: float, dtype: str) -> str:
    """A hint if a gradient that agrees in float64 has few digits in its own dtype, else ""."""
    if digits >= LEAST_DIGITS:
        return ""
    correct = f"only {digits:.1f} digits are" if digits >= 0.1 else "no digit is"
    return f"{correct} correct in {dtype}; rounding explains the error"
