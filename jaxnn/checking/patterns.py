"""Describes what a leaf's wrong entries have in common, and the likely cause; sets no verdicts."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.checking.evidence import NOTHING, Evidence, Verdict, judge
from jaxnn.checking.findings import IN_TRUST, Entry
from jaxnn.checking.locate import Located
from jaxnn.checking.slope import Slope

# Ratios that differ by less than this are equal up to the errors of entries; it is small enough to
# distinguish 32 examples from 33.
ALIKE = 1e-3
# They must also differ by less than this part of their distance from 1.
PART = 0.1
# The hint on a leaf whose gradient is right because it is zero.
NO_EFFECT = "the checked function does not depend on this leaf at this point"
# A hint at what a solver for symmetric matrices does.
SYMMETRIC = (
    "autodiff is correct for symmetric perturbations: if `f` assumes a symmetric matrix, check "
    "`lambda a: f((a + a.T) / 2)`"
)


class Wrong(NamedTuple):
    """The wrong entries of one leaf.

    Attributes:
      index: multi-indices, one row per entry, one column per axis.
      autodiff: the entries of the gradient that is checked.
      numerical: the derivatives from values.
      bounds: bounds on the error of `numerical`.
      claims: the leaf's whole gradient.
      counts: possible numbers of examples in the function's data.
      complete: whether these are all wrong entries.
    """

    index: np.ndarray
    autodiff: np.ndarray
    numerical: np.ndarray
    bounds: np.ndarray
    claims: np.ndarray
    counts: frozenset[int]
    complete: bool

    @classmethod
    def of(cls, located: Located, claims: np.ndarray, counts: frozenset[int]) -> "Wrong":
        """All wrong entries if the reference gives them, else those checked one by one."""
        if located.wrong is not None and located.reference is not None:
            which = located.wrong
            index = _unravelled(which, claims.shape)
            pair = claims.ravel()[which], located.reference[which]
            return cls(index, *pair, np.zeros(len(which)), claims, counts, located.complete)
        wrong = [entry for entry in located.entries if entry.verdict.wrong]
        index = np.array([entry.index for entry in wrong], int).reshape(len(wrong), claims.ndim)
        autodiff, numerical, bounds = (
            np.array([getattr(entry, name) for entry in wrong], np.float64)
            for name in ("autodiff", "numerical", "bound")
        )
        return cls(index, autodiff, numerical, bounds, claims, counts, located.explained)

    @property
    def ratio(self) -> float | None:
        """autodiff / numerical, if it is the same for all entries; else None."""
        finite, zero = np.isfinite(self.autodiff), self.numerical == 0
        ratios = self.autodiff[finite & ~zero] / self.numerical[finite & ~zero]
        if not len(ratios) or np.any(finite & zero & (self.autodiff != 0)):
            return None
        ratio = float(np.median(ratios))
        if np.ptp(ratios) > min(ALIKE * np.max(np.abs(ratios)), PART * abs(ratio - 1)):
            return None
        return ratio

    @property
    def everywhere(self) -> bool:
        """Whether every entry of the leaf is wrong."""
        return len(self.index) == self.claims.size > 1


def describe(
    located: Located, claims: Any, counts: frozenset[int], paired: bool = False
) -> tuple[str, str]:
    """The pattern of a leaf's wrong entries, and the likely cause.

    Args:
      located: the evidence on the leaf.
      claims: the leaf's gradient.
      counts: possible numbers of examples in the function's data.
      paired: whether the last axis holds real and imaginary parts.
    """
    if not located.any_wrong:
        return "", ""  # a sharded gradient stays on its devices
    found = Wrong.of(located, claims := np.asarray(claims, np.float64), counts)
    missing = _unravelled(np.flatnonzero(~np.isfinite(claims)), claims.shape)
    if len(missing) > 1:
        return _of_missing(found._replace(index=missing), paired), _cause(found)
    if not len(found.index):
        return "", ""
    pattern = "; ".join(_patterns(found, paired))
    if paired and _alike(found.ratio, -1) and found.index[:, -1].all():
        return pattern, "autodiff is the complex conjugate of the derivative"
    return pattern, _cause(found)


def _unravelled(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flat positions as indices, one row each."""
    if not shape:  # a scalar has one entry, without an index
        return np.zeros((len(flat), 0), int)
    return np.stack(np.unravel_index(flat, shape), axis=-1)


def _of_missing(found: Wrong, paired: bool) -> str:
    """The pattern of all non-finite entries, including those that were not checked separately."""
    count, size = len(found.index), found.claims.size
    axes = _common_index(found, paired) if count < size else []
    return "; ".join([f"{count:,} of {size:,} entries are not finite", *axes])


def _patterns(found: Wrong, paired: bool) -> list[str]:
    patterns = []
    count, size = len(found.index), found.claims.size
    numbers = len(np.unique(found.index[:, :-1], axis=0)) if paired else count
    if found.everywhere:
        patterns.append(f"all {size // (1 + paired):,} entries")
    elif numbers > 1 or not found.complete:
        at_least = "" if found.complete else "at least "
        patterns.append(f"{at_least}{numbers:,} of {size // (1 + paired):,} entries")
        patterns += _common_index(found, paired)
    if paired and np.ptp(found.index[:, -1]) == 0:
        patterns.append(f"only the {('real', 'imaginary')[found.index[0, -1]]} parts")
    told = np.all(np.isfinite(found.autodiff)) and np.any(found.autodiff != 0)
    if found.ratio is not None and count > 1 and told:
        where = "throughout" if found.everywhere else "at each of them"
        patterns.append(_off_by(found.ratio, where))
    return patterns


def _common_index(found: Wrong, paired: bool) -> list[str]:
    """The axes along which all wrong entries have the same index, in words."""
    if len(found.index) < 3:
        return []
    return [
        f"all have index {found.index[0, axis]} on axis {axis}"
        for axis, length in enumerate(found.claims.shape[: found.claims.ndim - paired])
        if length > 1 and np.ptp(found.index[:, axis]) == 0
    ]


def _off_by(ratio: float, where: str) -> str:
    """The common ratio of the entries, with enough digits to distinguish it from 1."""
    text = f"{ratio:.6g}"
    return f"autodiff / numerical = {text if text != '1' else f'1 {ratio - 1:+.1e}'} {where}"


def beyond_the_domain(entries: Sequence[Entry], slope: Slope, centre: float) -> str:
    """A hint if the values near the point give no evidence, else ""."""
    wrong = [entry for entry in entries if entry.verdict.wrong]
    if any(entry.verdict is Verdict.NOT_FINITE for entry in wrong):
        # A numerical derivative compared with itself is unresolved if its bound is too large.
        blind = all(
            judge(
                Evidence(e.numerical, e.left, e.right, e.bound),
                1.0,
                counts=max(abs(e.numerical), NOTHING * abs(centre)),
            )
            > Verdict.KINK
            for e in wrong
        )
    else:
        blind = not wrong and not math.isfinite(slope.bound)
        if blind and np.all(np.isfinite(slope.differences)):
            return "the function varies even within the shortest step, so no step shows its slope"
    return "the function or its slope is not finite near this point" if blind else ""


def not_counted(located: Located, claims: Any, paired: bool) -> str:
    """A hint if an entry is off by more than half of its digits, but by less than the rounding
    error of the largest entry, else "".
    """
    worst, shape = located.undecided, np.shape(claims)
    if worst is None or located.reference is None:
        return ""
    index = [int(i) for i in np.unravel_index(worst, shape)[: len(shape) - paired]]
    claim, right = float(np.ravel(claims)[worst]), float(located.reference[worst])
    return (
        f"at {index} autodiff has {claim:.3g} and the derivative of the values is {right:.3g}; "
        "beside the leaf's largest entry, this counts as rounding error"
    )


def nothing_there(slope: Slope, scale: float, claims: Any) -> str:
    """A hint if a gradient agrees only because it is zero or negligible, else ""."""
    if slope.constant and not np.any(claims):
        return NO_EFFECT
    if not math.isfinite(slope.bound):
        return "the gradient is zero up to rounding error"
    if slope.bound > scale:
        return (
            f"the gradient's slope is below {slope.bound:.1e}, the smallest slope detectable next "
            "to the function's values"
        )
    return ""


def _cause(wrong: Wrong) -> str:
    """The likely cause of wrong entries: the first that fits, else ""."""
    if not len(wrong.index):
        return ""
    if np.all(wrong.autodiff == 0):
        return (
            "autodiff is 0: the path is cut (stop_gradient, rounding, an integer cast, a branch "
            "that is constant here) or missing from a custom rule"
        )
    if np.all(wrong.numerical == 0) and np.all(np.isfinite(wrong.autodiff)):
        return (
            "the values have the slope 0 here; if a rule deliberately differs from the values, "
            + IN_TRUST.format("its function")
        )
    of_ratio = {
        -1.0: "the sign is wrong",
        2.0: "an extra factor of 2",
        0.5: "a factor of 2 is missing",
    }
    for n in sorted(wrong.counts - {0, 1, 2}):
        by = f"by a factor of {n}, the number of examples"
        of_ratio[n] = f"too large {by}: a sum where the function takes a mean"
        of_ratio[1 / n] = f"too small {by}: a mean where the function takes a sum"
    fitting = (text for ratio, text in of_ratio.items() if _alike(wrong.ratio, ratio))
    return next(fitting, _transposed(wrong) or _symmetric(wrong))


def _is_square(wrong: Wrong) -> bool:
    shape = wrong.claims.shape
    return len(shape) == 2 and shape[0] == shape[1]


def _symmetric(wrong: Wrong) -> str:
    if not _is_square(wrong):
        return ""
    errors = wrong.autodiff - wrong.numerical
    at = dict(zip(map(tuple, wrong.index.tolist()), errors.tolist(), strict=True))
    pairs = [(error, at[j, i]) for (i, j), error in at.items() if i != j and (j, i) in at]
    if pairs and all(math.isclose(here, -there, rel_tol=ALIKE) for here, there in pairs):
        return SYMMETRIC
    return ""


def _transposed(wrong: Wrong) -> str:
    if not _is_square(wrong) or len(wrong.index) < 3:
        return ""
    off = wrong.index[:, 0] != wrong.index[:, 1]
    mirrored = wrong.claims[wrong.index[:, 1], wrong.index[:, 0]]
    slack = ALIKE * np.abs(wrong.numerical) + wrong.bounds
    if off.any() and np.all((np.abs(mirrored - wrong.numerical) <= slack)[off]):
        return "transposed: autodiff's entry (j, i) is correct for (i, j)"
    return ""


def _alike(ratio: float | None, value: float | int) -> bool:
    return ratio is not None and math.isclose(ratio, value, rel_tol=ALIKE)
