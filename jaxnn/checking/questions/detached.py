"""Is a wrong gradient correct if operands of `stop_gradient` are treated as constant?"""

from jaxnn.checking.evidence import Verdict, relative_error
from jaxnn.checking.held import stops
from jaxnn.checking.measure import Checked, measured_again

# Two gradients in float64 whose relative difference is below this are the same, but for solvers.
SAME = 1e-3


def applies(checked: Checked) -> bool:
    """Whether a leaf differs that `stop_gradient`, which is used but not held yet, could explain:
    its gradient is the one that JAX gives without custom rules.
    """
    settings = checked.check.settings
    first = checked.is_automatic and settings.order == 1 and not settings.held
    if not (first and checked.wrong and stops(checked.programs.program)):
        return False
    stopped = checked.programs.stopped_reference(checked.check.point)
    if stopped is None:
        return True
    triples = zip(checked.paths, checked.claims.wide, stopped, strict=True)
    return any(path in checked.wrong and relative_error(a, b) <= SAME for path, a, b in triples)


def ask(checked: Checked) -> Checked:
    """The same check, with the operands of `stop_gradient` held at the point."""
    return measured_again(checked, held=True)


def say(checked: Checked, held: Checked) -> Checked:
    """The results, with leaves that are correct in the second check reported as detached."""
    pairs = zip(checked.leaves, held.leaves, strict=True)
    right = {a.path: b.digits for a, b in pairs if a.verdict is Verdict.DIFFERS and b.verdict.ok}
    places = ", ".join(stops(checked.programs.program))
    hint = (
        "with the operands of `stop_gradient` treated as constant, values and gradient agree to "
        f"{min(right.values(), default=0):.1f} digits ({places}); "
        'if `stop_gradient` is intended, set `stop_gradient="held"`'
    )
    return checked.with_leaves(
        [
            leaf._replace(verdict=Verdict.DETACHED, hint=hint) if leaf.path in right else leaf
            for leaf in checked.leaves
        ]
    )
