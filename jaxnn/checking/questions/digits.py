"""Which lines cost the gradient its digits?

The walk through the program is exact up to some place and in the user's dtypes from there. Making
a line that loses digits exact reduces the error of the gradient. Bisection finds the places where
the error drops: an equation, its derivative, or a sum of cotangents that cancel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn.checking.evidence import Verdict, digits_shared, relative_error
from jaxnn.checking.findings import LINES, DigitsLost, SourceLine
from jaxnn.checking.measure import Checked
from jaxnn.checking.precision import Loss
from jaxnn.checking.programs import shaken
from jaxnn.checking.tape.layout import Site, is_inexact
from jaxnn.checking.tape.walk import Cut, Place, Record, Tape, seeds_of
from jaxnn.numerical.float64 import wide_dtype

# A place is named if it causes more than this fraction of the error.
SHARE = 0.25
# Digits are counted at POINTS points; all but the first are up to AWAY roundings off.
POINTS, AWAY = 4, 64
# Primitives that sum.
SUMS = frozenset(
    [
        primitives.reduce_sum_p,
        primitives.dot_general_p,
        primitives.cumsum_p,
        primitives.reduce_window_sum_p,
    ]
)


def applies(checked: Checked) -> bool:
    """Whether a leaf lost digits that matter."""
    lost = any(loss.lost is not None for loss in checked.losses.values())
    matters = checked.verdicts & {Verdict.IMPRECISE, Verdict.DIFFERS}
    return checked.is_automatic and lost and bool(matters)


def ask(checked: Checked) -> list[DigitsLost]:
    """The lines that lose digits, worst first."""
    programs, point = checked.programs, checked.check.point
    lost = [checked.losses.get(k, Loss(0.0)).lost for k in range(len(point.leaves))]
    if all(which is None for which in lost):
        return []
    own, wide = (programs.tape(point, kind, unrolled=True) for kind in (None, wide_dtype()))
    return digits_lost(own, wide, checked.values, seeds_of(programs.program), lost)


def say(checked: Checked, found: list[DigitsLost]) -> Checked:
    """The results with the lines added."""
    return checked._replace(digits_lost=tuple(found))


def digits_lost(
    own: Tape,
    wide: Tape,
    inputs: Sequence[Any],
    seeds: Sequence[Any],
    lost: Sequence[np.ndarray | None],
) -> list[DigitsLost]:
    """The equations whose rounding errors cost the gradient its digits, worst first.

    Args:
      own: the tape of a function in its own dtypes, with loops unrolled.
      wide: the tape in a wide dtype.
      inputs: the values of the inputs; those that are differentiated come first.
      seeds: the cotangents of the outputs.
      lost: for each differentiated input, the flat positions of the gradient entries that lost
        digits, or None.
    """
    # Nearby points are included because rounding may happen to be harmless at a single point.
    points = [_beside(inputs, len(lost), seed) for seed in range(POINTS)]
    exact = [wide.record(point, seeds) for point in points]
    rounded = [own.record(point, seeds) for point in points]

    @functools.cache
    def left(place: int) -> float:
        """The relative error of the gradient if everything before `place` is exact."""
        errors = []
        for point, true in zip(points, exact, strict=True):
            cut = Cut(np.int32(place), true)
            record = own.record(point, seeds, cut)
            worst = 0.0
            for slot, which in zip(own.inputs, lost, strict=False):
                if which is not None and slot in true.cotangents:
                    a, b = (np.asarray(r.cotangents[slot]).ravel()[which] for r in (record, true))
                    worst = max(worst, relative_error(a, b))
            errors.append(min(worst, 1.0) if np.isfinite(worst) else 1.0)
        return float(np.mean(errors))

    drops = _drops(left, 0, len(own.places), SHARE * left(0))
    found = [_lost_at(own, rounded[0], exact[0], own.places[k], drop) for k, drop in drops]
    kept: dict[Any, DigitsLost] = {}
    for one in sorted(found, key=lambda one: -one.share):
        kept.setdefault((one.line.file, one.line.line), one)
    return list(kept.values())[:LINES]


def _beside(inputs: Sequence[Any], moving: int, seed: int) -> list[Any]:
    """The inputs, with the first `moving` off by some roundings; unchanged for seed 0."""
    rng, away = np.random.default_rng(seed), AWAY if seed else 0
    moved = [jnp.asarray(shaken(x, away, rng), x.dtype) for x in inputs[:moving]]
    return [*moved, *inputs[moving:]]


def _drops(left: Callable[[int], float], low: int, high: int, least: float) -> list[Any]:
    """The places where the remaining error drops by more than `least`, each with its drop."""
    drop = left(low) - left(high)
    if drop <= least:
        return []
    if high - low == 1:
        return [(low, drop)]
    middle = (low + high) // 2
    return _drops(left, low, middle, least) + _drops(left, middle, high, least)


def _lost_at(own: Tape, rounded: Record, exact: Record, place: Place, drop: float) -> DigitsLost:
    """The finding on a place of the walk."""
    number = place.site
    if place.slots:
        number = own.meeting(place.slots[0])
    elif not place.back:
        number = _first_narrow(own, rounded, number)
    site = own.sites[number]
    errors = lambda name, slots: [  # noqa: E731
        relative_error(getattr(rounded, name)[s], getattr(exact, name)[s]) for s in slots
    ]
    before = errors("values", [s for s in site.inputs if s in exact.values])
    if place.slots:
        after = errors("cotangents", place.slots)
    elif place.back:
        before += errors("cotangents", [site.outputs[j] for j in site.asked])
        pairs = zip(rounded.pulled[number], exact.pulled[number], strict=True)
        after = [relative_error(a, b) for a, b in pairs]
    else:
        after = errors("values", site.outputs)
    kinds = [v.aval.dtype for v in (*site.eqn.invars, *site.eqn.outvars) if is_inexact(v.aval)]
    finest = min(float(jnp.finfo(kind).eps) for kind in kinds)
    digits = [digits_shared(max(*some, finest), 1.0) for some in ([*before, 0.0], [*after, 0.0])]
    what = _how_lost(site, rounded, place)
    line = SourceLine.of(site.line)
    return DigitsLost(line, site.name, what, digits[0], min(digits), drop)


def _first_narrow(tape: Tape, record: Record, number: int) -> int:
    """The site that first made a site's inputs narrower than its outputs; the site itself if they
    are not narrower.
    """
    made_by = {slot: k for k, site in enumerate(tape.sites) for slot in site.outputs}
    bits = lambda slot: jnp.finfo(record.values[slot].dtype).bits  # noqa: E731
    floats = lambda slots: [s for s in slots if is_inexact(record.values[s])]  # noqa: E731
    site = tape.sites[number]
    widest = max((bits(s) for s in floats(site.outputs)), default=0)
    while True:
        narrow = [s for s in floats(tape.sites[number].inputs) if bits(s) < widest and s in made_by]
        if not narrow:
            return number
        number = min(made_by[s] for s in narrow)


def _how_lost(site: Site, record: Record, place: Place) -> str:
    """How an equation loses digits, in words."""
    primitive = site.eqn.primitive
    if place.slots:
        return "in the backward pass, cotangents from two paths cancel"
    if place.back:
        return "in its derivative"
    if primitive is primitives.convert_element_type_p:
        return f"a cast to {site.eqn.params['new_dtype'].name}"
    inputs = [np.asarray(record.values[s]) for s in site.inputs if is_inexact(record.values[s])]
    if primitive in (primitives.sub_p, primitives.add_p) and len(inputs) == 2:
        a, b = (x.astype(np.float64) for x in inputs)
        result = a - b if primitive is primitives.sub_p else a + b
        with np.errstate(all="ignore"):
            same = np.log10(np.maximum(np.abs(a), np.abs(b)) / np.abs(result))
        digits = float(np.median(same))
        if digits >= 1:
            return (
                f"its operands share {digits:.0f} digits"
                if digits < np.inf
                else "its operands are equal"
            )
    return "a sum whose terms cancel" if primitive in SUMS else ""
