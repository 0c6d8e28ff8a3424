"""Is a wrong gradient correct to an inner solver's tolerance?

Implicit differentiation gives the gradient of the exact solution, but the values come from an
approximate one. If the two disagree, the function is measured again with its solvers run further.
"""

from typing import Any

import numpy as np
from jax.extend.core import primitives

from jaxnn.checking.evidence import Verdict, norm
from jaxnn.checking.findings import LeafReport
from jaxnn.checking.further import has_solver
from jaxnn.checking.measure import Checked, measured_again
from jaxnn.checking.patterns import SYMMETRIC
from jaxnn.checking.slope import RATIO
from jaxnn.numerical.interpret import (
    LOOPS,
    Equation,
    called,
    equations,
    equations_inside,
    has_custom_rule,
)

# If running the solver further changes a leaf's gradient by more than this fraction, it is the
# gradient of the steps taken, not of the solution; and if the gradient is off by more, it is not
# correct to a tolerance.
STEADY = 0.1
# A solver that ran further explains an error if the digits that it gained are as many, and what is
# left is below this fraction.
GAINED, STILL_OFF = 0.5, 0.01
# A claim is the slope over coarse steps, rather than over fine ones, if it is that much closer.
MUCH_CLOSER = 0.25


def applies(checked: Checked) -> bool:
    """Whether a leaf differs, and the function may contain a solver."""
    if not checked.wrong or (program := checked.programs.program) is None:
        return False
    return has_solver(program) and not any(map(is_sampler, equations(program)))


def ask(checked: Checked) -> Checked:
    """The same check, with solvers that run further."""
    return measured_again(checked, further=True)


def say(checked: Checked, further: Checked) -> Checked:
    """The results, with leaves that are correct once the solver runs further reported as correct
    to its tolerance.
    """
    gradients = checked.claims.wide, further.claims.wide
    both = zip(checked.leaves, further.leaves, *gradients, strict=True)
    leaves = [_within_tolerance(*of_leaf) for of_leaf in both]
    pairs = zip(leaves, checked.leaves, strict=True)
    before = {leaf.path: leaf for new, leaf in pairs if new is not leaf}
    return checked.with_leaves(leaves)._replace(before=before)


def _within_tolerance(
    leaf: LeafReport, further: LeafReport, gradient: Any, gradient_further: Any
) -> LeafReport:
    """The report on a leaf, after the solver inside was run further."""
    closer = further.digits > max(leaf.digits + GAINED, -np.log10(STILL_OFF))
    if leaf.verdict is not Verdict.DIFFERS or not (further.verdict.ok or closer):
        return leaf
    gradient, gradient_further = (
        np.asarray(g, np.float64).ravel() for g in (gradient, gradient_further)
    )
    moved = norm(gradient - gradient_further)
    if not moved <= STEADY * norm(gradient_further):
        hint = (
            "if the inner solver iterates longer, values and gradient agree to "
            f"{further.digits:.1f} digits; tighten its tolerance in the check"
        )
        return leaf._replace(hint=hint)
    if not further.verdict.ok or _error(leaf) > STEADY:
        some = further.digits >= 0.1
        how = f"to {further.digits:.1f} digits" if some else f"to within {further.bound:.1e}"
        hint = (
            f"if the inner solver iterates longer, values and gradient agree {how}: its tolerance "
            "may explain the difference"
        )
        hint = leaf.hint if leaf.hint == SYMMETRIC else hint
        return leaf._replace(verdict=Verdict.UNRESOLVED, hint=hint)
    hint = (
        "correct to the inner solver's tolerance; with more iterations, to "
        f"{further.digits:.1f} digits"
    )
    return further._replace(hint=hint, own_dtype_digits=leaf.own_dtype_digits)


def _error(leaf: LeafReport) -> float:
    """The error of a leaf's slope, or of an entry beside the largest one, if that is larger."""
    most = max((abs(e.numerical) for e in leaf.entries), default=0.0)
    off = max((abs(e.autodiff - e.numerical) for e in leaf.entries), default=0.0)
    return max(10**-leaf.digits, off / most if most else 0.0)


def only_fine_steps_differ(claim: float, slope: float, quotients: Any) -> bool:
    """Whether a claim agrees with the slope over the coarsest steps, which move a solution by more
    than a solver's tolerance, much better than with the slope over the finest ones; or is among the
    slopes over the coarsest steps, if these are too rough to have a limit.
    """
    first, second, third = map(float, quotients[:3])  # infinite outside of the function's domain
    is_rough = abs(third - second) > abs(second - first)  # a smooth function's differ ever less
    if is_rough and min(first, second, third) <= claim <= max(first, second, third):
        return True
    over_coarse = second + (second - first) / (RATIO**2 - 1)
    off = abs(claim - over_coarse) + abs(over_coarse - second)
    return bool(off <= MUCH_CLOSER * abs(claim - slope))


def is_iterative(eqn: Equation) -> bool:
    """Whether a call has a custom rule and a loop, perhaps of a solver, which is correct only to a
    tolerance.
    """
    return has_custom_rule(eqn) and any(
        inner.primitive is primitives.while_p for inner in equations(called(eqn))
    )


def is_sampler(eqn: Equation) -> bool:
    """Whether a call draws from a distribution by rejection, with a gradient of its own, as
    `jax.random.gamma` does: a loop inside draws random numbers.
    """
    if eqn.primitive is primitives.random_gamma_p:
        return True
    return has_custom_rule(eqn) and any(
        inner.primitive is primitives.random_bits_p
        for loop in equations(called(eqn))
        if loop.primitive in LOOPS
        for inner in equations_inside(loop)
    )
