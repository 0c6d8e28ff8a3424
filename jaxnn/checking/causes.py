"""What wrong entries have in common, what makes numbers infinite, and the causes that suggests:
words, no verdicts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxnn.checking.evidence import NOTHING, Evidence, Verdict, judge
from jaxnn.checking.findings import Entry
from jaxnn.checking.slope import Slope
from jaxnn.numerical.interpret import Equation

# How close two numbers are that are the same but for the entries' own errors: 1 % wrong is seen as
# 1 %, and 32 examples are told from 33.
ALIKE = 1e-3


class Wrong(NamedTuple):
    """The wrong entries of one leaf.

    Attributes:
      index: one row an entry, one column an axis.
      autodiff: what the gradient says, and
      numerical: what the values say.
      bounds: on the error of the latter.
      claims: the whole gradient.
      counts: how many examples the function's data have.
      ratio: autodiff / numerical, if it is the same for all.
    """

    index: np.ndarray
    autodiff: np.ndarray
    numerical: np.ndarray
    bounds: np.ndarray
    claims: np.ndarray
    counts: frozenset[int]
    ratio: float | None


def describe(
    entries: Sequence[Entry],
    claims: Any,
    counts: frozenset[int],
    sampled: bool,
    ratio: float | None = None,
    paired: bool = False,
) -> tuple[str, str]:
    """The pattern of a leaf's wrong entries, and the likely cause.

    Args:
      entries: judged entries of the leaf, right ones too.
      claims: its gradient, as claimed.
      counts: numbers of examples that the function's data have.
      sampled: whether a sample stands for more wrong entries than these.
      ratio: autodiff / numerical of the whole leaf, if it is known without its entries.
      paired: whether the last axis is that of real and imaginary parts.
    """
    wrong = [entry for entry in entries if entry.verdict.wrong]
    if not wrong:
        if ratio is None:
            return "", ""
        claims, none = np.asarray(claims, np.float64), np.zeros(0)
        index = np.zeros((0, claims.ndim), int)
        whole = Wrong(index, none, none, none, claims, counts, ratio)
        causes = (cause(whole) for cause in CAUSES[1:])
        return _off_by(ratio, "throughout"), next(filter(None, causes), "")
    claims = np.asarray(claims, np.float64)
    found = Wrong(
        index=np.array([entry.index for entry in wrong]).reshape(len(wrong), claims.ndim),
        autodiff=np.array([entry.autodiff for entry in wrong]),
        numerical=np.array([entry.numerical for entry in wrong]),
        bounds=np.array([entry.bound for entry in wrong]),
        claims=claims,
        counts=counts,
        ratio=_ratio(wrong),
    )
    everywhere = len(wrong) == len(entries) and (sampled or len(wrong) == claims.size)
    count = [_how_many(len(wrong), len(entries), claims.size)] if sampled and not everywhere else []
    pattern = "; ".join([*count, *_patterns(found, everywhere, paired)])
    if paired and found.ratio is not None and _alike(found.ratio, -1) and found.index[:, -1].all():
        return pattern, "the complex conjugate"
    hint = next(filter(None, (cause(found) for cause in CAUSES)), "")
    missing = np.argwhere(~np.isfinite(claims))
    if len(missing) > len(wrong):
        return _of_missing(found._replace(index=missing, ratio=None), paired), hint
    return pattern, hint


def _how_many(wrong: int, looked_at: int, size: int) -> str:
    """How many entries are wrong, where that is not all of them."""
    if looked_at == size:
        return f"{wrong} of {size} entries"
    return f"{wrong} of the {looked_at} entries that were looked at, of {size}"


def _of_missing(found: Wrong, paired: bool) -> str:
    """The pattern of entries that are not finite: all are known, though few were looked at."""
    count, size = len(found.index), found.claims.size
    patterns = _patterns(found, False, paired) if count < size else []
    return "; ".join([f"{count} of {size} entries are not finite", *patterns])


def beyond_the_domain(entries: Sequence[Entry], slope: Slope, centre: float) -> str:
    """A hint where there is no evidence because there are no values to take it from, else ""."""
    wrong = [entry for entry in entries if entry.verdict.wrong]
    if any(entry.verdict is Verdict.NOT_FINITE for entry in wrong):
        # Held against itself, what the values say is unresolved if it says too little.
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
            return "the function varies within the shortest steps, so that none shows its slope"
    return "the function itself, or its slope, is not finite near this point" if blind else ""


def nothing_there(slope: Slope, scale: float, claims: Any) -> str:
    """A hint where a gradient agrees because there is none, else ""."""
    if slope.constant and not np.any(claims):
        return "the function does not depend on this leaf here"
    if slope.bound > scale:
        return (
            "a slope of nothing beside the function's values: less than "
            f"{slope.bound:.1e} is claimed, and less than that could not have been seen"
        )
    return ""


def _ratio(wrong: Sequence[Entry]) -> float | None:
    autodiff, numerical = (
        np.array([getattr(e, name) for e in wrong]) for name in Entry._fields[1:3]
    )
    usable = np.isfinite(autodiff) & (numerical != 0)
    ratios = autodiff[usable] / numerical[usable]
    if not len(ratios) or np.ptp(ratios) > ALIKE * np.max(np.abs(ratios)):
        return None
    return float(np.median(ratios))


def _patterns(wrong: Wrong, everywhere: bool, paired: bool) -> list[str]:
    patterns = []
    count = len(wrong.index)
    if everywhere and count > 1:
        size = wrong.claims.size
        patterns.append(
            f"all {size} entries"
            if count == size
            else f"all {count} entries that were looked at, of {size}"
        )
    elif count > 2:
        patterns += [
            f"all have index {wrong.index[0, axis]} on axis {axis}"
            for axis, length in enumerate(wrong.claims.shape[: wrong.claims.ndim - paired])
            if length > 1 and np.ptp(wrong.index[:, axis]) == 0
        ]
    if paired and np.ptp(wrong.index[:, -1]) == 0:
        patterns.append(f"{('real', 'imaginary')[wrong.index[0, -1]]} parts alone")
    if wrong.ratio is not None and len(wrong.index) > 1 and np.any(wrong.autodiff != 0):
        patterns.append(_off_by(wrong.ratio, "throughout" if everywhere else "at each of them"))
    return patterns


def _off_by(ratio: float, where: str) -> str:
    """A ratio that all these entries have, in digits that tell it from 1."""
    text = f"{ratio:.6g}"
    return f"autodiff / numerical = {text if text != '1' else f'1 {ratio - 1:+.1e}'} {where}"


def _detached(wrong: Wrong) -> str | None:
    if np.all(wrong.autodiff == 0):
        return (
            "autodiff is 0: detached (stop_gradient, a rounded or integer step), or left out of a "
            "custom rule"
        )
    return None


def _factor(wrong: Wrong) -> str | None:
    words = {-1.0: "the sign", 2.0: "a factor of 2 too many", 0.5: "a factor of 2 lost"}
    near = [text for value, text in words.items() if _alike(wrong.ratio, value)]
    return near[0] if near else None


def _number_of_examples(wrong: Wrong) -> str | None:
    for count in sorted(wrong.counts - {1, 2}):
        if _alike(wrong.ratio, count):
            return (
                f"{count} times too large, a number of examples: a sum where the function takes a "
                "mean"
            )
        if _alike(wrong.ratio, 1 / count):
            return (
                f"{count} times too small, a number of examples: a mean where the function takes a "
                "sum"
            )
    return None


def _transposed(wrong: Wrong) -> str | None:
    shape = wrong.claims.shape
    if len(shape) != 2 or shape[0] != shape[1] or len(wrong.index) < 3:
        return None
    off = wrong.index[:, 0] != wrong.index[:, 1]
    mirrored = wrong.claims[wrong.index[:, 1], wrong.index[:, 0]]
    slack = ALIKE * np.abs(wrong.numerical) + wrong.bounds
    if off.any() and np.all((np.abs(mirrored - wrong.numerical) <= slack)[off]):
        return "autodiff's entry (j, i) is right for (i, j): transposed"
    return None


# In the order in which they are thought of; the first that fits speaks.
CAUSES: tuple[Callable[[Wrong], str | None], ...] = (
    _detached,
    _factor,
    _number_of_examples,
    _transposed,
)


def _alike(ratio: float | None, value: float | int) -> bool:
    return ratio is not None and math.isclose(ratio, value, rel_tol=ALIKE)


# What usually makes a primitive's value, or its slope, infinite or NaN; and what helps.
_SAFE = "choose a safe argument before it"
_EIGENVALUES = "lift what is equal: add a small diagonal of different numbers to the matrix"
NOT_FINITE: dict[str, tuple[str, str, str]] = {
    # primitive: its value, its slope, the cure
    "sqrt": (
        "the root of a negative number",
        "its slope at 0 is infinite",
        f"{_SAFE}, as in `jnp.sqrt(jnp.where(x > 0, x, 1))`",
    ),
    "rsqrt": (
        "one over the root of 0, or of a negative number",
        "its slope at 0 is infinite",
        f"{_SAFE}, as in `lax.rsqrt(jnp.where(x > 0, x, 1))`",
    ),
    "cbrt": (
        "",
        "its slope at 0 is infinite",
        f"{_SAFE}, as in `jnp.cbrt(jnp.where(x != 0, x, 1))`",
    ),
    "log": (
        "the logarithm of 0, or of a negative number",
        "its slope at 0 is infinite",
        "for probabilities take `jax.nn.log_softmax` of the scores; else "
        + f"{_SAFE}, as in `jnp.log(jnp.where(x > 0, x, 1))`",
    ),
    "log1p": (
        "the logarithm of 0, or of a negative number",
        "its slope at -1 is infinite",
        f"{_SAFE}, as in `jnp.log1p(jnp.where(x > -1, x, 0))`",
    ),
    "div": (
        "a division by 0",
        "its slope is infinite where it divides by 0",
        f"{_SAFE}, as in `a / jnp.where(b != 0, b, 1)`",
    ),
    "pow": (
        "a power that is too large, of 0, or of a negative number",
        "its slope at 0 is infinite, for an exponent below 1",
        f"{_SAFE}, as in `jnp.where(x > 0, x, 1) ** k`",
    ),
    "integer_pow": (
        "a negative power of 0",
        "its slope is infinite where a negative power of 0 is taken",
        f"{_SAFE}, as in `jnp.where(x != 0, x, 1) ** k`",
    ),
    # `integer_pow` with a positive exponent.
    "power": ("it overflows", "it overflows", "scale what is taken to a power"),
    "square": ("it overflows", "it overflows", "scale what is squared"),
    "exp": (
        "it overflows",
        "it overflows",
        "subtract the largest first, or use `jnp.logaddexp`, `jax.nn.logsumexp`, `jax.nn.softmax`",
    ),
    "eigh": (
        "",
        "eigenvectors have no derivative where eigenvalues are equal",
        _EIGENVALUES,
    ),
    "eig": ("", "eigenvectors have no derivative where eigenvalues are equal", _EIGENVALUES),
    "svd": (
        "",
        "singular vectors have no derivative where singular values are equal, or 0",
        _EIGENVALUES,
    ),
    "acos": (
        "outside of -1 to 1",
        "its slope at -1 and 1 is infinite",
        "keep the argument off them, or take the angle by `jnp.arctan2`",
    ),
    "asin": (
        "outside of -1 to 1",
        "its slope at -1 and 1 is infinite",
        "keep the argument off them, or take the angle by `jnp.arctan2`",
    ),
    "acosh": ("below 1", "its slope at 1 is infinite", "keep the argument above 1"),
    "atanh": (
        "at -1 or 1, or beyond",
        "its slope at -1 and 1 is infinite",
        "keep the argument between them",
    ),
    "atan2": ("", "it has no slope where both arguments are 0", "keep the two from both being 0"),
    "erf_inv": ("at -1 or 1, or beyond", "its slope at -1 and 1 is infinite", ""),
    "sub": (
        "infinity less infinity, or too large",
        "",
        "mask with a large finite number instead of `-jnp.inf`",
    ),
    "add": ("infinity less infinity, or too large", "", ""),
    "mul": ("0 times infinity, or too large", "", ""),
    "cholesky": (
        "the matrix is not positive definite",
        "the matrix is singular",
        "add a small multiple of the identity",
    ),
    "lu": ("the matrix is singular", "the matrix is singular", ""),
    "triangular_solve": (
        "the matrix is singular",
        "the matrix is singular",
        "add a small multiple of the identity",
    ),
    "lgamma": ("at 0, or a negative integer", "it has no slope at 0 and negative integers", ""),
    "digamma": ("at 0, or a negative integer", "it has no slope at 0 and negative integers", ""),
    "reduce_prod": ("it overflows", "", ""),
    "dot_general": ("it overflows, or infinity less infinity", "", ""),
    "reduce_sum": ("it overflows, or infinity less infinity", "", ""),
}
for _name in ("exp2", "expm1", "cosh", "sinh"):
    NOT_FINITE[_name] = NOT_FINITE["exp"]


def usual_cause(eqn: Equation, which: Literal["value", "slope"]) -> tuple[str, str]:
    """Why an equation's value, or its slope, is not finite, and what helps; empty if not known."""
    primitive = eqn.primitive.name
    if primitive == "integer_pow" and eqn.params["y"] > 0:
        primitive = "power"
    value, slope, cure = NOT_FINITE.get(primitive, ("", "", ""))
    return (value if which == "value" else slope), cure


def cure_unmasked(cure: str) -> str:
    """What helps where nothing chooses the value afterwards, which a safe argument changes."""
    return f"{cure},\nand the value after it by another `jnp.where`" if _SAFE in cure else cure
