"""What a check finds of a leaf, an entry, and a custom rule: plain data, as reports hold them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.checking.evidence import Evidence, Verdict


class Entry(NamedTuple):
    """One entry of a leaf, differentiated by itself.

    Attributes:
      index: multi-index in the leaf. By an entry of a complex leaf the derivatives are complex.
      autodiff: the entry of the gradient that is checked.
      numerical: the derivative from values; at a kink the mean of both sides; of an entry that is
        wrong in the leaf's own dtype alone, the gradient in float64, which the values vouch for.
      bound: on the error of `numerical`.
      verdict: "agrees", "kink", "differs", "not finite", or "unresolved" where nothing is known.
      left: the slope from the left, and
      right: from the right; both equal `numerical` unless there is a kink.
    """

    index: tuple[int, ...]
    autodiff: Any  # a float, or a complex number
    numerical: Any
    bound: float
    verdict: Verdict
    left: Any
    right: Any

    @classmethod
    def of(cls, flat: int, shape: Sequence[int], evidence: Evidence, verdict: Verdict) -> "Entry":
        """An entry by its flat index, the evidence on it, and what that was judged to be."""
        claim, left, right, bound = evidence
        index = tuple(map(int, np.unravel_index(flat, shape)))
        return cls(index, claim, (left + right) / 2, bound, verdict, left, right)

    @classmethod
    def joined(cls, entries: Sequence["Entry"]) -> tuple["Entry", ...]:
        """Entries of complex numbers, out of those of their real form: df/dx - i df/dy.

        Where only one part is among them, nothing is said of the other, which is 0 here.
        """
        parts: dict[tuple[int, ...], dict[int, Entry]] = {}
        for entry in entries:
            parts.setdefault(entry.index[:-1], {})[entry.index[-1]] = entry
        return tuple(cls._complex(index, *map(pair.get, (0, 1))) for index, pair in parts.items())

    @classmethod
    def _complex(
        cls, index: tuple[int, ...], real: "Entry | None", imaginary: "Entry | None"
    ) -> "Entry":
        both = [part for part in (real, imaginary) if part is not None]

        def number(name):
            x, y = (getattr(part, name) if part else 0.0 for part in (real, imaginary))
            return complex(x, -y)

        return cls(
            index=index,
            autodiff=number("autodiff"),
            numerical=number("numerical"),
            bound=float(np.linalg.norm([part.bound for part in both])),
            verdict=max(part.verdict for part in both),
            left=number("left"),
            right=number("right"),
        )


class LeafReport(NamedTuple):
    """The evidence on one leaf.

    Slopes are along a random direction through all of its entries, each moved by its own scale.

    Attributes:
      path: of the leaf in the argument tuple.
      shape: of the leaf.
      dtype: of the leaf.
      verdict: "agrees", "kink", "unresolved", "differs" or "not finite".
      autodiff: the slope that the gradient claims.
      numerical: the slope that the function's values show.
      bound: on the error of `numerical`.
      step: the step along the direction that it comes from.
      noise: of the function's values, as measured.
      digits: to which claim and values agree, as far as the evidence carries.
      own_dtype_digits: to which the gradient computed in the leaf's own dtype agrees with the one
        in float64.
      entries: the entries that were singled out, worst first.
      pattern: what the wrong entries have in common.
      hint: the likely cause.
      steps: the ladder of steps, and
      differences: the central difference at each of them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    autodiff: float
    numerical: float
    bound: float
    step: float
    noise: float
    digits: float
    own_dtype_digits: float
    entries: tuple[Entry, ...]
    pattern: str
    hint: str
    steps: tuple[float, ...]
    differences: tuple[float, ...]


class RuleReport(NamedTuple):
    """One custom derivative rule, checked on the inputs that it is called with.

    Attributes:
      name: of the function that carries the rule.
      where: file and line.
      kind: "custom_jvp" or "custom_vjp".
      verdict: "agrees", "differs", "not finite", or "unresolved" where the function cannot be
        differentiated without it.
      argument: the position of the argument whose derivative is wrong, or None.
      difference: relative difference to the derivative without the rule.
    """

    name: str
    where: str
    kind: str
    verdict: Verdict
    argument: int | None
    difference: float
