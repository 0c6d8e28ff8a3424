"""Is a wrong gradient correct if operands of `stop_gradient` are treated otherwise?

If they were not held at the point, the check is repeated with them held, and the other way round:
the rule of a solver may take the derivative from its operator, while a factorisation of the
operator, another argument, is stopped.
"""

from jaxnn.checking.evidence import Verdict, relative_error
from jaxnn.checking.held import stops
from jaxnn.checking.measure import Checked, measured_again
from jaxnn.numerical.interpret import equations, has_custom_rule

# Two gradients in float64 whose relative difference is below this are the same, but for solvers.
SAME = 1e-3


def applies(checked: Checked) -> bool:
    """Whether a leaf differs that `stop_gradient` could explain: by a custom rule if it is held;
    else its gradient is the one that JAX gives without custom rules.
    """
    settings = checked.check.settings
    first = checked.is_automatic and settings.order == 1
    if not (first and checked.wrong and stops(checked.programs.program)):
        return False
    if settings.held:
        return any(map(has_custom_rule, equations(checked.programs.program)))
    stopped = checked.programs.stopped_reference(checked.check.point)
    if stopped is None:
        return True
    triples = zip(checked.paths, checked.claims.wide, stopped, strict=True)
    return any(path in checked.wrong and relative_error(a, b) <= SAME for path, a, b in triples)


def ask(checked: Checked) -> Checked:
    """The same check, with the operands of `stop_gradient` held at the point; if they were, not."""
    return measured_again(checked, held=not checked.check.settings.held)


def say(checked: Checked, other: Checked) -> Checked:
    """The results, with leaves that are correct in the second check reported as detached, or as
    correct if nothing was held in it.
    """
    pairs = zip(checked.leaves, other.leaves, strict=True)
    right = {a.path: b for a, b in pairs if a.verdict is Verdict.DIFFERS and b.verdict.ok}
    places = ", ".join(stops(checked.programs.program))
    if checked.check.settings.held:
        hint = (
            f"a custom rule differentiates what `stop_gradient` stops, and the values confirm it "
            f"({places})"
        )
        found = {path: leaf._replace(hint=hint) for path, leaf in right.items()}
    else:
        hint = (
            "with the operands of `stop_gradient` treated as constant, values and gradient agree "
            f"to {min((leaf.digits for leaf in right.values()), default=0):.1f} digits ({places}); "
            'if `stop_gradient` is intended, set `stop_gradient="held"`'
        )
        found = {
            leaf.path: leaf._replace(verdict=Verdict.DETACHED, hint=hint)
            for leaf in checked.leaves
            if leaf.path in right
        }
    return checked.with_leaves([found.get(leaf.path, leaf) for leaf in checked.leaves])
