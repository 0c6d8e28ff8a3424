"""Does the function vary on scales finer than the steps, so that a gradient may be right after all?

If no rule is wrong and the gradient equals the reference, numerical slopes that exclude it missed
structure finer than the steps. Such structure shows as noise far above rounding error.
"""

import numpy as np

from jaxnn.checking.evidence import BLIND, ROUNDINGS_BETWEEN_CALLS, Verdict, explained
from jaxnn.checking.findings import LeafReport
from jaxnn.checking.measure import Checked


def applies(checked: Checked) -> bool:
    """Whether a leaf differs, no rule is wrong, and the values are noisier than rounding."""
    noisy = any(_is_noisy(leaf, checked.centre) for leaf in checked.leaves)
    return checked.is_automatic and noisy and not checked.rules


def ask(checked: Checked) -> dict[str, float]:
    """How far each leaf's gradient is from that of the values, if they can be differentiated."""
    return checked.changes_without_rules()


def say(checked: Checked, off: dict[str, float]) -> Checked:
    """The results, with noisy leaves "unresolved" if their gradient is that of the values."""
    if not off:
        return checked
    hint = (
        "no derivative rule is wrong, but the values vary by more than rounding error between the "
        "finest steps: the function may have structure that no step resolves"
    )
    is_right = lambda leaf: off[leaf.path] <= explained(leaf.dtype)  # noqa: E731
    return checked.excusing(lambda leaf: _is_noisy(leaf, checked.centre) and is_right(leaf), hint)


def _is_noisy(leaf: LeafReport, centre: float) -> bool:
    """Whether the values exclude a leaf's gradient, but their noise is far above rounding error,
    and less than ten times the change that this gradient predicts at the finest step.
    """
    if leaf.verdict is not Verdict.DIFFERS or not leaf.is_off:
        return False  # a leaf without entries has no steps
    # Where the value is 0, what cancels in it is at least as large as the error over a coarse step.
    size = max(abs(centre), abs(leaf.autodiff - leaf.numerical) * leaf.steps[0])
    rounding = ROUNDINGS_BETWEEN_CALLS * float(np.finfo(np.float64).eps) * size
    claims = [entry.autodiff for entry in leaf.entries if entry.verdict.wrong] or [leaf.autodiff]
    shows = all(abs(claim) * leaf.steps[-1] > BLIND * leaf.noise for claim in claims)
    return leaf.noise > rounding and shows
