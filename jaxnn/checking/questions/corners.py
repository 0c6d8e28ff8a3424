"""Does the gradient agree with the values at nearby smooth points?

Where many entries are at a corner, a line has two slopes that tell little: sums of one-sided slopes
accuse a correct gradient, and the interval between them hides a wrong one. So the check is repeated
at two points beside this one, on opposite sides of it, where the function is smooth.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import Entry, LeafReport
from jaxnn.checking.measure import Checked, measure, measure_by
from jaxnn.checking.moves import scales_of
from jaxnn.checking.settings import Point

# How far each entry is moved, relative to its size.
BESIDE = 1e-3
# At how many points the gradient is computed to see what values it has around a corner.
AROUND = 64
# If so few of them come close to the largest or smallest value, there are others beyond it.
FEW = 3


def applies(checked: Checked) -> bool:
    """Whether a leaf has a corner, and no entry is known to be wrong that has none."""
    tied = _tied(checked)
    plainly = (leaf for leaf in checked.leaves if leaf.path not in tied)
    return bool(tied or any(map(_has_corner, checked.leaves))) and not any(
        map(_is_plainly_wrong, plainly)
    )


def ask(checked: Checked) -> tuple[list[Checked], list[list[Any]]]:
    """The same check at two points beside, and gradients around the point if an entry is outside
    the two slopes of its corner.
    """
    check, rng = checked.check, np.random.default_rng(0)
    here, data = check.point
    points = (Point([_beside(x, rng) for x in here], data) for _ in range(AROUND))
    first = next(points)
    opposite = Point([x - (y - x) for x, y in zip(here, first.leaves, strict=True)], data)
    known = functools.partial(measure_by, checked.programs)
    again = known if checked.is_automatic else measure
    beside = [
        again(check._replace(call=check.call.at(point.leaves, data[0]), point=point))
        for point in (first, opposite)
    ]
    outside = any(entry.verdict.wrong for leaf in checked.leaves for entry in leaf.entries)
    if not (outside and checked.claims.in_float64):
        return beside, []
    rest = [checked.programs.in_float64(point)[1] for point in points]
    return beside, [beside[0].claims.wide, *rest]


def say(checked: Checked, answer: tuple[list[Checked], list[list[Any]]]) -> Checked:
    """The results at a point beside, if they are wrong there and a leaf has a corner here; else the
    results here, with leaves that differ reported as kinks.
    """
    beside, around_it = answer
    if wrong := [one for one in beside if not all(map(_has_corner, _differing(one)))]:
        if not any(map(_has_corner, checked.leaves)):
            return checked
        evaluations = sum(one.evaluations for one in (checked, *beside))
        first = wrong[0]._replace(evaluations=evaluations)
        return first.with_note(
            "a nearby point was checked instead, because the function has kinks at this one"
        )
    leaves = []
    for k, leaf in enumerate(checked.leaves):
        around = [gradients[k] for gradients in around_it]
        if leaf.verdict is Verdict.DIFFERS and all(_is_possible(e, around) for e in leaf.entries):
            entries = tuple(entry._replace(verdict=Verdict.KINK) for entry in leaf.entries)
            leaf = leaf._replace(verdict=Verdict.UNRESOLVED, entries=entries, pattern="", hint="")
            if all(one.leaves[k].verdict.ok for one in beside):
                hint = "the gradient agrees with the values at nearby points without kinks"
                leaf = leaf._replace(verdict=Verdict.KINK, hint=hint)
        leaves.append(leaf)
    return checked.with_leaves(leaves)


def _differing(checked: Checked) -> list[LeafReport]:
    return [leaf for leaf in checked.leaves if leaf.verdict is Verdict.DIFFERS]


def _beside(x: Any, rng: np.random.Generator) -> Any:
    """A leaf with each entry moved up or down by about a thousandth of its size."""
    part = max(BESIDE, 4 * float(jnp.finfo(x.dtype).eps))
    moves = part * rng.uniform(0.5, 1, x.size) * rng.choice([-1, 1], x.size)
    return x + (moves * scales_of(x)).reshape(x.shape).astype(x.dtype)


def _is_corner(entry: Entry) -> bool:
    """Whether the slopes from the left and from the right differ at an entry."""
    apart = abs(entry.right - entry.left)
    return entry.verdict is Verdict.KINK or entry.bound < apart < math.inf


def _has_corner(leaf: LeafReport) -> bool:
    return leaf.verdict is Verdict.KINK or any(map(_is_corner, leaf.entries))


def _tied(checked: Checked) -> frozenset[str]:
    """The paths of the wrong leaves that may have a corner which entries moved alone do not show,
    such as the median of three equal numbers: custom rules do not explain what is wrong.
    """
    doubtful = checked.wrong - checked.by_reference
    return doubtful & checked.without_rules() if doubtful else doubtful


def _is_plainly_wrong(leaf: LeafReport) -> bool:
    """Whether an entry is wrong that is not at a corner."""
    return any(entry.verdict.wrong and not _is_corner(entry) for entry in leaf.entries)


def _is_possible(entry: Entry, around: list[Any]) -> bool:
    """Whether a claim is between the slopes of its corner, or among its values around the point:
    where equal entries are sorted, an entry moved alone does not show all of them.
    """
    if not entry.verdict.wrong or not around or isinstance(entry.autodiff, complex):
        return True
    nearby = np.sort([gradient[entry.index] for gradient in around])
    slack = entry.bound + BESIDE * np.max(np.abs(nearby))
    # An extreme that few points come close to is not the last, as with eigenvalues that are equal.
    beyond = (nearby[-1] - nearby[0]) / 2
    below = beyond if nearby[FEW] - nearby[0] > slack else 0.0
    above = beyond if nearby[-1] - nearby[-1 - FEW] > slack else 0.0
    return bool(nearby[0] - slack - below <= entry.autodiff <= nearby[-1] + slack + above)
