"""What a check finds of a leaf, an entry, and a custom rule: plain data, as reports hold them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnn.checking.evidence import Evidence, Verdict


class Entry(NamedTuple):
    """One entry of a leaf, differentiated by itself.

    Attributes:
      index: multi-index in the leaf.
      autodiff: the entry of the gradient that is checked.
      numerical: the derivative from values; at a kink the mean of both sides; of an entry that is
        wrong in the leaf's own dtype alone, the gradient in float64, which the values vouch for.
      bound: on the error of `numerical`.
      verdict: "agrees", "kink", "differs", "not finite", or "unresolved" where nothing is known.
      left: the slope from the left, and
      right: from the right; both equal `numerical` unless there is a kink.
    """

    index: tuple[int, ...]
    autodiff: float
    numerical: float
    bound: float
    verdict: Verdict
    left: float
    right: float

    @classmethod
    def of(cls, flat: int, shape: Sequence[int], evidence: Evidence, verdict: Verdict) -> "Entry":
        """An entry by its flat index, the evidence on it, and what that was judged to be."""
        claim, left, right, bound = evidence
        index = tuple(map(int, np.unravel_index(flat, shape)))
        return cls(index, claim, (left + right) / 2, bound, verdict, left, right)


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
