"""Is a wrong gradient that of the function with what `stop_gradient` stops held at the point?"""

from jaxnn.checking.evidence import Verdict
from jaxnn.checking.held import stops
from jaxnn.checking.measure import Checked, measure


def applies(checked: Checked) -> bool:
    """Whether `stop_gradient` is used but not held yet, and a leaf differs that it could explain.

    It explains nothing where the values support the gradient without custom rules: that gradient
    stops in the same places.
    """
    settings = checked.check.settings
    first = checked.is_automatic and settings.order == 1 and not settings.held
    doubtful = checked.wrong - checked.by_reference
    return first and bool(doubtful) and bool(stops(checked.programs.program))


def ask(checked: Checked) -> Checked:
    """The same check, with the operands of `stop_gradient` held at the point."""
    return measure(checked.check.with_settings(held=True))


def say(checked: Checked, held: Checked) -> Checked:
    """The results, with leaves that are correct in the second check reported as detached."""
    again = {leaf.path: leaf for leaf in held.leaves}
    places = ", ".join(stops(checked.programs.program))
    leaves = []
    for leaf in checked.leaves:
        if leaf.verdict is Verdict.DIFFERS and again[leaf.path].verdict.ok:
            hint = (
                "with the operands of `stop_gradient` treated as constant, values and gradient "
                f"agree to {again[leaf.path].digits:.1f} digits ({places})"
            )
            leaf = leaf._replace(verdict=Verdict.DETACHED, hint=hint)
        leaves.append(leaf)
    return checked.with_leaves(leaves)
